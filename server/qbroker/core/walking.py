"""What a large order is about, and the walk over it: piece by piece, over many turns.

    leased, those of every queue --> held --> scheduled --> ready --> leased once more

What is found is what was there when the order was given: positions below ``before``. A message
may go from a lease to the timers or its run meanwhile, from a graph to these, and from the timers
to its run, but not the other way round, for nothing is handed out of a queue while an order walks
it (``Queue.held``): so none is passed by.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qbroker.core.graphs import OPEN, Graph, how
from qbroker.core.lanes import Lane
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qbroker.core.sessions import run_here
from qbroker.core.settings import SWEEP_STEP
from qbroker.core.state import BrokerState
from qprotocol.lanekeys import LaneKeys

READY, SCHEDULED, STARTED, HELD = "ready", "scheduled", "started", "held"
PLACES = (READY, SCHEDULED, STARTED, HELD)
LOOK_WEIGHT, MESSAGE_WEIGHT = 1, 5
"""A lane or a message that is not meant, and one that is, against a turn's ORDER_WORK_MAX."""
CHUNKS_A_WEIGHT = 20
"""A delayed message is looked for in the chunks of its run first: so many count for one more."""


class Spot(NamedTuple):
    """Neighbours in one place; none: something was looked at, and is not meant."""

    weight: int
    place: str = ""
    run: Run | None = None
    first: int = 0
    size: int = 0
    due_ms: int = 0


LOOKED = Spot(LOOK_WEIGHT)


@dataclass(slots=True)
class Picked:
    """Which messages an order is about: those for which all that is said is true."""

    queues: list[Queue]
    before: int
    """Positions below this."""
    places: frozenset[str] = frozenset(PLACES)
    task: str = ""
    key: str = ""
    """Of a lane: one of its keys."""
    position: int = 0
    """This one alone; 0 for all."""
    is_graph: bool = False
    """All of its graph."""

    def has_lane(self, lane: Lane) -> bool:
        """Whether the lane's messages are meant, as far as the lane says."""
        if self.task and lane.task != self.task:
            return False
        if not self.key:
            return True
        if self.key.encode() not in lane.keys:
            return False
        return self.key in LaneKeys.unpack(lane.keys)[:3]

    def has(self, position: int) -> bool:
        """Whether the message is meant, as far as its position says."""
        return position < self.before and self.position in (0, position)


def walk(state: BrokerState, picked: Picked) -> Iterator[Spot]:
    """All that is meant. Between two steps of it the state may change."""
    seen: set[int] = set()
    if STARTED in picked.places:
        yield from leased(state, picked, seen)
    if HELD in picked.places:
        yield from held(state, picked)
    for queue in picked.queues:
        life = queue.life
        if SCHEDULED in picked.places:
            yield from scheduled(state, picked, queue)
        if READY in picked.places:
            for lane in list(queue.lanes):
                yield LOOKED
                if picked.has_lane(lane):
                    for run in list(lane.runs):
                        for first, count in ready(state, picked, run):
                            weight = MESSAGE_WEIGHT * count + LOOK_WEIGHT
                            yield Spot(weight, READY, run, first, count)
                if queue.life != life:
                    break  # it was purged meanwhile
    if STARTED in picked.places:
        yield from leased(state, picked, seen)


def leased(state: BrokerState, picked: Picked, seen: set[int]) -> Iterator[Spot]:
    """Those that are handed out, less those that were ``seen``."""
    queues = {queue.number for queue in picked.queues}
    for position in list(state.leases) if not picked.position else [picked.position]:
        grant = state.leases.get(position)
        meant = picked.has(position) and position not in seen
        run = grant.run_of(position) if grant and meant else None
        if run and run.lane.queue.number in queues and picked.has_lane(run.lane):
            seen.add(position)
            yield Spot(MESSAGE_WEIGHT, STARTED, run, position, 1)
        else:
            yield LOOKED


