"""Shares: tenants get run time by their weights, whoever has how much waiting."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digest import check_places
from harness import Harness
from qbroker.core import tenants
from qbroker.core.gates import Gatekeeper
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.publishing import by_lane
from qbroker.core.queues import Queue
from qbroker.core.tenants import Shares
from qprotocol.lanekeys import LaneKeys
from qprotocol.options import QueueOptions

NOW = Now(0, 0)


class Floor:
    """A queue of tenants, and slots that run its messages one after the other."""

    def __init__(self, slots: int, run_ms: dict[str, int], weights: str = "") -> None:
        self.options = QueueOptions(fair_weights=weights)
        self.queue = Queue(0, "q", self.options, synced=True)
        self.queue.select(None)
        self.lanes: dict[tuple[str, str], Lane] = {}
        self.slots, self.run_ms = slots, run_ms
        self.running: deque[tuple[int, str, Lane]] = deque()
        """(when it ends, tenant, lane), the first to end first."""
        self.now_ms = 0
        self.next = 100
        self.used: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()

    def publish(self, tenant: str, count: int, task: str = "t", priority: int = 0) -> None:
        lane = self.lanes.get((tenant, task))
        if lane is None:
            keys = LaneKeys(fair=tenant).pack()
            lane = self.lanes[tenant, task] = Lane(len(self.lanes), self.queue, task, keys)
            lane.shelf.place(lane)
        run = lane.run(priority)
        run.extend(self.next, count)
        self.next += count
        self.queue.ready += count
        self.queue.offer(run, count)

    def fill(self) -> list[str]:
        """Free slots are filled, as far as anything waits; whose messages went."""
        went: list[str] = []
        self.queue.settle_shares()
        while len(self.running) < self.slots and self.queue.ready:
            room = self.slots - len(self.running)
            taken = self.queue.selections[None].take(room, Gatekeeper(), NOW)
            assert taken, "a slot is free, and a message waits"
            for run, _, count in taken:
                tenant = run.lane.fair
                for _ in range(count):
                    ends = self.now_ms + self.run_ms.get(tenant, 1)
                    self.running.append((ends, tenant, run.lane))
                went += [tenant] * count
                self.gone[tenant] += count
        self.running = deque(sorted(self.running, key=lambda row: row[0]))
        return went

    def end(self) -> str:
        """The message that ends next has ended; whose it was."""
        self.now_ms, tenant, _ = self.running.popleft()
        if self.queue.shares:
            self.queue.shares.ended(tenant, 1)
            self.queue.shares.measured(tenant, self.run_ms.get(tenant, 1), ran=True)
        self.used[tenant] += self.run_ms.get(tenant, 1)
        return tenant


@pytest.mark.parametrize("slots", [1, 4, 32])
@pytest.mark.parametrize("run_ms", [{}, {"big": 500, "small": 3}])
def test_a_hundred_thousand_messages_delay_ten_by_the_busy_slots(slots: int, run_ms) -> None:
    """None of the many is handed out between the ten, once these are there."""
    floor = Floor(slots, run_ms)
    floor.publish("big", 100_000)
    floor.fill()
    for _ in range(300):
        floor.end()
        floor.fill()
    floor.publish("small", 10)
    between = 0
    while floor.gone["small"] < 10:
        floor.end()
        between += floor.fill().count("big")
    assert between <= slots


def test_long_messages_of_a_few_wait_for_their_share_of_time() -> None:
    """They take as much as a hundred and more of the others: so these go between."""
    floor = Floor(1, {"big": 3, "small": 500})
    floor.publish("big", 100_000)
    floor.publish("small", 10)
    while floor.gone["small"] < 10:
        floor.fill()
        floor.end()
    assert floor.used["big"] <= 10 * 500 + 3


@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.lists(st.integers(1, 20), min_size=4, max_size=4),
    st.integers(1, 6),
)
def test_shares_of_run_time_converge_to_the_weights(weights, times, slots: int) -> None:
    named = dict(zip("abcd", weights, strict=False))
    run_ms = dict(zip("abcd", times, strict=True))
    floor = Floor(slots, run_ms, ",".join(f"{key}={weight}" for key, weight in named.items()))
    for tenant in named:
        floor.publish(tenant, 5_000)
    floor.fill()
    for _ in range(1_500):
        floor.end()
        floor.fill()
    used, total = sum(floor.used.values()), sum(weights)
    slack = 20 * (tenants.AHEAD_MESSAGES + slots)  # of time: what estimates may be wrong at first
    for tenant, weight in named.items():
        wanted = used * weight / total
        assert abs(floor.used[tenant] - wanted) <= slack + used * 0.05, (tenant, floor.used)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(("", "a", "b", "c")),
            st.integers(1, 9),
            st.sampled_from("xy"),
            st.sampled_from((0, 0, 5)),
        ),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 5))
def test_no_slot_is_idle_and_nothing_is_lost(steps, slots: int) -> None:
    """``fill`` asserts the first; tenants are counted as what waits is."""
    floor, published = Floor(slots, {"a": 40, "b": 1}), 0
    for step in steps:
        if isinstance(step, int):
            for _ in range(min(step, len(floor.running))):
                floor.end()
                floor.fill()
        else:
            tenant, count, task, priority = step
            floor.publish(tenant, count, task, priority)
            published += count
            floor.fill()
        shares = floor.queue.shares
        if shares:
            waits = Counter(
                {
                    key: sum(lane.waiting for (of, _), lane in floor.lanes.items() if of == key)
                    for key in {of for of, _ in floor.lanes}
                }
            )
            assert +waits == +Counter({k: each.open for k, each in shares.tenants.items()})
            weights = sum(each.weight for each in shares.tenants.values() if each.open)
            assert shares.waiting == weights
    while floor.running:
        floor.end()
        floor.fill()
    assert sum(floor.gone.values()) == published
    if floor.queue.shares:
        left = [lvl for each in floor.queue.shares.tenants.values() for lvl in each.levels]
        assert len(left) <= len({(lvl.shelf, lvl.number) for lvl in left})


def test_levels_of_tenants_that_are_gone_are_gone() -> None:
    floor = Floor(1, {})
    for number in range(500):
        floor.publish(f"t{number}", 1)
    floor.fill()
    while floor.running:
        floor.end()
        floor.fill()
    assert floor.queue.shelves["t"].levels == []
    assert floor.queue.selections[None].keys == {}
    floor.queue.settle_shares()


def test_tenants_that_owe_nothing_are_forgotten() -> None:
    floor = Floor(1, {})
    for number in range(5_000):
        floor.publish(f"t{number}", 1)
        floor.fill()
        floor.end()
    shares = floor.queue.shares
    assert shares
    assert len(shares.tenants) < 1_000


def test_a_stream_of_new_keys_does_not_keep_an_old_one_waiting() -> None:
    floor = Floor(1, {})
    floor.publish("old", 50)
    for number in range(2_000):
        floor.publish(f"new{number}", 1)
        floor.fill()
        floor.end()
    assert floor.gone["old"] > 10


def test_consumers_that_know_other_tasks_hear_nothing_of_a_tenants_time() -> None:
    """What a settled message took moves its tenant forward for those who know its task."""
    harness = Harness()
    for line in (
        "consume c=A knows=t credit=1",
        "consume c=B knows=u credit=1",
        "publish fair_key=x task=t a1 a2",
        "publish fair_key=y task=t b1",
        "publish fair_key=x task=u u1 u2",
    ):
        harness.run(line)
    harness.run("publish fair_key=x task=t a3 a4 a5")
    harness.run("done c=A a1 run_ms=500")
    harness.run("done c=A b1 run_ms=1")
    assert harness.machine.core.state.queues["q"].leased == 2
    harness.run("done c=A a2 run_ms=1")
    assert any("a4@" in line for line in harness.run("done c=A a3 run_ms=1"))
    check_places(harness.machine.core.state)


def test_a_level_that_was_closed_twice_leaves_the_next_one_alone() -> None:
    """Two kinds of consumers list it; the second finds it empty when there is another."""
    harness = Harness()
    for line in (
        "consume c=A credit=1",
        "consume c=B knows=t credit=0",
        "publish fair_key=x task=t a",
        "publish fair_key=y task=t b",
        "done c=A a",
        "done c=A b",
        "publish fair_key=x task=t c",
        "done c=A c",
        "publish fair_key=x task=t d e",
        "credit c=B 2",
    ):
        harness.run(line)
    check_places(harness.machine.core.state)
    assert harness.machine.core.state.queues["q"].ready == 0


def test_a_tenant_may_have_ordering_keys_too() -> None:
    harness = Harness()
    harness.run("publish fair_key=x ordering_key=o task=t a b")
    harness.run("publish fair_key=y ordering_key=p task=t c")
    said = harness.run("consume c=A credit=5")
    assert sum(line.count("@") for line in said if "Deliver" in line) == 2
    assert any("b@" in line for line in harness.run("done c=A a"))


def test_who_had_nothing_to_do_has_saved_up_little() -> None:
    floor = Floor(1, {})
    floor.publish("idle", 1)
    floor.publish("busy", 3_000)
    for _ in range(1_000):
        floor.fill()
        floor.end()
    floor.publish("idle", 1_000)
    first = []
    for _ in range(200):
        first += floor.fill()
        floor.end()
    assert first.count("idle") <= 100 + tenants.AHEAD_MESSAGES


def test_what_did_not_run_costs_nothing() -> None:
    shares = Shares({})
    tenant = shares.offered("a", 5)
    shares.hand_out(tenant, 2)
    shares.less("a", 2)
    shares.ended("a", 2)
    shares.measured("a", 0, ran=False)
    assert list(shares.settle()) == []
    assert (tenant.spent, tenant.used_us, tenant.out, shares.mean_us) == (0, 0, 0, 1_000)
    shares.measured("a", 5, ran=True)
    shares.measured("nobody", 5, ran=True)
    shares.ended("nobody", 5)
    shares.ended("a", 5)
    assert shares.changed == {}


def test_an_ack_says_that_each_message_took_the_least() -> None:
    harness = Harness()
    harness.run("publish fair_key=a a1 a2 a3 a4")
    harness.run("publish fair_key=b b1")
    harness.run("consume credit=2")
    shares = harness.machine.core.state.queues["q"].shares
    assert shares
    harness.run("done a1 run_ms=100")
    harness.run("done b1 run_ms=100")
    slow = shares.tenants["a"].cost_us
    assert slow == 100_000
    harness.run("ack a2")
    assert slow * 3 // 4 < shares.tenants["a"].cost_us < slow
    assert shares.tenants["a"].used_us - shares.tenants["a"].out_us <= 101_000


def test_many_acks_at_once_are_the_least_each() -> None:
    shares = Shares({})
    tenant = shares.offered("a", 99)
    tenant.cost_us = 80_000
    shares.hand_out(tenant, 99)
    shares.less("a", 99)
    shares.ended("a", 99)
    shares.measured("a", 0, ran=True, count=99)
    list(shares.settle())
    assert tenant.used_us == 99 * tenants.LEAST_US
    assert tenant.cost_us < 2 * tenants.LEAST_US


def test_weights_change_while_messages_wait() -> None:
    floor = Floor(1, {}, "a=3")
    floor.publish("a", 5)
    floor.publish("b", 5)
    shares = floor.queue.shares
    assert shares
    assert shares.waiting == 4
    shares.weigh({"b": 7})
    assert shares.waiting == 8
    floor.fill()
    assert shares.rows(1) == [
        {"key": "a", "weight": 1, "open": 4, "leased": 1, "used_ms": 1, "message_ms": 0.0}
    ]
    assert shares.before("a") == 1


def test_a_broker_shares_by_what_its_workers_measured() -> None:
    harness = Harness()
    harness.run("declare q=q fair_weights=b=3")
    harness.run("publish fair_key=a a1 a2 a3 a4 a5 a6 a7 a8")
    harness.run("publish fair_key=b task=t b1 b2 b3 b4 b5 b6 b7 b8")
    harness.run("publish x1 x2")
    check_places(harness.machine.core.state)
    harness.run("consume credit=1")
    order = []
    for _ in range(8):
        body = list(harness.held)[-1][1]
        order.append(body)
        harness.run(f"done {body} run_ms=100")
        check_places(harness.machine.core.state)
    harness.run("set q=q fair_weights=a=9")
    shares = harness.machine.core.state.queues["q"].shares
    assert shares
    assert shares.tenants["a"].weight == 9
    assert {body[0] for body in order} == {"a", "b", "x"}
    before = dict(shares.tenants)
    harness.run("crash")
    again = harness.machine.core.state.queues["q"].shares
    assert again
    assert {k: each.open + each.out for k, each in again.tenants.items() if each.open} == {
        k: each.open + each.out for k, each in before.items() if each.open + each.out
    }
    assert all(each.spent == 0 for each in again.tenants.values())
    harness.run("purge")
    check_places(harness.machine.core.state)
    harness.run("publish fair_key=a a9")
    check_places(harness.machine.core.state)


# Rounds: turns of tenants whose messages are known to be short.


def known_short(*keys: str) -> Floor:
    """A floor on which a message of each of these has ended, and none of them waits."""
    floor = Floor(len(keys), {})
    for key in keys:
        floor.publish(key, 1)
    floor.fill()
    while floor.running:
        floor.end()
    floor.queue.settle_shares()
    return floor


def taken(floor: Floor, count: int) -> list[tuple[str, int, int]]:
    """(tenant, first position, count) of what is handed out."""
    entries = floor.queue.selections[None].take(count, Gatekeeper(), NOW)
    return [(run.lane.fair, first, size) for run, first, size in entries]


def test_short_messages_of_equals_go_as_they_came() -> None:
    """Each has its share, and neighbours are still neighbours."""
    floor = known_short("a", "b", "c")
    first = floor.next
    for number in range(12):
        floor.publish("abc"[number % 3], 1)
    floor.publish("a", 8)
    entries = taken(floor, 12)
    assert [position for _, position, _ in entries] == list(range(first, first + 12))
    assert Counter(key for key, _, _ in entries) == {"a": 4, "b": 4, "c": 4}


def test_who_has_spent_less_goes_before_what_is_older() -> None:
    floor = known_short("busy", "late")
    floor.publish("busy", 100)
    taken(floor, 50)
    floor.publish("late", 3)
    assert [key for key, _, _ in taken(floor, 6)] == ["late", "busy"]


def test_a_turn_is_a_share_of_what_is_known_to_be_short() -> None:
    shares = Shares({})
    tenant = shares.offered("a", 99)
    shares.offered("b", 99)
    assert shares.turn(tenant, 40, 0) == 10
    for cost_us, turn in ((1_000, 8), (tenants.TURN_US // 2, 2), (2 * tenants.TURN_US, 1)):
        tenant.cost_us = cost_us
        assert shares.turn(tenant, 4, 0) == min(turn, 2)
        assert shares.turn(tenant, 2_000, 0) == 500
        assert shares.turn(tenant, 4, 3 * cost_us) == min(turn, 2) + 3


def test_a_round_has_one_priority() -> None:
    floor = known_short("a", "b")
    floor.publish("a", 2, priority=0)
    floor.publish("b", 2, priority=5)
    floor.publish("a", 2, priority=5)
    assert [position % 2 for _, position, _ in taken(floor, 6)] == [0, 0, 0]
    floor = known_short("a", "b")
    low = floor.next
    floor.publish("a", 2, priority=0)
    floor.publish("b", 2, priority=5)
    floor.publish("a", 2, priority=5)
    assert [position for _, position, _ in taken(floor, 6)] == [low + 2, low + 4, low]


def test_a_run_that_goes_back_in_its_positions_keeps_its_order() -> None:
    """Messages that were moved here wait behind those that are younger."""
    floor = known_short("a", "b")
    floor.publish("a", 2)
    floor.publish("b", 1)
    first = floor.next - 3
    run = floor.lanes["a", "t"].run(0)
    run.put([7, 9])
    floor.queue.ready += 2
    floor.queue.offer(run, 2)
    mine = [position for key, position, _ in taken(floor, 5) if key == "a"]
    assert mine == [first, 7, 9]


def test_lanes_of_one_batch_keep_their_order() -> None:
    """What is done once for a lane leaves each message at its place: also what is delayed."""
    harness = Harness()
    harness.run("publish fair_key=a task=t x1")
    for number in range(6):
        harness.run(f"publish fair_key={'ab'[number % 2]} task=t m{number}")
    state = harness.machine.core.state
    lanes = [lane.number for lane in state.lanes if lane.fair]
    runs = [[lanes[n % 2], n % 3 and 5, 1 + n % 2, 9_000 if n == 4 else 0] for n in range(9)]
    grouped = {
        (row[0], row[1], row[3], places[0]): list(places) for row, places in by_lane(100, runs)
    }
    apart: dict[tuple[int, int], list[int]] = {}
    delayed, at = [], 100
    for number, priority, count, due_ms in runs:
        here = delayed if due_ms else apart.setdefault((number, priority), [])
        here += range(at, at + count)
        at += count
    assert [places for (_, _, due, _), places in grouped.items() if due] == [delayed]
    assert {key[:2]: places for key, places in grouped.items() if not key[2]} == apart


def test_tasks_of_one_tenant_go_by_age_whatever_its_turn() -> None:
    """A turn is of the tenant, not of the task that leads: its older messages are not passed by."""
    floor = known_short("a", "b")
    first = floor.next
    for number in range(12):
        floor.publish("a", 1, task=("t", "u", "v")[number % 3])
    floor.publish("b", 12)
    mine = []
    while len(mine) < 12:
        mine += [position for key, position, _ in taken(floor, 4) if key == "a"]
    assert mine == list(range(first, first + 12))
