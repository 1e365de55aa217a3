"""How a lease ends: acks, outcomes, retries, dead letters, lost workers.

    ack -----------------------------------> over (result kept if asked for)
    fail ----- policy allows ------ delay -> waits again
      '------- it does not ----------------> dead letter, FAILURE
    release, Bye, lost before it began ----> waits again, uncounted
    crash, lost while it ran - below limit > waits again, crash counted
      '------- poison limit reached, early > dead letter, FAILURE
    reject --------------------------------> dead letter, FAILURE
    any of these in a queue of dead letters > waits there again, LETTER_BACKOFF

A record that settles holds everything that becomes true with it: the result, the
counters, and the follow-on messages.
"""

from collections.abc import Callable

from qbroker.core import records as r
from qbroker.core.copying import copies
from qbroker.core.decision import Decision
from qbroker.core.leases import Grant
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import (
    ACK_MESSAGES_MAX,
    DELIVER_MESSAGES_MAX,
    LETTER_BACKOFF,
    REASON_BYTES_MAX,
)
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import Ack, Frame, Settle, Settled
from qprotocol.limits import ACK_RUNS_MAX, OUTCOMES_MAX
from qprotocol.message import Outcome, meta_fields, unpack_message
from qprotocol.options import RetryPolicy
from qprotocol.states import State

_ACK_RUN = wire.ACK_RUN.size


def decide_ack(state: BrokerState, _now: Now, _connection: int, frame: Ack) -> Decision:
    """Plain acks in runs: the cheapest way to settle."""
    if len(frame.raw) % _ACK_RUN or not frame.raw:
        raise RefusedError("BAD_REQUEST", f"{len(frame.raw)} bytes are no whole ack runs")
    check_runs(frame.raw)
    leases, runs, lost, synced = state.leases, [], [], False
    seen: set[int] = set()
    for number, first, count in wire.ACK_RUN.iter_unpack(frame.raw):
        wanted = range(first, first + count)
        held = [leases.get(position) for position in wanted]
        grant = held[0]
        whole = grant is not None and grant.number == number and held.count(grant) == count
        if whole and (not seen or seen.isdisjoint(wanted)):
            found = [(first, grant)]
            runs.append([number, first, count])
        else:
            found = [
                (position, each)
                for position, each in zip(wanted, held, strict=True)
                if each and each.number == number and position not in seen
            ]
            runs += [[number, start, length] for start, length in split_runs(found)]
            lost += sorted(set(wanted) - {position for position, _ in found})
        if found and not synced:
            position, grant = found[0]
            synced = bool(grant and grant.run_of(position).lane.queue.synced)
        seen.update(wanted)
    state.lease_lost += len(lost)
    return settled(state, [r.Acked(runs)] if runs else [], lost, synced=synced)


def split_runs(found: list[tuple[int, Grant | None]]) -> list[tuple[int, int]]:
    """Neighbours that are held under the same grant object, as (first, count) runs."""
    runs: list[tuple[int, int]] = []
    last: Grant | None = None
    for position, grant in found:
        if runs and grant is last and sum(runs[-1]) == position:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((position, 1))
        last = grant
    return runs


def check_runs(raw: bytes) -> None:
    """Raise RefusedError for runs that no grant can have, or too many."""
    if len(raw) > ACK_RUNS_MAX * _ACK_RUN:
        raise RefusedError(
            "BAD_REQUEST",
            f"{len(raw) // _ACK_RUN} ack runs in a frame: at most {ACK_RUNS_MAX}, use more frames",
        )
    counts = [count for _, _, count in wire.ACK_RUN.iter_unpack(raw)]
    if not 1 <= min(counts) <= max(counts) <= DELIVER_MESSAGES_MAX:
        raise RefusedError(
            "BAD_REQUEST",
            f"ack runs of {min(counts)} to {max(counts)} messages: 1 to {DELIVER_MESSAGES_MAX}",
        )
    if sum(counts) > ACK_MESSAGES_MAX:
        raise RefusedError(
            "BAD_REQUEST", f"{sum(counts)} acks in a frame: at most {ACK_MESSAGES_MAX}"
        )


def settled(
    state: BrokerState, records: list[r.Record], lost: list[int], *, synced: bool
) -> Decision:
    """The answer to a settlement. One of nothing waits, too: for what it reveals."""
    raw = b"".join(map(wire.POSITION.pack, lost))
    synced = synced if records else state.synced
    durability = "synced" if synced else "written"
    reply = Settled(durability=durability, lost=len(lost), raw=raw)
    return Decision(records, reply, synced=synced)


# Outcomes one by one.


def decide_settle(state: BrokerState, now: Now, _connection: int, frame: Settle) -> Decision:
    """Each outcome becomes one record; those whose lease is lost become nothing."""
    if frame.count > OUTCOMES_MAX:
        raise RefusedError(
            "BAD_REQUEST",
            f"{frame.count} outcomes in a frame: at most {OUTCOMES_MAX}, use more frames",
        )
    survey, records, lost = Survey(state, now, following=True), [], []
    raw, at, count = frame.raw, 0, 0
    ended: set[int] = set()
    synced = False
    try:
        while at < len(raw) and count <= frame.count:
            outcome, at = Outcome.unpack(raw, at)
            count += 1
            grant = state.leases.get(outcome.position)
            good = grant is not None and grant.number == outcome.grant
            if grant is None or not good or outcome.position in ended:
                lost.append(outcome.position)
                continue
            check_outcome(outcome)
            if outcome.outcome not in GOES_ON:
                ended.add(outcome.position)
            synced = synced or grant.run_of(outcome.position).lane.queue.synced
            record = OUTCOMES[outcome.outcome](survey, outcome, grant)
            if record:
                records.append(record)
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", f"outcome {count}: {error}") from error
    if count != frame.count:
        raise RefusedError("BAD_REQUEST", f"{count} outcomes where {frame.count} were announced")
    state.lease_lost += len(lost)
    before = [*survey.opened, *survey.redelays()]
    return settled(state, [*before, *records], lost, synced=synced or survey.synced)


