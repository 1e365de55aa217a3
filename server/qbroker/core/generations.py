"""Values by position, oldest first, in a table that is never made larger at once.

One dict of a million entries takes 100 ms to grow, in the turn of whoever comes last, and keeps
its memory when it is empty. Here it is a dict a generation, each of which is gone with its last
entry. So memory is what is in it, and the longest step a generation's.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Generic, TypeVar

GENERATION_MAX = 40_000
"""Entries of a generation: just below where its dict would grow once more."""

T = TypeVar("T")


class Generations(Generic[T]):
    """An ordered map. To find an entry, or none, costs a look at each generation."""

    def __init__(self) -> None:
        self._generations: list[dict[int, T]] = [{}]
        self._count = 0

    def add(self, position: int, value: T) -> None:
        """The value is there, as the newest; there was none under its position."""
        newest = self._generations[-1]
        if len(newest) >= GENERATION_MAX:
            newest = {}
            self._generations.append(newest)
        newest[position] = value
        self._count += 1

    def get(self, position: int) -> T | None:
        """The value under the position; None if there is none."""
        for generation in self._generations:
            if position in generation:
                return generation[position]
        return None

    def pop(self, position: int) -> T | None:
        """The value is gone from here; None if there was none."""
        for index, generation in enumerate(self._generations):
            if position in generation:
                value = generation.pop(position)
                self._count -= 1
                if not generation:
                    self._drop(index)
                return value
        return None

    def _drop(self, index: int) -> None:
        """The empty generation is gone, and what its dict has taken; one is always there."""
        del self._generations[index]
        if not self._generations:
            self._generations.append({})

    def items(self) -> Iterator[tuple[int, T]]:
        """Positions and values, oldest first. It must not change meanwhile."""
        return chain.from_iterable(each.items() for each in self._generations)

    def values(self) -> Iterator[T]:
        """The values alone."""
        return chain.from_iterable(each.values() for each in self._generations)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._generations)

    def __contains__(self, position: int) -> bool:
        return any(position in each for each in self._generations)

    def __len__(self) -> int:
        return self._count
