"""One thread, one heap of events, one seed: the clock, the chance and the chronicle of a run.

Rule 1. Whatever happens is an event here. Nothing in a simulation reads a real clock, draws
        from a source of its own, or depends on the order of a hash or an address.
Rule 2. Each part draws from its own stream (``rng``): what one part asks for more does not
        change what the others get.
Rule 3. All that is worth telling is a ``note``. Notes are the transcript of a failure, and
        their digest is what two runs of one seed must agree on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

MS = 1_000
"""The world counts microseconds."""
S = 1_000_000
WALL0_MS = 1_800_000_000_000


class Violation(AssertionError):
    """A promise was broken. What the message says is about the broker, never about the test."""


class PowerCut(BaseException):
    """Raised by the disk at the call at which the machine, or the process, ends."""


class Mark(NamedTuple):
    """When the broker sent something."""

    tick: int
    now: int
    life: int
    wall_high: int
    """The latest that its wall clock had ever shown."""


class World:
    """Time goes from event to event."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.now = 0
        self.tick = 0
        """Events so far; tells what came before what within one microsecond."""
        self.life = 0
        """Which start of the broker this is."""
        self.wall_offset_ms = 0
        self.wall_high = WALL0_MS
        self.notes: list[tuple[Any, ...]] = []
        self.sometimes: Counter[str] = Counter()
        """What happened, by name: a run of many seeds must have seen each of these."""
        self.faults: Counter[str] = Counter()
        self.on_power_cut: Callable[[], None] = lambda: None
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def rng(self, name: str) -> Random:
        """The stream of that name."""
        return Random(f"{self.seed}/{name}")

    # Time.

    def after(self, delay_us: int, do: Callable[..., None], *args: Any) -> None:
        """``do`` happens in ``delay_us``; those of one moment in the order they were asked for."""
        self._count += 1
        heappush(self._heap, (self.now + delay_us, self._count, do, args))

    def wall_ms(self) -> int:
        wall = WALL0_MS + self.now // MS + self.wall_offset_ms
        self.wall_high = max(self.wall_high, wall)
        return wall

    def mark(self) -> Mark:
        self.wall_ms()
        return Mark(self.tick, self.now, self.life, self.wall_high)

    def run(self, until: int, done: Callable[[], bool] | None = None, every: int = 256) -> bool:
        """Events up to that time; stops early once ``done``, which is asked every so many."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, do, args = heappop(heap)
            self.tick += 1
            try:
                do(*args)
            except PowerCut:
                self.on_power_cut()
            if done is not None and not self.tick % every and done():
                return True
        self.now = max(self.now, until) if done is None else self.now
        return done is not None and done()

    # The chronicle.

    def note(self, who: str, text: str, *args: Any) -> None:
        """``text`` is %-formatted with ``args`` when somebody reads it."""
        self.notes.append((self.now, who, text, args))

    def fault(self, kind: str) -> None:
        self.faults[kind] += 1

    def digest(self) -> str:
        """The same for two runs in which the same things happened at the same times."""
        found = hashlib.blake2b(digest_size=16)
        for note in self.notes:
            found.update(repr(note).encode())
        found.update(repr((self.now, self.tick, sorted(self.sometimes.items()))).encode())
        return found.hexdigest()

    def transcript(self, last: int = 0, word: str = "") -> list[str]:
        """The notes as lines; the last so many, those with ``word`` in them."""
        lines = [
            f"{now / S:12.6f}  {who:<12} {text % args if args else text}"
            for now, who, text, args in self.notes
        ]
        lines = [line for line in lines if word in line]
        return lines[-last:] if last else lines
