"""What the end of a node is to those behind it: they are let go, or end with it; or are held
again, if it has not ended after all.

A record that ends a node says nothing of the others. What it comes to is a record of its own, in
the same batch, ADVANCE_STEPS_MAX edges at most; the rest is done in the next turns.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from qbroker.core import records as r
from qbroker.core.graphs import LOOK, OPEN, SKIPPED, UPSTREAM, VOID, Graph
from qbroker.core.graphwalk import Again, End, Free, Walk
from qbroker.core.leases import UNSEEN
from qbroker.core.moment import Now
from qbroker.core.results import Finished
from qbroker.core.settings import ADVANCE_STEPS_MAX, GRAPHS_LET_GO_MAX
from qbroker.core.state import BrokerState
from qprotocol.states import State

Append = Callable[[r.Record], object]

REASONS = {
    State.FAILURE: UPSTREAM,
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
        ends = [row(state, end) for end in walk.ends]
        again = [[each.position, each.run >> 8] for each in walk.again]
        late = list(expiring(state, now, walk))
        append(r.Advanced(walk.steps, now.wall_ms, until, ends, late, again))
    if state.graphs.sweeps:
        append(sweep(state, now, until))


def make_room(state: BrokerState, append: Append) -> None:
    """Of graphs that rest for their dead letters the oldest go, once nodes are half the limit."""
    graphs = state.graphs
    if graphs.resting and graphs.nodes > state.settings.graph_nodes_max // 2:
        append(r.GraphsLetGo(list(islice(graphs.resting, GRAPHS_LET_GO_MAX))))


def apply_let_go(state: BrokerState, _position: int, record: r.GraphsLetGo) -> None:
    """Nobody behind their nodes will be held again."""
    for number in record.graphs:
        graph, _ = state.graphs.node(number)
        state.graphs.drop(graph)
        state.graph_gone(graph)


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
    """So many steps are done: nodes wait in their queues, others have ended, or are held again."""
    walk = Walk(state.graphs, record.steps)
    walk.commit()
    for each in walk.news:
        if isinstance(each, End):
            end_with(state, position, record, each)
        elif each.run < 0:
            state.graphs.tell(each.position, LOOK)
        else:
            hold_again(state, each)
    for free in walk.released:
        let_go(state, free, free.due_from(record.wall_ms))
    for place, expires_ms in record.expiring:
        run = state.run_numbered(state.graphs.run_of(place))
        state.expiries.push(run.lane.queue.number, expires_ms, place, run.number)
    for graph in walk.leave():
        state.graph_gone(graph)


def let_go(state: BrokerState, free: Free, due_ms: int) -> None:
    """The node waits in its queue, for its time if ``due_ms`` is not 0."""
    run, place = state.run_numbered(free.run), free.position
    queue = run.lane.queue
    queue.nodes -= 1
    known = state.attempts.get(place)
    if known or due_ms:
        state.attempts[place] = (known or UNSEEN)._replace(run=run, waits=bool(due_ms))
    size = state.graphs.size_of(place)
    state.graphs.let_go(place)
    if due_ms:
        state.later(run, place, due_ms)
    else:
        state.in_front(run, place, 1)
    if queue.options.is_bounded:
        state.catalogue.arrive(run, place, size, due_ms)


def hold_again(state: BrokerState, again: Again) -> None:
    """Nothing is remembered of the end of the node."""
    queue = state.run_numbered(again.run).lane.queue
    queue.nodes += 1
    queue.counts["held_again"] += 1
    state.results.drop(again.position)
    state.graphs.hold_again(again.position)
    for place in state.places_of(again.position)[1:]:
        state.graphs.under_way(place)


def end_with(state: BrokerState, settled: int, record: r.Advanced, end: End) -> None:
    """The node has ended as the one before it has, or because nobody needs it."""
    queue = state.run_numbered(end.run).lane.queue
    state.catalogue.gone(queue, end.position)
    skipped = end.status == SKIPPED
    queue.nodes -= 1
    size = state.graphs.size_of(end.cause) if end.record else 0
    state.graphs.ended(end.position, end.status | VOID, end.record, 0)
    state.graphs.weigh(end.position, size)
    status = State.REVOKED if skipped else State(end.status)
    reason = UNNEEDED if skipped else REASONS[status]
    until = 0 if skipped else record.keep_until_ms
    entry = Finished(status, end.record, 0, record.wall_ms, 0, until, 0, reason, settled=settled)
    queue.counts["skipped" if skipped else "upstream"] += 1
    state.finish(end.position, entry, keep=not skipped, synced=queue.synced)
    if status is not State.FAILURE:
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
