"""Keys that are held: of the messages with one, which is the one.

    publish -----> held -----> free     handed out, over, or its time is over: as the key says
                     '-- operator --> free

    kind u8 | length u16 of the name | name of the queue or task | key        as the table has it

A key that is held until its message is handed out or over is found by the message's position, so
that whatever ends the message frees it. One that is held for a time is free by the clock alone.
Idempotency keys are such keys, of a kind of their own.
"""

from collections import Counter
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from struct import Struct
from typing import Any, NamedTuple

from qbroker.core.moment import Now
from qprotocol.uniquekeys import SCOPES, UNTILS

QUEUE, TASK, _ = SCOPES.values()
IDEMPOTENCY = 4
"""Kinds of keys: the scopes of unique ones, and one more."""
STARTED, FINISHED, TIME = UNTILS.values()
_HEAD = Struct("<BH")
_SPARE = 1_000
"""Times of keys that are free already, kept before they are cleared away."""


@dataclass(slots=True)
class Holder:
    """The message that has a key. Durable."""

    position: int
    id: bytes
    """u8 whether it is minted, and its bytes."""
    until: int
    until_ms: int = 0
    """With ``until`` TIME: when the key is free."""
    run: int = 0
    """The number of the run it was published to."""
    due_ms: int = 0
    """When it is due, if it waits for its time."""
    redelayed: int = 0
    """How often its time was moved by another one with its key."""


class Rule(NamedTuple):
    """What a unique key says beside the key itself: the same for all calls of most tasks."""

    begins: bytes
    """How its keys begin in the table."""
    conflict: str
    until: int
    for_ms: int


@dataclass(slots=True, eq=False)
class Mark:
    """What a message says of its keys, and what came of it. Volatile."""

    index: int
    """In its batch."""
    number: int
    """In its frame."""
    id: bytes
    """As a Holder's."""
    key: bytes
    """Its unique key as the table has it; empty without."""
    rule: Rule | None
    """Of that key."""
    done_as: bytes
    """Its idempotency key as the table has it; empty without."""
    window_ms: int
    """Of that key; 0 is as long as the broker has it by default."""
    due_ms: int = 0
    others: tuple[int, ...] = ()
    """In a publish in parts: the other copies of the same message."""
    stands: "Holder | Mark | None" = None
    """The message is not stored, for this one stands for it."""


def pack_held(kind: int, name: str, key: str) -> bytes:
    """A key with its kind, and the name of the queue or task that it is a key of."""
    raw = name.encode()
    return _HEAD.pack(kind, len(raw)) + raw + key.encode()


def begin_held(scope: int, place: str, task: str) -> bytes:
    """How unique keys of that scope begin: by their task, by their place, or by neither."""
    return pack_held(scope, {TASK: task, QUEUE: place}.get(scope, ""), "")


def unpack_held(held: bytes) -> tuple[int, str, str]:
    """Kind, name and key."""
    kind, size = _HEAD.unpack_from(held)
    end = _HEAD.size + size
    return kind, held[_HEAD.size : end].decode(), held[end:].decode()


