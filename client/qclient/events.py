"""``app.events``: what is said to whoever listens now, and kept nowhere.

    app.events.publish("order.paid", {"id": 17})        how many listeners it reached

    with app.events.subscribe("order.#") as events:
        for event in events: ...

An event is not a task: nobody who is not there gets it later. A listener that reads slowly, or
whose connection is lost for a while, misses some; ``event.missed`` says so.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from qclient.dialogue import refused
from qclient.exceptions import ConnectError, ConnectionLost
from qclient.link import Link, left_s
from qclient.pending import Attempts
from qclient.serialization import MSGPACK, decode, pack, type_of, unsendable
from qprotocol import frames as f
from qprotocol.errors import ProtocolError
from qprotocol.limits import EVENT_BYTES_MAX
from qprotocol.topics import check_pattern, check_topic

if TYPE_CHECKING:  # asyncio weighs 4 MB in every worker child: loaded by who uses it
    from qclient.aevents import AsyncSubscription
    from qclient.app import App


@dataclass(frozen=True, slots=True)
class Event:
    """What was published."""

    topic: str
    payload: Any
    missed: int = 0
    """How many events before this one were dropped because this listener was slow."""
    reconnected: bool = False
    """The connection was lost before this one: nobody knows what was missed meanwhile."""


class Inbox:
    """What came for one subscription, as events."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.reconnected = False

    def take(self, frames: list[f.Frame]) -> None:
        """Raises the refusal if the broker will not have the patterns."""
        for frame in frames:
            if isinstance(frame, f.Event):
                payload = decode(MSGPACK, frame.raw)
                event = Event(frame.topic, payload, frame.dropped, self.reconnected)
                self.reconnected = False
                self.events.append(event)
            elif isinstance(frame, f.Error):
                raise refused(frame)
            elif isinstance(frame, f.Goaway):
                raise ConnectionLost(f"the broker goes away: {frame.reason}")


class Subscription:
    """Events as they come. An iterator that ends when it is closed; a connection of its own."""

    def __init__(self, app: "App", patterns: tuple[str, ...]) -> None:
        self._app = app
        self._patterns = patterns
        self._inbox = Inbox()
        self._attempts = Attempts()
        self._link: Link | None = None
        self._closed = False
        self._connect(app.conf.broker_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        while not self._closed:
            event = self.next(None)
            if event is not None:
                yield event

    def next(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None if there is none in time, or the subscription was closed.

        A lost connection is made anew for as long as there is time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._inbox.events and not self._closed:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            try:
                if self._link is None:
                    self._reconnect(deadline)
                else:
                    left = None if deadline is None else left_s(deadline)
                    self._inbox.take(self._link.receive(left))
            except (ConnectError, ConnectionLost, ProtocolError):
                self._lost()
        return self._inbox.events.popleft() if self._inbox.events else None

    def _connect(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._attempts.begin(time.monotonic())
        link = Link.open(self._app.address, self._app.hello(), timeout_s=timeout_s)
        link.send(f.Listen(listener=1, patterns=list(self._patterns), correlation=3))
        while True:
            if time.monotonic() >= deadline:
                link.close()
                raise ConnectError("the broker did not answer in time")
            frames = link.receive(left_s(deadline))
            self._inbox.take(frames)
            if any(isinstance(frame, f.Ok) for frame in frames):
                break
        self._link = link
        self._attempts.succeed()

    def _reconnect(self, deadline: float | None) -> None:
        now = time.monotonic()
        left = self._app.conf.broker_timeout_s if deadline is None else max(0.001, deadline - now)
        time.sleep(min(left, self._attempts.wait_s(now, self._app.conf.broker_timeout_s)))
        self._connect(min(left, self._app.conf.broker_timeout_s))

    def _lost(self) -> None:
        self._inbox.reconnected = True
        if self._link is not None:
            self._link.close()
            self._link = None

    def close(self) -> None:
        """No more events. A thread that waits for one is woken."""
        self._closed = True
        if self._link is not None:
            self._link.close()


class Events:
    """Publishing and subscribing; each with its twin for asyncio."""

    def __init__(self, app: "App") -> None:
        self._app = app

    def publish(self, topic: str, payload: Any = None) -> int:
        """How many listeners there were for it. Raises NotDone or OutcomeUnknown."""
        return self._app.order(notify(topic, payload))

    async def publish_async(self, topic: str, payload: Any = None) -> int:
        """Like ``publish``, from asyncio."""
        return await self._app.order_async(notify(topic, payload))

    def subscribe(self, *patterns: str) -> Subscription:
        """Events whose topic fits one of the patterns, from now on.

        "*" stands for a word, "#" for any number of them. Raises NotDone.
        """
        return Subscription(self._app, checked(patterns))

    def subscribe_async(self, *patterns: str) -> "AsyncSubscription":
        """Like ``subscribe``, from asyncio: ``async with`` it, and ``async for`` its events."""
        from qclient.aevents import AsyncSubscription  # noqa: PLC0415  # see the import above

        return AsyncSubscription(self._app, checked(patterns))


def checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns. Raises ValueError for one that is none."""
    if not patterns:
        raise ValueError('subscribe to at least one pattern; "#" is every topic')
    for pattern in patterns:
        check_pattern(pattern)
    return patterns


def notify(topic: str, payload: Any) -> f.Notify:
    """The frame. Raises TypeError or ValueError for what cannot be sent."""
    check_topic(topic)
    try:
        raw = pack(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        place = unsendable(payload, MSGPACK)
        told = f"payload{place[0]}: {place[1]}" if place else str(error)
        raise type_of(error)(f"the event {topic} cannot be sent: {told}") from None
    if len(raw) > EVENT_BYTES_MAX:
        raise ValueError(
            f"the event {topic} has {len(raw)} bytes: at most {EVENT_BYTES_MAX}; "
            "keep the data elsewhere and send where"
        )
    return f.Notify(topic=topic, raw=raw)
