"""Dead letters: what is known of them beside their counters, in the order in which they died.

A dead letter is a message that waits in a queue of dead letters because it ended without success.
One that was published or moved there is none. It is told from all others by its position and its
number; should it be replayed and die again, it has another number.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SPARE = 1_000
"""Entries of the order whose letter is gone, kept before they are cleared away."""


class Letter(NamedTuple):
    """One of them."""

    number: int
    """Counts up: who died later has a higher one."""
    died_ms: int
    home: str
    """The queue it died in, where a replay sends it."""
    worker: bytes
    """The session that had it; empty if nobody had."""
    expires_ms: int = 0
    """When it is over, if its queue has a TTL."""
    due_ms: int = 0
    """When it is handed out again to who consumes dead letters, if it failed there."""


@dataclass(slots=True)
class Letters:
    """All of them, by position. Durable but for the order, which follows from the numbers."""

    by_position: dict[int, Letter] = field(default_factory=dict)
    count: int = 0
    """Dead letters there ever were: the number of the last."""
    _numbers: "array[int]" = field(default_factory=lambda: array("Q"))
    _positions: "array[int]" = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.by_position)

    def get(self, position: int) -> Letter | None:
        """The dead letter there."""
        return self.by_position.get(position)

    def add(self, position: int, letter: Letter) -> None:
        """The message is a dead letter, with the next number; one that was has its home still."""
        before = self.by_position.get(position)
        self.count += 1
        home = before.home if before else letter.home
        self.restore(position, letter._replace(number=self.count, home=home))

    def restore(self, position: int, letter: Letter) -> None:
        """There is this one behind all others."""
        self.by_position[position] = letter
        self._numbers.append(letter.number)
        self._positions.append(position)

    def gone(self, position: int) -> None:
        """There is no dead letter there any more."""
        found = self.by_position.pop(position, None)
        if found and len(self._numbers) > 2 * len(self.by_position) + SPARE:
            self._clear()

    def waits(self, position: int, due_ms: int) -> None:
        """If there is one, it is handed out again at that time."""
        found = self.by_position.get(position)
        if found:
            self.by_position[position] = found._replace(due_ms=due_ms)

    def rename(self, position: int, after: int) -> None:
        """The dead letter, if there is one, is at another position from now on."""
        found = self.by_position.pop(position, None)
        if found:
            self.by_position[after] = found
            self._positions[bisect_left(self._numbers, found.number)] = after

    def after(self, number: int) -> Iterator[tuple[int, int, Letter | None]]:
        """(number, position, letter) of each with a higher number, None where one has gone."""
        start = bisect_right(self._numbers, number)
        for index in range(start, len(self._numbers)):
            each, position = self._numbers[index], self._positions[index]
            letter = self.by_position.get(position)
            yield each, position, letter if letter and letter.number == each else None

    def ordered(self) -> list[tuple[int, Letter]]:
        """(position, letter), as they died."""
        return [(position, letter) for _, position, letter in self.after(0) if letter]

    def _clear(self) -> None:
        left = self.ordered()
        self._numbers = array("Q", [letter.number for _, letter in left])
        self._positions = array("Q", [position for position, _ in left])
