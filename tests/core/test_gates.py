"""Gates: no more than there is room for, no room left unused, and the same again after a replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digest import check_places, exact
from harness import Harness
from qbroker.core import closing
from qbroker.core import gates as gates_module
from qbroker.core.gates import Gate, around, attach
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.state import BrokerState
from qprotocol.lanekeys import LaneKeys
from qprotocol.options import QueueOptions


def waiting(queue: Queue) -> dict[str, int]:
    """Messages that are ready and nobody may be handed, by reason."""
    found = +queue.behind
    for shelf in queue.shelves.values():
        shelf.renew()
        if shelf.open:
            found[queue.reason(shelf)] += shelf.open
    found.pop("", None)
    return dict(found)


class Slots(Gate):
    """So many at once, a message as many as it weighs."""

    reason = "slots"

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.used = 0
        self.peak = 0

    def heft(self, lane: Lane) -> int:
        return LaneKeys.unpack(lane.keys).weight

    def room(self, lane: Lane, _now: Now) -> int:
        return (self.most - self.used) // self.heft(lane)

    def is_shut(self, _now: Now) -> bool:
        return self.used >= self.most

    def charge(self, lane: Lane, count: int, _wall_ms: int) -> None:
        self.used += count * self.heft(lane)
        self.peak = max(self.peak, self.used)

    def credit(self, lane: Lane, count: int) -> None:
        self.used -= count * self.heft(lane)
        self.open()


class Pace(Gate):
    """One message each so many milliseconds."""

    reason = "rate"

    def __init__(self, every_ms: int) -> None:
        super().__init__()
        self.every_ms = every_ms
        self.next_ms = 0
        self.went: list[int] = []

    def room(self, _lane: Lane, now: Now) -> int:
        return int(now.wall_ms >= self.next_ms)

    def charge(self, _lane: Lane, count: int, wall_ms: int) -> None:
        self.next_ms = wall_ms + count * self.every_ms
        self.went += [wall_ms] * count

    def credit(self, _lane: Lane, _count: int) -> None:
        """A message that comes back has used its turn."""

    def opens_ms(self, _lane: Lane, now: Now) -> int:
        return now.mono_ms + self.next_ms - now.wall_ms


Rules = dict[str, Gate]
"""Gates by the limit key of a lane, or the name of a queue, or task."""


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Rules:
    """What is put in here is attached to lanes, shelves and queues as they open."""
    found: Rules = {}

    def of(name: str) -> tuple[Gate, ...]:
        return (found[name],) if name in found else ()

    def open_lane(*arguments: Any) -> Lane:
        lane = before(*arguments)
        if not lane.shelf.gates:
            attach(lane.shelf, of(lane.task))
        if not lane.queue.gates:
            attach(lane.queue, of(lane.queue.name))
        keys = LaneKeys.unpack(lane.keys)
        lane.ordering = None  # an ordering key is the name of a gate here
        attach(lane, of(keys.limit) + of(keys.ordering))
        return lane

    before = closing.open_lane
    monkeypatch.setattr(closing, "open_lane", open_lane)
    return found


def story(*lines: str) -> Harness:
    harness = Harness()
    for line in lines:
        harness.run(line)
        check_places(harness.machine.core.state)
    return harness


def out(harness: Harness) -> list[str]:
    """The bodies that are leased, in the order of their grants."""
    leases = harness.machine.core.state.leases
    held = {token: body for (_, body), token in harness.held.items()}
    return [held[position, grant.number] for position, grant in leases.items()]


def test_a_key_has_so_many_out_and_the_others_go_on(rules: Rules) -> None:
    rules["a"] = gate = Slots(2)
    tale = story("publish limit_key=a a1 a2 a3 a4", "publish b1 b2", "consume credit=10")
    assert out(tale) == ["a1", "a2", "b1", "b2"]
    assert waiting(tale.machine.core.state.queues["q"]) == {"slots": 2}
    tale.run("ack a2 b1")
    assert out(tale) == ["a1", "b2", "a3"]
    for line in ("release a1", "reject a3", "fail b2"):
        tale.run(line)
    assert out(tale) == ["a1", "a4"]
    tale.run("ack a1 a4")
    assert (out(tale), gate.used, gate.peak) == ([], 0, 2)


def test_grants_of_gated_lanes_are_certain_and_others_are_not(rules: Rules) -> None:
    """What a crash leaves of grants: those with gates are in the log before anybody has them."""
    rules["a"] = Slots(9)
    tale = story("publish limit_key=a a1", "publish q=other b1", "hello session=w role=worker")
    told = [*tale.run("consume q=q s=1"), *tale.run("consume q=other s=2")]
    exactly = [line for line in told if "GrantedExactly grant=1.1" in line]
    assert len(exactly) == 1
    assert any(" Granted grant=1.2" in line for line in told)
    machine = tale.machine
    tale.run("ack a1")
    tale.run("publish limit_key=a a2")
    assert machine.log.durable >= max(machine.core.state.leases) >> 20
    rules["a"] = again = Slots(9)
    machine.crash()
    assert again.used == 1


def test_a_lost_grant_is_claimed_with_its_slot(rules: Rules) -> None:
    """fsync=never: a power cut may take a grant with gates, too; its worker comes back."""
    rules["a"] = Slots(1)
    harness = Harness()
    harness.run("broker fsync=never")
    harness.run("publish limit_key=a a1 a2")
    harness.machine.log.sync()
    harness.run("hello session=w role=worker")
    harness.run("consume")
    assert out(harness) == ["a1"]
    rules["a"] = gate = Slots(1)
    harness.run("crash")
    assert gate.used == 0
    told = harness.run("hello session=w role=worker of=A a1")
    assert any("GrantedExactly" in line and "adopted=True" in line for line in told), told
    assert gate.used == 1
    harness.run("consume")
    assert out(harness) == ["a1"]


def test_a_queues_gate_keeps_its_order_and_priorities(rules: Rules) -> None:
    rules["q"] = Slots(1)
    tale = story("publish task=x x1", "publish task=y y1", "consume")
    tale.run("publish task=x x2")
    tale.run("publish priority=5 task=y y2")
    tale.run("publish q=other o1")
    tale.run("consume q=other s=2")
    got = []
    while body := next((each for each in out(tale) if each != "o1"), ""):
        got.append(body)
        tale.run(f"ack {body}")
    assert got == ["x1", "y2", "y1", "x2"]
    assert out(tale) == ["o1"]


def test_a_tasks_gate_parks_its_shelf_and_no_other(rules: Rules) -> None:
    rules["x"] = Slots(1)
    tale = story("publish task=x x1 x2", "publish task=x limit_key=k x3", "publish task=y y1")
    tale.run("consume")
    assert out(tale) == ["x1", "y1"]
    tale.run("publish priority=1 task=x x4")
    queue = tale.machine.core.state.queues["q"]
    assert queue.shelves["x"].parked is rules["x"]
    assert waiting(queue) == {"slots": 3}
    tale.run("publish q=p task=x x5")
    tale.run("consume q=p s=2")
    tale.run("ack x1")
    assert out(tale) == ["y1", "x4"]
    tale.run("ack x4")
    tale.run("ack x2")
    tale.run("ack x3")
    assert out(tale) == ["y1", "x5"]


def test_a_heavy_message_waits_and_light_ones_pass(rules: Rules) -> None:
    rules["q"] = Slots(5)
    tale = story("publish w1 w2 w3", "publish weight=4 h1 h2", "publish v1 v2 v3", "consume")
    assert out(tale) == ["w1", "w2", "w3", "v1", "v2"]
    assert waiting(tale.machine.core.state.queues["q"]) == {"slots": 3}
    for body in ("w1", "w2", "w3", "v1"):
        tale.run(f"ack {body}")
    assert out(tale) == ["v2", "v3"]
    tale.run("ack v2 v3")
    assert out(tale) == ["h1"]


def test_room_that_one_lane_cannot_use_goes_to_the_next(rules: Rules) -> None:
    """The first in turn is kept by another gate: whoever is behind it does not wait for that."""
    rules.update(a=Slots(1), o=Slots(1))
    tale = story(
        "publish limit_key=a a1",
        "consume",
        "publish limit_key=a ordering_key=o o1",
        "publish ordering_key=o o2",
        "publish limit_key=a ordering_key=p p1",
        "publish limit_key=a ordering_key=p p2",
        "publish limit_key=a ordering_key=r r1",
        "ack a1",
    )
    assert out(tale) == ["o2", "p1"]
    tale.run("ack o2")
    tale.run("ack p1")
    assert out(tale) == ["o1"]


def test_a_gate_that_opens_by_time_is_woken(rules: Rules) -> None:
    rules["a"] = gate = Pace(1_000)
    tale = story("publish limit_key=a a1 a2", "publish limit_key=a task=t a3", "consume credit=2")
    began = tale.machine.wall_ms
    assert out(tale) == ["a1"]
    tale.run("wait 999ms")
    assert out(tale) == ["a1"]
    tale.run("wait 1ms")
    assert out(tale) == ["a1", "a2"]
    tale.run("wait 5s")
    tale.run("ack a1")
    assert out(tale) == ["a2", "a3"]
    assert gate.went == [began, began + 1_000, began + 6_000]
    assert tale.machine.core.next_due_ms(tale.machine.now) > 0


def test_what_waits_in_parked_lanes_may_be_cancelled_and_purged(rules: Rules) -> None:
    rules["a"] = Slots(1)
    tale = story(
        "publish limit_key=a a1",
        "publish limit_key=a id=two a2",
        "publish limit_key=a priority=1 id=three a3",
        "publish limit_key=a task=t id=four a4",
        "consume",
        "cancel id=two",
        "cancel id=four",
    )
    assert out(tale) == ["a3"]
    tale.run("ack a3")
    assert out(tale) == ["a1"]
    tale.run("publish limit_key=a task=t id=five a5")
    tale.run("purge")
    check_places(tale.machine.core.state)
    assert waiting(tale.machine.core.state.queues["q"]) == {}
    tale.run("publish limit_key=a task=t a6")
    check_places(tale.machine.core.state)
    assert out(tale) == ["a1"]
    tale.run("ack a1")
    assert out(tale) == ["a6"]


def test_gates_are_changed_while_messages_wait(rules: Rules) -> None:
    """More room, less, none at all: what was parked is asked again."""
    rules["a"] = rules["x"] = rules["q"] = Slots(1)
    tale = story("publish limit_key=a task=x a1 a2 a3 a4", "consume")
    queue = tale.machine.core.state.queues["q"]
    lane = queue.lanes[0]
    assert around(lane) == (rules["q"],) * 3
    assert queue.gated == 3
    for place in (lane, lane.shelf, queue):
        attach(place, ())
    assert queue.gated == 0
    tale.run("heartbeat")
    assert len(out(tale)) == 4
    wider, none = Slots(5), Slots(0)
    for gate in (wider, none):
        gate.charge(lane, lane.leased, 0)
    attach(lane, (wider,))
    tale.run("publish limit_key=a task=x a5 a6")
    assert len(out(tale)) == 5
    attach(lane, (wider, none))
    tale.run("ack a1")
    assert len(out(tale)) == 4
    attach(lane.shelf, (none,))
    attach(lane, ())
    tale.run("ack a2")
    assert len(out(tale)) == 3
    attach(lane.shelf, ())
    tale.run("heartbeat")
    assert len(out(tale)) == 4


def test_a_million_messages_behind_a_gate_are_looked_at_once() -> None:
    """Dispatch does not come back to what is parked, and parks so much a turn."""
    queue = Queue(0, "q", QueueOptions(), synced=True)
    queue.select(None)
    keeper, now, gate = gates_module.Gatekeeper(), Now(0, 0), Slots(0)
    asked: list[Lane] = []
    for number in range(1_200):
        lane = Lane(number, queue, "t", number.to_bytes(2, "big"))
        gate.heft = gate.room = lambda lane, *_: asked.append(lane) or 0  # type: ignore[method-assign]
        attach(lane, (gate,))
        lane.run(0).extend(1_000 * number, 900)
        queue.ready += 900
        queue.offer(lane.run(0), 900)
    turns = 0
    while queue.selections[None].open:
        keeper.begin()
        assert queue.selections[None].take(10, keeper, now) == []
        turns += 1
    assert turns == -(-1_200 // gates_module.PARK_LANES_MAX)
    looks = len(asked)
    assert queue.selections[None].take(10, keeper, now) == []
    assert len(asked) == looks
    assert queue.behind["slots"] == queue.ready == 1_200 * 900


def test_a_better_message_brings_its_parked_lane_forward(rules: Rules) -> None:
    rules["a"] = Slots(1)
    tale = story(
        "publish limit_key=a a1",
        "consume",
        "publish limit_key=a ordering_key=x x1",
        "publish limit_key=a ordering_key=y y1",
        "publish limit_key=a ordering_key=y priority=5 y2",
        "ack a1",
    )
    assert out(tale) == ["y2"]


def test_so_many_lanes_go_on_in_a_turn(rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    rules.update(a=Slots(0), b=Slots(0))
    tale = story("consume")
    for nth in range(4):
        tale.run(f"publish limit_key={'ab'[nth % 2]} ordering_key={nth} m{nth}")
    for gate in rules.values():
        gate.most = 9  # type: ignore[attr-defined]
        gate.open()
    monkeypatch.setattr(gates_module, "PARK_LANES_MAX", 1)
    machine = tale.machine
    for turns in range(1, 5):
        machine.turn()
        assert len(machine.core.state.leases) == turns
        check_places(machine.core.state)
    machine.turn()
    assert not machine.core.has_more


def test_an_alarm_that_was_overtaken_wakes_nobody() -> None:
    keeper, gate, lane = gates_module.Gatekeeper(), Pace(10), new_lane()
    for next_ms in (30, 20, 25):
        gate.next_ms = next_ms
        lane.run(0).extend(next_ms, 1)
        attach(lane, (gate,))
        assert keeper.room(lane, 1, Now(0, 0)) == 0
    assert (keeper.next_ms(), gate.alarm_ms) == (20, 20)
    keeper.wake(Now(20, 20))
    assert (keeper.next_ms(), gate.alarm_ms) == (30, 0)
    keeper.wake(Now(40, 40))
    assert keeper.next_ms() == 0


def new_lane(task: str = "") -> Lane:
    return Lane(0, Queue(0, "q", QueueOptions(), synced=True), task, b"")


def test_who_knows_a_task_sees_its_shelf_alone() -> None:
    lane = new_lane("x")
    queue = lane.queue
    x, y = frozenset({"x"}), frozenset({"y", "z"})
    put(lane, 1, 2)
    assert waiting(queue) == {"no_consumer": 2}
    queue.select(y)
    assert (queue.selections[y].open, waiting(queue)) == (0, {"no_worker_knows": 2})
    put(lane, 3, 1)
    assert queue.selections[y].take(9, gates_module.Gatekeeper(), Now(0, 0)) == []
    lane.shelf.park(Slots(0))
    queue.select(x)
    assert (queue.selections[x].open, waiting(queue)) == (0, {"slots": 3})
    put(lane, 4, 1)
    queue.less(lane, 1)
    lane.shelf.unpark()
    assert (queue.selections[x].open, queue.selections[y].open, waiting(queue)) == (3, 0, {})
    queue.held = 1
    assert waiting(queue) == {"paused": 3}
    queue.select(x)
    queue.deselect(x)
    assert set(queue.selections) == {x, y}
    queue.deselect(x)
    assert set(queue.selections) == {y}


def test_a_gate_forgets_what_is_parked_elsewhere() -> None:
    lane, first, second = new_lane("x"), Slots(0), Slots(0)
    put(lane, 1, 1)
    for gate in (first, second):
        attach(lane.shelf, (gate,))
        assert gates_module.Gatekeeper().room(lane, 1, Now(0, 0)) == 0
    first.open()
    assert lane.shelf.parked is second
    second.open()
    assert lane.shelf.parked is None


def put(lane: Lane, first: int, count: int) -> None:
    lane.run(0).extend(first, count)
    lane.queue.ready += count
    lane.queue.offer(lane.run(0), count)


# --- Any story


KEYS = ("", "a", "b")
bodies = st.integers(0, 30)
steps = st.one_of(
    st.tuples(
        st.just("publish"),
        st.integers(1, 4),
        st.sampled_from(["q", "p"]),
        st.sampled_from(["", "x", "y"]),
        st.sampled_from(KEYS),
        st.sampled_from(["", "o", "p"]),
        st.integers(-1, 1),
        st.integers(1, 2),
    ),
    st.tuples(st.sampled_from(["ack", "release", "fail", "later", "cancel"]), bodies),
    st.tuples(st.just("credit"), st.integers(1, 3), st.integers(0, 9)),
    st.tuples(st.just("purge"), st.sampled_from(["q", "p"])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("wait"), st.integers(1, 1_500)),
)


class Tale:
    """A broker with all kinds of gates, two subscriptions, and the rules it must keep."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.renew()
        self.harness = Harness()
        self.count = 0
        self.listen()

    def renew(self) -> None:
        """Gates as a start makes them."""
        rules = self.rules
        rules.update(a=Slots(3), b=Pace(500), o=Slots(2), q=Slots(5), x=Slots(4))

    def listen(self) -> None:
        self.harness.run("hello session=w role=worker")
        self.subscribe()

    def subscribe(self) -> None:
        self.harness.run("consume q=q,p s=1 credit=4 knows=x,")
        self.harness.run("consume q=p s=2 credit=3")
        self.harness.run("consume q=q s=3 credit=1 knows=y,z")

    def publish(self, count: int, *said: Any) -> None:
        names = ("q", "task", "limit_key", "ordering_key", "priority", "weight")
        words = " ".join(f"{name}={value}" for name, value in zip(names, said, strict=True))
        for _ in range(count):
            self.harness.run(f"publish {words} id=m{self.count} m{self.count}")
            self.count += 1

    def end(self, verb: str, nth: int) -> None:
        held = out(self.harness)
        if verb == "cancel":
            self.harness.run(f"cancel id=m{nth}")
        elif held:
            body = held[nth % len(held)]
            line = {"later": f"release delay=300ms {body}"}.get(verb, f"{verb} {body}")
            self.harness.run(line)

    def crash(self) -> None:
        """The worker comes back with what it had."""
        held, peak = out(self.harness), self.rules["a"].peak  # type: ignore[attr-defined]
        before = exact(self.harness.machine.core.state)["leases"]
        self.renew()
        self.harness.run("crash kill")
        assert exact(self.harness.machine.core.state)["leases"] == before
        self.harness.run(f"hello session=w role=worker of=A {' '.join(held)}")
        self.subscribe()
        assert peak <= 3

    def check(self) -> None:
        state = self.harness.machine.core.state
        check_places(state)
        for name in ("a", "o", "q", "x"):
            gate = self.rules[name]
            assert isinstance(gate, Slots)
            mine = [lane for lane in state.lanes if gate in around(lane)]
            assert gate.used == sum(lane.leased * gate.heft(lane) for lane in mine)
            assert gate.used <= gate.most
        pace = self.rules["b"]
        assert isinstance(pace, Pace)
        assert all(b - a >= 500 for a, b in zip(pace.went, pace.went[1:], strict=False))
        now = self.harness.machine.now
        idle = list(self.eligible(state, now))
        assert not idle, f"{idle} could go"

    def eligible(self, state: BrokerState, now: Now) -> Iterator[str]:
        """Lanes with messages that have room everywhere, and somebody who would take them."""
        for queue in state.numbered:
            hungry = [each for each in state.listening[queue.number] if each.room > 0]
            for lane in queue.lanes:
                goes = lane.waiting and all(gate.room(lane, now) > 0 for gate in around(lane))
                if goes and any(each.known is None or lane.task in each.known for each in hungry):
                    yield f"lane {lane.number} of {queue.name}"


@given(st.lists(steps, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_gate_is_passed_and_no_room_is_left_unused(rules: Rules, story: list[Any]) -> None:
    rules.clear()
    tale = Tale(rules)
    for verb, *arguments in story:
        if verb in ("publish", "crash"):
            getattr(tale, verb)(*arguments)
        elif verb == "credit":
            tale.harness.run(f"credit s={arguments[0]} {arguments[1]}")
        elif verb == "purge":
            tale.harness.run(f"purge q={arguments[0]}")
        elif verb == "wait":
            tale.harness.run(f"wait {arguments[0]}ms")
        else:
            tale.end(verb, *arguments)
        tale.check()
