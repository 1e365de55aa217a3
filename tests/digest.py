"""The durable state of a broker as plain values: two brokers are equal if these are."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

from qbroker.core.keys import TIME
from qbroker.core.leases import Grant
from qbroker.core.limits import Limit
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.settings import PRODUCER_IDLE_MS
from qbroker.core.state import BrokerState
from qbroker.core.timers import Timers
from qbroker.core.uploads import Upload
from qprotocol.options import DEAD_SUFFIX


def digest(state: BrokerState, now: Now, at_ms: int = 0) -> dict[str, Any]:
    """All that the log must be able to rebuild. What time has made void is left out.

    ``at_ms`` is the time of limits, if that is later.
    """
    return {
        "queues": [
            (q.number, q.name, told(q), q.options, q.synced)
            if not q.terms.deleted
            else (q.number, q.name, q.terms.deleted)
            for q in state.numbered
        ],
        "open": {name: q.number for name, q in sorted(state.queues.items())},
        "policies": sorted(state.catalogue.policies.items()),
        "weights": {
            number: {position: each.of(position) for position in each.known()}
            for number, each in sorted(state.catalogue.weights.items())
        },
        "lanes": [(x.number, x.queue.number, x.task, x.keys) for x in state.lanes],
        "closed": list(state.closed),
        "counts": [(q.ready, q.scheduled, q.leased) for q in state.numbered],
        "counted": {q.number: dict(sorted((+q.counts).items())) for q in state.numbered},
        "ready": {q.number: [p for _, p in q.waiting()] for q in state.numbered},
        "scheduled": scheduled(state),
        "leases": {p: holder(grant, p) for p, grant in sorted(state.leases.items())},
        "attempts": {
            p: (*a.counters(), a.error, a.reason, a.run and a.run.number, a.waits, a.claims_from)
            for p, a in sorted(state.attempts.items())
        },
        "letters": (state.letters.count, state.letters.ordered()),
        "moved": sorted(state.moved.items()),
        "origin": sorted(state.origin.items()),
        "named": sorted(state.named.items()),
        "names": sorted(state.names.items()),
        "continued": sorted(state.continued.items()),
        "quarantined": sorted(state.quarantined.items()),
        "producers": {
            number: (p.highest, p.window)
            for number, p in sorted(state.producers.items())
            if p.seen_ms >= now.wall_ms - PRODUCER_IDLE_MS
        },
        "results": {
            p: entry
            for p, entry in sorted(state.results.entries())
            if entry.keep_until_ms > now.wall_ms
        },
        "paused": {q.name: state.pauses.of(q.number) for q in state.numbered},
        "held": {
            q.name: q.held - sum(q in order.picked.queues for order in state.orders)
            for q in state.numbered
        },
        "forgotten": sorted(state.results.forgotten.items()),
        "exchanges": state.exchanges.saved(),
        "leading": {to: set(found) for to, found in state.exchanges.into.items()},
        "bindings": state.exchanges.count,
        "limits": {
            name: (x.operator, x.code, {k: b for k, b in buckets(x, max(now.wall_ms, at_ms)) if b})
            for name, x in state.limits.by_name.items()
        },
        "orders": {
            key: (x.position, x.run and x.run.number, x.is_ready)
            for key, x in sorted(state.orderings.items())
            if not x.is_free
        },
        "keys": {
            key: each
            for key, each in sorted(state.keys.held.items())
            if each.until != TIME or each.until_ms > now.wall_ms
        },
        "notices": [(n, ms) for n, ms in state.notices.ids.items() if ms > now.wall_ms],
        "keys of": (sorted(state.keys.of.items()), state.keys.starting, state.keys.doomed),
        "answers": {
            number: p.answers
            for number, p in sorted(state.producers.items())
            if p.seen_ms >= now.wall_ms - PRODUCER_IDLE_MS
        },
        "granted": {epoch: count for epoch, count in state.granted.items() if count},
    }


def told(queue: Queue) -> tuple[Any, ...]:
    """What was said of the queue."""
    terms = queue.terms
    return dict(terms.declared), dict(terms.changed), terms.owner


def buckets(limit: Limit, at_ms: int) -> list[tuple[str, tuple[int, ...]]]:
    """By key: slots taken, and what is missing of tokens; nothing of one that is as good as new."""
    return [
        (
            key,
            () if b.is_idle(limit.rule, at_ms) else (b.used, b.missing, b.missing and b.at_ms),
        )
        for key, b in ((key, limit.gates[key].bucket) for key in sorted(limit.gates))
    ]


def exact(state: BrokerState) -> dict[str, Any]:
    """All durable state, void or not: what two replays of one log must agree on."""
    grants = {id(grant): grant for grant in state.leases.values()}.values()
    return digest(state, Now(0, 0)) | {
        "epochs": (state.epoch, state.boots, state.granted),
        "expiries": entries(state.expiries),
        "timers": entries(state.timers),
        "sizes": (state.timers.size, state.expiries.size),
        "delayed": [q.delayed for q in state.numbered],
        "late": state.late,
        "cancelled": state.cancelled,
        "grants": sorted(
            (
                g.number,
                g.remaining,
                [
                    (*where, run.number)
                    for *where, run in g.entries
                    if state.lane_numbered(run.lane.number) is run.lane
                ],
            )
            for g in grants
        ),
        "seen": {number: p.seen_ms for number, p in state.producers.items()},
        "results": list(state.results.entries()),
        "named results": state.results.names,
        "runs": {run.number: list(run) for x in state.lanes for run in x.runs if run.size},
        "uploads": {key: staged(upload) for key, upload in state.uploads.items()},
    }


def holder(grant: Grant, position: int) -> tuple[Any, ...]:
    """Who holds the message, and whether it has begun."""
    session = grant.member.session
    name = session.id if session else b""
    member = grant.member.number if session else 0
    begun = position in grant.started, position in grant.early
    return grant.number, name, member, grant.run_of(position).number, *begun


def scheduled(state: BrokerState) -> list[tuple[int, int, int]]:
    """(due_ms, position, run number) of messages that wait for their time."""
    return [each for each in entries(state.timers) if each[1] not in state.cancelled]


def entries(timers: Timers) -> list[tuple[int, int, int]]:
    """(due_ms, position, run number) of all entries, in their order."""
    return sorted(timers.entries())


def staged(upload: Upload) -> list[Any]:
    """An upload under way."""
    timed = entries(upload.timers), entries(upload.expiries)
    rest = [getattr(upload, each.name) for each in fields(upload) if each.name not in TIMED]
    return [*timed, *rest]


TIMED = ("timers", "expiries")


def check_places(state: BrokerState) -> dict[int, str]:
    """Each message is in exactly one place, and the books of its queue say so. The places."""
    places: dict[int, str] = {}

    def put(position: int, place: str) -> None:
        assert position not in places, f"{position} is {places[position]} and {place}"
        places[position] = place

    for queue in state.numbered:
        ready = [position for _, position in queue.waiting()]
        assert queue.ready == len(ready), f"{queue.name} has {ready}, its books say {queue.ready}"
        for position in ready:
            put(position, f"ready in {queue.name}")
    delayed, leased = dict.fromkeys(state.numbered, 0), dict.fromkeys(state.numbered, 0)
    for _, position, run in scheduled(state):
        queue = state.run_numbered(run).lane.queue
        delayed[queue] += 1
        put(position, f"scheduled in {queue.name}")
    for position, grant in state.leases.items():
        queue = grant.run_of(position).lane.queue
        leased[queue] += 1
        put(position, f"leased from {queue.name}")
    held = Counter[Queue]()
    for position in state.graphs.positions():
        number = state.graphs.held_in(position)
        if number >= 0:
            queue = state.run_numbered(number).lane.queue
            held[queue] += 1
            put(position, f"held for {queue.name}")
    check_shelves(state)
    check_lanes(state)
    for queue in state.numbered:
        assert queue.nodes == held[queue], f"{queue.name}: {queue.nodes} held"
        assert queue.scheduled == delayed[queue], f"{queue.name}: {queue.scheduled} scheduled"
        assert queue.leased == leased[queue], f"{queue.name}: {queue.leased} leased"
    check_grants(state)
    check_weights(state, places)
    check_slots(state)
    check_letters(state, places)
    return places


def check_letters(state: BrokerState, places: dict[int, str]) -> None:
    """Dead letters are what waits, or is handed out, among them, and died."""
    found = {position for position, each in state.attempts.items() if each.reason}
    dead = {position for position in found if position in places}
    assert {p for p in state.letters.by_position if state.touched(p) or p in places} == dead
    for position in dead:
        assert places[position].endswith(DEAD_SUFFIX), f"{position}, dead, is {places[position]}"
    assert [p for p, _ in state.letters.ordered()] == [
        p for p, _ in sorted(state.letters.by_position.items(), key=lambda each: each[1].number)
    ]


def check_shelves(state: BrokerState) -> None:
    """What is open, held and leased, by lane, shelf and selection, is what is there."""
    leased = Counter(grant.run_of(p).lane for p, grant in state.leases.items())
    for queue in state.numbered:
        behind: Counter[str] = Counter()
        for task, shelf in queue.shelves.items():
            shelf.renew()
            mine = [lane for lane in queue.lanes if lane.shelf is shelf]
            open_here = sum(lane.waiting for lane in mine if not lane.parked)
            assert shelf.open == open_here, f"{task!r} in {queue.name}: {shelf.open} open"
            assert shelf.leased == sum(lane.leased for lane in mine)
            for lane in mine:
                assert lane.leased == leased[lane]
                if lane.parked:
                    behind[lane.parked.reason] += lane.waiting
        assert +queue.behind == +behind
        check_shares(queue)
        for selection in queue.selections.values():
            known = [each for each in queue.shelves.values() if selection.knows(each.task)]
            assert selection.open == sum(each.open for each in known if not each.parked)


def check_shares(queue: Queue) -> None:
    """What is open is what is open to its tenants."""
    if queue.shares is None:
        assert not any(lane.fair for lane in queue.lanes)
        return
    open_of: Counter[str] = Counter()
    for lane in queue.lanes:
        open_of[lane.fair] += 0 if lane.parked else lane.waiting
    tenants = queue.shares.tenants
    assert +open_of == +Counter({key: each.open for key, each in tenants.items()})
    waiting = [each for each in tenants.values() if each.open]
    assert queue.shares.waiting == sum(each.weight for each in waiting)


def check_lanes(state: BrokerState) -> None:
    """Each number is a lane's or free, and a lane counts what is delayed of it."""
    delayed = Counter(number >> 8 for _, _, number in scheduled(state))
    closed = {n for n, lane in enumerate(state.lanes) if lane is state.no_lane}
    assert closed == set(state.closed)
    mine = [lane for queue in state.numbered for lane in queue.lanes]
    assert {lane.number for lane in mine} == set(range(len(state.lanes))) - closed
    for each in state.attempts.values():
        assert each.run is None or state.lanes[each.run.lane.number] is each.run.lane
    for lane in mine:
        assert state.lanes[lane.number] is lane
        counted = lane.scheduled if lane.life == lane.queue.life else 0
        assert counted == delayed[lane.number], f"lane {lane.number}: {lane.scheduled} scheduled"


