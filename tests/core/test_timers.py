"""Timers against a sorted list: what comes due, in which order, and what it costs."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbroker.core import timers as module
from qbroker.core.timers import LEAF_ENTRIES, Timers

numbers = st.integers(0, 40)
groups = st.integers(0, 2)
some = st.lists(numbers, min_size=1, max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), groups, numbers),
        st.tuples(st.just("add"), groups, some),
        st.tuples(st.just("adopt"), groups, some),
        st.tuples(st.just("pop"), numbers, st.integers(0, 9)),
        st.tuples(st.just("drop"), groups),
    ),
    max_size=40,
)


class Twins:
    """Timers with small leaves, and what they must hold: group to entries."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.held: dict[int, list[tuple[int, int, int]]] = {0: [], 1: [], 2: []}
        self.position = 0

    def entry(self, group: int, due_ms: int) -> tuple[int, int, int]:
        """Positions go up, and every third is an old one that waits again."""
        self.position += 1
        position = self.position * 100
        entry = due_ms + 1, position if position % 300 else 100_000 - position, group
        self.held[group].append(entry)
        return entry

    def push(self, group: int, due_ms: int) -> None:
        self.timers.push(group, *self.entry(group, due_ms))

    def add(self, group: int, dues: list[int]) -> None:
        self.timers.add(group, [self.entry(group, due_ms) for due_ms in dues])

    def adopt(self, group: int, dues: list[int]) -> None:
        other = Timers()
        other.add(group, [self.entry(group, due_ms) for due_ms in dues])
        self.timers.adopt(other)

    def pop(self, wall_ms: int, limit: int) -> None:
        everything = sorted(each for group in self.held.values() for each in group)
        wanted = [each for each in everything if each[0] <= wall_ms][:limit]
        assert self.timers.due(wall_ms, limit) == len(wanted)
        next_ms = self.timers.next_ms()
        assert next_ms <= (everything[0][0] if everything else 0)
        due = bool(everything) and everything[0][0] <= wall_ms
        assert due == (0 < next_ms <= wall_ms), "or turns would come for nothing"
        assert self.timers.pop(len(wanted)) == wanted
        for entry in wanted:
            self.held[entry[2]].remove(entry)

    def drop(self, group: int) -> None:
        gone = [entry for tree in self.timers.drop(group) for entry in tree.entries()]
        assert sorted(gone) == sorted(self.held[group])
        self.held[group] = []

    def check(self) -> None:
        held = [entry for entries in self.held.values() for entry in entries]
        assert sorted(self.timers.entries()) == sorted(held)
        assert self.timers.size == len(held)
        assert dict(self.timers.counts()) == {g: len(x) for g, x in self.held.items() if x}
        for group, entries in self.held.items():
            for due_ms, position, _ in entries:
                assert self.timers.holds(group, due_ms, position)
                assert not self.timers.holds(group + 1, due_ms, position)
                assert not self.timers.holds(group, due_ms, position + 1)


@given(steps)
@settings(max_examples=300)
def test_any_story_comes_due_in_order(story) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAF_ENTRIES", 4)
        patch.setattr(module, "ADOPT_ENTRIES", 4)
        twins = Twins()
        for verb, *arguments in story:
            getattr(twins, verb)(*arguments)
            twins.check()
        twins.pop(99, 999)
        assert twins.timers.next_ms() == 0
        assert list(twins.timers.trees()) == []


def test_what_waits_over_a_year_costs_24_bytes_a_message() -> None:
    timers = Timers()
    for first in range(0, 100_000, 1_000):
        dues = (nth * 7_919 % 100_000 * 315_360 for nth in range(first, first + 1_000))
        timers.add(0, [(due + 1, (1 << 40) + due, 1 << 20) for due in dues])
    size = 0
    for tree in timers.trees():
        size += sys.getsizeof(tree.leaves) + sys.getsizeof(tree.lows)
        for low, leaf in zip(tree.lows, tree.leaves, strict=True):
            columns = leaf.dues, leaf.positions, leaf.runs
            size += sys.getsizeof(leaf) + sum(map(sys.getsizeof, columns))
            size += sys.getsizeof(low) + sum(map(sys.getsizeof, low))
    assert size < 24 * 100_000


@pytest.mark.parametrize("spread_ms", [1, 1_000, 1 << 35])
def test_no_leaf_is_large_however_many_come_due_together(spread_ms: int) -> None:
    """What a turn looks at is a few leaves: also if all are due in one millisecond."""
    timers = Timers()
    for nth in range(20_000):
        timers.push(0, 1 + nth * 7_919 % spread_ms, nth, 1)
    (tree,) = timers.trees()
    assert max(map(len, tree.leaves)) <= LEAF_ENTRIES
    assert len(tree.leaves) < 4 * 20_000 // LEAF_ENTRIES


def test_an_adopted_tree_is_not_copied() -> None:
    mine, other = Timers(), Timers()
    for nth in range(5_000):
        mine.push(0, 2 * nth + 1, nth, 1)
        other.push(0, 2 * nth + 2, 5_000 + nth, 1)
    (theirs,) = other.trees()
    mine.adopt(other)
    assert theirs in mine.trees()
    assert [due_ms for due_ms, _, _ in mine.pop(10_000)] == list(range(1, 10_001))
