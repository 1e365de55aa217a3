"""How a lease ends: acks, outcomes, retries, dead letters, lost workers.

    ack -----------------------------------> over (result kept if asked for)
    fail ----- policy allows ------ delay -> waits again
      '------- it does not ----------------> dead letter, FAILURE
    release, Bye, lost before it began ----> waits again, uncounted
    crash, lost while it ran - below limit > waits again, crash counted
      '------- poison limit reached, early > dead letter, FAILURE
    reject --------------------------------> dead letter, FAILURE

A record that settles holds everything that becomes true with it: the result, the
counters, and the follow-on messages.
"""

from collections.abc import Callable
from itertools import groupby

from qprotocol import wire

from qprotocol.failure import Failure
from qprotocol.frames import Ack, Frame, Revoke, Settle, Settled
from qprotocol.message import Outcome
from qprotocol.options import RetryPolicy
from qprotocol.states import State

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.effects import Send
from qbroker.core.leases import Grant, Member
from qbroker.core.moment import Now
from qbroker.core.publishing import RefusedError, Survey, apply_messages
from qbroker.core.queues import Lane, Run
from qbroker.core.results import Finished
from qbroker.core.settings import DEAD_SUFFIX, REASON_BYTES_MAX
from qbroker.core.state import BrokerState

_ACK_RUN = wire.ACK_RUN.size


def decide_ack(state: BrokerState, _now: Now, _connection: int, frame: Ack) -> Decision:
    """Plain acks in runs: the cheapest way to settle."""
    if len(frame.raw) % _ACK_RUN or not frame.raw:
        raise RefusedError("BAD_REQUEST", f"{len(frame.raw)} bytes are no whole ack runs")
    leases, runs, lost, synced = state.leases, [], [], False
    seen: set[int] = set()
    for number, first, count in wire.ACK_RUN.iter_unpack(frame.raw):
        if count > state.settings.credit_max:
            raise RefusedError("BAD_REQUEST", f"an ack run of {count} messages")
        wanted = range(first, first + count)
        good = [p for p in wanted if (g := leases.get(p)) is not None and g.number == number]
        if seen and not seen.isdisjoint(good):
            good = [p for p in good if p not in seen]
        seen.update(good)
        if len(good) == count:
            runs.append([number, first, count])
        else:
            runs += [[number, a, n] for a, n in consecutive(good)]
            lost += sorted(set(wanted) - set(good))
        if good:
            synced = synced or leases[good[0]].run_of(good[0]).lane.queue.synced
    state.lease_lost += len(lost)
    return settled([r.Acked(runs)] if runs else [], lost, synced=synced)


def consecutive(positions: list[int]) -> list[tuple[int, int]]:
    """Ascending positions as (first, count) runs."""
    grouped = groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0])
    runs = [[position for _, position in group] for _, group in grouped]
    return [(run[0], len(run)) for run in runs]


def settled(records: list[r.Record], lost: list[int], *, synced: bool) -> Decision:
    """The answer to a settlement; refusals, too, wait for what they reveal."""
    raw = b"".join(map(wire.POSITION.pack, lost))
    durability = "synced" if synced else "written"
    reply = Settled(durability=durability, lost=len(lost), raw=raw)
    return Decision(records, reply, synced=synced or None)


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
        if attempts or state.names or state.continued:
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


# Outcomes one by one.


def decide_settle(state: BrokerState, now: Now, connection: int, frame: Settle) -> Decision:
    """Each outcome becomes one record; those whose lease is lost become nothing."""
    survey, records, lost = Survey(state, now), [], []
    raw = b"".join((*state.pieces.pop((connection, frame.correlation), ()), frame.raw))
    at, count, seen = 0, 0, set()
    synced = False
    try:
        while at < len(raw):
            outcome, at = Outcome.unpack(raw, at)
            count += 1
            grant = state.leases.get(outcome.position)
            good = grant is not None and grant.number == outcome.grant
            if grant is None or not good or outcome.position in seen:
                lost.append(outcome.position)
                continue
            seen.add(outcome.position)
            synced = synced or grant.run_of(outcome.position).lane.queue.synced
            record = OUTCOMES[outcome.outcome](survey, outcome, grant)
            if record:
                records.append(record)
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", f"outcome {count}: {error}") from error
    if count != frame.count:
        raise RefusedError("BAD_REQUEST", f"{count} outcomes where {frame.count} were announced")
    state.lease_lost += len(lost)
    return settled([*survey.opened, *records], lost, synced=synced or survey.synced)


