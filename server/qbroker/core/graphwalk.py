"""What the ends of nodes come to: the links behind them are walked, a target a step."""

from dataclasses import dataclass, field
from typing import NamedTuple

from qbroker.core.graphs import BAD, HELD, MET_BY, SKIPPED, Cursor, Graph, Graphs


class End(NamedTuple):
    """A node that ends because of one before it."""

    position: int
    run: int
    status: int
    cause: int
    """The position of the one before."""
    record: int
    """Where the failure is in the log that it has from there; 0 if there is none."""


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


@dataclass(slots=True)
class Walk:
    """What the next steps come to. It changes nothing until ``commit``.

    So who decides can say what a record will end, and who applies it does the same steps. Nodes
    that end in it are for the next one.
    """

    graphs: Graphs
    budget: int
    """Steps at most: one for each node that has ended, one for each of its edges."""
    steps: int = 0
    done: int = 0
    """Cursors of ``todo`` that are walked to their ends."""
    begun: Cursor | None = None
    """The next one, as far as it came."""
    released: list[Free] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    left: dict[tuple[int, int], int] = field(default_factory=dict)
    """By graph and index, how many edges to a node are not met yet; below 0 if it has ended."""

    def __post_init__(self) -> None:
        for cursor in self.graphs.todo:
            if self.steps >= self.budget:
                break
            self.begun = self.follow(cursor)
            if self.begun:
                break
            self.done += 1

    def follow(self, cursor: Cursor) -> Cursor | None:
        """Walk the edges of a node that has ended; what is left of it, if the budget is used up."""
        graph, index = self.graphs.node(cursor.position)
        ended, passed = graph.status[index], 0
        self.steps += 1
        for number in graph.out.of(index):
            link = graph.link(number)
            start = max(0, cursor.told - passed)
            for target in range(link.target + start, link.target + link.targets):
                if self.steps >= self.budget:
                    return Cursor(cursor.position, passed + target - link.target)
                self.steps += 1
                if ended in MET_BY[link.kind]:
                    self.meet(graph, target)
                else:
                    self.void(graph, target, cursor.position, ended, graph.records[index])
            passed += link.targets
        return None

    def meet(self, graph: Graph, target: int) -> None:
        """One edge less. Who has none left is held no more."""
        key = graph.number, target
        left = self.left.get(key)
        if left is None:
            left = graph.unmet[target] if graph.status[target] == HELD else 0
        if left > 0:
            self.left[key] = left - 1
            if left == 1:
                delays = graph.delays.get(target, (0, 0))
                self.released.append(Free(graph.position(target), graph.runs[target], *delays))

    def void(self, graph: Graph, target: int, cause: int, ended: int, record: int) -> None:
        """An edge to it cannot be met any more: it ends, unless it has."""
        key = graph.number, target
        if graph.status[target] == HELD and self.left.get(key, 1) > 0:
            self.left[key] = -1
            end = (ended, cause, record) if ended in BAD else (SKIPPED, cause, 0)
            self.ends.append(End(graph.position(target), graph.runs[target], *end))

    def commit(self) -> None:
        """It is so; what was released is open. Ends are for ``Graphs.ended``."""
        graphs = self.graphs
        for (number, target), left in self.left.items():
            if left >= 0:
                graph, _ = graphs.node(number)
                graph.unmet[target] = left
                if not left:
                    graph.set_open(target)
                    graphs.held -= 1
        walked = [graphs.todo.popleft() for _ in range(self.done)]
        if self.begun:
            graphs.todo[0] = self.begun
        for cursor in walked:
            graphs.walked(cursor.position)
