"""Limits and orders hold, whatever order things happen in, and leave nothing idle that could run.

A stateful story over the real core and log. What must be true is worked out here anew from the
leases, the rules and what waits; of the core's own arithmetic only ``Bucket`` is believed, which
test_buckets.py holds to account.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.test_model import QUIET
from digest import check_places, digest
from machine import Machine, Peer
from qbroker.core import records as r
from qbroker.core.lanes import Lane
from qbroker.core.limits import LimitGate
from qbroker.core.moment import Now
from qbroker.core.settings import Settings
from qbroker.log.log import Log, LogSettings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.lanekeys import LaneKeys
from qprotocol.limitrules import LimitRule
from qprotocol.message import Message, Outcome
from qprotocol.options import RetryPolicy
from simdisk import lose_all

QUEUES = ("a", "b")
LOG = LogSettings(segment_bytes=64 << 10)
SETTINGS = Settings(session_timeout_ms=60_000, grace_ms=20_000)
RETRY = RetryPolicy(9, 400, factor=1.0, jitter=False).pack()


@dataclass
class Taker:
    """One who takes messages: a worker, whose leases outlive the broker, or a plain consumer."""

    session: bytes
    peer: Peer | None = None
    held: dict[int, int] = field(default_factory=dict)
    """Position to grant."""


@dataclass
class Spent:
    """What began under a rule since it was set: when, and how much, by key."""

    rule: LimitRule
    begun: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


class Story(RuleBasedStateMachine):
    """What may happen, and what must then be true."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(settings=SETTINGS, log_settings=LOG)
        self.takers = [Taker(b"s" * 16), Taker(b"")]
        self.admin = self.machine.connect()
        self.count = self.correlation = 1
        self.spent: dict[str, Spent] = {}
        self.before: dict[int, int] = {}
        """Leases before the step: position to grant."""
        self.settle()

    # Steps.

    def settle(self) -> None:
        """All that follows happens; then everything must be true."""
        machine = self.machine
        for _ in range(3):
            machine.settle()
            for taker in self.takers:
                self.hear(taker)
            self.admin.received.clear()
        self.note_grants()
        self.look()
        self.before = {p: grant.number for p, grant in machine.core.state.leases.items()}

    def hear(self, taker: Taker) -> None:
        if taker.peer is None:
            return
        for frame in taker.peer.received:
            if isinstance(frame, f.Deliver):
                at = frame.runs * wire.RUN.size
                for first, count in wire.RUN.iter_unpack(frame.raw[:at]):
                    taker.held.update(dict.fromkeys(range(first, first + count), frame.grant))
            elif isinstance(frame, f.Welcome | f.Revoke):
                for position, _ in wire.TOKEN.iter_unpack(frame.raw):
                    taker.held.pop(position, None)
            else:
                assert not isinstance(frame, f.Error), frame
        taker.peer.received.clear()

    def ask(self, peer: Peer, frame: f.Frame) -> None:
        self.correlation += 1
        frame.correlation = self.correlation
        self.machine.submit(peer, frame)

    @initialize(
        credit=st.integers(1, 6), per_key=st.booleans(), concurrency=st.sampled_from([0, 2])
    )
    def begin(self, credit: int, per_key: bool, concurrency: int) -> None:
        """There is a rule, more waits than it lets through, and somebody works."""
        given = {"per_key": per_key, "concurrency": concurrency, "rate": 0 if concurrency else 1}
        self.set_limit("r1", **given, burst=2)
        for task, ordering in (("t", ""), ("u", ""), ("t", "o"), ("u", "o")):
            self.publish(
                queue="a",
                task=task,
                limit="x",
                ordering=ordering,
                weight=1,
                priority=0,
                count=2,
                wait_ms=0,
            )
        self.listen(0, credit)

    @rule(
        queue=st.sampled_from(QUEUES),
        task=st.sampled_from(["t", "u"]),
        limit=st.sampled_from(["", "x", "y"]),
        ordering=st.sampled_from(["", "", "o", "p"]),
        weight=st.sampled_from([1, 1, 2]),
        priority=st.sampled_from([0, 0, 1]),
        count=st.integers(1, 3),
        wait_ms=st.sampled_from([0, 0, 300]),
    )
    def publish(self, **given: Any) -> None:
        raw = b""
        for _ in range(given["count"]):
            self.count += 1
            raw += Message(
                given["queue"],
                b"",
                id=f"m{self.count}",
                task=given["task"],
                priority=given["priority"],
                due_ms=self.machine.wall_ms + given["wait_ms"] if given["wait_ms"] else 0,
                keys=LaneKeys(given["limit"], given["ordering"], "", given["weight"]).pack(),
            ).pack()
        self.ask(self.admin, f.Publish(producer=0, sequence=0, count=given["count"], raw=raw))
        self.settle()

    @rule(
        name=st.sampled_from(["r1", "r2", "r3"]),
        queue=st.sampled_from(["", "a"]),
        task=st.sampled_from(["", "t"]),
        per_key=st.booleans(),
        concurrency=st.sampled_from([0, 2, 3]),
        rate=st.sampled_from([0, 1, 5]),
        window_ms=st.sampled_from([700, 1_000]),
        burst=st.sampled_from([2, 4]),
    )
    def set_limit(self, name: str, **given: Any) -> None:
        if not given["concurrency"] and not given["rate"]:
            given["concurrency"] = 2
        self.ask(self.admin, f.SetLimit(name=name, rule=given))
        self.settle()

    @precondition(lambda self: self.machine.core.state.limits.by_name)
    @rule(nth=st.integers(0, 2))
    def drop_limit(self, nth: int) -> None:
        names = sorted(self.machine.core.state.limits.by_name)
        self.ask(self.admin, f.DropLimit(name=names[nth % len(names)]))
        self.settle()

    @rule(who=st.integers(0, 1), credit=st.integers(1, 6))
    def listen(self, who: int, credit: int) -> None:
        taker = self.takers[who]
        if taker.peer is not None:
            self.machine.submit(taker.peer, f.Credit(subscription=1, credit=credit))
        else:
            self.connect(taker)
            frame = f.Consume(subscription=1, queues=list(QUEUES), credit=credit)
            assert taker.peer is not None
            self.ask(taker.peer, frame)
        self.settle()

    def connect(self, taker: Taker) -> None:
        taker.peer = self.machine.connect()
        raw = b"".join(wire.TOKEN.pack(*token) for token in taker.held.items())
        role = "worker" if taker.session else "consumer"
        hello = f.Hello(protocol=1, role=role, client_id="c", session=taker.session, raw=raw)
        self.ask(taker.peer, hello)

    @property
    def holders(self) -> list[tuple[Taker, int]]:
        return [(x, p) for x in self.takers if x.peer is not None for p in x.held]

    @precondition(lambda self: self.holders)
    @rule(
        nth=st.integers(0, 9),
        kind=st.sampled_from([wire.ACK, wire.ACK, wire.FAIL, wire.RELEASE, wire.REJECT]),
        delay_ms=st.sampled_from([0, 500]),
        replaced=st.booleans(),
    )
    def end(self, nth: int, kind: int, delay_ms: int, replaced: bool) -> None:
        holders = self.holders
        taker, position = holders[nth % len(holders)]
        grant = taker.held.pop(position)
        lane = self.lane_of(position)
        then, flags = (), 0
        if replaced and kind in (wire.FAIL, wire.RELEASE) and lane:
            flags = wire.HAS_REPLACEMENT
            message = Message(lane.queue.name, b"", id=self.name_of(position), task=lane.task)
            message.keys = lane.keys
            then = (message.pack(),)
        outcome = Outcome(
            kind,
            position,
            grant,
            delay_ms=delay_ms,
            result=Failure("E", "m").pack(),
            flags=flags,
            policy=RETRY if kind == wire.FAIL else b"",
            follow_on=then,
        )
        assert taker.peer is not None
        self.ask(taker.peer, f.Settle(count=1, raw=outcome.pack()))
        self.settle()

    @precondition(lambda self: self.holders)
    @rule(nth=st.integers(0, 9))
    def ack(self, nth: int) -> None:
        self.end(nth, wire.ACK, 0, replaced=False)

    def lane_of(self, position: int) -> Lane | None:
        grant = self.machine.core.state.leases.get(position)
        return grant.run_of(position).lane if grant else None

    def name_of(self, position: int) -> str:
        return self.machine.core.state.names[position].decode()

    @precondition(lambda self: self.machine.core.state.names)
    @rule(nth=st.integers(0, 30))
    def cancel(self, nth: int) -> None:
        names = sorted(self.machine.core.state.names.values())
        self.ask(self.admin, f.Cancel(id=names[nth % len(names)].decode()))
        self.settle()

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        if queue in self.machine.core.state.queues:
            self.ask(self.admin, f.Purge(queue=queue))
            self.settle()

    @rule(who=st.integers(0, 1))
    def disconnect(self, who: int) -> None:
        taker = self.takers[who]
        if taker.peer is not None:
            self.machine.disconnect(taker.peer)
            taker.peer = None
            if not taker.session:
                taker.held.clear()
            self.settle()

    @rule(wait_ms=st.sampled_from([1, 90, 200, 700, 3_000]))
    def wait(self, wait_ms: int) -> None:
        self.machine.wait(wait_ms)
        # What came due last may be older than what was handed out at the beginning.
        self.before = {p: grant.number for p, grant in self.machine.core.state.leases.items()}
        self.settle()

    @rule(jump_ms=st.sampled_from([-5_000, -300, 400, 20_000]))
    def clock_is_set(self, jump_ms: int) -> None:
        self.machine.wall_ms += jump_ms
        self.settle()

    @rule(killed=st.booleans(), keeps=st.booleans())
    def restart(self, killed: bool, keeps: bool) -> None:
        """The broker's end and start; by a snapshot perhaps. Who had leases comes for them."""
        machine = self.machine
        if keeps:
            machine.save()
        machine.kill() if killed else machine.crash(lose_all)
        self.admin = machine.connect()
        for taker in self.takers:
            taker.peer = None
        self.takers[1].held.clear()
        self.connect(self.takers[0])
        assert self.takers[0].peer is not None
        machine.settle()
        self.ask(self.takers[0].peer, f.Consume(subscription=1, queues=list(QUEUES), credit=4))
        self.settle()

    # What must be true.

    def note_grants(self) -> None:
        """Rules that were set, and what began under them, as the log has it."""
        for _, record in self.machine.noted:
            if isinstance(record, r.LimitSet):
                self.spent[record.name] = Spent(LimitRule.parse(record.rule))
            elif isinstance(record, r.LimitDropped):
                del self.spent[record.name]
            elif isinstance(record, r.GrantedExactly):
                self.note_grant(record)
        self.machine.noted.clear()

    def note_grant(self, record: r.GrantedExactly) -> None:
        began: Counter[tuple[str, str]] = Counter()
        for number, _, _, count in record.entries:
            lane = self.machine.core.state.lanes[number]
            for name, spent in self.spent.items():
                if covers(spent.rule, lane):
                    began[name, key_of(spent.rule, lane)] += count * lane.weight
        for (name, key), weight in began.items():
            self.spent[name].begun.setdefault(key, []).append((record.wall_ms, weight))

    def look(self) -> None:
        state = self.machine.core.state
        check_places(state)
        self.no_slot_is_lost_or_given_twice()
        self.no_interval_is_over_a_rate()
        self.one_message_of_a_key_is_out()
        self.nothing_waits_that_could_go()

    def no_slot_is_lost_or_given_twice(self) -> None:
        state = self.machine.core.state
        out: Counter[tuple[str, str]] = Counter()
        new: set[tuple[str, str]] = set()
        for position, grant in state.leases.items():
            lane = grant.run_of(position).lane
            for name, limit in state.limits.by_name.items():
                if covers(limit.rule, lane):
                    bucket = name, key_of(limit.rule, lane)
                    out[bucket] += lane.weight
                    if self.before.get(position) != grant.number:
                        new.add(bucket)
        for name, limit in state.limits.by_name.items():
            for key, gate in limit.gates.items():
                assert gate.bucket.used == out[name, key], f"{name} {key}: {gate.bucket.used}"
                if (name, key) in new and limit.rule.concurrency:
                    assert out[name, key] <= limit.rule.concurrency, f"{name} {key}"
        for lane in (lane for queue in state.numbered for lane in queue.lanes):
            mine = {gate for gate in around(lane) if isinstance(gate, LimitGate)}
            due = {
                limit.gates[key_of(limit.rule, lane)]
                for limit in state.limits.by_name.values()
                if covers(limit.rule, lane)
            }
            assert mine == due, f"lane {lane.number} is under other rules"

    def no_interval_is_over_a_rate(self) -> None:
        for name, spent in self.spent.items():
            if spent.rule.rate:
                for key, begun in spent.begun.items():
                    check_rate(f"{name} {key}", spent.rule, begun)

    def one_message_of_a_key_is_out(self) -> None:
        state = self.machine.core.state
        out: dict[tuple[str, str], list[int]] = {}
        for position, grant in state.leases.items():
            lane = grant.run_of(position).lane
            if lane.wants.ordering:
                out.setdefault((lane.queue.name, lane.wants.ordering), []).append(position)
        for key, positions in out.items():
            assert len(positions) == 1, f"{positions} of {key} are out at once"
        for (number, key), order in state.orderings.items():
            queue = state.numbered[number]
            held = out.get((queue.name, key), [0])[0]
            waiting = [
                (p, known)
                for p, known in state.attempts.items()
                if known.run
                and not known.run.is_purged
                and not known.reason
                and known.run.lane.ordering is order
            ]
            assert len(waiting) + bool(held) <= 1, f"{waiting} and {held} hold {key}"
            if held and held not in self.before and held not in state.attempts:
                self.came_first(held, order.lanes)

    def came_first(self, position: int, lanes: list[Lane]) -> None:
        """No other run's head was before it. In a run those that came due later are behind."""
        mine = self.machine.core.state.leases[position].run_of(position)
        for run in (run for lane in lanes for run in lane.runs):
            if run.size and run is not mine:
                rank = -run.priority, run.turn()
                assert rank > (-mine.priority, position), f"{rank} was before {position}"

    def nothing_waits_that_could_go(self) -> None:
        state, machine = self.machine.core.state, self.machine
        hungry = {n for x in state.consumers.values() if x.room > 0 for n in x.queues}
        now = state.limits.now(machine.now)
        for queue in state.numbered:
            if queue.number not in hungry:
                continue
            for lane in queue.lanes:
                for run in lane.runs:
                    if run.size:
                        assert not self.may_go(lane, run, now), f"lane {lane.number} could go"

    def may_go(self, lane: Lane, run: Any, now: Now) -> bool:
        state = self.machine.core.state
        for limit in state.limits.by_name.values():
            if covers(limit.rule, lane):
                bucket = limit.gates[key_of(limit.rule, lane)].bucket
                if not bucket.room(limit.rule, lane.weight, now.wall_ms):
                    return False
        if lane.ordering is None:
            return True
        held = any(
            grant.run_of(p).lane.ordering is lane.ordering for p, grant in state.leases.items()
        )
        blocked = [
            known
            for known in state.attempts.values()
            if known.run
            and not known.run.is_purged
            and known.run.lane.ordering is lane.ordering
            and not known.reason
        ]
        if held or blocked:
            return any(not known.waits and known.run is run for known in blocked) and not held
        best = min((-o.priority, o.turn()) for x in lane.ordering.lanes for o in x.runs if o.size)
        return best == (-run.priority, run.turn())

    @rule()
    def rebuild(self) -> None:
        """A broker that replays the log, or begins with a snapshot, knows the same."""
        machine = self.machine
        machine.write_all()
        machine.settle()
        twin = machine.disk.copy()
        shadow = machine.rebuilt(Log.open(twin, LOG))
        assert digest(shadow.state, machine.now) == digest(machine.core.state, machine.now)

    def teardown(self) -> None:
        """Without rules all is worked off."""
        for name in list(self.machine.core.state.limits.by_name):
            self.ask(self.admin, f.DropLimit(name=name))
        self.settle()
        self.listen(0, 6)
        for _ in range(400):
            if not any(
                q.ready or q.scheduled or q.leased for q in self.machine.core.state.numbered[:2]
            ):
                return
            for _ in range(len(self.holders)):
                self.end(0, wire.ACK, 0, replaced=False)
            self.wait(700)


def around(lane: Lane) -> list[Any]:
    return [*lane.queue.gates, *lane.shelf.gates, *lane.gates]


def covers(rule: LimitRule, lane: Lane) -> bool:
    return (
        rule.queue in ("", lane.queue.name)
        and rule.task in ("", lane.task)
        and not (rule.per_key and not lane.wants.limit)
    )


def key_of(rule: LimitRule, lane: Lane) -> str:
    return lane.wants.limit if rule.per_key else ""


def check_rate(what: str, rule: LimitRule, begun: list[tuple[int, int]]) -> None:
    for first, (start_ms, _) in enumerate(begun):
        total = 0
        for at_ms, weight in begun[first:]:
            total += weight
            most = rule.burst + rule.rate * (at_ms - start_ms) / rule.window_ms
            assert total <= most, f"{what}: {total} in {at_ms - start_ms} ms"


STORIES = settings(stateful_step_count=40, suppress_health_check=QUIET)


def test_limits_hold_and_leave_nothing_idle() -> None:
    run_state_machine_as_test(Story, settings=STORIES)