def outcome_record(
    survey: Survey,
    outcome: Outcome,
    change: int,
    status: State,
    *,
    due_ms: int = 0,
    lane: int = 0,
    keep: bool = False,
    reason: str = "",
) -> r.Settled:
    """The record for one outcome, with the messages that follow on it."""
    now, most = survey.now, survey.state.settings
    if len(outcome.result) > most.result_bytes_max:
        raise RefusedError(
            "BODY_TOO_LARGE",
            f"a result of {len(outcome.result)} bytes: result_bytes_max is {most.result_bytes_max}",
        )
    replaced = bool(outcome.flags & wire.HAS_REPLACEMENT and outcome.follow_on)
    survey.replacing = outcome.position if replaced else -1
    raw = b"".join(outcome.follow_on)
    follow_on = survey.walk(raw, 0, len(raw)) if raw else r.MessageBatch()
    if replaced:
        first = follow_on.runs[0]
        follow_on.runs[:1] = [[first[0], first[1], 1, due_ms]] + (
            [[*first[:2], first[2] - 1, first[3]]] if first[2] > 1 else []
        )
    return r.Settled(
        change,
        outcome.position,
        outcome.grant,
        int(status),
        now.wall_ms,
        outcome.run_ms,
        outcome.content,
        now.wall_ms + most.result_ttl_ms if keep else 0,
        due_ms,
        lane,
        reason,
        outcome.result,
        replaced,
        follow_on,
    )


def settle_ack(survey: Survey, outcome: Outcome, _grant: Grant) -> r.Record:
    """Over, and well."""
    keep = bool(outcome.flags & wire.HAS_RESULT)
    if not keep:
        outcome.result = b""
    return outcome_record(survey, outcome, r.SUCCEEDED, State.SUCCESS, keep=keep)


def settle_release(survey: Survey, outcome: Outcome, _grant: Grant) -> r.Record:
    """Back into the queue, uncounted, at once or after a delay."""
    delay = 0 if outcome.delay_ms == wire.DELAY_BY_POLICY else outcome.delay_ms
    due = survey.now.wall_ms + delay if delay else 0
    return outcome_record(survey, outcome, r.RELEASED, State.QUEUED, due_ms=due)


def settle_fail(survey: Survey, outcome: Outcome, grant: Grant) -> r.Record:
    """Another run if a policy allows it: the frame's, else the queue's."""
    state = survey.state
    queue = grant.run_of(outcome.position).lane.queue
    attempts = state.attempts.get(outcome.position)
    failures = (attempts.failures if attempts else 0) + 1
    policy = RetryPolicy.unpack(outcome.policy) if outcome.policy else queue.options.retry
    if outcome.flags & wire.NO_RETRY or not policy.allows(failures):
        reason = "failed" if failures == 1 else f"failed {failures} times"
        return dead(survey, outcome, grant, reason)
    delay = outcome.delay_ms
    if delay == wire.DELAY_BY_POLICY:
        delay = policy.delay_ms(failures, outcome.position ^ failures)
    due = survey.now.wall_ms + min(delay, state.settings.retry_max_ms) if delay else 0
    return outcome_record(survey, outcome, r.RETRIED, State.RETRY, due_ms=due)


def settle_crash(survey: Survey, outcome: Outcome, grant: Grant) -> r.Record:
    """A worker died running it: again, unless that happened too often."""
    state = survey.state
    queue = grant.run_of(outcome.position).lane.queue
    attempts = state.attempts.get(outcome.position)
    crashes = (attempts.crashes if attempts else 0) + 1
    most = queue.options.poison_max or state.settings.poison_max
    if outcome.position in grant.early:
        return dead(survey, outcome, grant, "its worker was lost; acks early, so it is not run again")
    if crashes >= most:
        return dead(survey, outcome, grant, f"crashed its worker {crashes} times")
    return outcome_record(survey, outcome, r.CRASHED, State.QUEUED)


def settle_reject(survey: Survey, outcome: Outcome, grant: Grant) -> r.Record:
    """A dead letter, with the worker's reason."""
    reason = outcome.result[:REASON_BYTES_MAX].decode(errors="replace")
    outcome.result = Failure("Rejected", reason).pack()
    return dead(survey, outcome, grant, f"rejected: {reason}")


