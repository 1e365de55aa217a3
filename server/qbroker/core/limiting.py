"""Limits set and dropped: what that does to what waits, and to what is out."""

from collections.abc import Iterator
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.gates import Place, attach
from qbroker.core.lanes import Lane
from qbroker.core.limits import Limit
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError, checked
from qbroker.core.state import BrokerState
from qbroker.core.statistics import LimitStatistics
from qbroker.core.survey import limit
from qprotocol.frames import DropLimit, Ok, SetLimit
from qprotocol.limitrules import OPERATOR, ORIGINS, LimitRule, check_limit_name


def decide_set_limit(state: BrokerState, now: Now, _connection: int, frame: SetLimit) -> Decision:
    """The rule is in force, or kept behind an operator's; nothing if it is so already."""
    checked(check_limit_name, frame.name)
    rule = checked(LimitRule.parse, frame.rule)
    if frame.origin not in ORIGINS:
        raise RefusedError("BAD_REQUEST", f"origin {frame.origin!r}: {' or '.join(ORIGINS)}")
    limits, most = state.limits, state.settings.limits_max
    known = limits.by_name.get(frame.name)
    if known is None and len(limits.by_name) >= most:
        raise limit("limits_max", most)
    if known and known.said_by(frame.origin) == rule:
        return Decision(reply=Ok())
    if frame.origin == OPERATOR or not (known and known.operator):
        check_waiting(state, frame.name, rule)
    at_ms = limits.now(now).wall_ms
    return Decision([r.LimitSet(frame.name, frame.origin, rule.as_dict(), at_ms)], Ok(count=1))


def check_waiting(state: BrokerState, name: str, rule: LimitRule) -> None:
    """Raise RefusedError if something that is there now would wait for ever."""
    for lane in heavy_lanes(state):
        why = rule.refuses(lane.weight)
        is_under = rule.covers(lane.queue.name, lane.task, lane.wants.limit)
        if why and is_under and (lane.waiting or lane.leased):
            raise RefusedError(
                "NEVER_ADMITTED",
                f"limit {name}: {why}, and such messages of {lane.task or 'no task'} are in "
                f"queue {lane.queue.name}: they would wait for ever; give it that much, or "
                "cancel them first",
            )


def heavy_lanes(state: BrokerState) -> Iterator[Lane]:
    """Those whose messages weigh more than one. Costs a step a lane."""
    return (lane for lane in state.lanes if lane.weight > 1)


def decide_drop_limit(state: BrokerState, now: Now, _connection: int, frame: DropLimit) -> Decision:
    """The rule is gone: an operator's before one that is declared in code."""
    known = state.limits.by_name.get(frame.name)
    if known is None or (frame.origin and known.said_by(frame.origin) is None):
        near = get_close_matches(frame.name, state.limits.by_name, n=1)
        hint = f": did you mean {near[0]!r}?" if near and known is None else ""
        whose = f" of origin {frame.origin!r}" if frame.origin else ""
        raise RefusedError("NO_LIMIT", f"there is no limit {frame.name!r}{whose}{hint}")
    at_ms = state.limits.now(now).wall_ms
    dropped = r.LimitDropped(frame.name, frame.origin or known.origin, at_ms)
    return Decision([dropped], Ok(count=1))


def apply_limit_set(state: BrokerState, _position: int, record: r.LimitSet) -> None:
    """The rule counts from now on, or waits behind an operator's."""
    change(state, record.name, record.origin, LimitRule.parse(record.rule), record.wall_ms)


def apply_limit_dropped(state: BrokerState, _position: int, record: r.LimitDropped) -> None:
    """The rule counts no more."""
    change(state, record.name, record.origin, None, record.wall_ms)


def change(state: BrokerState, name: str, origin: str, rule: LimitRule | None, at_ms: int) -> None:
    """What is in force under a name changes, perhaps. Costs some microseconds a lane it covers.

    While it counts the same messages, what is out and spent stays so. A rule with another scope
    begins with what is out now, and full of tokens.
    """
    limits = state.limits
    known = limits.by_name.get(name)
    before = known.in_force if known else None
    found = limits.say(name, origin, rule)
    after = found.in_force
    if before == after:
        return
    if before and after and before.scope == after.scope:
        for gate in found.gates.values():
            gate.follows(after, at_ms)
    else:
        if before:
            leave(state, found, before)
        if after:
            enter(state, found, after)
    forget_routes(state)


def places(state: BrokerState, rule: LimitRule) -> Iterator[tuple[Place, str]]:
    """Where the rule's gates stand, and for which key."""
    queues = state.numbered if not rule.queue else [state.queues.get(rule.queue)]
    for queue in queues:
        if queue is None:
            continue
        if rule.per_key:
            for lane in queue.lanes:
                if lane.wants.limit and rule.task in ("", lane.task):
                    yield lane, lane.wants.limit
        elif not rule.task:
            yield queue, ""
        elif rule.task in queue.shelves:
            yield queue.shelves[rule.task], ""


def enter(state: BrokerState, found: Limit, rule: LimitRule) -> None:
    """All that the rule covers is under it."""
    for place, key in places(state, rule):
        found.join(place, key)


def leave(state: BrokerState, found: Limit, rule: LimitRule) -> None:
    """Nothing is under that rule any more."""
    mine = set(found.gates.values())
    for place, _ in places(state, rule):
        attach(place, tuple(gate for gate in place.gates if gate not in mine))
    for gate in mine:
        gate.is_dropped()
    found.gates = {}


def forget_routes(state: BrokerState) -> None:
    """Publishes to lanes that are too heavy now are looked at anew, and refused."""
    heavy = {lane for lane in heavy_lanes(state) if refusing(state, lane)}
    if heavy:
        state.routes = {k: lane for k, lane in state.routes.items() if lane not in heavy}


def refusing(state: BrokerState, lane: Lane) -> str:
    """Why messages of the lane could never go; empty if they can."""
    return state.limits.refuses(lane.queue.name, lane.task, lane.wants)


# For people.


def limit_rows(state: BrokerState, now: Now) -> list[dict[str, Any]]:
    """The table as JSON has it."""
    return [asdict(row) for row in limit_table(state, now)]


def limit_table(state: BrokerState, now: Now) -> list[LimitStatistics]:
    """A row a rule. Costs a step for each key, and for each lane that weighs more than one."""
    at_ms = state.limits.now(now).wall_ms
    heavy = list(heavy_lanes(state))
    return [row(found, heavy, at_ms) for _, found in sorted(state.limits.by_name.items())]


def row(found: Limit, heavy: list[Lane], at_ms: int) -> LimitStatistics:
    rule = found.rule
    buckets = [gate.bucket for gate in found.gates.values()]
    opens = [bucket.opens_ms(rule, 1) - at_ms for bucket in buckets]
    stuck = sum(
        bool(rule.refuses(lane.weight)) and lane.waiting > 0
        for lane in heavy
        if rule.covers(lane.queue.name, lane.task, lane.wants.limit)
    )
    return LimitStatistics(
        found.name,
        found.origin,
        found.code.as_dict() if found.code else None,
        **rule.as_dict(),
        keys=len(found.gates) if rule.per_key else 0,
        used=sum(bucket.used for bucket in buckets),
        next_ms=max(0, min(opens, default=0)),
        held_back=sum(gate.held() for gate in found.gates.values()),
        stuck=stuck,
    )
