"""Checkpoints under the real daemon: starts from one, kills in the middle of one, damaged ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.daemon import Daemon, until
from e2e.talker import Talker
from qprotocol import wire
from qprotocol.frames import Ack, Settled
from qprotocol.states import State

pytestmark = pytest.mark.e2e

SOON = {"checkpoint_log_bytes": "64KiB", "segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}
"""A checkpoint is due after some hundred messages."""
BODY = b"b" * 1_000


@pytest.fixture
def broker(make_broker: Callable[..., Daemon]) -> Daemon:
    return make_broker(**SOON).start()


def checkpoints(broker: Daemon, end: str = ".qckp") -> list[Path]:
    """Newest first."""
    return sorted((broker.data / "checkpoints").glob(f"*{end}"), reverse=True)


def batch_of(path: Path) -> int:
    return int(path.name.split(".")[0])


def fill(talker: Talker, count: int = 100) -> None:
    talker.publish("work", *(BODY for _ in range(count)))


def next_checkpoint(broker: Daemon, talker: Talker, *, end: str = ".qckp") -> int:
    """Messages are published until a checkpoint stands that did not; how many."""
    before, published = checkpoints(broker, end)[:1], 0

    def stands() -> bool:
        nonlocal published
        fill(talker)
        published += 100
        return checkpoints(broker, end)[:1] not in ([], before)

    until(stands, f"a new {end}")
    return published


def ready(broker: Daemon) -> int:
    talker = broker.connect()
    found = int(talker.queue("work")["ready"])
    talker.close()
    return found


def stopped(broker: Daemon, talker: Talker | None = None) -> None:
    """It has ended well; nobody who is idle kept it."""
    if talker:
        talker.close()
    assert broker.stop() == 0


def test_a_clean_stop_writes_one_and_the_start_reads_nothing_else(broker: Daemon) -> None:
    talker = broker.connect()
    fill(talker, 10)
    stopped(broker, talker)
    (kept,) = checkpoints(broker)
    assert batch_of(kept) > 1
    broker.start()
    assert ready(broker) == 10


def test_while_it_serves_a_keeper_writes_them_and_two_are_kept(broker: Daemon) -> None:
    talker, published = broker.connect(), 0
    for _ in range(3):
        published += next_checkpoint(broker, talker)
    until(lambda: len(checkpoints(broker)) == 2, "the third last to go")
    broker.restart()
    assert ready(broker) == published
    stopped(broker)
    broker.start()
    assert ready(broker) == published


def test_a_kill_in_the_middle_of_one_costs_nothing(make_broker: Callable[..., Daemon]) -> None:
    """The half-written file never counts; the keeper ends with its broker."""
    broker = make_broker(**SOON).start(is_faulty=True)
    broker.fault("slow", is_on=True, text="0.05")
    talker, published = broker.connect(), 0
    for _ in range(3):
        published += next_checkpoint(broker, talker, end=".qckp.tmp")
        broker.fault("hang", is_on=True)
        broker.kill()
        broker.fault("hang", is_on=False)
        broker.start(is_faulty=True)
        assert ready(broker) == published
        talker = broker.connect()


def test_a_keeper_that_dies_is_told_of_and_the_broker_goes_on(
    make_broker: Callable[..., Daemon],
) -> None:
    broker = make_broker(**SOON).start(is_faulty=True)
    broker.fault("slow", is_on=True, text="0.05")
    talker = broker.connect()
    next_checkpoint(broker, talker, end=".qckp.tmp")
    (keeper,) = [pid for pid in children(broker.pid) if runs(pid, "qbroker.checkpoint")]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: "no checkpoint was written" in broker.last_words(), "the warning")
    assert "it is tried again in 30 s" in broker.last_words()
    fill(talker)


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    text = " ".join((thread / "children").read_text() for thread in threads)
    return [int(word) for word in text.split()]


def runs(pid: int, module: str) -> bool:
    return module in Path(f"/proc/{pid}/cmdline").read_text()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_newest_is_passed_over(broker: Daemon) -> None:
    talker, published = broker.connect(), 0
    for _ in range(2):
        published += next_checkpoint(broker, talker)
    until(lambda: len(checkpoints(broker)) == 2, "both of them")
    broker.kill()
    damage(checkpoints(broker)[0])
    broker.start()
    assert "cannot be used" in broker.last_words()
    assert ready(broker) == published


def test_with_both_damaged_the_whole_log_is_read_if_it_is_whole(broker: Daemon) -> None:
    talker, published = broker.connect(), 0
    for _ in range(2):
        published += next_checkpoint(broker, talker)
    broker.kill()
    for path in checkpoints(broker):
        damage(path)
    broker.start()
    assert ready(broker) == published


def test_one_that_knows_more_than_the_log_stops_the_start(broker: Daemon) -> None:
    """The log was put back from an older copy: exit 65, and the sentence says so."""
    talker = broker.connect()
    fill(talker, 10)
    stopped(broker, talker)
    log = broker.data / "log"
    old = {path.name: path.read_bytes() for path in log.iterdir()}
    broker.start()
    talker = broker.connect()
    fill(talker, 10)
    stopped(broker, talker)
    for path in log.iterdir():
        path.unlink()
    for name, data in old.items():
        (log / name).write_bytes(data)
    with pytest.raises(AssertionError, match="confirmed batches are missing"):
        broker.start()
    assert broker.wait() == 65


def test_one_of_another_log_stops_the_start(make_broker: Callable[..., Daemon]) -> None:
    one, other = make_broker("one").start(), make_broker("other").start()
    for broker in (one, other):
        talker = broker.connect()
        fill(talker, 10)
        stopped(broker, talker)
    (mine,), (theirs,) = checkpoints(one), checkpoints(other)
    mine.unlink()
    (mine.parent / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(AssertionError, match="belongs to log"):
        one.start()
    assert one.wait() == 65


# --- Cleaning


def log_files(broker: Daemon) -> list[str]:
    return sorted(path.name for path in (broker.data / "log").glob("*.qlog"))


def log_bytes(broker: Daemon) -> int:
    return sum(path.stat().st_size for path in (broker.data / "log").glob("*.qlog"))


def work_off(talker: Talker, count: int) -> None:
    """So many messages, hundreds, are taken and done, a hundred in one go."""
    for _ in range(count // 100):
        done = [talker.receive() for _ in range(100)]
        raw = b"".join(wire.ACK_RUN.pack(each.grant, each.position, 1) for each in done)
        assert talker.ask(Ack(raw=raw), Settled).lost == 0


def test_the_log_shrinks_and_nothing_is_lost(make_broker: Callable[..., Daemon]) -> None:
    """Messages come and go, some stay. Through kills the log is a few times what stays."""
    broker = make_broker(**SOON).start()
    talker = broker.connect()
    ids = [talker.task("stays", b"stays %d" % number) for number in range(50)]
    done = talker.task("done")
    talker.consume("done", "work", credit=1_000)
    talker.ack(talker.receive(), result=b"result")
    written = 0
    for _ in range(3):
        for _ in range(2):
            published = next_checkpoint(broker, talker)
            written += published * len(BODY)
            work_off(talker, published)
        broker.restart()
        talker = broker.connect()
        talker.consume("work", credit=1_000)
    until(lambda: any(".1." in name for name in log_files(broker)), "a cleaned file")
    until(lambda: log_bytes(broker) < max(written, 1_500_000), "a log smaller than what went in")
    for task_id in ids:
        assert talker.look(task_id).state == State.QUEUED
    found = talker.look(done)
    assert (found.state, found.raw) == (State.SUCCESS, b"result")
    stays = broker.connect()
    stays.consume("stays", credit=100)
    bodies = set()
    for _ in ids:
        delivery = stays.receive()
        bodies.add(delivery.message.body)
        stays.ack(delivery)
    assert bodies == {b"stays %d" % number for number in range(50)}


@pytest.mark.slow
def test_a_kill_while_a_cleaned_file_waits_to_be_adopted(
    make_broker: Callable[..., Daemon],
) -> None:
    """Whatever of it is on disk, the log is whole: as it was, or as it is to be."""
    broker = make_broker(**SOON).start(is_faulty=True)
    broker.fault("slow", is_on=True, text="0.02")
    talker = broker.connect()
    talker.publish("stays", *(b"stays %d" % number for number in range(50)))
    talker.consume("work", credit=1_000)

    def waits() -> bool:
        fill(talker)
        talker.publish("stays", b"stays, too")
        work_off(talker, 100)
        return any((broker.data / "log").glob("*.*-*.tmp"))

    for _ in range(3):
        until(waits, "a cleaned file that waits", patience_s=60)
        stays = talker.queue("stays")["ready"]
        broker.kill()
        broker.start(is_faulty=True)
        talker = broker.connect()
        assert talker.queue("stays")["ready"] == stays
        assert talker.queue("work")["ready"] == 0
        talker.consume("work", credit=1_000)
    last = broker.connect()
    last.consume("stays", credit=1_000)
    for _ in range(stays):
        assert last.receive().message.body.startswith(b"stays")


def test_without_its_checkpoints_a_cleaned_log_starts_nowhere(broker: Daemon) -> None:
    """Exit 65, and the sentence says what to do; with one of them back it starts."""
    talker = broker.connect()
    talker.consume("work", credit=1_000)

    def cleaned() -> bool:
        fill(talker)
        work_off(talker, 100)
        return log_files(broker)[0] != f"{1:020d}.qlog"

    until(cleaned, "the log's beginning to go")
    broker.kill()
    kept = {path: path.read_bytes() for path in checkpoints(broker)}
    for path in kept:
        damage(path)
    with pytest.raises(AssertionError, match=r"restore the whole folder from a backup"):
        broker.start()
    assert broker.wait() == 65
    newest = max(kept)
    newest.write_bytes(kept[newest])
    broker.start()
