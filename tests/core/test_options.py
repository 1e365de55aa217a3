"""Queues with options: limits that hold, one consumer at a time, what a start or an end takes."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from digest import check_places, digest
from harness import Harness
from machine import Machine
from qbroker.ages import Ages
from qbroker.core import deleting, overflow, purging
from qbroker.core.broker import Broker
from qbroker.core.cleaning import Live
from qbroker.core.columns import pack_columns, unpack_columns
from qbroker.core.declaring import FIRST_OPTIONS, decide_policy, named
from qbroker.core.moment import Now
from qbroker.core.owners import owner_of
from qbroker.core.policies import Policy, chosen, layered, options_of
from qbroker.core.purging import finish
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import POLICIES_MAX, Settings
from qbroker.core.snapshot import decode, encode
from qbroker.core.state import BrokerState
from qbroker.core.weights import Weights
from qbroker.log.log import Log, LogSettings
from qbroker.replaying import replay
from qprotocol.frames import Bind, ChangeQueue, DeclareExchange, DeleteQueue, Publish, SetPolicy
from qprotocol.limitrules import LimitRule
from qprotocol.limits import MESSAGES_PER_FRAME_MAX
from qprotocol.message import Message, unpack_message
from qprotocol.options import OPTIONS, QueueOptions

NOW = Now(1_700_000_000_000, 1_000)


# --- Weights


def test_weights_know_what_is_left() -> None:
    weights = Weights()
    weights.add(10, array("I", (3, 4, 5)))
    weights.add(5, array("I", (7,)))
    assert (weights.bytes, list(weights.known())) == (19, [5, 10, 11, 12])
    assert weights.drop(11) == 4
    assert weights.drop(11) == 0
    assert weights.drop(4, 3) == 7
    assert weights.drop(13) == 0
    assert [weights.of(position) for position in (4, 5, 10, 11, 12, 13)] == [0, 0, 3, 0, 5, 0]
    again = Weights.restored(*weights.saved())
    assert (again.bytes, list(again.known())) == (8, [10, 12])
    assert weights.drop(10, 3) == 8
    assert (weights.bytes, list(weights.known()), weights.saved()) == (0, [], ([], []))


def test_a_message_that_comes_back_is_weighed_once() -> None:
    weights = Weights()
    weights.add(10, array("I", (3,)))
    weights.add(10, array("I", (3,)))
    assert (weights.bytes, list(weights.known())) == (3, [10])
    weights.add(20, array("I", (1, 2, 3)))
    assert weights.drop(21) == 2
    weights.add(21, array("I", (9,)))
    assert (weights.bytes, list(weights.known())) == (16, [10, 20, 21, 22])


# --- Policies


def test_the_highest_policy_counts_then_the_first_by_name() -> None:
    row = {"max_length": 1}
    policies = [
        Policy("b", "mail*", 1, False, row),
        Policy("a", "*", 1, False, row),
        Policy("c", "mail", 0, False, row),
        Policy("d", "*", 9, True, row),
    ]
    assert getattr(chosen(policies, "mail", operator=False), "name", "") == "a"
    assert getattr(chosen(policies, "mail", operator=True), "name", "") == "d"
    assert chosen(policies, "mail.dead", operator=False) is None
    assert chosen(policies[:1], "news", operator=False) is None


def test_an_operators_policy_is_a_bound_where_less_is_stricter() -> None:
    cap = [Policy("cap", "*", 0, True, {"max_length": 10, "history": "none"})]
    assert options_of(layered("q", {"max_length": 5}, {}, cap)).max_length == 5
    assert options_of(layered("q", {"max_length": 50}, {}, cap)).max_length == 10
    assert options_of(layered("q", {"max_length": 0}, {}, cap)).max_length == 10
    assert options_of(layered("q", {"history": "all"}, {}, cap)).history == "none"


def test_queues_with_the_same_options_share_them() -> None:
    state = BrokerState(Settings())
    one, other = (state.open_queue(n, f"q{n}", QueueOptions()) for n in range(2))
    state.refresh(one)
    state.refresh(other)
    assert one.options is other.options


def test_there_is_room_for_so_many_policies() -> None:
    state = BrokerState(Settings())
    for number in range(POLICIES_MAX):
        name = f"p{number}"
        state.catalogue.policies[name] = Policy(name, "*", 0, False, {"max_length": 1})
    with pytest.raises(RefusedError, match="policies_max is 100 and reached"):
        decide_policy(state, NOW, 1, SetPolicy(name="one", pattern="*", options={"max_length": 2}))
    frame = SetPolicy(name="p7", pattern="*", options={"max_length": 2})
    assert decide_policy(state, NOW, 1, frame).records


def test_a_log_of_before_says_what_was_declared() -> None:
    first = {name: OPTIONS[name].default for name in FIRST_OPTIONS}
    assert named(first) == {}
    assert named({**first, "retries_max": 3}) == {"retries_max": 3}
    assert named({"max_length": 0}) == {"max_length": 0}


def test_who_says_no_hello_owns_nothing() -> None:
    with pytest.raises(RefusedError, match="has not said Hello"):
        owner_of(BrokerState(Settings()), 7)


# --- Limits of what is done at once


def test_lowered_limits_are_seen_to_a_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "OVERFLOW_LATER_MAX", 2)
    harness = Harness()
    harness.run("declare q=q overflow=dead_letter_oldest")
    harness.run("publish a b c d e f")
    harness.run("consume credit=1")
    told = harness.run("set q=q max_length=1")
    told += harness.run("wait 1ms")
    assert sum("Overflowed" in line for line in told) == 3
    assert harness.run("stats")[0].endswith(
        "q: ready=0 scheduled=0 leased=1, q.dead: ready=5 scheduled=0 leased=0"
    )


def test_a_queue_keeps_its_length_however_full_the_frames_are() -> None:
    """As much goes in a turn as a frame can bring: else it would grow with each."""
    harness = Harness()
    machine = harness.machine
    harness.run("declare q=q max_length=10 overflow=dead_letter_oldest")
    raw = Message("q", b"x").pack() * MESSAGES_PER_FRAME_MAX
    for number in range(3):
        frame = Publish(
            correlation=number + 7, producer=0, sequence=0, count=MESSAGES_PER_FRAME_MAX, raw=raw
        )
        machine.submit(harness.named["A"], frame)
        machine.turn()
        assert machine.core.state.queues["q"].ready == 10


def test_the_next_piece_of_a_lowered_limit_is_due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "OVERFLOW_LATER_MAX", 2)
    harness = Harness()
    harness.run("declare q=q overflow=dead_letter_oldest")
    harness.run("publish a b c d e f")
    machine = harness.machine
    machine.submit(
        harness.named["A"], ChangeQueue(correlation=9, queue="q", options={"max_length": 1})
    )
    machine.turn()
    assert machine.core.state.catalogue.crowded
    assert machine.core.next_due_ms(machine.now) == 0


def test_routes_of_a_queue_with_many_lanes_are_forgotten_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deleting, "ROUTES_FORGOTTEN_MAX", 1)
    harness = Harness()
    for line in ("publish task=a x", "publish task=b x", "publish task=a x", "delete"):
        harness.run(line)
    assert harness.machine.core.state.routes == {}
    assert "QueueOpened" in harness.run("publish task=a y")[0]


def test_a_deleted_queue_is_swept_a_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "SWEEP_MESSAGES_MAX", 1)
    monkeypatch.setattr(purging, "SWEEP_STEP", 1)
    harness = Harness()
    for nth in range(5):
        harness.run(f"publish id=n{nth} x{nth}")
    core = harness.machine.core
    peer = harness.named["A"]
    harness.machine.submit(peer, DeleteQueue(queue="q", correlation=77))
    core_state = core.state
    harness.machine.turn()
    assert core_state.remains
    assert core_state.catalogue.dying == {0}
    harness.machine.settle()
    harness.run("wait 1s")
    assert not core_state.remains
    assert not core_state.catalogue.dying
    assert not core_state.named


def test_lanes_of_deleted_queues_do_not_count() -> None:
    harness = Harness(Settings(lanes_max=2, queues_max=2))
    for _ in range(5):
        assert "Published first" in harness.run("publish q=a x")[-1]
        assert "Published first" in harness.run("publish q=b x")[-1]
        assert "queues_max is 2" in harness.run("publish q=c x")[-1]
        for queue in ("a", "b"):
            harness.run(f"delete q={queue}")


# --- What is dead


def test_cleaning_sees_what_was_in_deleted_queues_as_dead() -> None:
    harness = Harness()
    for line in ("publish a b", "publish in=1h c", "publish id=n d", "publish q=other o"):
        harness.run(line)
    state = harness.machine.core.state
    everything = Live(state).count(0, 1 << 62)
    assert everything == 5
    harness.run("delete")
    finish(state)
    live = Live(state)
    assert live.count(0, 1 << 62) == 1
    (left,) = live.between(0, 1 << 62).whole
    assert [position for _, position in state.queues["other"].waiting()] == [left]


def test_a_snapshot_of_before_has_neither_policies_nor_terms() -> None:
    state = BrokerState(Settings())
    sections = dict(encode(state))
    del sections["terms"]
    (_, *values) = unpack_columns(sections["broker"])[0]
    sections["broker"] = pack_columns([3, *values])
    assert decode(Settings(), sections).catalogue.policies == {}


# --- What people see


def test_definitions_are_what_makes_it_all_again() -> None:
    harness = Harness()
    for line in (
        "declare q=mail max_length=3",
        "set q=mail max_bytes=100",
        "policy name=p for=* history=failures",
        "policy name=o for=* operator message_ttl_ms=9",
        "declare q=mine exclusive=true",
        "limit slow q=mail concurrency=2",
        "limit own task=t concurrency=1 origin=code",
    ):
        assert "Error" not in harness.run(line)[-1]
    harness.machine.submit(
        harness.named["A"], DeclareExchange(exchange="h", kind="headers", correlation=90)
    )
    arguments = {"raw": b"\xff", "kind": "paid"}
    bind = Bind(exchange="h", key="", destination="mail", arguments=arguments, correlation=91)
    harness.machine.submit(harness.named["A"], bind)
    harness.machine.settle()
    core = harness.machine.core
    assert core.definitions() == {
        "policies": core.policies(),
        "queues": [{"name": "mail", "options": {"max_length": 3}, "set": {"max_bytes": 100}}],
        "exchanges": [
            {"name": "h", "kind": "headers", "options": {"alternate": "", "unroutable": "refuse"}}
        ],
        "bindings": [
            {
                "exchange": "h",
                "key": "",
                "destination": "mail",
                "to_exchange": False,
                "arguments": {"kind": "paid", "raw": {"hex": "ff"}},
            }
        ],
        "limits": [{"name": "slow", "rule": LimitRule(queue="mail", concurrency=2).as_dict()}],
    }
    assert [row["name"] for row in core.policies()] == ["p", "o"]
    found = core.queue_described("mail")
    assert found is not None
    assert (found["bytes"], found["exclusive"], found["consumers"]) == (0, False, 0)
    assert found["options"]["history"] == {"value": "failures", "source": "policy p"}
    assert core.queue_described("nothing") is None


def test_a_start_takes_what_was_handed_out_of_transient_queues_alone() -> None:
    harness = Harness()
    for line in (
        "declare q=t durability=transient",
        "publish q=t a",
        "publish q=d b",
        "hello c=W session=w",
        "consume c=W q=t,d",
        "wait 1s",
    ):
        harness.run(line)
    (line,) = harness.run("crash kill")
    assert line.endswith("t: ready=0 scheduled=0 leased=0, d: ready=0 scheduled=0 leased=1")


def test_what_is_moved_out_of_a_queue_with_limits_counts_there_no_more() -> None:
    harness = Harness()
    for line in ("declare q=q max_bytes=100", "declare q=to", "publish a b"):
        harness.run(line)
    assert harness.machine.core.state.catalogue.weights[0].bytes
    harness.run("move q=q to=to")
    assert not harness.machine.core.state.catalogue.weights[0].bytes


def test_the_log_says_of_what_the_archive_keeps_rows_whoever_gave_it() -> None:
    harness = Harness()
    harness.run("declare q=own history=failures")
    told = harness.run("declare q=mail")
    assert not any("HistorySet" in line for line in told)
    told = harness.run("set q=mail history=all")
    assert sum("HistorySet queue=1 history=all" in line for line in told) == 1
    machine = harness.machine
    for options, drop in (({"history": "none"}, False), ({}, True)):
        frame = SetPolicy(correlation=9, name="p", pattern="*", options=options, drop=drop)
        machine.submit(harness.named["A"], frame)
        machine.settle()
        assert machine.core.state.catalogue.untold == {}
        assert machine.core.state.catalogue.told[0] == "failures"
    harness.run("publish q=new a")
    frame = SetPolicy(correlation=9, name="p", pattern="n*", options={"history": "all"})
    machine.submit(harness.named["A"], frame)
    machine.settle()
    told_of = machine.core.state.catalogue.told
    assert told_of == {0: "failures", 1: "all", 2: "all"}
    harness.run("crash")
    assert harness.machine.core.state.catalogue.told == told_of
    assert harness.machine.core.state.catalogue.untold == {}


def test_after_a_checkpoint_it_is_said_again() -> None:
    harness = Harness()
    harness.run("declare q=mail history=failures")
    harness.machine.save()
    harness.run("crash")
    harness.run("wait 1s")
    catalogue = harness.machine.core.state.catalogue
    assert (catalogue.told, catalogue.untold) == ({0: "failures"}, {})


# --- Any story


QUEUES = {
    "full": "max_length=4",
    "ring": "max_length=4 overflow=dead_letter_oldest",
    "heavy": "max_bytes=260 overflow=dead_letter_oldest",
    "light": "max_bytes=260",
    "one": "single_active_consumer=true",
    "gone": "durability=transient",
    "plain": "deliveries_max=3",
    "full.dead": "max_length=2",
}
WHO = ("A", "B", "C")


class Story(RuleBasedStateMachine):
    """Lines of the scenarios' language, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.harness.machine = Machine(log_settings=LogSettings(segment_bytes=8 << 10))
        self.count = 0
        self.dead: set[str] = set()
        """Bodies that waited in a queue when it was deleted: nobody may get them."""
        self.deliveries: dict[str, int] = {}
        for name, options in QUEUES.items():
            self.run(f"declare q={name} {options}")

    @property
    def machine(self) -> Machine:
        return self.harness.machine

    def run(self, line: str) -> list[str]:
        told = self.harness.run(line)
        for each in told:
            assert "BAD_REQUEST" not in each, (line, each)
            if " Deliver " in each:
                for body in each.split("Deliver ", 1)[1].split(" ", 1)[1].split(", "):
                    name = body.split("@")[0]
                    assert name not in self.dead, f"{name} was deleted with its queue: {line}"
        self.check()
        return told

    def check(self) -> None:
        state = self.machine.core.state
        check_places(state)
        for queue in state.queues.values():
            options = queue.options
            there = queue.ready + queue.scheduled + queue.leased
            assert not options.max_length or there <= options.max_length, queue.name
            weights = state.catalogue.weights.get(queue.number)
            assert weights is None or weights.bytes <= options.max_bytes, queue.name
            if options.single_active_consumer:
                holders = {
                    grant.member
                    for position, grant in state.leases.items()
                    if grant.run_of(position).lane.queue is queue
                }
                assert len(holders) <= 1, f"{len(holders)} consumers hold messages of {queue.name}"
        assert not state.catalogue.arrived

    @rule(
        queue=st.sampled_from(sorted(QUEUES)),
        count=st.integers(1, 3),
        size=st.sampled_from((5, 20, 49)),
        words=st.sampled_from(("", "", "in=1s", "parts=2", "priority=3", "parts=2 in=1s")),
    )
    def publish(self, queue: str, count: int, size: int, words: str) -> None:
        bodies = [f"m{self.count + nth:03}".ljust(size, ".") for nth in range(count)]
        self.count += count
        self.run(f"publish q={queue} {words} {' '.join(bodies)}")

    @rule(who=st.sampled_from(WHO), credit=st.integers(1, 3))
    def consume(self, who: str, credit: int) -> None:
        if who in self.harness.named:
            self.run(f"disconnect c={who}")
        if who == "C":  # what it holds outlives its connection
            self.run("hello c=C session=worker")
        self.run(f"consume c={who} q={','.join(sorted(QUEUES))} credit={credit}")

    @rule(who=st.sampled_from(WHO))
    def disconnect(self, who: str) -> None:
        if who in self.harness.named:
            self.run(f"disconnect c={who}")

    @rule(
        nth=st.integers(0, 20),
        verb=st.sampled_from(("done", "done", "fail", "fail retries=9", "release", "reject")),
        then=st.sampled_from(("", "", "full", "heavy", "ring")),
        delay=st.sampled_from(("", "delay=1s")),
    )
    def settle(self, nth: int, verb: str, then: str, delay: str) -> None:
        held = [key for key in self.harness.held if key[0] in self.harness.named]
        if not held:
            return
        who, body = held[nth % len(held)]
        follow = ""
        if then and verb == "done":
            self.count += 2
            follow = f"q={then} then=m{self.count - 2:03},m{self.count - 1:03}"
        if then and verb == "release":
            self.count += 1
            follow = f"q={then} instead=m{self.count - 1:03}"
        self.run(f"{verb} c={who} {delay} {follow} {body}")
        self.harness.held.pop((who, body), None)

    @rule(wait=st.sampled_from(("30ms", "2s", "61s")))
    def wait(self, wait: str) -> None:
        self.run(f"wait {wait}")

    @rule(queue=st.sampled_from(sorted(QUEUES)))
    def purge(self, queue: str) -> None:
        self.run(f"purge q={queue}")

    @rule(queue=st.sampled_from(sorted(QUEUES)))
    def delete(self, queue: str) -> None:
        state = self.machine.core.state
        old = state.queues.get(queue)
        if old is None:
            return
        positions = {position for _, position in old.waiting()}
        scheduled = {
            position
            for _, position, run in state.timers.entries()
            if state.run_numbered(run).lane.queue is old
        }
        self.dead |= {self.body_of(each) for each in positions | scheduled}
        self.run(f"delete q={queue}")
        self.run(f"declare q={queue} {QUEUES[queue]}")

    def body_of(self, position: int) -> str:
        bodies, continued = self.machine.bodies, self.machine.core.state.continued.get(position)
        bodies.keep(bodies.load(bodies.missing([position, *(continued or ())])))
        return unpack_message(bodies.message(position, continued)).body.decode()

    @rule(how=st.sampled_from(("", "kill")))
    def crash(self, how: str) -> None:
        self.machine.settle()
        self.run(f"crash {how}")
        self.harness.held.clear()
        gone = self.machine.core.state.queues.get("gone")
        assert gone is None or gone.ready + gone.scheduled + gone.leased == 0

    @rule()
    def save(self) -> None:
        """From now on a start reads the snapshot, and the log behind it."""
        self.machine.save()

    @rule()
    def rebuild(self) -> None:
        """By the log alone, and by the snapshot and the log behind it, the same is known."""
        machine = self.machine
        machine.write_all()
        twin = machine.disk.copy()
        core = Broker(machine.settings)
        replay(Log.open(twin, machine.log_settings), core, Ages(), lambda done, last: None)
        finish(machine.core.state)
        assert digest(core.state, machine.now) == digest(machine.core.state, machine.now)
        twin.kill()
        shadow = machine.rebuilt(Log.open(twin, machine.log_settings))
        assert digest(shadow.state, machine.now) == digest(core.state, machine.now)


STORIES = settings(
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_no_story_breaks_what_options_promise() -> None:
    run_state_machine_as_test(Story, settings=STORIES)
