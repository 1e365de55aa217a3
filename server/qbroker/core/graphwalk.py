"""What the ends of nodes come to: the links behind them are walked, a target a step.

A node counts what of its links is met, and what cannot be, by what its sources told: also once it
has ended. So when a failed one is under way again, those that ended with it are held once more as
soon as nothing else keeps them from that, whatever else has happened meanwhile. What is told is in
the order of ``Graphs.todo``: that a node has ended; that it has not, after all; that it may be
looked whether it can be held again.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from qbroker.core.graphs import BAD, HELD, LOOK, MET_BY, OPEN, SKIPPED, VOID, Graph
from qbroker.core.graphtable import Cursor, Graphs


class End(NamedTuple):
    """A node that ends because of one before it."""

    position: int
    run: int
    status: int
    cause: int
    """The position of the one before."""
    record: int
    """Where the failure is in the log that it has from there; 0 if there is none."""


class Again(NamedTuple):
    """A node that had ended so, and is held again; or is to be looked at, if ``run`` is -1."""

    position: int
    run: int


class Free(NamedTuple):
    """A node that is held no more."""

    position: int
    run: int
    delay_ms: int
    """How long it waits from now on, and until when at least."""
    due_ms: int

    def due_from(self, wall_ms: int) -> int:
        """When it is due, if it is let go now; 0 for at once."""
        due_ms = max(wall_ms + self.delay_ms if self.delay_ms else 0, self.due_ms)
        return due_ms if due_ms > wall_ms else 0


Key = tuple[int, int]
"""A graph by its number, and the index of a node."""


@dataclass(slots=True)
class Walk:
    """What the next steps come to. It changes nothing until ``commit``.

    So who decides can say what a record will end, and who applies it does the same steps. What
    nodes that end in it come to is for the next one.
    """

    graphs: Graphs
    budget: int
    """Steps at most: one for each entry of ``todo``, one for each target behind it."""
    steps: int = 0
    done: int = 0
    """Entries of ``todo`` that are walked to their ends."""
    begun: Cursor | None = None
    """The next one, as far as it came."""
    released: list[Free] = field(default_factory=list)
    news: list[End | Again] = field(default_factory=list)
    """In order: what is told of these comes behind all that is there."""
    unmet: dict[Key, int] = field(default_factory=dict)
    void: dict[Key, int] = field(default_factory=dict)
    status: dict[Key, int] = field(default_factory=dict)
    told: dict[Key, int] = field(default_factory=dict)
    """Of nodes, if they are not as they were: those of their Graph."""

    def __post_init__(self) -> None:
        for cursor in self.graphs.todo:
            if self.steps >= self.budget:
                break
            self.begun = self.follow(cursor)
            if self.begun:
                break
            self.done += 1

    @property
    def ends(self) -> list[End]:
        """The nodes that end."""
        return [each for each in self.news if isinstance(each, End)]

    @property
    def again(self) -> list[Again]:
        """The nodes that are held again."""
        return [each for each in self.news if isinstance(each, Again) and each.run >= 0]

    def follow(self, cursor: Cursor) -> Cursor | None:
        """Tell those behind a node; what is left of that, if the budget is used up."""
        graph, index = self.graphs.node(cursor.position)
        key, passed = (graph.number, index), 0
        self.steps += 1
        if cursor.news == LOOK:
            self.look(graph, index)
            return None
        before, after = self.told.get(key, graph.told[index]), cursor.news
        for number in graph.out.of(index):
            link = graph.link(number)
            good = MET_BY[link.kind]
            met = (after in good) - (before in good)
            void = (after > OPEN and after not in good) - (before > OPEN and before not in good)
            start = max(0, cursor.told - passed)
            for target in range(link.target + start, link.target + link.targets):
                if self.steps >= self.budget:
                    return cursor._replace(told=passed + target - link.target)
                self.steps += 1
                self.count(graph, target, met, void)
                if void > 0:
                    self.end(graph, target, index, after)
            passed += link.targets
        self.told[key] = after
        return None

    def count(self, graph: Graph, target: int, met: int, void: int) -> None:
        """So many links to a node are met more than before, and so many cannot be."""
        key = graph.number, target
        unmet = self.unmet[key] = self.unmet.get(key, graph.unmet[target]) - met
        left = self.void[key] = self.void.get(key, graph.void.get(target, 0)) + void
        status = self.status.get(key, graph.status[target])
        if status == HELD and not unmet and not left:
            self.release(graph, target)
        elif void < 0 and not left and status & VOID:
            self.news.append(Again(graph.position(target), -1))

    def release(self, graph: Graph, target: int) -> None:
        """Nothing keeps the node any more."""
        self.status[graph.number, target] = OPEN
        delays = graph.delays.get(target, (0, 0))
        self.released.append(Free(graph.position(target), graph.runs[target], *delays))

    def end(self, graph: Graph, target: int, cause: int, ended: int) -> None:
        """A link to it cannot be met any more: it ends, unless it has."""
        key = graph.number, target
        if self.status.get(key, graph.status[target]) == HELD:
            status, record = (ended, graph.records[cause]) if ended in BAD else (SKIPPED, 0)
            self.status[key] = status | VOID
            places = graph.position(target), graph.runs[target]
            self.news.append(End(*places, status, graph.position(cause), record))

    def look(self, graph: Graph, index: int) -> None:
        """The node is held again, if it has ended with others of which none keeps it now."""
        key = graph.number, index
        is_kept = self.void.get(key, graph.void.get(index, 0))
        if self.status.get(key, graph.status[index]) & VOID and not is_kept:
            self.status[key] = HELD
            self.news.append(Again(graph.position(index), graph.runs[index]))
            if not self.unmet.get(key, graph.unmet[index]):
                self.release(graph, index)

    def commit(self) -> None:
        """What was counted and told is so. Nodes are as they were: who releases, ends and holds
        them says that next, and calls ``leave`` then.
        """
        for (number, target), unmet in self.unmet.items():
            graph, _ = self.graphs.node(number)
            graph.unmet[target] = unmet
            graph.count_void(target, self.void[number, target])
        for (number, index), told in self.told.items():
            graph, _ = self.graphs.node(number)
            graph.told[index] = told

    def leave(self) -> list[Graph]:
        """These entries are no news any more. The graphs of which nothing is left are gone."""
        graphs, gone = self.graphs, list[Graph]()
        walked = [graphs.todo.popleft() for _ in range(self.done)]
        if self.begun:
            graphs.todo[0] = self.begun
        for cursor in walked:
            left = graphs.walked(cursor.position)
            gone += [left] if left else []
        return gone
