"""What the end of a node is to those behind it: they are let go, or end with it.

A record that ends a node says nothing of the others. What it comes to is a record of its own, in
the same batch, ADVANCE_STEPS_MAX edges at most; the rest is done in the next turns.
"""

from collections.abc import Callable, Iterator

from qbroker.core import records as r
from qbroker.core.graphs import OPEN, SKIPPED, Graph
from qbroker.core.graphwalk import End, Free, Walk
from qbroker.core.leases import UNSEEN
from qbroker.core.moment import Now
from qbroker.core.results import Finished
from qbroker.core.settings import ADVANCE_STEPS_MAX
from qbroker.core.state import BrokerState
from qprotocol.states import State

Append = Callable[[r.Record], object]

REASONS = {
    State.FAILURE: "a task that it needs failed",
    State.REVOKED: "a task that it needs was cancelled, or expired",
}
PURGED = "purged"
UNNEEDED = "nobody needs it: what it was to tell of has not happened"


def advance(state: BrokerState, now: Now, append: Append) -> None:
    """The next nodes learn what became of those before them, a turn's worth."""
    left = ADVANCE_STEPS_MAX
    until = now.wall_ms + state.settings.result_ttl_ms
    while state.graphs.todo and left > 0:
        walk = Walk(state.graphs, left)
        left -= walk.steps
        rows = [row(state, end) for end in walk.ends]
        append(r.Advanced(walk.steps, now.wall_ms, until, rows, list(expiring(state, now, walk))))
    if state.graphs.sweeps:
        append(sweep(state, now, until))


def row(state: BrokerState, end: End) -> list[int]:
    """An entry of Advanced.ends."""
    lane, priority = end.run >> 8, (end.run & 0xFF) - 128
    status = 0 if end.status == SKIPPED else end.status
    return [end.position, lane, priority, status, state.current(end.cause), end.record]


def expiring(state: BrokerState, now: Now, walk: Walk) -> Iterator[list[int]]:
    """Entries of Advanced.expiring: a node's time to begin is counted from when it is let go."""
    for free in walk.released:
        ttl_ms = state.run_numbered(free.run).lane.queue.options.message_ttl_ms
        if ttl_ms:
            yield [free.position, (free.due_from(now.wall_ms) or now.wall_ms) + ttl_ms]


def apply_advanced(state: BrokerState, position: int, record: r.Advanced) -> None:
    """So many steps are done: nodes wait in their queues, and others have ended."""
    walk = Walk(state.graphs, record.steps)
    for free in walk.released:
        let_go(state, free, free.due_from(record.wall_ms))
    walk.commit()
    for place, expires_ms in record.expiring:
        run = state.run_numbered(state.graphs.run_of(place))
        state.expiries.push(run.lane.queue.number, expires_ms, place, run.number)
    for end in walk.ends:
        end_with(state, position, record, end)


def let_go(state: BrokerState, free: Free, due_ms: int) -> None:
    """The node waits in its queue, for its time if ``due_ms`` is not 0."""
    run, place = state.run_numbered(free.run), free.position
    queue = run.lane.queue
    queue.nodes -= 1
    known = state.attempts.get(place)
    if known or due_ms:
        state.attempts[place] = (known or UNSEEN)._replace(run=run, waits=bool(due_ms))
    if due_ms:
        state.later(run, place, due_ms)
    else:
        state.in_front(run, place, 1)
    if queue.options.is_bounded:
        state.catalogue.arrive(run, place, state.graphs.size_of(place), due_ms)


def end_with(state: BrokerState, settled: int, record: r.Advanced, end: End) -> None:
    """The node has ended as the one before it has, or because nobody needs it."""
    queue = state.run_numbered(end.run).lane.queue
    state.catalogue.gone(queue, end.position)
    skipped = end.status == SKIPPED
    if skipped:
        state.graphs.ended(end.position, SKIPPED, 0, 0)
        queue.nodes -= 1
    status = State.REVOKED if skipped else State(end.status)
    reason = UNNEEDED if skipped else REASONS[status]
    until = 0 if skipped else record.keep_until_ms
    entry = Finished(status, end.record, 0, record.wall_ms, 0, until, 0, reason, settled=settled)
    queue.counts["skipped" if skipped else "upstream"] += 1
    state.finish(end.position, entry, keep=not skipped, synced=queue.synced)
    if end.record:
        state.graphs.weigh(end.position, state.graphs.size_of(end.cause))
    state.forget(end.position)


# After a purge.


def sweep(state: BrokerState, now: Now, until: int) -> r.NodesSwept:
    """The record for the next nodes that are looked at: which of them were purged."""
    number, index = state.graphs.sweeps[0]
    graph, ends = state.graphs.behind(number), []
    if graph is None:
        return r.NodesSwept(now.wall_ms, until, [], 0, 0)
    index = index if graph.number == number else 0
    stop = min(len(graph), index + ADVANCE_STEPS_MAX)
    for each in range(index, stop):
        if is_nowhere(state, graph, each):
            run = graph.runs[each]
            ends.append([graph.position(each), run >> 8, (run & 0xFF) - 128])
    where = (graph.number, stop) if stop < len(graph) else (graph.number + 1, 0)
    return r.NodesSwept(now.wall_ms, until, ends, *where)


def is_nowhere(state: BrokerState, graph: Graph, index: int) -> bool:
    """Whether the message of a node that has not ended was purged, or waits for a queue that
    is no more.
    """
    position = state.current(graph.position(index))
    number = state.graphs.held_in(position)
    if number >= 0:
        return bool(state.run_numbered(number).lane.queue.terms.deleted)
    if graph.status[index] != OPEN or position in state.leases:
        return False
    attempts = state.attempts.get(position)
    if attempts:
        return attempts.run is None or attempts.run.is_purged
    run = state.run_numbered(graph.runs[index])
    due_ms = graph.delays.get(index, (0, 0))[1]
    return not state.is_waiting(run, position, due_ms)


def apply_swept(state: BrokerState, position: int, record: r.NodesSwept) -> None:
    """These have ended. The sweep goes on, or is over."""
    sweeps = state.graphs.sweeps
    if record.graph:
        sweeps[0] = record.graph, record.node
    else:
        sweeps.popleft()
    for place, lane, _ in record.ends:
        queue = state.lanes[lane].queue
        until = record.keep_until_ms
        entry = Finished(State.REVOKED, 0, 0, record.wall_ms, 0, until, 0, PURGED)
        entry.settled = position
        state.finish(place, entry, keep=True, synced=queue.synced)
        state.forget(place)
