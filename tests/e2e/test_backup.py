"""Backups of a broker that works, and what becomes of them: restored, repeated, damaged."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from e2e.daemon import PATIENCE_S, SCRIPTS, Daemon, clean_env, until
from e2e.storage import OFTEN
from qprotocol import wire

pytestmark = pytest.mark.e2e

SMALL = {"segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(SCRIPTS / "qbroker"), *map(str, arguments)],
        capture_output=True,
        env=clean_env(),
        timeout=PATIENCE_S,
    )


def backed_up(broker: Daemon, folder: Path) -> dict[str, Any]:
    ran = run("backup", folder, "--data", broker.data, "--json")
    assert ran.returncode == 0, ran.stderr.decode()
    return json.loads(ran.stdout)


def restored(folder: Path, make_broker: Callable[..., Daemon], name: str = "again") -> Daemon:
    """A broker that runs on what was restored."""
    broker = make_broker(name, **SMALL)
    ran = run("restore", folder, broker.data)
    assert ran.returncode == 0, ran.stderr.decode()
    return broker.start()


def bodies(broker: Daemon, queue: str = "emails") -> list[bytes]:
    """All messages that wait in the queue."""
    consumer = broker.connect()
    there = consumer.queue(queue)["ready"]
    consumer.consume(queue, credit=10_000)
    return [consumer.receive().message.body for _ in range(there)]


class Load:
    """A publisher that goes on until it is told to end, and what was confirmed to it so far."""

    def __init__(self, broker: Daemon, role: str = "producer") -> None:
        self.confirmed: list[bytes] = []
        self._talker = broker.connect(role)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        while not self._over.is_set():
            body = b"%d." % len(self.confirmed) + bytes(2_000)
            self._talker.publish("emails", body)
            self.confirmed.append(body)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def test_all_that_was_confirmed_before_is_in_a_backup_under_load(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Three backups into one folder while messages are published: each is whole and in order."""
    broker = make_broker(**SMALL).start()
    load = Load(broker)
    folder = tmp_path / "backup"
    try:
        for least in (300, 900, 1_500):
            until(lambda least=least: len(load.confirmed) > least, "messages")
            before = len(load.confirmed)
            taken = backed_up(broker, folder)
    finally:
        load.end()
    # Only what is new is copied: not the 900 messages of the second again
    assert taken["copied_files"] < taken["files"]
    assert taken["copied_bytes"] < taken["bytes"] * 0.7
    again = restored(folder, make_broker)
    found = bodies(again)
    assert len(found) >= before
    assert found == [b"%d." % number + bytes(2_000) for number in range(len(found))]
    # It is a broker like any other
    again.connect("producer").publish("emails", b"new")
    assert broker.runs


class Churn(Load):
    """Goes on likewise; most of what it publishes is consumed at once, and can be cleaned away."""

    def _publish(self) -> None:
        self._talker.consume("work", credit=9)
        while not self._over.is_set():
            self._talker.publish("work", *[bytes(2_000)] * 9)
            body = b"%d." % len(self.confirmed) + bytes(2_000)
            self._talker.publish("emails", body)
            self.confirmed.append(body)
            for _ in range(9):
                self._talker.ack(self._talker.receive())


