"""A disk that fills up, under the real process: a file system of 64 MiB of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.daemon import Daemon, until
from e2e.fleet import load_tasks
from e2e.talker import Refused, Talker
from qclient import PartialPublish
from qclient.exceptions import ResourceExhausted
from qprotocol import wire
from qprotocol.frames import Blocked, Settle, Settled, Unblocked
from qprotocol.message import Delivery, Outcome

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
SETTINGS = {
    "segment_bytes": "1MiB",
    "batch_bytes_max": "256KiB",
    "disk_low_bytes": "16MiB",
    "disk_critical_bytes": "8MiB",
}


@pytest.fixture
def small_disk(make_broker: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A broker whose data folder is a file system of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    broker = make_broker(**SETTINGS)
    broker.data.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "qbroker-test", str(broker.data)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount: {mounted.stderr.decode().strip()}")
    try:
        yield broker
    finally:
        broker.close()
        subprocess.run(["umount", "--lazy", str(broker.data)], check=True)


def free_bytes(broker: Daemon) -> int:
    about = os.statvfs(broker.data)
    return about.f_bavail * about.f_frsize


def foreign_file(broker: Daemon, leave: int) -> Path:
    """Somebody else's file takes all room but this."""
    place = broker.data / "foreign"
    with place.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (size := min(MIB, free_bytes(broker) - leave)) > 0:
            file.write(bytes(size))
    return place


def publish_until_refused(talker: Talker) -> int:
    """How many messages of 64 KiB were confirmed."""
    for number in range(2_000):
        try:
            talker.publish("emails", b"%d" % number + bytes(64 * 1024))
        except Refused as refused:
            if refused.code == "RESOURCE_EXHAUSTED":
                return number
            raise
    raise AssertionError("the disk never got low")


def settlement(delivery: Delivery, result: bytes) -> Settle:
    more = {"result": result, "flags": wire.HAS_RESULT}
    return Settle(count=1, raw=Outcome(wire.ACK, delivery.position, delivery.grant, **more).pack())


def has_said(broker: Daemon, words: str) -> Callable[[], bool]:
    return lambda: words in broker.output.read_text()


def heard(talker: Talker, kind: type) -> Callable[[], bool]:
    def look() -> bool:
        talker.listen(0.05)
        return any(isinstance(frame, kind) for frame in talker.pushed)

    return look


def test_publishes_stop_in_time_and_all_else_goes_on(small_disk: Daemon) -> None:
    """Filled by publishing: a refusal that is definite, deliveries and acks, and no byte lost."""
    small_disk.settings["clean_live_percent"] = 0  # it stays full
    broker = small_disk.start()
    producer, worker = broker.connect("producer"), broker.connect()
    confirmed = publish_until_refused(producer)
    assert confirmed > 300
    # In time: a spare segment and the archive still find room behind the refusal
    assert free_bytes(broker) > 8 * MIB
    until(heard(producer, Blocked), "Blocked")
    words = "less than disk_low_bytes (16.0 MiB): publishes are refused"
    until(has_said(broker, words), words)
    # Everything that was confirmed can be consumed and acked meanwhile
    worker.consume("emails", credit=50)
    for number in range(confirmed):
        delivery = worker.receive()
        assert delivery.message.body.rstrip(b"\0") == b"%d" % number
        worker.ack(delivery)
    assert worker.queue("emails")["ready"] == 0
    # Who comes now is told so right away
    until(heard(broker.connect("producer"), Blocked), "Blocked for a newcomer")
    # And after a restart it is the same
    broker.restart()
    late = broker.connect("producer")
    until(heard(late, Blocked), "Blocked after a restart")


def test_a_disk_frees_itself_once_all_is_consumed(small_disk: Daemon) -> None:
    """Below critical, and nobody helps: what is dead is dropped, and publishes are taken again."""
    broker = small_disk.start()
    producer, worker = broker.connect("producer"), broker.connect()
    confirmed = publish_until_refused(producer)
    foreign = foreign_file(broker, leave=6 * MIB)
    until(has_said(broker, "less than disk_critical_bytes"), "a critical disk")
    worker.consume("emails", credit=50)
    for _ in range(confirmed):
        worker.ack(worker.receive())
    until(heard(producer, Unblocked), "Unblocked", patience_s=60)
    producer.publish("emails", b"again")
    assert foreign.exists()

    def is_dropped() -> bool:
        return len(list((broker.data / "log").glob("*.qlog"))) < confirmed // 32

    until(is_dropped, "fewer segments")


