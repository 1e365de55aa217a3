"""What nodes of workflows are given: it comes before their deliveries, a page at a time.

broker --Inputs--> here --Deliver--> hand --take--> values: more pages are asked for, if need be
"""

from collections.abc import Iterator
from typing import Any

from qclient.failures import TaskRevoked, raised
from qclient.serialization import DecodeError, decode
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.states import State
from qworker.slots import Token


class Page:
    """What has come of one delivery's inputs."""

    __slots__ = ("rows", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.rows: list[tuple[int, int, bytes]] = []
        """State, content and bytes of each."""

    @property
    def is_whole(self) -> bool:
        return len(self.rows) >= self.total


class Given:
    """The inputs of deliveries in hand, by their tokens."""

    def __init__(self) -> None:
        self._pages: dict[Token, Page] = {}

    def __bool__(self) -> bool:
        return bool(self._pages)

    def receive(self, frame: f.Inputs) -> None:
        """The next inputs of a delivery. Raises ValueError if they are not as wire.py says."""
        token = frame.position, frame.grant
        page = self._pages.get(token)
        if page is None or frame.first == 0:
            page = self._pages[token] = Page(frame.total)
        rows = list(unpack_inputs(frame))
        if frame.first == len(page.rows):
            page.rows += rows

    def of(self, token: Token) -> Page | None:
        """What has come; None if nothing is to come."""
        return self._pages.get(token)

    def drop(self, token: Token) -> None:
        """They are used."""
        self._pages.pop(token, None)

    def keep(self, tokens: set[Token]) -> None:
        """Those of others are of no use: their deliveries are not in hand any more."""
        for token in self._pages.keys() - tokens:
            del self._pages[token]


def unpack_inputs(frame: f.Inputs) -> Iterator[tuple[int, int, bytes]]:
    """State, content and bytes of each input. Raises ValueError."""
    raw, at = frame.raw, 0
    for _ in range(frame.count):
        if at + wire.INPUT.size > len(raw):
            raise ValueError(f"Inputs of {frame.count} end inside number {frame.first}")
        state, content, size = wire.INPUT.unpack_from(raw, at)
        at += wire.INPUT.size
        if at + size > len(raw):
            raise ValueError(f"an input of {size} bytes, of which {len(raw) - at} have come")
        yield state, content, bytes(raw[at : at + size])
        at += size


def value_of(state: int, content: int, raw: bytes) -> Any:
    """What a task that was waited for returned, or the exception that it ended with.

    Raises DecodeError if it cannot be read.
    """
    if state == State.SUCCESS:
        return decode(content, raw) if raw else None
    if state == State.FAILURE:
        return raised(raw)
    if state == State.REVOKED:
        return TaskRevoked(raised(raw).message if raw else "it was cancelled or expired")
    raise DecodeError("the result of a task before this one cannot be read any more")
