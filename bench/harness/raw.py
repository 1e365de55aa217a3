"""A client that does as little as it can, so that a raw figure is the broker's.

What it sends is packed before the clock runs. What it receives is cut by length, and only
deliveries are decoded. The bytes themselves are those of `qprotocol`.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.processes import BenchError
from qprotocol import wire
from qprotocol.codec import PREFIX, decode_header, encode
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.frames import (
    Ack,
    Auth,
    Consume,
    Deliver,
    Error,
    Frame,
    Greeting,
    Heartbeat,
    Hello,
    Inspect,
    Ok,
    Publish,
    Published,
    Report,
    Settled,
    Welcome,
)
from qprotocol.message import Message

F = TypeVar("F", bound=Frame)
_RECEIVE_BYTES = 1 << 18
_DEADLINE_S = 120.0
_QUEUES_A_FRAME = 64


@dataclass
class Load:
    """What to move: `total` messages of `size` bytes, `batch` a frame, over `peers` connections."""

    queue: str
    peers: int
    batch: int
    size: int
    total: int
    messages: Sequence[bytes] = ()
    """Packed: the frames take of them in turn. Without, plain ones to `queue` of `size` bytes."""
    queues: Sequence[str] = ()
    """What is taken from, if not `queue` alone."""
    tasks: Sequence[str] = ()
    """Which tasks the takers know. Without, all."""

    @property
    def window(self) -> int:
        """Unconfirmed frames a connection: together 1,000 single messages, or 32 batches."""
        return max(1, (1000 if self.batch == 1 else 32) // self.peers)


class Connection:
    """One socket after the handshake."""

    def __init__(self, port: int, role: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""
        self._await(Greeting.TYPE)
        self.send(Auth(mechanism="none", correlation=1))
        self._await(Ok.TYPE)
        name = f"bench-{secrets.token_hex(4)}"
        hello = Hello(protocol=PROTOCOL_VERSION, role=role, client_id=name, correlation=2)
        self.send(hello)
        self._await(Welcome.TYPE)

    def send(self, frame: Frame) -> None:
        """The frame is in the socket."""
        self.socket.sendall(encode(frame))

    def receive(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Type, header and raw section of the frames that arrive next; waits for some bytes."""
        data = self._left + self.socket.recv(_RECEIVE_BYTES)
        if data == self._left:
            raise BenchError("the broker closed the connection")
        at, total = 0, len(data)
        while total - at >= PREFIX.size:
            length, n_header = PREFIX.unpack_from(data, at)
            end = at + 4 + length
            if end > total:
                break
            start = at + PREFIX.size
            kind = data[start + 1]  # a header is an array of under 16 items, its first the type
            if kind == Error.TYPE:
                raise BenchError(str(decode_header(data[start : start + n_header])))
            if kind != Heartbeat.TYPE:
                yield kind, data[start : start + n_header], data[start + n_header : end]
            at = end
        self._left = data[at:]

    def queued(self, queue: str) -> int:
        """How many messages wait in the queue, as the broker says."""
        self.send(Inspect(what="queues", correlation=4))
        report = json.loads(self._await(Report.TYPE))
        return sum(int(row["ready"]) for row in report if row["name"] == queue)

    def next(self, frame: type[F]) -> F:
        """The next frame of this type, whole; what arrives with it is dropped."""
        while True:
            for kind, header, raw in list(self.receive()):
                if kind == frame.TYPE:
                    found = decode_header(header)
                    assert isinstance(found, frame)
                    found.raw = raw
                    return found

    def _await(self, kind: int) -> bytes:
        """The raw section of the next frame of this kind; what comes before it is dropped."""
        while True:
            for found, _, raw in list(self.receive()):
                if found == kind:
                    return raw

    def close(self) -> None:
        """The socket is closed."""
        self.socket.close()


@dataclass
class _Producer:
    """One connection's share of the load, as ready bytes, and how far it has come."""

    connection: Connection
    stream: memoryview
    ends: list[int]
    sent: int = 0
    confirmed: int = 0

    def send_up_to(self, frames: int) -> None:
        """The first `frames` frames are in the socket."""
        frames = min(frames, len(self.ends))
        if frames > self.sent:
            begin = self.ends[self.sent - 1] if self.sent else 0
            self.connection.socket.sendall(self.stream[begin : self.ends[frames - 1]])
            self.sent = frames


