"""Graphs: nodes that wait for what becomes of others, by the positions of their messages.

    HELD --- all its links are met ----> OPEN --- it ends ---> SUCCESS, FAILURE, REVOKED
      '----- one of them cannot be --------------------------> FAILURE, REVOKED, SKIPPED

A node that is HELD is in its graph and nowhere else; one that is OPEN is where messages are. That
one has ended is known at once; what this is to the nodes behind it is worked out by a Walk, a
target a step, as many steps as a record says: see advancing.py.

A graph is 34 bytes a node, 4 for each link that a node is an end of, and 20 a link. One that
has ended altogether is gone.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple

from qprotocol.graphs import AFTER, BRINGS, DONE, ERROR, SUCCESS
from qprotocol.states import State

HELD, OPEN = 0, 1
SKIPPED = 255
"""Nobody needs it: its link would have told of a failure, and there was none."""
GOOD = {int(State.SUCCESS)}
BAD = {int(State.FAILURE), int(State.REVOKED)}
MET_BY = {SUCCESS: GOOD, AFTER: GOOD, ERROR: BAD, DONE: GOOD | BAD}
"""Kinds of links, to the ends of a source that meet them."""


class Cursor(NamedTuple):
    """A node that has ended, and how many targets behind it know."""

    position: int
    told: int


class Link(NamedTuple):
    """From some neighbours to others."""

    kind: int
    source: int
    """Index of the first source."""
    sources: int
    target: int
    """Index of the first target."""
    targets: int


class Ends:
    """Of each node the links that it is an end of, by their numbers."""

    __slots__ = ("_links", "_stops")

    def __init__(self) -> None:
        self._links = array("I")
        self._stops = array("I")

    def add(self, sizes: "array[int]", links: "array[int]") -> None:
        """The next nodes have so many, and these."""
        base = len(self._links)
        self._links.extend(links)
        self._stops.extend(array("I", accumulate(sizes, initial=base))[1:])

    def of(self, index: int) -> "array[int]":
        """The links of one node."""
        return self._links[self._stops[index - 1] if index else 0 : self._stops[index]]

    def saved(self) -> "tuple[array[int], array[int]]":
        """All of it."""
        return self._links, self._stops

    def restore(self, links: "array[int]", stops: "array[int]") -> None:
        """What ``saved`` gave."""
        self._links, self._stops = links, stops


class Graph:
    """The nodes published in one frame, by their index in it."""

    __slots__ = (
        "contents",
        "delays",
        "held",
        "indexes",
        "into",
        "lanes",
        "links",
        "open",
        "out",
        "places",
        "records",
        "runs",
        "sizes",
        "status",
        "unmet",
        "untold",
    )

    def __init__(self) -> None:
        self.unmet = array("I")
        """How many others a node waits for."""
        self.runs = array("I")
        """The number of the run that it waits in once it is held no more."""
        self.records = array("Q")
        """Where its result or failure is in the log; 0 if nowhere."""
        self.sizes = array("I")
        """How many bytes those are; while it is held, and if they count in its queue, its own."""
        self.contents = bytearray()
        """How they are encoded."""
        self.status = bytearray()
        """HELD, OPEN, or how it has ended."""
        self.out = Ends()
        """Links that it is a source of."""
        self.into = Ends()
        """Links that it is a target of."""
        self.links = array("I")
        """The numbers of each Link, one behind the other."""
        self.lanes: set[int] = set()
        """Numbers of the lanes with keys that runs are of: they stay open."""
        self.indexes = array("I")
        """First index of each piece of the frame, and its position."""
        self.places = array("Q")
        self.delays: dict[int, tuple[int, int]] = {}
        """By index, for those that wait once they are held no more: how long in ms, and until when
        at least.
        """
        self.open = 0
        """Nodes that have not ended."""
        self.held = 0
        """Those of them that wait for others."""
        self.untold = 0
        """Nodes that have ended, and those behind them do not know."""

    def add(self, first: int, unmet: "array[int]", links: Sequence[Sequence[int]]) -> None:
        """The next nodes, from position ``first`` on, and the links that begin with them."""
        self.indexes.append(len(self))
        self.places.append(first)
        self.unmet.extend(unmet)
        self.status += bytes(OPEN if each == 0 else HELD for each in unmet)
        self.records.extend(array("Q", bytes(8 * len(unmet))))
        self.sizes.extend(array("I", bytes(4 * len(unmet))))
        self.contents += bytes(len(unmet))
        self.open += len(unmet)
        self.held += len(unmet) - unmet.count(0)
        for each in links:
            self.links.extend(each)

    def link(self, number: int) -> Link:
        """The link with that number."""
        return Link(*self.links[5 * number : 5 * number + 5])

    @property
    def number(self) -> int:
        """Its first position: no other graph has that."""
        return self.places[0]

    def __len__(self) -> int:
        return len(self.status)

    def position(self, index: int) -> int:
        """Where a node is."""
        piece = bisect_right(self.indexes, index) - 1
        return self.places[piece] + index - self.indexes[piece]

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """First position, first index, and the index behind the last."""
        stops = chain(self.indexes[1:], (len(self),))
        yield from zip(self.places, self.indexes, stops, strict=True)

    def index(self, position: int) -> int:
        """The node at a position, if it is one of the graph's."""
        piece = bisect_right(self.places, position) - 1
        return self.indexes[piece] + position - self.places[piece]

    def inputs(self, index: int) -> Iterator[int]:
        """The nodes whose results or failures a node is given, in their order in each link."""
        for number in self.into.of(index):
            link = self.link(number)
            if link.kind in BRINGS:
                yield from range(link.source, link.source + link.sources)

    def inputs_count(self, index: int) -> int:
        """How many that are."""
        links = (self.link(number) for number in self.into.of(index))
        return sum(link.sources for link in links if link.kind in BRINGS)

    def unmet_of(self, index: int) -> Iterator[int]:
        """The nodes that a node waits for, as far as they have not ended."""
        for number in self.into.of(index):
            link = self.link(number)
            for source in range(link.source, link.source + link.sources):
                if self.status[source] in (HELD, OPEN):
                    yield source

    def wanted(self) -> Iterator[int]:
        """What may be asked for: messages that are held, results for those that do not know."""
        for index, status in enumerate(self.status):
            if status == HELD:
                yield self.position(index)
        yield from filter(None, self.records)

    def set_open(self, index: int) -> None:
        """It is held no more."""
        self.status[index] = OPEN
        self.sizes[index] = 0
        self.held -= 1

    def end(self, index: int, status: int, record: int) -> None:
        """It has ended so; its result or failure is at ``record``."""
        if self.status[index] == HELD:
            self.held -= 1
            self.sizes[index] = 0
        self.status[index] = status
        self.records[index] = record
        self.open -= 1
        self.untold += 1


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

    def walked(self, position: int) -> None:
        """Those behind the node are told. A graph of which nothing is left goes."""
        graph, _ = self.node(position)
        graph.untold -= 1
        if not graph.open and not graph.untold:
            self.drop(graph)

    def is_held(self, position: int) -> bool:
        """Whether the message is a node that waits for others."""
        return self.held_in(position) >= 0

    def held_in(self, position: int) -> int:
        """The number of the run that such a node will wait in; -1 if the message is none."""
        found = self.find(position) if self.held else None
        return found[0].runs[found[1]] if found and found[0].status[found[1]] == HELD else -1

    def behind(self, number: int) -> Graph | None:
        """The first graph whose number is that, or higher."""
        for at in range(bisect_left(self.firsts, number), len(self.firsts)):
            graph = self.owners[at]
            if graph.number == self.firsts[at]:
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
        """The message has ended so. If it is a node, those behind it are to be told.

        If it was held, the number of the run that it waits in no more; else -1.
        """
        found = self.find(position)
        if not found or found[0].status[found[1]] not in (HELD, OPEN):
            return -1
        graph, index = found
        was_held = graph.status[index] == HELD
        self.held -= was_held
        graph.end(index, status, record)
        graph.contents[index] = content
        self.todo.append(Cursor(position, 0))
        return graph.runs[index] if was_held else -1
