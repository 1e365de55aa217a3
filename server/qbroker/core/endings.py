"""What the records about the end of a lease do: over, waiting again, or a dead letter."""

from collections.abc import Callable

from qbroker.core import records as r
from qbroker.core.effects import Send
from qbroker.core.leases import Grant
from qbroker.core.publishing import apply_messages
from qbroker.core.queues import Run
from qbroker.core.results import Finished
from qbroker.core.state import BrokerState
from qprotocol import wire
from qprotocol.frames import Revoke
from qprotocol.states import State


def apply_acked(state: BrokerState, _position: int, record: r.Acked) -> None:
    """These messages are over."""
    leases, attempts = state.leases, state.attempts
    for _number, first, count in record.runs:
        grant = leases[first]
        for position in range(first, first + count):
            del leases[position]
        grant.remaining -= count
        if not grant.remaining:
            del grant.member.grants[grant.number]
        count_acked(grant, first, count)
        if grant.consumer:
            grant.consumer.unsettled -= count
            state.listen_again(grant.consumer)
        if attempts or state.names or state.continued or state.late:
            for position in range(first, first + count):
                state.forget(position)
        if state.results.waiters or state.origin:
            nothing = Finished(State.SUCCESS, 0, 0, 0, 0, 0)
            for position in range(first, first + count):
                state.finish(position, nothing, keep=False, synced=True)


def count_acked(grant: Grant, first: int, count: int) -> None:
    """Add to the books of the queues that the run came from."""
    for run, start, length in grant.entries:
        overlap = min(first + count, start + length) - max(first, start)
        if overlap > 0:
            queue = run.lane.queue
            queue.leased -= overlap
            queue.counts["acked"] += overlap


def apply_settled(state: BrokerState, position: int, record: r.Settled) -> None:
    """The lease is over; what is next depends on the change."""
    grant = state.unlease(record.position)
    run = grant.run_of(record.position)
    CHANGES[record.change](state, position, record, run)
    if record.follow_on.count:
        if record.replaced:
            state.replace(record.position, position + 1)
            state.forget(record.position)
        apply_messages(state, position + 1, record.follow_on)
        if record.replaced:
            lane, priority = record.follow_on.runs[0][:2]
            attempts = state.attempts[position + 1]
            attempts.run = state.lanes[lane].run(priority)
            attempts.waits = bool(record.due_ms)


def succeed(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """Over, and well."""
    queue = run.lane.queue
    queue.counts["acked"] += 1
    attempts = state.attempts.get(record.position)
    entry = finished(record, position, attempts.failures if attempts else 0)
    if not record.keep_until_ms:
        entry.record = 0
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
    attempts = state.touch(record.position)
    attempts.failures += 1
    attempts.error = position
    run.lane.queue.counts["failed"] += 1
    run.lane.queue.counts["retried"] += 1
    wait_again(state, record, run)


def release(state: BrokerState, _position: int, record: r.Settled, run: Run) -> None:
    """It waits again, uncounted."""
    state.touch(record.position)
    run.lane.queue.counts["released"] += 1
    wait_again(state, record, run)


def crash(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """It waits again; a crash is counted."""
    attempts = state.touch(record.position)
    attempts.crashes += 1
    attempts.error = position
    run.lane.queue.counts["crashed"] += 1
    wait_again(state, record, run)


def wait_again(state: BrokerState, record: r.Settled, run: Run) -> None:
    """Into the timers or the front of its run; a replaced message's successor does instead."""
    if record.replaced:
        return
    attempts = state.attempts[record.position]
    attempts.run, attempts.waits = run, bool(record.due_ms)
    if record.due_ms:
        state.later(run, record.position, record.due_ms)
    else:
        state.ready_again(run, record.position)


def bury(state: BrokerState, position: int, record: r.Settled, run: Run) -> None:
    """It is a dead letter now, in the queue for those."""
    attempts = state.touch(record.position)
    queue = run.lane.queue
    if record.change == r.FAILED:
        attempts.failures += 1
        queue.counts["failed"] += 1
    elif record.change == r.POISONED:
        attempts.crashes += 1
        queue.counts["crashed"] += 1
    attempts.error, attempts.reason = position, record.reason
    queue.counts["dead_lettered"] += 1
    target = state.lanes[record.lane].run(run.priority)
    attempts.run, attempts.waits = target, False
    state.ready(target, record.position, 1)
    entry = finished(record, position, attempts.failures)
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


def apply_returned(state: BrokerState, _position: int, record: r.Returned) -> None:
    """These messages wait in front again."""
    for position in record.positions:
        run = state.unlease(position).run_of(position)
        attempts = state.touch(position)
        attempts.run, attempts.waits = run, False
        run.lane.queue.counts["returned"] += 1
        state.ready_again(run, position)


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
            push_revoke(state, grant, position, terminate=record.terminate)
        else:
            state.withdraw(run, position)
        queue.counts[record.reason] += 1
        entry = Finished(
            State.REVOKED, 0, 0, record.finished_ms, 0, record.keep_until_ms, 0, record.reason
        )
        entry.settled = settled
        state.finish(position, entry, keep=True, synced=queue.synced)
        state.forget(position)


def push_revoke(state: BrokerState, grant: Grant, position: int, *, terminate: bool) -> None:
    """Tell the holder, and its parent, that the delivery is void."""
    member, token = grant.member, wire.TOKEN.pack(position, grant.number)
    members = [member]
    if member.session and member.number:
        members.append(member.session.member(0))
    for told in members:
        if told.connection:
            state.effects.append(Send(told.connection, Revoke(terminate=terminate, raw=token)))
