"""How several queues of a consumer take turns: as it says, and no free hand is left idle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Harness
from qbroker.core import consuming
from qbroker.core.effects import Effect
from qbroker.core.leases import Consumer
from qbroker.core.queueorder import Contest, QueueOrder
from qprotocol import frames as f

QUEUES = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(QUEUES), st.integers(1, 6)),
        st.tuples(st.just("ack"), st.just(""), st.integers(0, 9)),
        st.tuples(st.just("credit"), st.sampled_from("ABC"), st.integers(0, 9)),
        st.tuples(st.just("pause"), st.sampled_from(QUEUES), st.just(0)),
        st.tuples(st.just("resume"), st.sampled_from(QUEUES), st.just(0)),
        st.tuples(st.just("purge"), st.sampled_from(QUEUES), st.just(0)),
        st.tuples(st.just("limit"), st.sampled_from(QUEUES), st.integers(1, 4)),
    ),
    max_size=30,
)
ORDERS = ("q=a,b,c order=strict", "q=c,b,a order=strict", "q=b,a weights=a:5", "q=a,b,c", "q=b")


class Tale:
    """Two consumers of some queues, and what they were handed in the last step."""

    def __init__(self, *orders: str) -> None:
        self.harness = Harness()
        self.made = 0
        for name in QUEUES:
            self.publish(name, 1)
        self.consume(*orders)

    def consume(self, *orders: str) -> None:
        for consumer, order in zip("ABC", orders, strict=False):
            self.harness.run(f"consume c={consumer} {order} credit=2")

    @property
    def consumers(self) -> list[Consumer]:
        return list(self.harness.machine.core.state.consumers.values())

    def publish(self, queue: str, count: int) -> None:
        bodies = [f"{queue}{self.made + number}" for number in range(count)]
        self.made += count
        self.harness.run(f"publish c=P q={queue} {' '.join(bodies)}")

    def step(self, verb: str, name: str, number: int) -> list[tuple[str, int]]:
        """One step; what was handed out in it, as (queue, connection)."""
        state = self.harness.machine.core.state
        before = dict(state.leases)
        held = list(self.harness.held)
        if verb == "publish":
            self.publish(name, number)
        elif verb == "credit":
            self.harness.run(f"credit c={name} {number}")
        elif verb == "ack" and held:
            connection, body = held[number % len(held)]
            self.harness.run(f"ack c={connection} {body}")
        elif verb in ("pause", "resume"):
            self.harness.run(f"{verb} c=P q={name} dispatch")
        elif verb == "purge":
            self.harness.run(f"purge c=P q={name}")
        elif verb == "limit":
            self.harness.run(f"limit c=P {name} queue={name} concurrency={number}")
        return [
            (grant.run_of(position).lane.queue.name, grant.member.connection)
            for position, grant in state.leases.items()
            if before.get(position) is not grant
        ]

    def waiting(self, number: int) -> int:
        queue = self.harness.machine.core.state.numbered[number]
        return 0 if queue.held or queue.parked else queue.ready


@given(STEPS, st.permutations(ORDERS))
def test_nobody_with_room_waits_while_a_queue_of_theirs_has_messages(steps, orders) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consuming, "DISPATCH_MESSAGES_MAX", 3)
        tale = Tale(*orders[:2])
        for step in steps:
            tale.step(*step)
            for consumer in tale.consumers:
                if consumer.room > 0:
                    assert not any(map(tale.waiting, consumer.queues)), orders


class Naive(Tale):
    """In each turn all queues of all consumers are looked at."""

    def __init__(self, *orders: str) -> None:
        super().__init__()
        core = self.harness.machine.core
        dispatch = core.dispatch

        def dispatch_all(*args: Any) -> list[Effect]:
            for consumer in self.consumers:
                queues = [core.state.numbered[number] for number in consumer.queues]
                able = [queue for queue in queues if consuming.is_able(queue, consumer)]
                core.state.dirty |= {queue.number: queue for queue in able}
                if consumer.contest:
                    numbers = [queue.number for queue in able]
                    consumer.contest = contest_of_all(consumer.contest.order, numbers)
            return dispatch(*args)

        core.dispatch = dispatch_all  # type: ignore[method-assign]
        self.consume(*orders)


def contest_of_all(order: QueueOrder, queues: Iterable[int]) -> Contest:
    contest = Contest(order)
    for number in queues:
        contest.add(number)
    return contest


@given(STEPS, st.permutations(ORDERS), st.integers(3, 50), st.integers(1, 3))
def test_who_gets_what_is_as_if_all_queues_were_looked_at_in_each_turn(
    steps, orders, budget, consumers
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consuming, "DISPATCH_MESSAGES_MAX", budget)
        tale, naive = Tale(*orders[:consumers]), Naive(*orders[:consumers])
        for step in steps:
            assert tale.step(*step) == naive.step(*step), step


@given(STEPS)
def test_strictly_the_first_queue_that_has_messages_is_served(steps) -> None:
    tale = Tale("q=b,c,a order=strict")
    (consumer,) = tale.consumers
    state = tale.harness.machine.core.state
    for step in steps:
        for name, _ in tale.step(*step):
            before = consumer.queues[: consumer.queues.index(state.queues[name].number)]
            assert not any(map(tale.waiting, before)), name


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=6),
    st.lists(st.integers(1, 300), min_size=200, max_size=300),
)
def test_shares_of_queues_that_all_have_messages_are_their_weights(weights, rooms) -> None:
    """Never further from its share than a few turns of its weight, or of the credit."""
    order = QueueOrder(list(range(len(weights))), weights)
    given_out = [0] * len(weights)
    for room in rooms:
        left = room
        while left:
            contest = contest_of_all(order, range(len(weights)))
            number, count = contest.first, contest.most(left, left, lambda _: True)
            assert 1 <= count <= left
            contest.took(count)
            given_out[number] += count
            left -= count
    turns = max(given / weight for given, weight in zip(given_out, weights, strict=True))
    fewest = min(given / weight for given, weight in zip(given_out, weights, strict=True))
    assert turns - fewest <= 3 + 2 * max(rooms) / sum(weights)


def test_a_queue_that_comes_back_has_saved_nothing_up() -> None:
    order = QueueOrder([0, 1], [1, 1])
    for _ in range(1_000):
        order.spend(0, 1)
    handed = []
    for _ in range(20):
        contest = contest_of_all(order, [0, 1])
        handed.append(contest.first)
        contest.took(contest.most(1, 1, lambda _: True))
    assert 9 <= sum(handed) <= 11


def test_a_strict_consumer_is_not_held_up_by_one_that_is_not_active() -> None:
    """A queue with a single active consumer has nothing for the second one."""
    tale = Tale("q=a,b order=strict", "q=a,b order=strict")
    tale.harness.run("declare q=s single_active_consumer=true")
    for name in "XY":
        tale.harness.run(f"consume c={name} q=s,b order=strict credit=2")
    tale.publish("s", 5)
    for _ in range(3):
        tale.publish("b", 5)
    ((one, two),) = [[c for c in tale.consumers if len(c.queues) == 2][2:]]
    assert (one.room, two.room) == (0, 0)
    assert tale.waiting(tale.harness.machine.core.state.queues["s"].number) == 3


def test_what_is_left_of_a_turn_is_looked_at_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn ends within the first queue, and that is deleted before the next."""
    monkeypatch.setattr(consuming, "DISPATCH_MESSAGES_MAX", 2)
    tale = Tale()
    tale.publish("a", 9)
    tale.publish("b", 9)
    machine = tale.harness.machine
    for name, order in (("A", "a,b"), ("B", "b,a")):
        tale.harness.run(f"consume c={name} q={order} order=strict credit=0")
    for name, credit in (("B", 0), ("A", 7)):  # so b is looked at first
        machine.submit(tale.harness.named[name], f.Credit(subscription=1, credit=credit))
    machine.turn()
    consumer = tale.consumers[0]
    assert consumer.room == 5
    machine.submit(tale.harness.named["A"], f.DeleteQueue(queue="a", correlation=9))
    machine.settle()
    assert consumer.room == 0


def test_what_an_ordering_key_hid_wakes_its_queue_when_the_key_is_free() -> None:
    """It came up by its age, before the turn of a higher priority."""
    harness = Harness()
    harness.run("declare q=a oldest_every=1")
    harness.run("publish q=a ordering_key=k low")
    harness.run("publish q=a ordering_key=k priority=5 high")
    assert harness.run("consume q=a,b credit=2")[-1] == "A     Deliver grant=1.1 high@4:0"
    assert harness.run("ack high")[-1] == "A     Deliver grant=1.2 low@3:1"


def test_what_a_subscription_left_counts_for_the_next_and_nothing_else_does() -> None:
    tale = Tale("q=a")
    harness = tale.harness
    machine, peer = harness.machine, harness.named["A"]
    machine.submit(peer, f.Consume(subscription=8, queues=["b"], credit=9, correlation=8))
    machine.settle()
    machine.submit(peer, f.Unsubscribe(subscription=8, correlation=9))
    machine.submit(peer, f.Consume(subscription=9, queues=["c"], credit=9, correlation=10))
    machine.settle()
    assert [(each.number, each.unsettled) for each in tale.consumers] == [(1, 1), (9, 2)]
