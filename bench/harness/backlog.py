"""A backlog of millions, made, asked and drained through the protocol itself."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from harness.processes import BenchError
from harness.raw import Connection, Load, consume, publish
from qprotocol import wire
from qprotocol.codec import decode_header, encode
from qprotocol.frames import (
    Ack,
    Consume,
    Deliver,
    Inspect,
    Publish,
    Published,
    Report,
    Result,
    Search,
    Settle,
    Settled,
    Watch,
)
from qprotocol.ids import mint, unpack_id
from qprotocol.limits import OUTCOMES_MAX
from qprotocol.message import Message, Outcome

BATCH = 100
SLICE = 1_000_000
"""Messages packed at once before they are sent: what the client holds in memory."""
_WINDOW = 32


def fill(port: int, queue: str, count: int, size: int) -> float:
    """`count` plain messages are queued, in batches of 100; messages a second, packing left out."""
    took, left = 0.0, count
    while left > 0:
        step = min(left, SLICE)
        took += step / publish(port, Load(queue, 1, BATCH, size, step))
        left -= step
    return count / took


def take(port: int, queue: str, count: int, size: int) -> float:
    """`count` messages are taken and acknowledged; messages a second."""
    return consume(port, Load(queue, 1, BATCH, size, count))


def fill_with_ids(
    port: int, queue: str, count: int, size: int, every: int, *, task: str = ""
) -> list[str]:
    """`count` messages with ids of their own are queued; every `every`-th id."""
    connection = Connection(port, "producer")
    producer, kept = secrets.randbits(62), []
    example = mint(time.time_ns() // 1_000_000, 0)
    base = Message(queue, b"x" * size, id=unpack_id(example, minted=True), task=task).pack()
    at = base.index(example, wire.MESSAGE.size)
    head, tail = base[:at], base[at + 16 :]
    sent = confirmed = 0
    for first in range(0, count, BATCH):
        now_ms = time.time_ns() // 1_000_000
        ids = [mint(now_ms, secrets.randbits(80)) for _ in range(min(BATCH, count - first))]
        if first // BATCH % max(1, every // BATCH) == 0:
            kept.append(unpack_id(ids[0], minted=True))
        sent += 1
        raw = b"".join(head + each + tail for each in ids)
        connection.send(
            Publish(producer=producer, sequence=sent, count=len(ids), correlation=sent, raw=raw)
        )
        while sent - confirmed >= _WINDOW:
            confirmed += sum(kind == Published.TYPE for kind, _, _ in connection.receive())
    while confirmed < sent:
        confirmed += sum(kind == Published.TYPE for kind, _, _ in connection.receive())
    connection.close()
    return kept


def settle_with_results(port: int, queue: str, count: int, size: int) -> None:
    """`count` messages are taken and settled well, each with a result of `size` bytes."""
    connection, taken, settled, correlation = Connection(port, "consumer"), 0, 0, 10
    connection.send(Consume(subscription=1, queues=[queue], credit=5_000, correlation=3))
    while settled < count:
        for kind, header, raw in connection.receive():
            if kind == Settled.TYPE:
                settled = taken if correlation == _correlation_of(header) else settled
            if kind != Deliver.TYPE:
                continue
            delivered = decode_header(header)
            assert isinstance(delivered, Deliver)
            outcomes = [
                Outcome(
                    wire.ACK,
                    position,
                    delivered.grant,
                    run_ms=1,
                    result=b"r" * size,
                    flags=wire.HAS_RESULT,
                ).pack()
                for first, length in wire.RUN.iter_unpack(raw[: delivered.runs * wire.RUN.size])
                for position in range(first, first + length)
            ]
            taken += len(outcomes)
            for at in range(0, len(outcomes), OUTCOMES_MAX):
                some = outcomes[at : at + OUTCOMES_MAX]
                correlation += 1
                frame = Settle(count=len(some), correlation=correlation, raw=b"".join(some))
                connection.send(frame)
    connection.close()


def _correlation_of(header: bytes) -> int:
    return decode_header(header).correlation


def in_memory(port: int) -> int:
    """Results that the broker still holds in memory."""
    connection = Connection(port, "admin")
    connection.send(Inspect(what="stats", correlation=4))
    report = json.loads(connection.next(Report).raw)
    connection.close()
    return int(report["results"])


def lookups(port: int, ids: list[str], state: int) -> list[float]:
    """Seconds that each id took to be found by itself, sorted; all must be in that state."""
    connection, took = Connection(port, "producer"), []
    for correlation, each in enumerate(ids, 10):
        began = time.monotonic()
        connection.send(Watch(id=each, correlation=correlation))
        found = connection.next(Result)
        took.append(time.monotonic() - began)
        if found.state != state:
            raise BenchError(f"{each} is in state {found.state}, not {state}")
    connection.close()
    return sorted(took)


def latencies(port: int, queue: str, seconds: float, rate: int) -> list[float]:
    """Seconds from before a publish to its delivery, at `rate` a second, sorted."""
    giver, taker = Connection(port, "producer"), Connection(port, "consumer")
    taker.send(Consume(subscription=1, queues=[queue], credit=1000, correlation=3))
    raw, took = Message(queue, b"x" * 100).pack(), []
    producer = secrets.randbits(62)
    began = time.monotonic()
    for sequence in range(1, int(seconds * rate) + 1):
        time.sleep(max(0.0, began + sequence / rate - time.monotonic()))
        sent = time.monotonic()
        giver.send(
            Publish(producer=producer, sequence=sequence, count=1, correlation=sequence, raw=raw)
        )
        delivered = taker.next(Deliver)
        took.append(time.monotonic() - sent)
        first, count = wire.RUN.unpack_from(delivered.raw, 0)
        taker.send(Ack(correlation=sequence, raw=wire.ACK_RUN.pack(delivered.grant, first, count)))
        taker.next(Settled)
        giver.next(Published)
    giver.close()
    taker.close()
    return sorted(took)


def percentile(sorted_values: list[float], percent: int) -> float:
    """The value that so many percent of them do not exceed."""
    return sorted_values[min(len(sorted_values) - 1, len(sorted_values) * percent // 100)]


@contextmanager
def draining(port: int, queue: str, rate: float) -> Iterator[None]:
    """Another process takes and acknowledges messages of the queue, `rate` a second at most."""
    with beside(_drain, port, queue, rate):
        yield


@contextmanager
def filling(port: int, queue: str, rate: float) -> Iterator[None]:
    """Another process publishes messages of 100 bytes to the queue, `rate` a second at most."""
    with beside(_fill, port, queue, rate):
        yield


@contextmanager
def searching(port: int) -> Iterator[None]:
    """Another process searches the archive for what is not in it, again and again: a scan each."""
    with beside(_search, port, "archive", 10):
        yield


@contextmanager
def beside(work: Callable[..., None], port: int, queue: str, rate: float) -> Iterator[None]:
    """`work` runs in a process of its own."""
    over = multiprocessing.Event()
    process = multiprocessing.Process(target=work, args=(port, queue, rate, over), daemon=True)
    process.start()
    try:
        yield
    finally:
        over.set()
        process.join(10)
        if process.exitcode != 0:
            raise BenchError(f"the process beside, at {queue}, ended with {process.exitcode}")


def _fill(port: int, queue: str, rate: float, over: Event) -> None:
    """A batch, its confirm, and a rest that keeps the rate."""
    connection, producer = Connection(port, "producer"), secrets.randbits(62)
    raw, due, sequence = Message(queue, b"x" * 100).pack() * BATCH, time.monotonic(), 0
    while not over.is_set():
        sequence += 1
        frame = Publish(
            producer=producer, sequence=sequence, count=BATCH, correlation=sequence, raw=raw
        )
        connection.send(frame)
        connection.next(Published)
        due = max(due, time.monotonic() - 0.05) + BATCH / rate
        time.sleep(max(0.0, due - time.monotonic()))
    connection.close()


def _search(port: int, error: str, rate: float, over: Event) -> None:
    """A search, its answer, and a rest that keeps the rate."""
    connection, correlation = Connection(port, "admin"), 10
    while not over.is_set():
        correlation += 1
        connection.send(Search(error=error, correlation=correlation))
        connection.next(Report)
        over.wait(1 / rate)
    connection.close()


def _drain(port: int, queue: str, rate: float, over: Event) -> None:
    """Takes 20 ms worth of messages at a time; acknowledges no faster than the rate."""
    connection = Connection(port, "consumer")
    connection.socket.settimeout(0.01)
    credit = max(1, int(rate / 50))
    connection.send(Consume(subscription=1, queues=[queue], credit=credit, correlation=3))
    correlation, due = 10, time.monotonic()
    while not over.is_set():
        acks, taken = bytearray(), 0
        try:
            arrived = list(connection.receive())
        except TimeoutError:
            continue
        for kind, header, raw in arrived:
            if kind != Deliver.TYPE:
                continue
            delivered = decode_header(header)
            assert isinstance(delivered, Deliver)
            taken += delivered.count
            for index in range(delivered.runs):
                first, count = wire.RUN.unpack_from(raw, index * wire.RUN.size)
                correlation += 1
                run = wire.ACK_RUN.pack(delivered.grant, first, count)
                acks += encode(Ack(correlation=correlation, raw=run))
        due = max(due, time.monotonic() - 0.05) + taken / rate
        time.sleep(max(0.0, due - time.monotonic()))
        connection.socket.sendall(acks)
    connection.close()
