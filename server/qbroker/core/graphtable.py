"""All graphs, by the positions of their nodes, and what of them is news."""

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from qbroker.core.graphs import HELD, LETTER, OPEN, VOID, Graph, how
from qprotocol.states import State


class Cursor(NamedTuple):
    """Something that those behind a node are to know, and how many of them do."""

    position: int
    news: int
    """How it has ended; OPEN if it has not, after all; or LOOK, which is about the node itself."""
    told: int = 0


@dataclass(slots=True)
class Graphs:
    """All graphs of which some node has not ended, by the positions of their nodes."""

    firsts: list[int] = field(default_factory=list)
    """First position of each piece of a graph, ascending; and whose it is."""
    owners: list[Graph] = field(default_factory=list)
    todo: deque[Cursor] = field(default_factory=deque)
    """Nodes whose end is news to those behind them."""
    nodes: int = 0
    """How many there are in all of them, ended ones too."""
    held: int = 0
    """Those of them that are held."""
    lanes: Counter[int] = field(default_factory=Counter)
    """Numbers of lanes that graphs keep open, to how many do."""
    resting: dict[int, Graph] = field(default_factory=dict)
    """Those that are kept for their dead letters alone, by number, the first to rest first."""
    sweeps: deque[tuple[int, int]] = field(default_factory=deque)
    """After purges: the graph that is to be looked at next, by its number, and its node."""

    def __bool__(self) -> bool:
        return bool(self.owners)

    @property
    def has_news(self) -> bool:
        """Whether there is something that the next Advanced or NodesSwept will do."""
        return bool(self.todo or self.sweeps)

    def add(self, graph: Graph) -> None:
        """The graph is there."""
        self.nodes += len(graph)
        self.held += graph.held
        self.lanes.update(graph.lanes)
        for first in graph.places:
            at = bisect_right(self.firsts, first)
            self.firsts.insert(at, first)
            self.owners.insert(at, graph)

    def all(self) -> list[Graph]:
        """Each of them, by their numbers."""
        return list(dict.fromkeys(self.owners))

    def positions(self) -> Iterator[int]:
        """Those of the nodes of all graphs that are there now."""
        for graph in self.all():
            for first, start, stop in graph.pieces():
                yield from range(first, first + stop - start)

    def drop(self, graph: Graph) -> None:
        """All of its nodes have ended, and those behind them know."""
        self.nodes -= len(graph)
        self.resting.pop(graph.number, None)
        for lane in graph.lanes:
            self.lanes[lane] -= 1
            if not self.lanes[lane]:
                del self.lanes[lane]
        for first in graph.places:
            at = bisect_right(self.firsts, first) - 1
            del self.firsts[at], self.owners[at]

    def find(self, position: int) -> tuple[Graph, int] | None:
        """The graph and index of the node at a position; None if it is no node."""
        at = bisect_right(self.firsts, position) - 1
        if at < 0:
            return None
        graph = self.owners[at]
        index = graph.index(position)
        if index >= len(graph) or graph.position(index) != position:
            return None
        return graph, index

    def are_any(self, first: int, count: int) -> bool:
        """Whether one of these neighbours may be a node: not, if no graph is near."""
        at = bisect_right(self.firsts, first + count - 1) - 1
        if at < 0:
            return False
        graph = self.owners[at]
        piece = bisect_right(graph.places, self.firsts[at]) - 1
        end = graph.indexes[piece + 1] if piece + 1 < len(graph.indexes) else len(graph)
        return first < self.firsts[at] + end - graph.indexes[piece]

    def wanted(self) -> Iterator[int]:
        """The same of all of them."""
        for graph in self.all():
            yield from graph.wanted()

    def node(self, position: int) -> tuple[Graph, int]:
        """The same of one that is there."""
        found = self.find(position)
        assert found, f"{position} is no node of a graph"
        return found

    def move(self, position: int, run: int, *, is_keyed: bool) -> None:
        """The node, which is held, will wait in the run with that number."""
        graph, index = self.node(position)
        graph.runs[index] = run
        lane = run >> 8
        if is_keyed and lane not in graph.lanes:
            graph.lanes.add(lane)
            self.lanes[lane] += 1

    def tell(self, position: int, news: int) -> None:
        """Those behind the node are to know this."""
        graph, _ = self.node(position)
        graph.untold += 1
        self.todo.append(Cursor(position, news))

    def walked(self, position: int) -> Graph | None:
        """They do. The graph, if nothing is left of it: it is gone."""
        graph, _ = self.node(position)
        graph.untold -= 1
        return self.let_rest(graph)

    def let_rest(self, graph: Graph) -> Graph | None:
        """The graph, if nothing is left of it: it is gone. One with dead letters rests."""
        if not graph.rests:
            return None
        if graph.letters:
            self.resting[graph.number] = graph
            return None
        self.drop(graph)
        return graph

    def letter_gone(self, position: int) -> Graph | None:
        """The message is no dead letter any more, if it was one; its graph, if that is gone now."""
        found = self.find(position)
        if not found or not found[0].status[found[1]] & LETTER:
            return None
        graph, index = found
        graph.status[index] &= ~LETTER
        graph.letters -= 1
        return self.let_rest(graph)

    def under_way(self, position: int) -> None:
        """The message, a dead letter, is to run again: if it is a node, others behind it may be."""
        found = self.find(position)
        if found and found[0].status[found[1]] & LETTER:
            graph, index = found
            self.resting.pop(graph.number, None)
            graph.begin_again(index, OPEN)
            self.tell(position, OPEN)

    def hold_again(self, position: int) -> None:
        """The node, which ended with others, is held again."""
        graph, index = self.node(position)
        graph.begin_again(index, HELD)
        self.held += 1
        self.tell(position, OPEN)

    def let_go(self, position: int) -> None:
        """The node is held no more."""
        graph, index = self.node(position)
        graph.set_open(index)
        self.held -= 1

    def is_held(self, position: int) -> bool:
        """Whether the message is a node that waits for others."""
        return self.held_in(position) >= 0

    def held_in(self, position: int) -> int:
        """The number of the run that such a node will wait in; -1 if the message is none."""
        found = self.find(position) if self.held else None
        return found[0].runs[found[1]] if found and found[0].status[found[1]] == HELD else -1

    def failure_of(self, position: int) -> int | None:
        """Where the failure is that a node has from another one; None if it has none."""
        found = self.find(position) if self.owners else None
        is_void = found and found[0].status[found[1]] == int(State.FAILURE) | VOID
        return found[0].records[found[1]] if found and is_void else None

    def behind(self, number: int) -> Graph | None:
        """The first graph whose number is that, or higher, and of which not all has ended."""
        for at in range(bisect_left(self.firsts, number), len(self.firsts)):
            graph = self.owners[at]
            if graph.number == self.firsts[at] and graph.open:
                return graph
        return None

    def size_of(self, position: int) -> int:
        """Graph.sizes of a node."""
        graph, index = self.node(position)
        return graph.sizes[index]

    def run_of(self, position: int) -> int:
        """Graph.runs of a node."""
        graph, index = self.node(position)
        return graph.runs[index]

    def weigh(self, position: int, size: int) -> None:
        """What the record that has ended the message keeps of it is so large."""
        found = self.find(position)
        if found:
            found[0].sizes[found[1]] = size

    def ended(self, position: int, status: int, record: int, content: int) -> int:
        """The message has ended so, with VOID or LETTER. If it is a node, those behind it are to
        be told.

        If it was held, the number of the run that it waits in no more; else -1.
        """
        found = self.find(position)
        if not found or found[0].status[found[1]] > OPEN:
            return -1
        graph, index = found
        was_held = graph.status[index] == HELD
        self.held -= was_held
        graph.end(index, status, record)
        graph.contents[index] = content
        self.tell(position, how(status))
        return graph.runs[index] if was_held else -1