def dead(survey: Survey, outcome: Outcome, grant: Grant, reason: str) -> r.Settled:
    """The record that makes the message a dead letter with a FAILURE."""
    lane = grant.run_of(outcome.position).lane
    name = lane.queue.name.removesuffix(DEAD_SUFFIX) + DEAD_SUFFIX
    target = survey.lane(name, lane.task, lane.keys)
    number = target.number if isinstance(target, Lane) else target
    outcome.follow_on = ()
    outcome.flags &= ~wire.HAS_REPLACEMENT
    return outcome_record(
        survey, outcome, r.DEAD, State.FAILURE, lane=number, keep=True, reason=reason
    )


def settle_start(_survey: Survey, outcome: Outcome, _grant: Grant) -> r.Record:
    """It begins now and will never begin again."""
    return r.Started([outcome.position], early=True)


def settle_extend(_survey: Survey, _outcome: Outcome, _grant: Grant) -> None:
    """Nothing: a lease lives by its session's heartbeats. The answer says if it still does."""


OUTCOMES: dict[int, Callable[[Survey, Outcome, Grant], r.Record | None]] = {
    wire.ACK: settle_ack,
    wire.RELEASE: settle_release,
    wire.FAIL: settle_fail,
    wire.REJECT: settle_reject,
    wire.EXTEND: settle_extend,
    wire.PROGRESS: settle_extend,
    wire.START: settle_start,
    wire.CRASH: settle_crash,
}


def decide_running(state: BrokerState, _now: Now, _connection: int, frame: Frame) -> Decision:
    """Note which leases run now, for the day their worker is lost."""
    if len(frame.raw) % wire.TOKEN.size:
        raise RefusedError("BAD_REQUEST", f"{len(frame.raw)} bytes are no whole tokens")
    news = []
    for position, number in wire.TOKEN.iter_unpack(frame.raw):
        grant = state.leases.get(position)
        if grant and grant.number == number and position not in grant.started:
            news.append(position)
    records: list[r.Record] = [r.Started(news, early=False)] if news else []
    return Decision(records, awaited=False)


# Lost holders.


def losses(survey: Survey, member: Member, *, lost: bool) -> list[r.Record]:
    """Records that give back all that a member holds; ``lost``: it did not say goodbye."""
    returned, records = [], []
    for grant in member.grants.values():
        for position in grant.positions():
            if survey.state.leases.get(position) is not grant:
                continue
            early = position in grant.early
            if not early and not (lost and position in grant.started):
                returned.append(position)
                continue
            error = Failure("WorkerLost", "the worker that ran this was lost")
            outcome = Outcome(wire.CRASH, position, grant.number, result=error.pack())
            records.append(settle_crash(survey, outcome, grant))
    if returned:
        records.append(r.Returned(returned))
    return records


# What the records do.


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
        if record.replaced and (attempts := state.attempts.get(position + 1)):
            attempts.run, attempts.waits = state.lanes[record.follow_on.runs[0][0]].run(
                record.follow_on.runs[0][1]
            ), bool(record.due_ms)


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
    if record.reason.startswith("failed"):
        attempts.failures += 1
        run.lane.queue.counts["failed"] += 1
    elif not record.reason.startswith("rejected"):
        attempts.crashes += 1
        run.lane.queue.counts["crashed"] += 1
    attempts.error, attempts.reason = position, record.reason
    queue = run.lane.queue
    queue.counts["dead_lettered"] += 1
    target = state.lanes[record.lane].run(run.priority)
    attempts.run, attempts.waits = target, False
    state.ready(target, record.position, 1)
    entry = finished(record, position, attempts.failures)
    state.finish(record.position, entry, keep=True, synced=queue.synced)


CHANGES: dict[int, Callable[[BrokerState, int, r.Settled, Run], None]] = {
    r.SUCCEEDED: succeed,
    r.RETRIED: retry,
    r.DEAD: bury,
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


def apply_removed(state: BrokerState, _position: int, record: r.Removed) -> None:
    """These messages are over, wherever they were."""
    for position, number, priority in record.positions:
        run = state.lanes[number].run(priority)
        queue = run.lane.queue
        grant = state.leases.get(position)
        if grant is not None:
            state.unlease(position)
            push_revoke(state, grant, position, terminate=record.terminate)
        elif position in run:
            run.remove(position, 1)
            queue.ready -= 1
        else:
            state.cancelled.add(position)
            state.delayed.discard(position)
            queue.scheduled -= 1
        queue.counts[record.reason] += 1
        entry = Finished(
            State.REVOKED, 0, 0, record.finished_ms, 0, record.keep_until_ms, 0, record.reason
        )
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


