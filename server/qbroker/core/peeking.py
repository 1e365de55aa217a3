"""Peek: the first waiting messages of a queue. So many of its lanes are looked at a turn.

Of a queue with few lanes they are the first at one moment. Else those that came or left
meanwhile may be missing; what is shown waits when the answer is given. Behind them come nodes of
graphs that are held and will wait in the queue, in no order that means something.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice

from qbroker.core.decision import Decision
from qbroker.core.effects import Peeked
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.owners import check_owner
from qbroker.core.queues import Queue
from qbroker.core.refusals import queue_named
from qbroker.core.runs import Run
from qbroker.core.settings import PEEK_LANES_MAX, PEEK_MESSAGES_MAX, PEEK_NODES_MAX, PEEKS_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import limit
from qprotocol.frames import Peek
from qprotocol.states import State


@dataclass(slots=True)
class Peeking:
    """One that is under way. All volatile."""

    connection: int
    correlation: int
    queue: Queue
    count: int
    lanes: list[Lane]
    """Those to be looked at; some may be closed meanwhile."""
    nodes: Iterator[int]
    """Positions of nodes of graphs, to be looked at behind the lanes."""
    best: list[tuple[int, int, Run]] = field(default_factory=list)
    """(-priority, head, run) of those that lead: in no other one are the first messages."""
    held: list[int] = field(default_factory=list)
    """Nodes that are held and will wait in the queue."""
    is_over: bool = False
    """Whether every lane has been looked at, and as many nodes as are wanted."""

    def step(self, state: BrokerState) -> None:
        """Look at the next lanes, or nodes."""
        if not self.lanes:
            nodes = list(islice(self.nodes, PEEK_NODES_MAX))
            self.held += [each for each in nodes if held_in(state, each) is self.queue]
            self.is_over = not nodes or len(self.held) >= self.count
            return
        lanes = self.lanes[-PEEK_LANES_MAX:]
        del self.lanes[-PEEK_LANES_MAX:]
        found = [run for lane in lanes for run in lane.runs if run.size]
        self.best += [(-run.priority, run.turn(), run) for run in found]
        if len(self.best) > self.count:
            self.best = nsmallest(self.count, self.best)
        self.is_over = not (self.lanes or self.queue.nodes)

    def answer(self, state: BrokerState) -> Peeked:
        """The rows; nothing changes."""
        runs = [run for _, _, run in self.best if run.size and not run.is_purged]
        rows = []
        for _, position in islice(self.queue.waiting(runs), self.count):
            known = state.attempts.get(position)
            if known is None:
                rows.append((position, 0, 0, 0, 0, int(State.QUEUED), "", 0))
            else:
                status = State.FAILURE if known.reason else State.QUEUED
                counters = known.deliveries, known.failures, known.crashes
                rows.append((position, 0, *counters, int(status), known.reason, known.error))
        held = (each for each in self.held if held_in(state, each) is self.queue)
        for position in islice(held, self.count - len(rows)):
            rows.append((position, 0, 0, 0, 0, int(State.HELD), "", 0))
        continued = state.parts_of(row[0] for row in rows)
        return Peeked(self.connection, self.correlation, rows, continued=continued)


def held_in(state: BrokerState, position: int) -> Queue | None:
    """The queue that the node will wait in, if it is held."""
    number = state.graphs.held_in(position)
    return state.run_numbered(number).lane.queue if number >= 0 else None


def decide_peek(state: BrokerState, _now: Now, connection: int, frame: Peek) -> Decision:
    """The first waiting messages, in the order they would leave; nothing changes."""
    queue = queue_named(state, frame.queue)
    check_owner(state, connection, queue)
    if len(state.peeks) >= PEEKS_MAX:
        raise limit("peeks under way at once", PEEKS_MAX)
    count = min(frame.count, PEEK_MESSAGES_MAX)
    nodes = state.graphs.positions()
    peek = Peeking(connection, frame.correlation, queue, count, queue.lanes, nodes)
    peek.step(state)
    if peek.is_over:
        return Decision(effects=[peek.answer(state)])
    state.peeks.append(peek)
    return Decision()


def carry_on(state: BrokerState) -> None:
    """The next step of the one whose turn it is; who asked is told once it is done."""
    peek = state.peeks.popleft()
    peek.step(state)
    if peek.is_over:
        answer = peek.answer(state)
        answer.synced = state.synced
        state.effects.append(answer)
    else:
        state.peeks.append(peek)
