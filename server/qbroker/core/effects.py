"""What a turn sends out. Volatile, and held by the engine until the log allows it.

Each effect may leave only AFTER the log head, as it stood when the effect was decided,
is on stable storage; with ``synced`` false, after it was handed to the kernel. The core
never reads the log: where an effect needs bytes of it, it names positions and the
engine puts the bytes in.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from qbroker.core.results import Finished
from qprotocol.frames import DeadLetters, Frame
from qprotocol.message import Delivery

__all__ = [
    "Close",
    "Delivery",
    "Effect",
    "GiveInputs",
    "Hand",
    "Input",
    "LetterRow",
    "LettersShown",
    "Lookup",
    "Peeked",
    "Send",
    "Tell",
]


Continued = dict[int, list[int]]
"""Messages that came in parts, to the positions of the parts in which they go on.

An effect takes this along: when it leaves, its message may be over and forgotten.
"""


@dataclass(slots=True)
class Effect:
    """Something for one connection."""

    connection: int
    synced: bool = field(default=True, kw_only=True)


@dataclass(slots=True)
class Send(Effect):
    """Send a frame that is complete."""

    frame: Frame


@dataclass(slots=True)
class Hand(Effect):
    """Deliver messages: the engine reads them by position."""

    subscription: int
    grant: int
    runs: list[tuple[int, int]]
    touched: list[tuple[int, int, int, int]]
    """(index, deliveries, failures, crashes)"""
    continued: Continued = field(kw_only=True, default_factory=dict)


class Input(NamedTuple):
    """What became of a task, for one that runs behind it."""

    state: int
    content: int
    record: int
    """Where the result or failure is in the log; 0 if there is none."""


@dataclass(slots=True)
class GiveInputs(Effect):
    """What a node is given, before its delivery or on demand: the engine reads the bytes."""

    position: int
    grant: int
    total: int
    first: int
    rows: list[Input]
    correlation: int = 0


@dataclass(slots=True)
class Tell(Effect):
    """Answer a Watch or Cancel with what became of a task: the engine reads the result."""

    correlation: int
    id: str
    position: int
    entry: Finished
    kept: bytes | None = None
    """The result, if it came from the archive."""


@dataclass(slots=True)
class Peeked(Effect):
    """Answer a Peek: the engine reads the messages and their last errors."""

    correlation: int
    rows: list[tuple[int, int, int, int, int, int, str, int]]
    """(position, due_ms, deliveries, failures, crashes, state, reason, error record)"""
    continued: Continued = field(kw_only=True, default_factory=dict)


class LetterRow(NamedTuple):
    """A dead letter, as far as the core knows it."""

    position: int
    number: int
    queue: str
    """Where it died."""
    dead_queue: str
    task: str
    priority: int
    cause: str
    reason: str
    died_ms: int
    worker: str
    deliveries: int
    failures: int
    crashes: int
    due_ms: int
    expires_ms: int
    is_leased: bool
    error: int
    """The record that holds its last error; 0 is none."""


@dataclass(slots=True)
class LettersShown(Effect):
    """Answer DeadLetters: the engine reads what is in the log, and looks for the error."""

    frame: DeadLetters
    last: int
    rows: list[LetterRow] = field(default_factory=list)
    next: int = 0
    looked: int = 0
    unread: set[int] = field(default_factory=set)
    """Positions of rows whose message is damaged."""
    continued: Continued = field(kw_only=True, default_factory=dict)


@dataclass(slots=True)
class Lookup(Effect):
    """The core needs to know which message an id or a token means; ask again with ``found``.

    The engine finds each id (by its time in the log's index) or reads each position, and
    calls ``execute`` again with the same frame. Nothing was decided yet. With ``archive`` the
    log knew nothing that is still alive: what does the archive say of the id?
    """

    frame: Frame
    id: str = ""
    positions: tuple[int, ...] = ()
    archive: bool = False
    moment_ms: int = 0
    """Asked for is the first position that was written then or later."""


@dataclass(slots=True)
class Close(Effect):
    """Close the connection after what was sent to it."""