@dataclass(slots=True)
class Keys:
    """All keys that are held, and who holds them."""

    held: dict[bytes, Holder] = field(default_factory=dict)
    of: dict[int, bytes] = field(default_factory=dict)
    """Positions to keys that these messages free when they are handed out, or over."""
    starting: set[int] = field(default_factory=set)
    """Those of ``of`` that do when they are handed out."""
    doomed: dict[int, tuple[int, str]] = field(default_factory=dict)
    """To be taken out before anything is handed out: positions to run numbers and why, which is
    "replaced", or "cancelled" of what somebody cancelled before it came."""
    redelayed: dict[int, bytes] = field(default_factory=dict)
    """Positions of messages whose time was moved, to their keys."""
    windows: int = 0
    """How many of ``held`` are idempotency keys."""
    met: Counter[str] = field(default_factory=Counter)
    """Volatile: how many messages met a key that was held, by what became of them."""
    _lapses: list[tuple[int, bytes]] = field(default_factory=list)
    """A heap of (until_ms, key); those that mean no key any more are passed over."""

    def take(self, key: bytes, holder: Holder) -> None:
        """The key is the holder's, whosever it was."""
        if key in self.held:
            self.drop(key)
        self.held[key] = holder
        if key[0] == IDEMPOTENCY:
            self.windows += 1
        if holder.redelayed:
            self.redelayed[holder.position] = key
        if holder.until == TIME:
            heappush(self._lapses, (holder.until_ms, key))
            if len(self._lapses) > 2 * len(self.held) + _SPARE:
                self._list_lapses()
        else:
            self.of[holder.position] = key
            if holder.until == STARTED:
                self.starting.add(holder.position)

    def drop(self, key: bytes) -> None:
        """The key is free."""
        holder = self.held.pop(key, None)
        if holder is not None:
            self.windows -= key[0] == IDEMPOTENCY
            if holder.redelayed:
                del self.redelayed[holder.position]
            if self.of.get(holder.position) == key:
                del self.of[holder.position]
                self.starting.discard(holder.position)

    def go_out(self, positions: range) -> None:
        """These are handed out: keys that are held until then are free."""
        for position in self.starting.intersection(positions):
            self.drop(self.of[position])

    def end(self, position: int) -> None:
        """The message is over, or a dead letter: its key is free."""
        key = self.of.pop(position, None)
        if key is not None:  # which is no idempotency key: those are held for a time
            if self.held.pop(key).redelayed:
                del self.redelayed[position]
            if self.starting:
                self.starting.discard(position)
        if self.doomed:
            self.doomed.pop(position, None)

    def redelay(self, key: bytes, due_ms: int) -> None:
        """Another with the key has moved the time of its holder."""
        holder = self.held[key]
        holder.due_ms = due_ms
        holder.redelayed += 1
        self.redelayed[holder.position] = key

    def move(self, position: int, after: int) -> None:
        """Another position stands for the message: it holds the key."""
        key = self.of.pop(position, None)
        if key is not None:
            self.of[after] = key
            self.held[key].position = after
            if position in self.redelayed:
                self.redelayed[after] = self.redelayed.pop(position)

    def get(self, key: bytes, now: Now) -> Holder | None:
        """Who holds the key; what is held for a time only as long as that lasts."""
        holder = self.held.get(key)
        if holder is None or (holder.until == TIME and holder.until_ms <= now.wall_ms):
            return None
        return holder

    def lapsed(self, now: Now, limit: int) -> list[bytes]:
        """Keys whose time is over, at most ``limit``; each is told once."""
        found: list[bytes] = []
        lapses, held = self._lapses, self.held
        while lapses and lapses[0][0] <= now.wall_ms and len(found) < limit:
            until_ms, key = heappop(lapses)
            holder = held.get(key)
            if holder and holder.until_ms == until_ms:
                found.append(key)
        return found

    def counts(self) -> dict[str, int]:
        """How many keys of each kind are held."""
        return {"unique": len(self.held) - self.windows, "idempotency": self.windows}

    def next_ms(self) -> int:
        """When the time of the next key is over; 0 is never."""
        return self._lapses[0][0] if self._lapses else 0

    def _list_lapses(self) -> None:
        timed = ((h.until_ms, key) for key, h in self.held.items() if h.until == TIME)
        self._lapses = list(timed)
        heapify(self._lapses)

    # In a snapshot.

    def saved(self) -> list[Any]:
        """A row a key; who is to be taken out."""
        rows = [
            [key, h.position, h.id, h.until, h.until_ms, h.run, h.due_ms, h.redelayed]
            for key, h in self.held.items()
        ]
        return [rows, self.doomed]

    def restore(self, saved: list[Any]) -> None:
        """The same keys are held."""
        rows, doomed = saved
        for key, *rest in rows:
            self.take(key, Holder(*rest))
        self.doomed.update((position, tuple(why)) for position, why in doomed.items())