def publish(port: int, load: Load) -> float:
    """Publishes the load, each frame confirmed; answers with messages a second."""
    producers = [_producer(port, load) for _ in range(load.peers)]
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for producer in producers:
            selector.register(producer.connection.socket, selectors.EVENT_READ, producer)
            producer.send_up_to(load.window)
        pending = len(producers)
        while pending:
            for key, _ in selector.select(_DEADLINE_S):
                producer = key.data
                for kind, _, _ in producer.connection.receive():
                    producer.confirmed += kind == Published.TYPE
                producer.send_up_to(producer.confirmed + load.window)
                if producer.confirmed == len(producer.ends):
                    selector.unregister(producer.connection.socket)
                    pending -= 1
    took = time.monotonic() - began
    for producer in producers:
        producer.connection.close()
    return sum(len(producer.ends) for producer in producers) * load.batch / took


def _producer(port: int, load: Load) -> _Producer:
    messages = load.messages or (Message(load.queue, b"x" * load.size).pack(),) * load.batch
    turns = max(1, len(messages) // load.batch)
    raws = [b"".join(messages[at * load.batch : (at + 1) * load.batch]) for at in range(turns)]
    identity = secrets.randbits(62)
    stream, ends = bytearray(), []
    for sequence in range(1, load.total // load.batch // load.peers + 1):
        stream += encode(
            Publish(
                producer=identity,
                sequence=sequence,
                count=load.batch,
                correlation=sequence,
                raw=raws[sequence % turns],
            )
        )
        ends.append(len(stream))
    return _Producer(Connection(port, "producer"), memoryview(stream), ends)


@dataclass
class _Consumer:
    """One connection that takes and settles."""

    connection: Connection
    batch: int
    correlation: int = 10
    unconfirmed: int = 0

    def take(self) -> int:
        """Handles what arrived; answers with how many messages were acknowledged just now."""
        taken, runs = 0, []
        for kind, header, raw in self.connection.receive():
            if kind == Deliver.TYPE:
                delivered = decode_header(header)
                assert isinstance(delivered, Deliver)
                taken += delivered.count
                brought = wire.RUN.iter_unpack(raw[: delivered.runs * wire.RUN.size])
                runs += [(delivered.grant, *run) for run in brought]
            elif kind == Settled.TYPE:
                self.unconfirmed -= 1
                if raw:
                    raise BenchError("the broker says that a lease was lost")
        if runs:
            self.connection.socket.sendall(self._acks(runs))
        return taken

    def _acks(self, runs: list[tuple[int, int, int]]) -> bytes:
        """Of all that arrived together, `batch` messages a frame, however short the runs are."""
        frames, some, room = bytearray(), bytearray(), self.batch
        for grant, first, count in runs:
            at, end = first, first + count
            while at < end:
                taken = min(room, end - at)
                some += wire.ACK_RUN.pack(grant, at, taken)
                at, room = at + taken, room - taken
                if not room:
                    frames += self._ack(some)
                    some, room = bytearray(), self.batch
        return bytes(frames + self._ack(some)) if some else bytes(frames)

    def _ack(self, runs: bytes) -> bytes:
        self.correlation += 1
        self.unconfirmed += 1
        return encode(Ack(correlation=self.correlation, raw=bytes(runs)))


def subscriptions(load: Load, credit: int) -> Iterator[Consume]:
    """To all the load's queues, as many a frame as go into its header."""
    raw = b"".join(bytes((len(name),)) + name.encode() for name in load.tasks)
    queues = list(load.queues) or [load.queue]
    for number, at in enumerate(range(0, len(queues), _QUEUES_A_FRAME), 1):
        some = queues[at : at + _QUEUES_A_FRAME]
        yield Consume(subscription=number, queues=some, credit=credit, correlation=3, raw=raw)


def consume(port: int, load: Load) -> float:
    """Takes and acknowledges the load, each ack confirmed; answers with messages a second.

    An Ack frame names up to `batch` messages. How many a delivery brings is the broker's choice.
    """
    consumers = [_Consumer(Connection(port, "consumer"), load.batch) for _ in range(load.peers)]
    credit = load.window * load.batch
    began = time.monotonic()
    taken = 0
    with selectors.DefaultSelector() as selector:
        for consumer in consumers:
            selector.register(consumer.connection.socket, selectors.EVENT_READ, consumer)
            for frame in subscriptions(load, credit):
                consumer.connection.send(frame)
        while taken < load.total or any(consumer.unconfirmed for consumer in consumers):
            ready = selector.select(_DEADLINE_S)
            if not ready:
                raise BenchError(f"{taken} of {load.total} messages delivered, then none")
            for key, _ in ready:
                taken += key.data.take()
    took = time.monotonic() - began
    for consumer in consumers:
        consumer.connection.close()
    return taken / took
