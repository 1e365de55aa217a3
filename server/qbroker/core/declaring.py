"""Queues by their options: declared, changed while they run, bound by policies.

Who declares a queue again must agree in every option that it names. What an operator has set
meanwhile is no disagreement: an application that starts anew declares what it always did.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.moment import Now
from qbroker.core.owners import check_owner, owner_of
from qbroker.core.policies import NOTHING, SET, Policy, layered
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError, queue_named
from qbroker.core.settings import POLICIES_MAX, POLICY_QUEUE_WEIGHT, POLICY_WORK_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import limit
from qprotocol.frames import ChangeQueue, Declare, Ok, SetPolicy
from qprotocol.limits import NAME_BYTES_MAX
from qprotocol.names import check_queue_name
from qprotocol.options import OPTIONS, QueueOptions, check_place, row_of

FIRST_OPTIONS = {
    *("fsync", "retries_max", "backoff_ms", "backoff_max_ms", "poison_max", "history"),
}
"""Logs from before there were policies name all of these for each queue, given or not."""


def decide_declare(state: BrokerState, _now: Now, connection: int, frame: Declare) -> Decision:
    """The queue exists with these options, or did already."""
    options = frame.options or {}
    try:
        check_queue_name(frame.queue)
        QueueOptions.check(options)
        check_place(frame.queue, options)
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", str(error)) from error
    queue = state.queues.get(frame.queue)
    if queue is None:
        most = state.settings.queues_max
        if len(state.queues) >= most:
            raise limit("queues_max", most)
        owner = owner_of(state, connection) if options.get("exclusive") else b""
        opened = r.QueueOpened(len(state.numbered), frame.queue, options, owner)
        return Decision([opened], Ok(count=1))
    check_owner(state, connection, queue)
    found = conflicts(state, queue, options)
    if found:
        raise differs(queue, found)
    use = state.catalogue.unused.get(queue.number)
    if use:
        use.books = ()
    return Decision(reply=Ok())


def conflicts(state: BrokerState, queue: Queue, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each option in which the declaration disagrees with what the queue was told."""
    terms, rows = queue.terms, []
    own = [each for each in state.catalogue.policies.values() if not each.operator]
    before = layered(queue.name, terms.declared, {}, own)
    for name, value in options.items():
        existing = before[name]
        if existing.value != value and name not in terms.changed:
            rows.append(
                {
                    "option": name,
                    "declared": value,
                    "existing": existing.value,
                    "source": existing.source,
                }
            )
    return rows


def differs(queue: Queue, rows: list[dict[str, Any]]) -> RefusedError:
    """The refusal, option by option."""
    said = "; ".join(
        f"{row['option']} is {row['existing']!r} ({row['source']}), declared {row['declared']!r}"
        for row in rows
    )
    words = " ".join(f"{row['option']}={row['declared']}" for row in rows if may_set(row["option"]))
    way = f", or set them: qbroker queue set {queue.name} {words}" if words else ""
    return RefusedError(
        "OPTIONS_DIFFER",
        f"queue {queue.name!r} exists with other options: {said}; declare it with the same{way}",
        queue=queue.name,
        conflicts=rows,
    )


def may_set(name: str) -> bool:
    """Whether an operator may give the option."""
    return not OPTIONS[name].declared_only


# While it runs.


def decide_change(state: BrokerState, _now: Now, connection: int, frame: ChangeQueue) -> Decision:
    """The options are as an operator says, at once; what is None is as it was before."""
    queue = queue_named(state, frame.queue)
    check_owner(state, connection, queue)
    given = frame.options or {}
    try:
        wanted = {name: value for name, value in given.items() if value is not None}
        check_settable(wanted)
        check_place(queue.name, wanted)
        after = merged(queue.terms.changed, given)
        policies = state.catalogue.policies.values()
        known = layered(queue.name, queue.terms.declared, after, policies)
        QueueOptions.check({name: each.value for name, each in known.items()})
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", str(error)) from error
    if after == queue.terms.changed:
        return Decision(reply=Ok())
    return Decision([r.QueueChanged(queue.number, given)], Ok(count=1))