GOES_ON = (wire.EXTEND, wire.PROGRESS, wire.START)
REPLACES = (wire.FAIL, wire.RELEASE)
ENDS = (r.SUCCEEDED, r.FAILED, r.REJECTED, r.POISONED)
"""Changes after which the message holds no key."""


def check_outcome(outcome: Outcome) -> None:
    """Raise RefusedError for one that brings messages it has no use for."""
    name = wire.OUTCOMES[outcome.outcome]
    if outcome.flags & wire.HAS_REPLACEMENT and outcome.outcome not in REPLACES:
        raise RefusedError("BAD_REQUEST", f"{name} with a replacement: only fail and release do")
    if outcome.follow_on and outcome.outcome in GOES_ON:
        raise RefusedError("BAD_REQUEST", f"{name} with messages that follow: it ends nothing")


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
    survey.ending = outcome.position if change in ENDS else 0
    raw = b"".join(outcome.follow_on)
    survey.weaving = None
    follow_on = copies(survey, survey.walk(raw, 0, len(raw))) if raw else r.MessageBatch()
    if survey.weaving:
        survey.weaving.check_end()
    elif replaced:
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


def settle_release(survey: Survey, outcome: Outcome, grant: Grant) -> r.Record:
    """Back into the queue, uncounted, at once or after a delay."""
    reason = worn_out(survey, outcome, grant)
    if reason:
        outcome.result = Failure("DeliveriesExhausted", reason).pack()
        return dead(survey, outcome, grant, r.REJECTED, reason)
    delay = 0 if outcome.delay_ms == wire.DELAY_BY_POLICY else outcome.delay_ms
    due = survey.now.wall_ms + min(delay, survey.state.settings.delay_max_ms) if delay else 0
    outcome.result = b""
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
        return dead(survey, outcome, grant, r.FAILED, reason)
    reason = worn_out(survey, outcome, grant)
    if reason:
        return dead(survey, outcome, grant, r.FAILED, reason)
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
    if outcome.position in grant.early or outcome.position in survey.started:
        reason = "its worker was lost; acks early, so it is not run again"
        return dead(survey, outcome, grant, r.POISONED, reason)
    if crashes >= most:
        times = "once" if crashes == 1 else f"{crashes} times"
        return dead(survey, outcome, grant, r.POISONED, f"crashed its worker {times}")
    reason = worn_out(survey, outcome, grant)
    if reason:
        return dead(survey, outcome, grant, r.POISONED, reason)
    return outcome_record(survey, outcome, r.CRASHED, State.QUEUED)


def settle_reject(survey: Survey, outcome: Outcome, grant: Grant) -> r.Record:
    """A dead letter, with the worker's reason."""
    reason = outcome.result[:REASON_BYTES_MAX].decode(errors="replace")
    outcome.result = Failure("Rejected", reason).pack()
    why = f"rejected: {reason}" if reason else "rejected"
    return dead(survey, outcome, grant, r.REJECTED, why)


def dead(survey: Survey, outcome: Outcome, grant: Grant, change: int, reason: str) -> r.Settled:
    """The record that makes the message a dead letter with a FAILURE. Nothing replaces it."""
    lane = grant.run_of(outcome.position).lane
    if outcome.flags & wire.HAS_REPLACEMENT:
        outcome.flags &= ~wire.HAS_REPLACEMENT
        outcome.follow_on = () if is_node(outcome.follow_on[0]) else outcome.follow_on[1:]
    if lane.queue.holds_letters:
        return stays_dead(survey, outcome, change)
    number = survey.dead_lane(lane)
    return outcome_record(
        survey, outcome, change, State.FAILURE, lane=number, keep=True, reason=reason
    )


def is_node(raw: bytes) -> bool:
    """Whether a packed message is a node of a graph: then all that follow with it are."""
    try:
        return wire.NODE in meta_fields(unpack_message(raw).fields)
    except ValueError as error:
        raise RefusedError("BAD_MESSAGE", f"a message that follows: {error}") from error


def stays_dead(survey: Survey, outcome: Outcome, change: int) -> r.Settled:
    """The record for one that failed among the dead letters: it waits there, longer each time.

    So a consumer of dead letters that fails at each of them does not spin.
    """
    deliveries = survey.state.known(outcome.position).deliveries
    due = survey.now.wall_ms + LETTER_BACKOFF.delay_ms(deliveries, outcome.position ^ deliveries)
    if change == r.POISONED:
        return outcome_record(survey, outcome, r.CRASHED, State.QUEUED, due_ms=due)
    return outcome_record(survey, outcome, r.RETRIED, State.RETRY, due_ms=due)


def worn_out(survey: Survey, outcome: Outcome, grant: Grant) -> str:
    """Why the message is dead after so many deliveries; empty if it may be handed out again."""
    state = survey.state
    queue = grant.run_of(outcome.position).lane.queue
    most = 0 if queue.holds_letters else queue.options.deliveries_max
    deliveries = state.known(outcome.position).deliveries
    return f"handed out {deliveries} times" if most and deliveries >= most else ""


def settle_start(survey: Survey, outcome: Outcome, _grant: Grant) -> r.Record:
    """It begins now and will never begin again."""
    survey.started.add(outcome.position)
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
    return Decision(records)