def check_slots(state: BrokerState) -> None:
    """What is taken of each limit is what is leased, and who holds an ordering key has it."""
    out: Counter[tuple[str, str]] = Counter()
    for position, grant in state.leases.items():
        lane = grant.run_of(position).lane
        for limit in state.limits.covering(lane.queue.name, lane.task, lane.wants.limit):
            key = lane.wants.limit if limit.rule.per_key else ""
            out[limit.name, key] += lane.weight
        if lane.ordering:
            assert lane.ordering.position == position, f"{position} is out, and not in its order"
    for name, limit in state.limits.by_name.items():
        for key, gate in limit.gates.items():
            assert gate.bucket.used == out[name, key], f"limit {name} {key}: {gate.bucket.used}"


def check_grants(state: BrokerState) -> None:
    """Grants and subscriptions count what is really out."""
    out: dict[int, int] = {}
    for grant in state.leases.values():
        out[id(grant)] = out.get(id(grant), 0) + 1
    for grant in {id(grant): grant for grant in state.leases.values()}.values():
        assert grant.remaining == out[id(grant)], f"grant {grant.number}: {grant.remaining}"
        assert grant.member.grants[grant.number] is grant
    for consumer in state.consumers.values():
        held = sum(
            grant.remaining
            for grant in consumer.member.grants.values()
            if grant.consumer is consumer
        )
        assert consumer.unsettled == held, f"subscription {consumer.number}: {consumer.unsettled}"


def check_weights(state: BrokerState, places: dict[int, str]) -> None:
    """Where bytes are limited, those of messages that are there are counted, and no others."""
    for number, weights in state.catalogue.weights.items():
        name = state.numbered[number].name
        assert weights.bytes == sum(weights.of(position) for position in weights.known())
        for position in weights.known():
            assert places.get(position, "").endswith(f" {name}"), f"{position} is not in {name}"