def test_a_client_says_what_is_wrong_and_goes_on_when_it_is_over(small_disk: Daemon) -> None:
    """ResourceExhausted, PartialPublish; a call that waits is done once there is room."""
    broker = small_disk.start()
    tasks = load_tasks(broker)
    foreign = foreign_file(broker, leave=12 * MIB)
    until(has_said(broker, "publishes are refused"), "a low disk")
    tasks.app.conf.broker_timeout_s = 0.5
    with tasks.app:
        with pytest.raises(ResourceExhausted, match="the broker's disk is nearly full"):
            tasks.note.delay("refused")
        with pytest.raises(PartialPublish) as partial:
            tasks.app.send_many(tasks.note.s(f"n{n}") for n in range(10))
        assert isinstance(partial.value.__cause__, ResourceExhausted)
        assert len(partial.value.refused) == 10
        tasks.app.conf.broker_timeout_s = 20
        foreign.unlink()
        tasks.note.delay("taken")
    assert has_said(broker, "there is room again")()


def test_on_a_full_disk_settlements_go_on_and_a_start_needs_no_room(small_disk: Daemon) -> None:
    """Filled by somebody else to the last byte: the reserve carries acks, purges and a start."""
    broker = small_disk.start()
    producer, worker = broker.connect("producer"), broker.connect()
    for number in range(300):
        producer.publish("emails", b"%d" % number)
    until((broker.data / "reserve").exists, "the reserve")
    foreign = foreign_file(broker, leave=0)
    until(has_said(broker, "less than disk_critical_bytes"), "a critical disk")
    worker.consume("emails", credit=1)
    # Two segments would be full without the reserve
    for number in range(200):
        delivery = worker.receive()
        assert delivery.message.body == b"%d" % number
        worker.ack(delivery, bytes(16 * 1024))
    until(has_said(broker, "the reserve of 2.0 MiB is given up"), "the reserve's end")
    # Killed on a disk without a byte left, it starts, and knows what was confirmed
    foreign_file(broker, leave=0)
    broker.restart()
    consumer = broker.connect()
    assert consumer.queue("emails")["ready"] + consumer.queue("emails")["leased"] == 100
    consumer.consume("emails", credit=1)
    delivery = consumer.receive()
    consumer.ack(delivery)
    # With room again all is as before
    foreign.unlink()
    late = broker.connect("producer")
    until(heard(late, Unblocked), "Unblocked")
    late.publish("emails", b"again")
    until((broker.data / "reserve").exists, "the reserve, made anew")
    consumer.close()
    assert broker.stop() == 0


def test_with_not_a_byte_left_it_waits_and_does_not_end(small_disk: Daemon) -> None:
    """Spare and reserve used up: nothing more is confirmed, and it goes on when there is room."""
    broker = small_disk.start()
    producer, worker = broker.connect("producer"), broker.connect()
    for number in range(500):
        producer.publish("emails", b"%d" % number)
    until((broker.data / "reserve").exists, "the reserve")
    foreign = foreign_file(broker, leave=0)
    until(has_said(broker, "less than disk_critical_bytes"), "a critical disk")
    worker.consume("emails", credit=500)
    held = [worker.receive() for _ in range(500)]
    asked = []
    while not has_said(broker, "finds no room")():
        foreign_file(broker, leave=0)
        if held:
            asked.append(worker.say(settlement(held.pop(), bytes(64 * 1024))))
        worker.listen(0.01)
    # Nobody is answered, and nobody is hung up on
    assert broker.runs
    with pytest.raises(TimeoutError):
        worker.answer(asked[-1], patience_s=1.5)
    assert not re.search("Traceback|Error", broker.output.read_text().replace("[Errno", ""))
    foreign.unlink()
    until(has_said(broker, "what waited is written"), "the batch that waited")
    for each in asked:
        assert isinstance(worker.answer(each), Settled)
    assert worker.queue("emails")["leased"] == len(held)
    worker.close()
    assert broker.stop() == 0
