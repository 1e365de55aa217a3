"""Graphs: nodes that wait for what becomes of others, by the positions of their messages.

    HELD --- all its links are met ----> OPEN --- it ends ---> SUCCESS, FAILURE, REVOKED
      '----- one of them cannot be --------------------------> FAILURE, REVOKED, SKIPPED (VOID)

A node that is HELD is in its graph and nowhere else; one that is OPEN is where messages are. That
one has ended is known at once; what this is to the nodes behind it is worked out by a Walk, a
target a step, as many steps as a record says: see advancing.py. A dead letter (LETTER) that is
under way again is OPEN again, and those that ended with it are HELD again.

A graph is 35 bytes a node, 4 for each link that a node is an end of, and 20 a link. One that
has ended altogether rests while there are dead letters of it, and is gone then.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from qprotocol.graphs import AFTER, BRINGS, DONE, ERROR, SUCCESS
from qprotocol.states import State

HELD, OPEN = 0, 1
SKIPPED = 9
"""Nobody needs it: its link would have told of a failure, and there was none."""
VOID, LETTER = 0x40, 0x80
"""Beside how a node has ended: because of one before it; as a dead letter that still is one."""
UPSTREAM = "a task that it needs failed"
LOOK = 255
"""In the place of what is told: see whether the node can be held again."""
GOOD = {int(State.SUCCESS)}
BAD = {int(State.FAILURE), int(State.REVOKED)}
MET_BY = {SUCCESS: GOOD, AFTER: GOOD, ERROR: BAD, DONE: GOOD | BAD}
"""Kinds of links, to the ends of a source that meet them."""


def how(status: int) -> int:
    """How a node has ended, or HELD or OPEN."""
    return status & 0x3F


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
        "letters",
        "links",
        "open",
        "out",
        "places",
        "records",
        "runs",
        "sizes",
        "status",
        "told",
        "unmet",
        "untold",
        "void",
    )

    def __init__(self) -> None:
        self.unmet = array("I")
        """How many of the links to a node are not met, as far as it was told."""
        self.void: dict[int, int] = {}
        """By index, how many of them cannot be, if any."""
        self.told = bytearray()
        """How a node has ended, as far as those behind it were told; OPEN if they were not."""
        self.runs = array("I")
        """The number of the run that it waits in once it is held no more."""
        self.records = array("Q")
        """Where its result or failure is in the log; 0 if nowhere."""
        self.sizes = array("I")
        """How many bytes those are; while it is held, and if they count in its queue, its own."""
        self.contents = bytearray()
        """How they are encoded."""
        self.status = bytearray()
        """HELD, OPEN, or how it has ended, with VOID or LETTER."""
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
        """Entries of ``Graphs.todo`` about its nodes."""
        self.letters = 0
        """Nodes that are dead letters."""

    def add(self, first: int, unmet: "array[int]", links: Sequence[Sequence[int]]) -> None:
        """The next nodes, from position ``first`` on, and the links that begin with them."""
        self.indexes.append(len(self))
        self.places.append(first)
        self.unmet.extend(unmet)
        self.status += bytes(OPEN if each == 0 else HELD for each in unmet)
        self.told += bytes((OPEN,)) * len(unmet)
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

    def count_void(self, index: int, count: int) -> None:
        """So many links to the node cannot be met."""
        if count:
            self.void[index] = count
        else:
            self.void.pop(index, None)

    def kept(self) -> Iterator[int]:
        """Positions of messages that ended with others, and may be held again."""
        for index, status in enumerate(self.status):
            if status == int(State.FAILURE) | VOID:
                yield self.position(index)

    def unmet_of(self, index: int) -> Iterator[int]:
        """The nodes that a node waits for, as far as they have not ended."""
        for number in self.into.of(index):
            link = self.link(number)
            for source in range(link.source, link.source + link.sources):
                if how(self.status[source]) <= OPEN:
                    yield source

    def wanted(self) -> Iterator[int]:
        """What may be asked for: messages that are held, or may be again, and all results."""
        for index, status in enumerate(self.status):
            if status == HELD:
                yield self.position(index)
        yield from self.kept()
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
        self.letters += bool(status & LETTER)
        self.open -= 1

    def begin_again(self, index: int, status: int) -> None:
        """It has not ended, after all: it is HELD or OPEN."""
        self.letters -= bool(self.status[index] & LETTER)
        self.status[index] = status
        self.open += 1
        self.held += status == HELD

    @property
    def rests(self) -> bool:
        """Whether all of it has ended, and everybody knows."""
        return not self.open and not self.untold