def nodes(state: BrokerState, position: int) -> Iterator[Spot]:
    """All that has not ended of the graph with that node, and of those that nodes go on as.

    Each is looked at once, wherever it is then: what goes from one place to another meanwhile is
    passed by neither.
    """
    left, seen = [*state.places_of(position)], set[int]()
    while left:
        found = state.graphs.find(left.pop())
        if found is None or found[0].number in seen:
            continue
        graph = found[0]
        seen.add(graph.number)
        for index in range(len(graph)):
            yield LOOKED
            if how(graph.status[index]) > OPEN:
                continue
            at = state.current(graph.position(index))
            if at != graph.position(index) and state.graphs.find(at):
                left.append(at)  # it is the last node of a graph that it goes on as
                continue
            run = run_of_node(state, graph, index, at)
            if run:
                yield Spot(MESSAGE_WEIGHT, STARTED, run, at, 1)


def run_of_node(state: BrokerState, graph: Graph, index: int, position: int) -> Run | None:
    """Where the message of a node that has not ended waits, or was handed out from; None if it was
    purged.
    """
    here = run_here(state, position)
    if here:
        return here
    run = state.run_numbered(graph.runs[index])
    return run if state.is_waiting(run, position, graph.delays.get(index, (0, 0))[1]) else None


def held(state: BrokerState, picked: Picked) -> Iterator[Spot]:
    """Nodes of graphs that wait for others."""
    numbers = {queue.number for queue in picked.queues if queue.nodes}
    if picked.position:
        places = iter((picked.position,))
    else:
        places = state.graphs.positions() if numbers else iter(())
    for position in places:
        yield LOOKED
        number = state.graphs.held_in(position) if picked.has(position) else -1
        run = state.run_numbered(number) if number >= 0 else None
        if run and run.lane.queue.number in numbers and picked.has_lane(run.lane):
            yield Spot(MESSAGE_WEIGHT, HELD, run, position, 1)


def scheduled(state: BrokerState, picked: Picked, queue: Queue) -> Iterator[Spot]:
    """Those of the queue that wait for their time."""
    after = (-1, 0)
    while entries := state.timers.after(queue.number, after, SWEEP_STEP):
        for due_ms, position, number in entries:
            run = state.run_numbered(number)
            waits = picked.has(position) and position not in state.cancelled
            if waits and picked.has_lane(run.lane):
                weight = MESSAGE_WEIGHT + len(run.chunks) // CHUNKS_A_WEIGHT
                yield Spot(weight, SCHEDULED, run, position, 1, due_ms)
            else:
                yield LOOKED
        after = entries[-1][:2]


def ready(state: BrokerState, picked: Picked, run: Run) -> Iterator[tuple[int, int]]:
    """Those of the run that wait, in the order in which they would leave: (first, count)."""
    if picked.position:
        if picked.position in run:
            yield picked.position, 1
        return
    yield from given_back(run, picked.before)
    for chunk in run.chunks:
        at = run.head if chunk is run.chunk else 0
        end = bisect_left(chunk, picked.before, at)
        while at < end and not run.is_purged:
            first, stop = chunk[at], at + 1
            if first in run.skipped or not waits_in(state, run, first):
                at += 1
                continue
            most = min(end, at + SWEEP_STEP)
            while stop < most and chunk[stop] == first + stop - at:
                if chunk[stop] in run.skipped or not waits_in(state, run, chunk[stop]):
                    break
                stop += 1
            yield first, stop - at
            at = stop


def waits_in(state: BrokerState, run: Run, position: int) -> bool:
    """Whether a position that was in a chunk of the run still waits in it."""
    attempts = state.attempts.get(position)
    if attempts:
        return attempts.run is run and not attempts.waits
    return position in run


def given_back(run: Run, before: int) -> Iterator[tuple[int, int]]:
    """What was handed out before and given back, lowest first."""
    at = 0
    while not run.is_purged:
        spans = ((max(first, at), end) for first, end in run.given if end > at)
        first, end = next(spans, (before, before))
        if first >= before:
            return
        at = min(end, first + SWEEP_STEP, before)
        yield first, at - first