def test_backups_beside_a_broker_that_cleans_are_whole(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """While segments are rewritten and dropped: each holds what was confirmed before it began."""
    broker = make_broker(**OFTEN).start()
    folder = tmp_path / "backup"
    load = Churn(broker, "consumer")
    cleaned: set[str] = set()
    before: list[int] = []

    def three_were_cleaned() -> bool:
        before.append(len(load.confirmed))
        backed_up(broker, folder)
        manifest = (folder / "manifest.json").read_text()
        cleaned.update(re.findall(r"log/\d+\.\d+\.qlog", manifest))
        return len(cleaned) >= 3

    try:
        until(three_were_cleaned, "backups with cleaned segments", patience_s=60)
    finally:
        load.end()
    found = bodies(restored(folder, make_broker))
    assert len(found) >= before[-1] > 0
    assert found == [b"%d." % number + bytes(2_000) for number in range(len(found))]


def test_a_backup_of_a_stopped_broker_has_all_it_knew(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Queues, dead letters and results come back; a second backup copies nothing anew."""
    broker = make_broker(**SMALL).start()
    talker = broker.connect()
    ids = [talker.task("emails", b"%d" % number) for number in range(3)]
    talker.consume("emails", credit=3)
    held = [talker.receive() for _ in range(3)]
    talker.ack(held[0], b"the result")
    talker.fail(held[1], flags=wire.NO_RETRY)
    talker.close()
    assert broker.stop() == 0
    folder = tmp_path / "backup"
    first = backed_up(broker, folder)
    second = backed_up(broker, folder)
    assert second["copied_files"] <= 2, "META, and the archive if there is one"
    assert (second["batch"], second["files"]) == (first["batch"], first["files"])
    asker = restored(folder, make_broker).connect("producer")
    assert asker.look(ids[0]).raw == b"the result"
    assert (asker.queue("emails")["ready"], asker.queue("emails.dead")["ready"]) == (1, 1)


def test_a_token_of_the_lost_broker_is_never_taken_for_one_of_the_restored(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """It went on after the backup: the same message, handed out in epochs that are not in it."""
    broker = make_broker(**SMALL).start()
    broker.connect("producer").publish("emails", b"hi")
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    broker.restart()
    old = broker.connect()
    old.consume("emails")
    lost = old.receive()
    broker.kill()
    again = restored(folder, make_broker)
    marker = again.data / "restored.json"
    assert not marker.exists()
    new = again.connect()
    new.consume("emails")
    given = new.receive()
    # It is the same message in the same place, and only the epoch tells them apart
    assert (given.position, given.message.body) == (lost.position, b"hi")
    assert wire.grant_epoch(given.grant) >= wire.grant_epoch(lost.grant) + 4_000
    late = again.connect()
    assert late.settle(lost, wire.ACK) == [lost.position]
    assert new.settle(given, wire.ACK) == []


def test_two_restores_of_one_backup_give_different_tokens(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """One after the other, in less time than epochs count: however often the first was started."""
    broker = make_broker(**SMALL).start()
    broker.connect("producer").publish("emails", b"hi")
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    given = []
    for name in ("first", "second", "third"):
        again = restored(folder, make_broker, name)
        again.restart()
        consumer = again.connect()
        consumer.consume("emails")
        given.append(consumer.receive())
        again.kill()
    assert len({each.position for each in given}) == 1, "only the epoch tells them apart"
    epochs = [wire.grant_epoch(each.grant) for each in given]
    assert all(after - before >= 1_000 for before, after in pairwise(epochs)), epochs
    # What the folder knows of its restores stays over the next backup into it
    backed_up(broker, folder)
    assert (folder / "restores").read_text() == "3\n"
    for text, sentence in (("three", b"restores is damaged"), ("4096", b"can be restored from")):
        (folder / "restores").write_text(text)
        ran = run("restore", folder, tmp_path / "fourth")
        assert (ran.returncode, sentence in ran.stderr) == (1, True)
        assert not (tmp_path / "fourth").exists()


def test_a_restore_is_begun_with_once_whatever_a_crash_leaves(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Killed after the boot, before the marker was gone: nothing is skipped a second time."""
    broker = make_broker(**SMALL).start()
    broker.connect("producer").publish("emails", b"hi")
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    again = make_broker("again", **SMALL)
    assert run("restore", folder, again.data).returncode == 0
    marker = again.data / "restored.json"
    left = marker.read_bytes()
    # A backup of it would not know of the lost broker any more
    ran = run("backup", tmp_path / "other", "--data", again.data)
    assert (ran.returncode, b"not started since" in ran.stderr) == (1, True)
    epochs = []
    for _ in range(3):
        again.start()
        consumer = again.connect()
        consumer.consume("emails")
        epochs.append(wire.grant_epoch(consumer.receive().grant))
        assert not marker.exists()
        again.kill()
        marker.write_bytes(left)
    assert [epoch - epochs[0] for epoch in epochs] == [0, 1, 2]
    # One that is damaged is not guessed at
    marker.write_bytes(left[:-3])
    with pytest.raises(AssertionError, match=r"restored.json is damaged"):
        again.start()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("flip", "is damaged: "),
        ("lose", "is damaged: "),
        ("manifest", "manifest.json is damaged"),
        ("empty", "holds no backup that was finished"),
    ],
)
def test_a_damaged_backup_is_refused_with_a_sentence(
    make_broker: Callable[..., Daemon], tmp_path: Path, harm: str, sentence: str
) -> None:
    broker = make_broker(**SMALL).start()
    broker.connect("producer").publish("emails", b"x" * 10_000)
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    largest = max((folder / "objects").iterdir(), key=lambda path: path.stat().st_size)
    manifest = folder / "manifest.json"
    if harm == "flip":
        content = bytearray(largest.read_bytes())
        content[5_000] ^= 1
        largest.chmod(0o600)
        largest.write_bytes(content)
    elif harm == "lose":
        largest.unlink()
    elif harm == "manifest":
        manifest.write_text(manifest.read_text().replace('"batch": ', '"batch": 1'))
    else:
        manifest.unlink()
    data = tmp_path / "data"
    ran = run("restore", folder, data)
    assert ran.returncode == 1
    assert sentence in ran.stderr.decode()
    assert len(ran.stderr.decode().splitlines()) == 1
    assert not data.exists()


def test_a_data_folder_that_is_in_use_is_never_overwritten(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    broker = make_broker(**SMALL).start()
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    for arguments, sentence in (
        (("restore", folder, broker.data), "is not empty"),
        (("restore", tmp_path / "nothing", tmp_path / "new"), "is no folder"),
        (("backup", folder, "--data", tmp_path / "nothing"), "holds no log"),
    ):
        ran = run(*arguments)
        assert (ran.returncode, sentence in ran.stderr.decode()) == (1, True)
    assert broker.stop() == 0


def test_a_damaged_source_does_not_replace_a_good_backup(
    make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """What was copied is opened as a start would open it, before the manifest names it."""
    broker = make_broker(**SMALL).start()
    producer = broker.connect("producer")
    for _ in range(40):
        producer.publish("emails", bytes(20_000))
    folder = tmp_path / "backup"
    backed_up(broker, folder)
    good = (folder / "manifest.json").read_bytes()
    broker.kill()
    first = min((broker.data / "log").glob("*.qlog"))
    first.chmod(0o600)
    first.write_bytes(first.read_bytes()[:-100])
    first.chmod(0o400)
    assert run("backup", folder, "--data", broker.data).returncode != 0
    assert (folder / "manifest.json").read_bytes() == good
    assert len(bodies(restored(folder, make_broker))) == 40
