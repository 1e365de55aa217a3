"""A purge: true at once, swept so much a turn.

The record begins a new life of its queue: runs, counters and timers of the one before are dead,
and nobody sees them any more, whatever a look at them would cost. What lies in other tables under
their positions (names, counters, parts, waiters) is swept by walking what was purged, a bounded
piece a turn. Until then such a message is unknown, but the id that its caller chose is still taken.

Sweeping changes nothing that a record would have to tell: replay sweeps at once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.moment import Now
from qbroker.core.owners import check_owner
from qbroker.core.queues import Queue, Remains
from qbroker.core.refusals import queue_named
from qbroker.core.results import Finished
from qbroker.core.settings import (
    SWEEP_FORGOTTEN_WEIGHT,
    SWEEP_LANES_MAX,
    SWEEP_MESSAGES_MAX,
    SWEEP_STEP,
)
from qbroker.core.state import BrokerState
from qbroker.core.weights import Weights
from qprotocol.frames import Ok, Purge
from qprotocol.options import TRANSIENT
from qprotocol.states import State

PURGED = Finished(State.REVOKED, 0, 0, 0, 0, 0, 0, "purged")


def decide_purge(state: BrokerState, _now: Now, connection: int, frame: Purge) -> Decision:
    """Every waiting message is dropped: the ready and the delayed ones. The quarantine, too."""
    queue = queue_named(state, frame.queue)
    check_owner(state, connection, queue)
    return Decision([r.Purged(queue.number)], Ok(count=queue.ready + queue.scheduled))


def apply_purged(state: BrokerState, _position: int, record: r.Purged) -> None:
    """Nothing waits in the queue; a first piece is swept, which is all of a small one."""
    purge(state, state.numbered[record.queue])


def purge(state: BrokerState, queue: Queue) -> None:
    """Nothing waits in the queue. What is handed out counts as no bytes from now on."""
    queue.counts["purged"] += queue.ready + queue.scheduled
    if state.graphs.owners:
        state.graphs.sweeps.append((0, 0))
    trees = state.timers.drop(queue.number)
    state.remains.append(Remains(queue, trees, queue.delayed, queue.lanes))
    queue.begin_anew()
    if queue.number in state.catalogue.elders:
        state.catalogue.elders[queue.number].clear()
    if queue.number in state.catalogue.weights:
        state.catalogue.weights[queue.number] = Weights()
    lanes = {lane.number for lane in queue.lanes} if state.quarantined else set()
    for position in [p for p, row in state.quarantined.items() if row[0] in lanes]:
        del state.quarantined[position]
    sweep(state)


def finish(state: BrokerState) -> None:
    """All that was purged is swept, however much that is."""
    while state.remains:
        sweep(state)


def beside(state: BrokerState) -> list[Mapping[int, Any]]:
    """Tables that may have an entry for a message that was never handed out."""
    tables = state.names, state.continued, state.results.waiters, state.keys.of, state.keys.doomed
    return [table for table in tables if table]


def sweep(state: BrokerState) -> None:
    """Sweep the next piece. Looks at SWEEP_MESSAGES_MAX messages, or some more."""
    remains, room = state.remains[0], SWEEP_MESSAGES_MAX
    queue = remains.queue
    for lane in remains.lanes[-SWEEP_LANES_MAX:]:
        lane.retire()
    del remains.lanes[-SWEEP_LANES_MAX:]
    while room > 0 and queue.retired:
        run = queue.retired[-1]
        if not run.size or not (state.attempts or beside(state)):
            queue.retired.pop()
            continue
        for first, count in run.take(SWEEP_STEP):
            room -= count + forget(state, queue, range(first, first + count))
    while room > 0 and remains.trees:
        leaves = remains.trees[-1].leaves
        positions = set(leaves.pop().positions)
        if not leaves:
            remains.trees.pop()
        over = positions & state.cancelled
        state.cancelled -= over
        room -= len(positions) + forget(state, queue, positions - over)
    while room > 0 and remains.delayed:
        remains.delayed.pop()
        room -= 1
    if room > 0 and not remains.lanes:
        state.remains.popleft()


def forget(state: BrokerState, queue: Queue, positions: Iterable[int]) -> int:
    """Nothing is kept of these messages; how much that weighs."""
    gone: set[int] = set()
    for kept in (state.attempts, *beside(state)):
        gone.update(kept.keys() & positions)
    for position in gone:
        state.finish(position, PURGED, keep=False, synced=queue.synced)
        state.forget(position)
    return len(gone) * SWEEP_FORGOTTEN_WEIGHT


def drop_transient(state: BrokerState) -> None:
    """Nothing is in queues that keep nothing over a start, and nothing is handed out of them."""
    over = [q for q in state.queues.values() if q.options.durability == TRANSIENT]
    if any(queue.leased for queue in over):
        for position, grant in list(state.leases.items()):
            queue = grant.run_of(position).lane.queue
            if queue in over:
                state.unlease(position)
                forget(state, queue, (position,))
    for queue in over:
        if queue.ready or queue.scheduled:
            purge(state, queue)