def check_settable(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that operators cannot give, and for wrong values."""
    for name in options:
        if not may_set(row_of(name).name):
            raise ValueError(f"{name} belongs to the queue's declaration: nobody can set it later")
    QueueOptions.check(options)


def merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were set before, with those given now; None takes one back."""
    after = {**before, **given}
    return {name: value for name, value in after.items() if value is not None}


def decide_policy(state: BrokerState, _now: Now, _connection: int, frame: SetPolicy) -> Decision:
    """The policy is there, or with ``drop`` it is not; queues follow, so many a turn."""
    policies, name = state.catalogue.policies, frame.name
    before = policies.get(name)
    if frame.drop:
        if before is None:
            raise RefusedError("NO_POLICY", f"there is no policy {name!r}")
        return Decision([r.PolicySet(name, "", 0, False, {}, dropped=True)], Ok(count=1))
    options = frame.options or {}
    try:
        check_queue_name(name)
        check_settable(options)
        check_place(frame.pattern, options)
        if not options or not 1 <= len(frame.pattern) <= NAME_BYTES_MAX:
            raise ValueError("a policy needs a pattern of 1 to 200 characters, and options")
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", f"policy {name!r}: {error}") from error
    if before is None and len(policies) >= POLICIES_MAX:
        raise RefusedError("LIMIT_REACHED", f"policies_max is {POLICIES_MAX} and reached: drop one")
    policy = Policy(name, frame.pattern, frame.priority, frame.operator, options)
    if policy == before:
        return Decision(reply=Ok())
    record = r.PolicySet(name, frame.pattern, frame.priority, frame.operator, options)
    return Decision([record], Ok(count=1))


# What the records do.


def apply_queue_opened(state: BrokerState, _position: int, record: r.QueueOpened) -> None:
    """The queue exists."""
    queue = state.open_queue(record.number, record.name, QueueOptions())
    queue.terms.declared = named(record.options) or NOTHING
    queue.terms.owner = record.owner
    if record.options.get("history"):
        state.catalogue.told[record.number] = record.options["history"]
    state.refresh(queue)


def named(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that a declaration named."""
    if options.keys() == FIRST_OPTIONS:
        return {n: value for n, value in options.items() if value != OPTIONS[n].default}
    return options


def apply_queue_changed(state: BrokerState, _position: int, record: r.QueueChanged) -> None:
    """The options are effective, for what comes and for what is handed out."""
    queue = state.numbered[record.queue]
    queue.terms.changed = merged(queue.terms.changed, record.options)
    state.refresh(queue)


def apply_policy_set(state: BrokerState, _position: int, record: r.PolicySet) -> None:
    """The policy is there or gone; the first queues are as it says, of few queues all."""
    policies = state.catalogue.policies
    policies.pop(record.name, None)
    if not record.dropped:
        policies[record.name] = Policy(
            record.name, record.pattern, record.priority, record.operator, record.options
        )
    state.catalogue.reached = 0
    reach(state, piece(state))


def piece(state: BrokerState) -> int:
    """Up to which number queues have the policies after the next piece."""
    catalogue = state.catalogue
    size = POLICY_WORK_MAX // (POLICY_QUEUE_WEIGHT + len(catalogue.policies))
    return min(len(state.numbered), catalogue.reached + size)


def tell_archive(state: BrokerState, append: Callable[[r.Record], object]) -> None:
    """The log says of what queues want history by now, so many of them at once."""
    for number, history in list(islice(state.catalogue.untold.items(), POLICY_WORK_MAX // 10)):
        append(r.HistorySet(number, history))


def apply_history_set(state: BrokerState, _position: int, record: r.HistorySet) -> None:
    """The archive knows."""
    state.catalogue.told[record.queue] = record.history
    state.catalogue.untold.pop(record.queue, None)


def apply_policies_reached(state: BrokerState, _position: int, record: r.PoliciesReached) -> None:
    """Some more queues are as the policies say."""
    reach(state, record.before)


def reach(state: BrokerState, before: int) -> None:
    """Queues numbered below that are as the policies say."""
    catalogue = state.catalogue
    for queue in state.numbered[max(0, catalogue.reached) : before]:
        if not queue.terms.deleted:
            state.refresh(queue)
    catalogue.reached = -1 if before >= len(state.numbered) else before


# What is shown.


def described(state: BrokerState, queue: Queue) -> dict[str, dict[str, Any]]:
    """Every option of the queue: its value, where it came from, and what was declared or set."""
    terms = queue.terms
    out: dict[str, dict[str, Any]] = {}
    for name, given in state.catalogue.given(queue).items():
        out[name] = {"value": given.value, "source": given.source}
        if name in terms.declared and terms.declared[name] != given.value:
            out[name]["declared"] = terms.declared[name]
        if name in terms.changed and given.source != SET:
            out[name][SET] = terms.changed[name]
    return out
