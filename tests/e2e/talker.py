"""A client that says exactly what a test tells it to, one frame at a time, over a real socket.

It stands on ``qclient.link``, which shakes hands and keeps the conversation, and adds what a
story needs: publish, receive, settle, and everything that was pushed meanwhile.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

from qclient.address import Address
from qclient.link import Link
from qprotocol import wire
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.failure import Failure
from qprotocol.frames import (
    Consume,
    Deliver,
    Error,
    Frame,
    Heartbeat,
    Hello,
    Inspect,
    Publish,
    Published,
    Report,
    Result,
    Settle,
    Settled,
    Watch,
)
from qprotocol.ids import mint, unpack_id
from qprotocol.message import Delivery, Message, Outcome, unpack_message, walk

PATIENCE_S = 30.0
F = TypeVar("F", bound=Frame)
Token = tuple[int, int]


class Refused(AssertionError):
    """The broker answered with an Error that the story did not expect."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code = error.code


class Talker:
    """One open conversation. Raises ConnectionLost when the broker is gone."""

    def __init__(self, port: int, role: str = "consumer", **hello: Any) -> None:
        said = {"protocol": PROTOCOL_VERSION, "role": role, "client_id": secrets.token_hex(4)}
        address = Address("127.0.0.1", port)
        self.link = Link.open(address, Hello(**{**said, **hello}), timeout_s=PATIENCE_S)
        self.producer = secrets.randbits(63)
        self.sequence = 0
        self.pushed: list[Frame] = []
        """What came unasked, but for deliveries and heartbeats."""
        self._deliveries: deque[Delivery] = deque()
        self._answers: dict[int, Frame] = {}
        self._correlation = 10

    # Asking.

    def say(self, frame: Frame) -> int:
        """The frame is on its way; the number that its answer will have."""
        self._correlation += 1
        frame.correlation = self._correlation
        self.link.send(frame)
        return self._correlation

    def answer(self, correlation: int, patience_s: float = PATIENCE_S) -> Frame:
        """The answer to what was said. Raises TimeoutError."""
        deadline = time.monotonic() + patience_s
        while correlation not in self._answers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer within {patience_s:g} s")
            self.listen(0.05)
        return self._answers.pop(correlation)

    def ask(self, frame: Frame, kind: type[F], patience_s: float = PATIENCE_S) -> F:
        """The answer, a ``kind``. Raises Refused for an Error."""
        found = self.answer(self.say(frame), patience_s)
        if isinstance(found, Error):
            raise Refused(found)
        assert isinstance(found, kind), found
        return found

    def listen(self, wait_s: float) -> None:
        """Take in what arrives within that time."""
        for frame in self.link.receive(wait_s):
            if isinstance(frame, Deliver):
                self._deliveries.extend(deliveries(frame))
            elif frame.correlation:
                self._answers[frame.correlation] = frame
            elif isinstance(frame, Heartbeat):
                self.link.send(Heartbeat())
            else:
                self.pushed.append(frame)

    # Publishing.

    def chunk(self, messages: Iterable[Message]) -> Publish:
        """The next chunk of this producer, not sent yet."""
        self.sequence += 1
        packed = [message.pack() for message in messages]
        raw = b"".join(packed)
        return Publish(producer=self.producer, sequence=self.sequence, count=len(packed), raw=raw)

    def publish(self, queue: str, *bodies: bytes, **envelope: Any) -> Published:
        """The messages are confirmed."""
        messages = (Message(queue, body, **envelope) for body in bodies)
        return self.ask(self.chunk(messages), Published)

    def task(self, queue: str, body: bytes = b"", **envelope: Any) -> str:
        """A task message is confirmed; its id."""
        raw = mint(self.link.server_ms(), secrets.randbits(80))
        task_id = unpack_id(raw, minted=True)
        self.publish(queue, body, id=task_id, task="story.task", **envelope)
        return task_id

    # Consuming.

    def consume(self, *queues: str, credit: int = 1) -> None:
        """Deliveries of these queues may come."""
        self.ask(Consume(subscription=1, queues=list(queues), credit=credit), Frame)

    def receive(self, patience_s: float = PATIENCE_S) -> Delivery:
        """The next delivery. Raises TimeoutError if none comes."""
        deadline = time.monotonic() + patience_s
        while not self._deliveries:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no delivery within {patience_s:g} s")
            self.listen(0.05)
        return self._deliveries.popleft()

    @property
    def waiting(self) -> int:
        """Deliveries that have arrived and were not received by the story."""
        return len(self._deliveries)

    # Settling.

    def settle(self, delivery: Delivery, outcome: int, **more: Any) -> list[int]:
        """The outcome is confirmed; the positions that were lost."""
        packed = Outcome(outcome, delivery.position, delivery.grant, **more).pack()
        settled = self.ask(Settle(count=1, raw=packed), Settled)
        return [position for (position,) in wire.POSITION.iter_unpack(settled.raw)]

    def ack(self, delivery: Delivery, result: bytes | None = None, content: int = 0) -> None:
        """It is done, and still was ours."""
        kept: dict[str, Any] = {}
        if result is not None:
            kept = {"result": result, "flags": wire.HAS_RESULT, "content": content}
        assert self.settle(delivery, wire.ACK, **kept) == []

    def fail(self, delivery: Delivery, message: str = "broken", **more: Any) -> None:
        """It failed, and still was ours."""
        failure = Failure("StoryError", message, "a traceback").pack()
        assert self.settle(delivery, wire.FAIL, result=failure, **more) == []

    # Looking.

    def look(self, task_id: str, wait_ms: int = 0) -> Result:
        return self.ask(Watch(id=task_id, wait_ms=wait_ms), Result)

    def inspect(self, what: str) -> Any:
        return json.loads(self.ask(Inspect(what=what), Report).raw)

    def queue(self, name: str) -> dict[str, Any]:
        """The queue's row; an empty one if there is no such queue."""
        rows = {row["name"]: row for row in self.inspect("queues")}
        return rows.get(name, {"ready": 0, "scheduled": 0, "leased": 0, "counts": {}})

    def close(self) -> None:
        self.link.close()


def deliveries(frame: Deliver) -> list[Delivery]:
    """The messages of one Deliver frame, each with its token and counters."""
    raw, at = frame.raw, 0
    positions: list[int] = []
    for _ in range(frame.runs):
        first, count = wire.RUN.unpack_from(raw, at)
        positions += range(first, first + count)
        at += wire.RUN.size
    counters = {}
    for _ in range(frame.touched):
        index, *found = wire.TOUCHED.unpack_from(raw, at)
        counters[index] = found
        at += wire.TOUCHED.size
    starts = [start for start, _ in walk(raw, at)]
    assert len(starts) == len(positions) == frame.count
    return [
        Delivery(unpack_message(raw, start), position, frame.grant, *counters.get(i, (1, 0, 0)))
        for i, (start, position) in enumerate(zip(starts, positions, strict=True))
    ]
