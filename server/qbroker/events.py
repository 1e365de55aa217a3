"""Events: published to whoever listens now, and never kept.

Rule 1. No event touches the core, the log or a lease: who publishes durably waits for none of it.
Rule 2. A listener that reads slowly loses its oldest events, and is told how many with the next.
        It delays nobody, and holds ``events_buffer_bytes`` at most, and UNSENT_BYTES beside.
Rule 3. Events of one publisher reach a listener in order.
"""

import asyncio
from collections import Counter, deque
from typing import Protocol

from qbroker.core.topics import Topics
from qprotocol import frames as f
from qprotocol.codec import encode
from qprotocol.limits import EVENT_BYTES_MAX, LISTENERS_MAX
from qprotocol.topics import check_pattern, check_topic

UNSENT_BYTES = 64 * 1024
"""What a connection may have unsent before its events wait here, where they can be dropped."""
AGAIN_S = 0.01
"""How often is looked whether such a connection has taken some."""
_ENTRY_BYTES = 200
"""What an event that waits costs beside its bytes."""


class Connection(Protocol):
    """What is needed of a connection."""

    number: int

    @property
    def unsent_bytes(self) -> int: ...
    def send(self, data: bytes) -> None: ...


class Listener:
    """One subscription to events."""

    __slots__ = ("connection", "dropped", "number", "patterns", "size", "waiting")

    def __init__(self, connection: Connection, number: int, patterns: list[str]) -> None:
        self.connection = connection
        self.number = number
        self.patterns = patterns
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.size = 0
        """Bytes that wait."""
        self.dropped = 0
        """Since the last event that was sent."""

    def send(self, topic: str, raw: bytes) -> None:
        """The event is on its way, with the number of those that were dropped before it."""
        event = f.Event(listener=self.number, topic=topic, dropped=self.dropped, raw=raw)
        self.connection.send(encode(event))
        self.dropped = 0


class Events:
    """All listeners. Belongs to the engine's loop."""

    def __init__(self, buffer_bytes_max: int) -> None:
        self._buffer_bytes_max = buffer_bytes_max
        self._topics: Topics[Listener] = Topics()
        self._listeners: dict[tuple[int, int], Listener] = {}
        self._behind: dict[Listener, None] = {}
        """Those with events that wait."""
        self._again: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()
        """Since the start: published, delivered, dropped."""

    @property
    def listeners(self) -> int:
        """How many there are."""
        return len(self._listeners)

    def listen(self, connection: Connection, frame: f.Listen) -> f.Frame:
        """The listener gets what fits these patterns from now on; none end it."""
        patterns = list(dict.fromkeys(frame.patterns))
        try:
            for pattern in patterns:
                check_pattern(pattern)
        except ValueError as error:
            return refused(frame, "BAD_REQUEST", str(error))
        key = connection.number, frame.listener
        self._drop(key)
        if patterns:
            if sum(number == connection.number for number, _ in self._listeners) >= LISTENERS_MAX:
                said = f"{LISTENERS_MAX} listeners of one connection: use more patterns of one"
                return refused(frame, "LIMIT_REACHED", said)
            listener = self._listeners[key] = Listener(connection, frame.listener, patterns)
            for pattern in patterns:
                self._topics.add(pattern, listener)
        return f.Ok(count=len(patterns), correlation=frame.correlation)

    def notify(self, frame: f.Notify, *, in_parts: bool) -> f.Frame:
        """Every listener that it fits gets the event, or loses an older one. Count is how many."""
        if in_parts:
            return refused(frame, "BODY_TOO_LARGE", f"an event has at most {EVENT_BYTES_MAX} bytes")
        try:
            check_topic(frame.topic)
        except ValueError as error:
            return refused(frame, "BAD_REQUEST", str(error))
        if len(frame.raw) > EVENT_BYTES_MAX:
            said = f"an event of {len(frame.raw)} bytes: at most {EVENT_BYTES_MAX}"
            return refused(frame, "BODY_TOO_LARGE", said)
        found = self._topics.match(frame.topic)
        for listener in found:
            self._offer(listener, frame.topic, frame.raw)
        self.counts["published"] += 1
        return f.Ok(count=len(found), correlation=frame.correlation)

    def disconnected(self, number: int) -> None:
        """The connection listens to nothing any more."""
        for key in [key for key in self._listeners if key[0] == number]:
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        listener = self._listeners.pop(key, None)
        if listener is not None:
            for pattern in listener.patterns:
                self._topics.discard(pattern, listener)
            self._behind.pop(listener, None)

    def _offer(self, listener: Listener, topic: str, raw: bytes) -> None:
        if not listener.waiting and listener.connection.unsent_bytes <= UNSENT_BYTES:
            listener.send(topic, raw)
            self.counts["delivered"] += 1
            return
        waiting = listener.waiting
        waiting.append((topic, raw))
        listener.size += len(raw) + _ENTRY_BYTES
        while listener.size > self._buffer_bytes_max:
            listener.size -= len(waiting.popleft()[1]) + _ENTRY_BYTES
            listener.dropped += 1
            self.counts["dropped"] += 1
        self._behind[listener] = None
        self._look_again()

    def _look_again(self) -> None:
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self.flush)

    def flush(self) -> None:
        """Send what may be sent of what waits."""
        self._again = None
        for listener in list(self._behind):
            waiting = listener.waiting
            while waiting and listener.connection.unsent_bytes <= UNSENT_BYTES:
                topic, raw = waiting.popleft()
                listener.size -= len(raw) + _ENTRY_BYTES
                listener.send(topic, raw)
                self.counts["delivered"] += 1
            if not waiting:
                del self._behind[listener]
        if self._behind:
            self._look_again()

    def close(self) -> None:
        """Nothing is looked at any more."""
        if self._again is not None:
            self._again.cancel()


def refused(frame: f.Frame, code: str, message: str) -> f.Error:
    """The answer to a frame that was not done."""
    return f.Error(code=code, message=message, correlation=frame.correlation)
