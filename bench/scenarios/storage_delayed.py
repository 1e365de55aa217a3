"""What does a delayed message cost, and how late does it come, while others keep the broker busy?

A million messages due over a year; then a thousand a second due within the next twenty seconds,
while another connection publishes and takes all it can.
"""

from __future__ import annotations

import secrets
import time

from harness.arena import Arena
from harness.backlog import draining, fill, filling, percentile, take
from harness.memory import resident_bytes
from harness.raw import Connection
from qprotocol import wire
from qprotocol.codec import decode_header
from qprotocol.frames import Ack, Consume, Deliver, Publish, Published
from qprotocol.message import Message

BATCH = 100
YEAR_MS = 364 * 86_400_000
WARM = 150_000
SOON = 20_000
SOON_MS = 20_000
LOAD_A_SECOND = 50_000


def measure(arena: Arena) -> dict[str, float]:
    """Bytes of memory a message, and milliseconds from its due time to its delivery."""
    count = arena.many(ours=1_000_000, theirs=0)
    warm = arena.many(ours=WARM, theirs=0)
    fill(arena.port, "warm", warm, 200)  # the window of bodies is as large as it gets
    take(arena.port, "warm", warm, 200)
    before = resident_bytes(arena.broker_pid)
    publish_delayed(arena.port, "year", count, 60_000, YEAR_MS)
    figures = {"bytes_a_message": (resident_bytes(arena.broker_pid) - before) / count}
    soon = arena.many(ours=SOON, theirs=0)
    with filling(arena.port, "load", LOAD_A_SECOND), draining(arena.port, "load", LOAD_A_SECOND):
        publish_delayed(arena.port, "soon", soon, 2_000, SOON_MS)
        late = lateness(arena.port, "soon", soon)
    figures["lateness_p99_ms"] = percentile(late, 99)
    figures["earliest_ms"] = late[0]
    return figures


def publish_delayed(port: int, queue: str, count: int, first_ms: int, span_ms: int) -> None:
    """Messages due evenly over `span_ms`, the first in `first_ms`."""
    connection, producer = Connection(port, "producer"), secrets.randbits(62)
    now_ms = time.time_ns() // 1_000_000
    message = Message(queue, bytes(8), due_ms=1).pack()  # the body tells when it was due
    at = wire.MESSAGE.size - 24
    assert message[at : at + 8] == (1).to_bytes(8, "little"), "due_ms stands elsewhere"
    # A full cycle through the numbers below `count`: neighbours in a frame are due far apart.
    stride = 7919
    for sequence, first in enumerate(range(0, count, BATCH), 1):
        raw = b"".join(
            message[:at]
            + due_ms.to_bytes(8, "little")
            + message[at + 8 : -8]
            + due_ms.to_bytes(8, "big")
            for due_ms in (
                now_ms + first_ms + index * stride % count * span_ms // count
                for index in range(first, min(count, first + BATCH))
            )
        )
        size = min(BATCH, count - first)
        frame = Publish(
            producer=producer, sequence=sequence, count=size, correlation=sequence, raw=raw
        )
        connection.send(frame)
        connection.next(Published)
    connection.close()


def lateness(port: int, queue: str, count: int) -> list[float]:
    """Milliseconds from its due time to its arrival for each of `count` messages, sorted."""
    connection, found, correlation = Connection(port, "consumer"), [], 10
    connection.send(Consume(subscription=1, queues=[queue], credit=10_000, correlation=3))
    while len(found) < count:
        for kind, header, raw in connection.receive():
            if kind != Deliver.TYPE:
                continue
            now_ms = time.time_ns() / 1e6
            delivered = decode_header(header)
            assert isinstance(delivered, Deliver)
            at = delivered.runs * wire.RUN.size
            acks = list(wire.RUN.iter_unpack(raw[:at]))
            at += delivered.touched * wire.TOUCHED.size
            for _ in range(delivered.count):
                size = 4 + int.from_bytes(raw[at : at + 4], "little")
                due_ms = int.from_bytes(raw[at + size - 8 : at + size], "big")
                found.append(now_ms - due_ms)
                at += size
            for first, size in acks:
                correlation += 1
                run = wire.ACK_RUN.pack(delivered.grant, first, size)
                connection.send(Ack(correlation=correlation, raw=run))
    connection.close()
    return sorted(found)
