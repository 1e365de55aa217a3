"""What the records about the end of a lease do: over, waiting again, or a dead letter."""

from collections.abc import Callable

from qbroker.core import records as r
from qbroker.core.burying import buried, revive
from qbroker.core.effects import Send
from qbroker.core.leases import UNTOUCHED, Attempts, Grant, by_run
from qbroker.core.publishing import apply_messages
from qbroker.core.results import Finished
from qbroker.core.runs import Run
from qbroker.core.state import BrokerState
from qprotocol import wire
from qprotocol.frames import Revoke
from qprotocol.states import State


def apply_acked(state: BrokerState, _position: int, record: r.Acked) -> None:
    """These messages are over."""
    leases = state.leases
    # As they are now: what ends first may empty one of the tables that the rest is still in.
    kept = bool(state.attempts or state.names or state.continued or state.keys.of)
    asked = bool(state.results.waiters or state.origin or state.graphs.owners)
    weights = state.catalogue.weights
    for _number, first, count in record.runs:
        pieces = state.unlease_neighbours(leases[first], first, count)
        for run, length in by_run(pieces):
            run.lane.queue.counts["acked"] += length
            if run.lane.queue.shares:
                run.lane.queue.shares.measured(run.lane.fair, 0, ran=True, count=length)
        for run, start, length in pieces if weights else ():
            state.catalogue.gone(run.lane.queue, start, length)
        if kept:
            forget_all(state, range(first, first + count))
        if asked:
            nothing = Finished(State.SUCCESS, 0, 0, 0, 0, 0)
            for position in range(first, first + count):
                state.finish(position, nothing, keep=False, synced=True)


def forget_all(state: BrokerState, positions: range) -> None:
    """The messages are over: as state.forget, and less work where they had nothing but keys."""
    only_keys = not (state.attempts or state.continued or state.late or state.names)
    forget = state.keys.end if only_keys else state.forget
    for position in positions:
        forget(position)


def apply_settled(state: BrokerState, position: int, record: r.Settled) -> None:
    """The lease is over; what is next depends on the change."""
    session = state.leases[record.position].member.session
    run = state.unlease(record.position)
    shares = run.lane.queue.shares
    if shares:
        ran = record.change != r.RELEASED
        shares.measured(run.lane.fair, record.run_ms, ran=ran)
    if state.graphs.owners:
        for place in state.places_of(record.position):
            state.graphs.weigh(place, len(record.result))
    CHANGES[record.change](state, position, record, run)
    if record.change in r.DEAD:
        worker = session.id if session else b""
        buried(state, run, record.position, record.finished_ms, worker)
    if record.follow_on.count or record.follow_on.keyed:
        # The first replaces it; of a graph the last, for whose end those behind it wait then.
        which = record.follow_on.count if record.follow_on.woven else 1
        if record.replaced:
            state.replace(record.position, position + which)
            state.catalogue.gone(run.lane.queue, record.position)
            state.forget(record.position)
        apply_messages(state, position + 1, record.follow_on)
        if record.replaced:
            replaced(state, record, run, position + which)


def replaced(state: BrokerState, record: r.Settled, run: Run, position: int) -> None:
    """The message at ``position`` has the counters of the one that was in ``run``."""
    lane, priority = record.follow_on.runs[-1 if record.follow_on.woven else 0][:2]
    after = state.lanes[lane].run(priority)
    waits = bool(record.due_ms)
    state.attempts[position] = state.attempts[position]._replace(run=after, waits=waits)
    if not after.lane.queue.holds_letters and position in state.letters.by_position:
        revive(state, position)
    ordering = run.lane.ordering
    if ordering and after.lane.ordering is ordering and not record.follow_on.woven:
        ordering.waits(after, position, is_ready=not record.due_ms)


