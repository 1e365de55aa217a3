"""Messages in the order they come due: some 22 bytes each, however many and however far away.

    Timers --> a group (what can be dropped as a whole: a queue) --> trees --> leaves

A leaf holds the entries between two points in time, in no order; one that grows too large is cut
in halves. So nothing that happens to an entry, also the coming due of a million in one
second, costs more than a look at a few leaves. A tree that was built elsewhere is adopted as it is.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush, heapreplace, merge
from itertools import chain, islice
from typing import Any

LEAF_ENTRIES = 512
"""Entries in a leaf; one more, and it is cut in halves."""
ADOPT_ENTRIES = 1_000
"""Fewer than that are not worth a tree of their own."""

Entry = tuple[int, int, int]
"""(due_ms, position, run number)"""
_LAST = (2**64, 0)
_UNLISTED = (-1, -1)


class Leaf:
    """Three columns of entries, 20 bytes each."""

    __slots__ = ("dues", "positions", "runs", "sorted")

    def __init__(self) -> None:
        self.dues = array("Q")
        self.positions = array("Q")
        self.runs = array("I")
        self.sorted = True

    @classmethod
    def of(cls, dues: Iterable[int], positions: Iterable[int], runs: Iterable[int]) -> "Leaf":
        """A leaf of these columns; nobody knows if they are sorted."""
        leaf = cls()
        leaf.dues, leaf.positions = array("Q", dues), array("Q", positions)
        leaf.runs, leaf.sorted = array("I", runs), False
        return leaf

    def __len__(self) -> int:
        return len(self.dues)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Take in entries."""
        dues, positions, runs = zip(*entries, strict=True)
        self.dues.extend(dues)
        self.positions.extend(positions)
        self.runs.extend(runs)
        self.sorted = False

    def entries(self) -> list[Entry]:
        """Sorted."""
        return sorted(zip(self.dues, self.positions, self.runs, strict=True))

    def sort(self) -> None:
        """The columns are in order now."""
        if not self.sorted:
            dues, positions, runs = zip(*self.entries(), strict=True)
            self.dues, self.positions = array("Q", dues), array("Q", positions)
            self.runs, self.sorted = array("I", runs), True

    def cut(self, count: int) -> list[Entry]:
        """The first so many, taken out."""
        columns = self.dues[:count], self.positions[:count], self.runs[:count]
        del self.dues[:count], self.positions[:count], self.runs[:count]
        return list(zip(*columns, strict=True))


