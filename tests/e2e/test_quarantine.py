"""Bytes that rot on disk under a running broker: that message is set aside, all else goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.daemon import Daemon, until
from e2e.talker import Refused
from qprotocol.states import State

pytestmark = pytest.mark.e2e

COLD = {"window_bytes_max": 0, "segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}


def body(number: int) -> bytes:
    return b"message %d." % number + bytes([number]) * 10_000


def rot(broker: Daemon, needle: bytes) -> str:
    """A bit of a sealed segment is another one, where these bytes were; the file's name."""
    for path in sorted((broker.data / "log").glob("*.qlog"))[:-1]:
        content = bytearray(path.read_bytes())
        at = content.find(needle)
        if at >= 0:
            content[at + 3] ^= 0x10
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.write(content)
            path.chmod(0o400)
            return path.name
    raise AssertionError(f"{needle!r} is in no sealed segment")


def test_one_message_is_set_aside_and_the_others_are_delivered(
    make_broker: Callable[..., Daemon],
) -> None:
    """It is delivered to nobody, seen by people, its bytes are kept, and its waiter is told."""
    broker = make_broker(**COLD).start()
    producer, asker = broker.connect("producer"), broker.connect("producer")
    for number in range(100):
        producer.publish("emails", body(number), id=f"order-{number}")
    names = {rot(broker, b"message %d." % number) for number in (7, 31)}
    consumer = broker.connect()
    consumer.consume("emails", credit=200)
    received = [consumer.receive() for _ in range(98)]
    expected = [body(n) for n in range(100) if n not in (7, 31)]
    assert [delivery.message.body for delivery in received] == expected
    queue = until(lambda: (q := consumer.queue("emails"))["quarantined"] == 2 and q, "quarantine")
    assert (queue["ready"], queue["leased"]) == (0, 98)
    assert asker.look("order-7").state == State.FAILURE
    assert asker.look("order-8").state == State.STARTED
    # People see which, why, and where its bytes are
    rows = broker.command("quarantine")
    assert {row["why"].split(" ")[0] for row in rows} == names
    assert [row["queue"] for row in rows] == ["emails", "emails"]
    for row, number in zip(rows, (7, 31), strict=True):
        kept = (broker.data / "evidence" / row["evidence"]).read_bytes()
        assert body(number)[100:] in kept
        assert body(number)[:20] not in kept
    assert broker.command("queues")[0]["quarantined"] == 2
    # The others are acked as ever, and nothing more comes
    for delivery in received:
        consumer.ack(delivery)
    assert consumer.queue("emails")["leased"] == 0
    assert consumer.waiting == 0
    broker.command("purge", "emails", "--yes")
    assert broker.command("quarantine") == []
    assert broker.runs


def test_messages_in_one_record_are_lost_together_those_beside_are_not(
    make_broker: Callable[..., Daemon],
) -> None:
    """A publish of several messages is one record with one checksum."""
    broker = make_broker(**COLD).start()
    producer = broker.connect("producer")
    for first in range(0, 60, 3):
        producer.publish("emails", *(body(n) for n in range(first, first + 3)))
    rot(broker, b"message 10.")
    consumer = broker.connect()
    consumer.consume("emails", credit=4)
    for number in [n for n in range(60) if n not in (9, 10, 11)]:
        delivery = consumer.receive()
        assert delivery.message.body == body(number)
        consumer.ack(delivery)
    assert consumer.queue("emails")["quarantined"] == 3


def test_a_look_at_a_queue_leaves_out_what_cannot_be_read(
    make_broker: Callable[..., Daemon],
) -> None:
    """Peek and Watch do not end the broker either, and nothing damaged is called unknown."""
    broker = make_broker(**COLD).start()
    producer = broker.connect("producer")
    ids = [producer.task("emails", body(number)) for number in range(60)]
    rot(broker, b"message 2.")
    peeked = broker.command("peek", "emails", "-n", "5")
    assert [row["id"] for row in peeked] == [ids[n] for n in (0, 1, 3, 4)]
    asker = broker.connect("producer")
    assert asker.look(ids[3]).state == State.QUEUED
    with pytest.raises(Refused, match="DATA_DAMAGED"):
        asker.look(ids[2])
    assert broker.runs