def succeed(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """Over, and well."""
    queue = run.lane.queue
    queue.counts["acked"] += 1
    entry = finished(record, position, state.known(record.position).failures)
    if not record.keep_until_ms:
        entry.record = 0
    state.catalogue.gone(queue, record.position)
    state.finish(record.position, entry, keep=bool(record.keep_until_ms), synced=queue.synced)
    state.forget(record.position)


def finished(record: r.Settled, position: int, failures: int) -> Finished:
    """What the record says of its task's end."""
    return Finished(
        State(record.state),
        position,
        record.content,
        record.finished_ms,
        record.run_ms,
        record.keep_until_ms,
        failures,
        record.reason,
        settled=position,
    )


def retry(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """It waits again; a failure is counted."""
    known = state.known(record.position)
    known = known._replace(failures=known.failures + 1, error=position)
    run.lane.queue.counts["failed"] += 1
    run.lane.queue.counts["retried"] += 1
    wait_again(state, record, run, known)


def release(state: BrokerState, _position: int, record: r.Settled, run: Run) -> None:
    """It waits again, uncounted."""
    run.lane.queue.counts["released"] += 1
    wait_again(state, record, run, state.known(record.position))


def crash(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """It waits again; a crash is counted."""
    known = state.known(record.position)
    known = known._replace(crashes=known.crashes + 1, error=position)
    run.lane.queue.counts["crashed"] += 1
    wait_again(state, record, run, known)


def wait_again(state: BrokerState, record: r.Settled, run: Run, known: Attempts) -> None:
    """Into the timers or the front of its run; a replaced message's successor does instead."""
    if record.replaced:
        state.attempts[record.position] = known
        return
    state.attempts[record.position] = known._replace(
        run=run, waits=bool(record.due_ms), claims_from=record.grant + 1
    )
    if record.due_ms:
        state.later_again(run, record.position, record.due_ms)
        state.letters.waits(record.position, record.due_ms)
    else:
        state.ready_again(run, record.position, 1)


def bury(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """It is a dead letter now, in the queue for those."""
    known, queue = state.known(record.position), run.lane.queue
    if record.change == r.FAILED:
        known = known._replace(failures=known.failures + 1)
        queue.counts["failed"] += 1
    elif record.change == r.POISONED:
        known = known._replace(crashes=known.crashes + 1)
        queue.counts["crashed"] += 1
    queue.counts["dead_lettered"] += 1
    target = state.lanes[record.lane].run(run.priority)
    state.attempts[record.position] = known._replace(
        error=position,
        reason=record.reason,
        run=target,
        waits=False,
        claims_from=record.grant + 1,
    )
    entry = finished(record, position, known.failures)
    state.finish(record.position, entry, keep=True, synced=queue.synced)


CHANGES: dict[int, Callable[[BrokerState, int, r.Settled, Run], None]] = {
    r.SUCCEEDED: succeed,
    r.RETRIED: retry,
    r.FAILED: bury,
    r.REJECTED: bury,
    r.POISONED: bury,
    r.RELEASED: release,
    r.CRASHED: crash,
}


def wait_in_front(state: BrokerState, run: Run, first: int, count: int, number: int) -> None:
    """Neighbours that grant ``number`` came to nothing for are ready again.

    That grant can be claimed once more: its worker finds piece by piece what it runs.
    """
    attempts, before = state.attempts, UNTOUCHED
    after = UNTOUCHED._replace(run=run, claims_from=number)
    for position in range(first, first + count):
        known = attempts.get(position, UNTOUCHED)
        if known is not before:
            before = known
            after = known._replace(run=run, waits=False, claims_from=number)
        attempts[position] = after
    state.ready_again(run, first, count)


def apply_returned(state: BrokerState, _position: int, record: r.Returned) -> None:
    """These messages wait in front again."""
    for grant, first, count in neighbours(state.leases, record.positions):
        for run, start, length in state.unlease_neighbours(grant, first, count):
            run.lane.queue.counts["returned"] += length
            if run.lane.queue.shares:
                run.lane.queue.shares.measured(run.lane.fair, 0, ran=False)
            wait_in_front(state, run, start, length, grant.number)


def neighbours(leases: dict[int, Grant], positions: list[int]) -> list[tuple[Grant, int, int]]:
    """Leased messages as runs of one grant each: (grant, first, count)."""
    out: list[tuple[Grant, int, int]] = []
    grant, end = None, -1
    for position in positions:
        held = leases[position]
        if held is grant and position == end:
            out[-1] = held, out[-1][1], out[-1][2] + 1
        else:
            out.append((held, position, 1))
        grant, end = held, position + 1
    return out


def apply_started(state: BrokerState, _position: int, record: r.Started) -> None:
    """These leases run now."""
    for position in record.positions:
        grant = state.leases[position]
        grant.started.add(position)
        if record.early:
            grant.early.add(position)


def apply_removed(state: BrokerState, settled: int, record: r.Removed) -> None:
    """These messages are over, wherever they were."""
    for position, number, priority in record.positions:
        run = state.lanes[number].run(priority)
        queue = run.lane.queue
        grant = state.leases.get(position)
        if grant is not None:
            state.unlease(position)
            push_revoke(state, grant, position, record)
        else:
            state.withdraw(run, position)
        queue.counts[record.reason] += 1
        state.catalogue.gone(queue, position)
        entry = Finished(
            State.REVOKED, 0, 0, record.finished_ms, 0, record.keep_until_ms, 0, record.reason
        )
        entry.settled = settled
        keep = bool(record.keep_until_ms)
        state.finish(position, entry, keep=keep, synced=queue.synced)
        state.forget(position)


def push_revoke(state: BrokerState, grant: Grant, position: int, record: r.Removed) -> None:
    """Tell the holder, and its parent, that the delivery is void."""
    member, token = grant.member, wire.TOKEN.pack(position, grant.number)
    members = [member]
    if member.session and member.number:
        members.append(member.session.member(0))
    for told in members:
        if told.connection:
            frame = Revoke(terminate=record.terminate, grace_ms=record.grace_ms, raw=token)
            state.effects.append(Send(told.connection, frame))
        elif told.session:
            told.untold[position, grant.number] = record.terminate, record.grace_ms