class Tree:
    """Leaves, one behind the other in time."""

    __slots__ = ("group", "key", "leaves", "lows", "size")

    def __init__(self, group: int) -> None:
        self.group = group
        self.leaves: list[Leaf] = []
        self.lows: list[tuple[int, int]] = []
        """The first (due_ms, position) of each leaf: entries leave from the front alone."""
        self.size = 0
        self.key = _UNLISTED
        """The low under which it is listed: not durable."""

    @property
    def low(self) -> tuple[int, int]:
        """The first (due_ms, position). Only when there are entries."""
        return self.lows[0]

    def add(self, entries: Sequence[Entry]) -> None:
        """Take in entries in any order: each leaf gets its own at once."""
        self.size += len(entries)
        news, at = sorted(entries), 0
        while at < len(news):
            index = self._leaf(news[at][:2])
            stop = len(news)
            if index + 1 < len(self.lows):
                stop = bisect_left(news, self.lows[index + 1], at)
            stop = min(stop, at + LEAF_ENTRIES)
            self.leaves[index].extend(news[at:stop])
            if len(self.leaves[index]) > LEAF_ENTRIES:
                self._halve(index)
            at = stop

    def due(self, wall_ms: int, limit: int) -> int:
        """How many are due by then, at most ``limit``."""
        count = 0
        for leaf, low in zip(self.leaves, self.lows, strict=True):
            if low[0] > wall_ms or count >= limit:
                break
            count += sum(due_ms <= wall_ms for due_ms in leaf.dues)
        return min(count, limit)

    def take(self, limit: int, before: tuple[int, int]) -> list[Entry]:
        """The first entry out, and some more that are below ``before``; at most ``limit``."""
        leaf = self.leaves[0]
        leaf.sort()
        count = min(limit, len(leaf))
        if before != _LAST:
            keys = list(zip(leaf.dues[:count], leaf.positions[:count], strict=True))
            count = max(1, bisect_left(keys, before))
        out = leaf.cut(count)
        self.size -= count
        if leaf:
            self.lows[0] = leaf.dues[0], leaf.positions[0]
        else:
            del self.leaves[0], self.lows[0]
        return out

    def emptied(self) -> "Tree":
        """All that was in, in a new tree."""
        gone = Tree(self.group)
        gone.leaves, gone.lows, gone.size = self.leaves, self.lows, self.size
        self.leaves, self.lows, self.size = [], [], 0
        return gone

    def holds(self, due_ms: int, position: int) -> bool:
        """Whether the position is in and may be due then. Costs a look at a leaf."""
        index = bisect_right(self.lows, (due_ms, position)) - 1
        return index >= 0 and position in self.leaves[index].positions

    def after(self, key: tuple[int, int]) -> Iterator[Entry]:
        """Those behind that (due_ms, position), in their order."""
        for index in range(max(0, bisect_right(self.lows, key) - 1), len(self.leaves)):
            yield from (each for each in self.leaves[index].entries() if each[:2] > key)

    def remove(self, entries: Iterable[Entry]) -> int:
        """Take out those of them that are in, wherever they are; how many. Some steps a leaf."""
        wanted: dict[int, set[Entry]] = {}
        for entry in entries:
            index = bisect_right(self.lows, entry[:2]) - 1
            if index >= 0:
                wanted.setdefault(index, set()).add(entry)
        before = self.size
        for index in sorted(wanted, reverse=True):
            leaf = self.leaves[index]
            left = [each for each in leaf.entries() if each not in wanted[index]]
            self.size -= len(leaf) - len(left)
            if left:
                self.leaves[index] = Leaf.of(*zip(*left, strict=True))
                self.lows[index] = left[0][:2]
            else:
                del self.leaves[index], self.lows[index]
        return before - self.size

    def entries(self) -> Iterator[Entry]:
        """All, in their order."""
        for leaf in self.leaves:
            yield from leaf.entries()

    def _leaf(self, key: tuple[int, int]) -> int:
        """The index of the leaf for that key."""
        if not self.lows:
            self.lows, self.leaves = [key], [Leaf()]
        index = bisect_right(self.lows, key) - 1
        if index < 0:
            index = 0
            self.lows[0] = key
        return index

    def _halve(self, index: int) -> None:
        entries = self.leaves[index].entries()
        half = len(entries) // 2
        parts = entries[:half], entries[half:]
        self.leaves[index : index + 1] = [Leaf.of(*zip(*part, strict=True)) for part in parts]
        self.lows.insert(index + 1, entries[half][:2])


