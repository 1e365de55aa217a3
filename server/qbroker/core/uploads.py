"""Frames that arrive in parts: what has come of each, and what is staged of a publish."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from qbroker.core.graphs import Graph
from qbroker.core.keys import Mark
from qbroker.core.timers import Timers
from qbroker.core.weaving import Weaving


@dataclass(slots=True)
class Arrival:
    """A frame that arrives in parts. All volatile."""

    parts: int = 0
    """How many have come."""
    refused: Exception | None = None
    """What is said once the frame itself comes; further parts are dropped."""
    raw: bytearray = field(default_factory=bytearray)
    """The parts of a frame that is no Publish."""
    count: int = 0
    """A publish: messages that have begun."""
    tail: bytearray = field(default_factory=bytearray)
    """A publish: bytes of a message whose head is not complete, or that is to be copied."""
    awaited: int = 0
    """A publish: how long ``tail`` must be before it is of use."""
    lacking: int = 0
    """A publish: what the last message's body still lacks."""
    synced: bool = False
    placed: int = 0
    """A publish: messages that its pieces bring, copies and all."""
    marks: list[Mark] = field(default_factory=list)
    """A publish: those of them that say something of keys, by number among all of them."""
    weaving: Weaving | None = None
    """A publish: the graph that its messages are nodes of, if they are."""


@dataclass(slots=True)
class Upload:
    """A publish that arrives in parts, as far as it is in the log; nothing of it is true yet."""

    staged: dict[tuple[int, int], "array[int]"] = field(default_factory=dict)
    """(lane number, priority) to positions."""
    timers: Timers = field(default_factory=Timers)
    expiries: Timers = field(default_factory=Timers)
    delayed: dict[int, set[int]] = field(default_factory=dict)
    """Queue number to the positions that are in both."""
    named: dict[bytes, int] = field(default_factory=dict)
    continued: dict[int, list[int]] = field(default_factory=dict)
    """A message that goes on in later parts, to those parts' positions."""
    weighed: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(queue number, first position, sizes as u32) of neighbours, where bytes are limited."""
    revoked: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(position, run number, id as its notice has it) of those that were cancelled before."""
    graph: Graph | None = None
    """If its messages are nodes of one."""
    held: Counter[int] = field(default_factory=Counter)
    """Nodes that are held, by queue number."""
    last: int = 0
    """The last message that began."""
    count: int = 0
    parts: int = 0
    """Bytes of messages so far."""
    scheduled: dict[int, int] = field(default_factory=dict)
    """Lane number to how many of its messages are in the timers."""

    def places(self) -> list[tuple[int, int, int]]:
        """By number, each message's position, run number and due_ms. Costs a step a message."""
        found = [(position, run, due_ms) for due_ms, position, run in self.timers.entries()]
        for (lane, priority), positions in self.staged.items():
            number = lane << 8 | priority + 128
            found += [(position, number, 0) for position in positions]
        return sorted(found)

    def drop(self, places: list[tuple[int, int, int]]) -> None:
        """These are not stored: they are in none of its tables but ``weighed``."""
        gone = {position for position, _, _ in places}
        entries = [(due_ms, position, run) for position, run, due_ms in places if due_ms]
        for group, _ in list(self.timers.counts()):
            self.timers.remove(group, entries)
        for _, _, run in entries:
            self.scheduled[run >> 8] -= 1
        for key in {(run >> 8, (run & 0xFF) - 128) for _, run, due_ms in places if not due_ms}:
            left = array("Q", (each for each in self.staged[key] if each not in gone))
            if left:
                self.staged[key] = left
            else:
                del self.staged[key]
        for both in self.delayed.values():
            both.difference_update(gone)
        self.named = {name: each for name, each in self.named.items() if each not in gone}
        self.continued = {p: parts for p, parts in self.continued.items() if p not in gone}
        self.revoked = [each for each in self.revoked if each[0] not in gone]
