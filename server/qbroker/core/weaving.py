"""Graphs in: what the NODE fields of a publish's messages come to.

Links lead to later messages, so that of each message it is known when it is walked over which
links begin or end there: nothing is looked at twice, and there is no way round to be looked for.
"""

from array import array
from dataclasses import dataclass, field

from qbroker.core import records as r
from qbroker.core.graphs import Graph
from qbroker.core.lanes import Lane
from qbroker.core.refusals import RefusedError, bad
from qbroker.core.settings import (
    GRAPH_EDGES_MAX,
    LINK_EDGES_MAX,
    LINK_ENDS_MAX,
    LINKS_OPEN_MAX,
    Settings,
)
from qprotocol import wire
from qprotocol.graphs import Link, Node


@dataclass(slots=True)
class Weaving:
    """The graph of one publish, as far as it was walked over. Volatile."""

    settings: Settings
    count: int = 0
    """Nodes so far."""
    links: int = 0
    """Links so far: the number of the next one."""
    out: dict[int, int] = field(default_factory=dict)
    """Links that the next node may be a source of, to the index behind their last."""
    coming: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """By the index of their first target: number, the index behind the last one, sources."""
    into: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Links that the next node may be a target of: the index behind the last one, sources."""
    end: int = 0
    """Behind the last target of all."""
    edges: int = 0
    """Pairs of a source and a target so far."""

    def take(
        self, batch: r.MessageBatch, index: int, fields: dict[int, bytes], route: bytes
    ) -> None:
        """The next message of the batch is a node. Raises RefusedError."""
        batch.woven = batch.woven or r.Woven()
        if wire.UNIQUE in fields or wire.IDEMPOTENCY in fields:
            raise bad(index, "a node of a graph with a unique or idempotency key")
        if route[0]:
            raise bad(index, "a node of a graph by an exchange: name its queue")
        try:
            node = Node.unpack(fields[wire.NODE])
        except ValueError as error:
            raise bad(index, str(error)) from error
        self.add(batch.woven, node)

    def add(self, woven: r.Woven, node: Node) -> None:
        """One more node. Raises RefusedError."""
        index = self.count
        for link in node.links:
            self.begin(index, link)
            woven.links.append([link.kind, index, link.sources, link.first, link.targets])
        for number, after, sources in self.coming.pop(index, ()):
            self.into[number] = after, sources
        self.out = {number: after for number, after in self.out.items() if after > index}
        self.into = {number: each for number, each in self.into.items() if each[0] > index}
        ends = len(self.out) + len(self.into)
        check(index, "links of one node", ends, LINKS_OPEN_MAX)
        check(
            index,
            "links of its nodes in one frame",
            len(woven.out) + len(woven.into) + ends,
            LINK_ENDS_MAX,
        )
        woven.unmet.append(sum(sources for _, sources in self.into.values()))
        woven.out_sizes.append(len(self.out))
        woven.out.extend(self.out)
        woven.into_sizes.append(len(self.into))
        woven.into.extend(sorted(self.into))
        if node.delay_ms and self.into:
            woven.delays.append([len(woven.unmet) - 1, node.delay_ms, 0])
        self.count += 1

    def begin(self, index: int, link: Link) -> None:
        """A link begins with this node. Raises RefusedError."""
        if link.first < index + link.sources:
            raise bad(
                index,
                f"a link from {link.sources} messages to message {link.first}: "
                "it is behind all of them",
            )
        self.edges += link.sources * link.targets
        fan_out_max = self.settings.fan_out_max
        check(index, "targets of one link (fan_out_max)", link.targets, fan_out_max)
        check(index, "sources of one link (fan_out_max)", link.sources, fan_out_max)
        check(index, "pairs of one link", link.sources * link.targets, LINK_EDGES_MAX)
        check(index, "pairs of all links", self.edges, GRAPH_EDGES_MAX)
        after = link.first + link.targets
        self.out[self.links] = index + link.sources
        self.coming.setdefault(link.first, []).append((self.links, after, link.sources))
        self.end = max(self.end, after)
        self.links += 1

    def check_room(self, there: int) -> None:
        """Raise RefusedError if there would be too many nodes, as ``there`` are some."""
        most = self.settings.graph_nodes_max
        if there + self.count > most:
            raise RefusedError(
                "LIMIT_REACHED",
                f"{there} nodes of graphs are there, and {self.count} more would be over "
                f"graph_nodes_max, which is {most}: publish it when some graphs have ended, or "
                "raise the limit",
            )

    def check_end(self) -> None:
        """Raise RefusedError if a link leads to a message that did not come."""
        if self.end > self.count:
            raise RefusedError(
                "BAD_MESSAGE",
                f"a link to message {self.end - 1}: there are {self.count} in the publish",
            )


def check(index: int, what: str, count: int, most: int) -> None:
    """Raise RefusedError if a graph is too large, with the message that goes over the limit."""
    if count > most:
        raise bad(index, f"the graph has {count} {what}: at most {most}")


def hold_back(batch: r.MessageBatch) -> None:
    """The runs of a batch of nodes say which of them are held; those are due later, if they are.

    Raises RefusedError unless all messages of the batch are nodes.
    """
    woven, nodes = batch.woven, len(batch.woven.unmet) if batch.woven else 0
    if woven is None or nodes != batch.count:
        raise RefusedError(
            "BAD_MESSAGE",
            f"{nodes} of {batch.count} messages are nodes of a graph: all are to be, or none",
        )
    runs: list[list[int]] = []
    dues: dict[int, int] = {}
    index = 0
    for number, priority, count, due_ms in batch.runs:
        for unmet in woven.unmet[index : index + count]:
            due = r.HELD if unmet else due_ms
            if due_ms:
                dues[index] = due_ms
            last = runs[-1] if runs else [0, 0, 0, -1]
            if last[0] == number and last[1] == priority and last[3] == due in (0, r.HELD):
                last[2] += 1
            else:
                runs.append([number, priority, 1, due])
            index += 1
    batch.runs = runs
    delays = {index: delay_ms for index, delay_ms, _ in woven.delays}
    woven.delays = [
        [each, delays.get(each, 0), dues.get(each, 0)] for each in sorted({*delays, *dues})
    ]


# What the records do.


def add_piece(lanes: list[Lane], graph: Graph, first: int, batch: r.MessageBatch) -> None:
    """The messages of the batch, from position ``first`` on, are the next nodes of the graph."""
    woven, base = batch.woven, len(graph)
    assert woven is not None
    for number, priority, count, _ in batch.runs:
        graph.runs.extend((lanes[number].run(priority).number,) * count)
        if lanes[number].keys:
            graph.lanes.add(number)
    graph.add(first, woven.unmet, woven.links)
    for index, packed in woven.sizes:
        sizes = array("I", packed)
        graph.sizes[base + index : base + index + len(sizes)] = sizes
    graph.out.add(woven.out_sizes, woven.out)
    graph.into.add(woven.into_sizes, woven.into)
    graph.delays.update((base + index, (ms, due_ms)) for index, ms, due_ms in woven.delays)