class Timers:
    """(due_ms, position, run number) entries in groups. All of it is durable.

    The order in which they leave is theirs as tuples, whatever their group.
    """

    def __init__(self) -> None:
        self.size = 0
        self._groups: dict[int, list[Tree]] = {}
        """Trees that are not empty, the one for new entries first; no empty group."""
        self._order: list[tuple[tuple[int, int], int, Tree]] = []
        """A heap of (low, count, tree): each tree under its ``low``, or an earlier one."""
        self._count = 0

    def push(self, group: int, due_ms: int, position: int, run: int) -> None:
        """Remember that ``position`` becomes ready at ``due_ms``."""
        self.add(group, ((due_ms, position, run),))

    def add(self, group: int, entries: Sequence[Entry]) -> None:
        """Remember so many, in any order."""
        self.size += len(entries)
        trees = self._groups.get(group)
        if trees is None:
            trees = self._groups[group] = [Tree(group)]
        tree = trees[0]
        tree.add(entries)
        if tree.key == _UNLISTED or tree.low < tree.key:
            self._list(tree)

    def adopt(self, other: "Timers") -> None:
        """Take over all that another one holds, which is not used again. Copies little."""
        for tree in other.trees():
            if other.size < ADOPT_ENTRIES:
                self.add(tree.group, list(tree.entries()))
            else:
                self._take_over(tree)

    def next_ms(self) -> int:
        """When something is due; 0 is never."""
        tree = self._first()
        return max(1, tree.low[0]) if tree else 0

    def due(self, wall_ms: int, limit: int) -> int:
        """How many entries, at most ``limit``, are due by ``wall_ms``. Takes none."""
        count = 0
        for tree in self.trees() if self.next_ms() <= wall_ms else ():
            if tree.low[0] <= wall_ms:
                count += tree.due(wall_ms, limit - count)
        return count

    def pop(self, count: int) -> list[Entry]:
        """Take the first ``count`` entries."""
        return [entry for _, entries in self.take(count) for entry in entries]

    def take(self, count: int) -> Iterator[tuple[int, list[Entry]]]:
        """Take the first ``count`` entries: some at a time, and the group that these are of."""
        while count > 0 and (tree := self._first()):
            before = min((low for low, _, _ in self._order[1:3]), default=_LAST)
            out = tree.take(count, before)
            count -= len(out)
            self.size -= len(out)
            if not tree.size:
                self._forget(tree)
            yield tree.group, out

    def after(self, group: int, key: tuple[int, int], limit: int) -> list[Entry]:
        """The first entries of the group behind that (due_ms, position), at most ``limit``."""
        trees = (tree.after(key) for tree in self._groups.get(group, ()))
        return list(islice(merge(*trees), limit))

    def remove(self, group: int, entries: Sequence[Entry]) -> None:
        """These of the group are not in any more. Costs some steps a leaf."""
        for tree in list(self._groups.get(group, ())):
            self.size -= tree.remove(entries)
            if not tree.size:
                self._forget(tree)

    def due_of(self, group: int, position: int, leaves_max: int) -> int:
        """When the group's entry with that position is due; 0 if it was not found so soon."""
        leaves = (leaf for tree in self._groups.get(group, ()) for leaf in tree.leaves)
        for leaf in islice(leaves, leaves_max):
            if position in leaf.positions:
                return leaf.dues[leaf.positions.index(position)]
        return 0

    def holds(self, group: int, due_ms: int, position: int) -> bool:
        """Whether that entry is in. Costs a look at a leaf of each tree."""
        return any(tree.holds(due_ms, position) for tree in self._groups.get(group, ()))

    def counts(self) -> Iterator[tuple[int, int]]:
        """Each group, and how many entries it has."""
        for group, trees in self._groups.items():
            yield group, sum(tree.size for tree in trees)

    def drop(self, group: int) -> list[Tree]:
        """The group is empty; what it held."""
        gone = [tree.emptied() for tree in self._groups.pop(group, ())]
        self.size -= sum(tree.size for tree in gone)
        return gone

    def trees(self) -> Iterator[Tree]:
        """All, by group."""
        for trees in self._groups.values():
            yield from trees

    def positions(self) -> "Iterator[array[int]]":
        """The positions of all entries, a leaf at a time, in no order."""
        for tree in self.trees():
            for leaf in tree.leaves:
                yield leaf.positions

    def entries(self) -> Iterator[Entry]:
        """All, by group and tree; in order within one."""
        for tree in self.trees():
            yield from tree.entries()

    def saved(self) -> "tuple[list[list[Any]], list[array[int]]]":
        """A row a tree: its group, and of each leaf the low and how many; its three columns."""
        rows: list[list[Any]] = []
        columns: list[array[int]] = []
        for tree in self.trees():
            rows.append([tree.group, tree.lows, list(map(len, tree.leaves))])
            for name in ("dues", "positions", "runs"):
                parts = (getattr(leaf, name) for leaf in tree.leaves)
                columns.append(array("Q", chain.from_iterable(parts)))
        return rows, columns

    @classmethod
    def restored(cls, rows: list[list[Any]], columns: "list[array[int]]") -> "Timers":
        """The same entries, in the same trees. Costs some steps a leaf."""
        timers = cls()
        for row, (group, lows, counts) in enumerate(rows):
            tree, at = Tree(group), 0
            tree.lows = [(low[0], low[1]) for low in lows]
            for count in counts:
                three = [column[at : at + count] for column in columns[3 * row : 3 * row + 3]]
                tree.leaves.append(Leaf.of(*three))
                at += count
            tree.size = at
            timers._take_over(tree)
        return timers

    def _take_over(self, tree: Tree) -> None:
        self.size += tree.size
        self._groups.setdefault(tree.group, []).append(tree)
        self._list(tree)

    def _list(self, tree: Tree) -> None:
        """See that the tree is listed under its ``low``."""
        self._count += 1
        tree.key = tree.low
        heappush(self._order, (tree.key, self._count, tree))

    def _first(self) -> Tree | None:
        """The tree with the lowest ``low``; the top of the heap is true then."""
        order = self._order
        while order:
            key, count, tree = order[0]
            if not tree.size or key != tree.key:
                heappop(order)
            elif tree.low == key:
                return tree
            else:
                tree.key = tree.low
                heapreplace(order, (tree.key, count, tree))
        return None

    def _forget(self, tree: Tree) -> None:
        trees = self._groups[tree.group]
        trees.remove(tree)
        if not trees:
            del self._groups[tree.group]
