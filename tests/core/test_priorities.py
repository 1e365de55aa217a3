"""Priorities: higher first, and yet none waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Harness
from qbroker.core.gates import Gatekeeper
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qprotocol.options import QueueOptions

NOW = Now(0, 0)


class Waiting:
    """A queue of some tasks, and what waits in it: position to priority."""

    def __init__(self, every: int) -> None:
        self.queue = Queue(0, "q", QueueOptions(oldest_every=every), synced=True)
        self.queue.select(None)
        self.lanes = [Lane(number, self.queue, task, b"") for number, task in enumerate("xy")]
        self.waits: dict[int, int] = {}
        self.next = 100

    def publish(self, lane: int, priority: int, count: int) -> None:
        run = self.lanes[lane].run(priority)
        run.extend(self.next, count)
        self.queue.ready += count
        self.queue.offer(run, count)
        self.waits |= dict.fromkeys(range(self.next, self.next + count), priority)
        self.next += count

    def take(self, limit: int) -> list[tuple[int, int]]:
        """What is handed out, as (position, priority)."""
        selection = self.queue.selections[None]
        entries: list[tuple[Run, int, int]] = selection.take(limit, Gatekeeper(), NOW)
        taken = [p for _, first, count in entries for p in range(first, first + count)]
        return [(position, self.waits.pop(position)) for position in taken]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 1), st.sampled_from((-100, 0, 0, 5, 100)), st.integers(1, 8)),
        st.integers(1, 12),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 8))
def test_the_best_goes_first_but_for_the_turns_of_the_oldest(steps, every: int) -> None:
    """By a model that takes messages one by one, and knows nothing of heaps."""
    waiting, passed = Waiting(every), 0
    for step in steps:
        if isinstance(step, tuple):
            waiting.publish(*step)
            continue
        model = dict(waiting.waits)
        limit = min(step, len(model))
        several = every and len(set(model.values())) > 1
        turns = min(limit, (passed + limit) // every) if several else 0
        wanted = sorted(model, key=lambda p: (-model[p], p))[: limit - turns]
        wanted += sorted(set(model) - set(wanted))[:turns]
        if several:
            passed += limit - turns * every
        assert [position for position, _ in waiting.take(limit)] == wanted
    waiting.take(len(waiting.waits))
    assert not waiting.waits


@given(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=50, max_size=50))
def test_the_oldest_of_k_waits_for_k_turns_at_most(every: int, limits: list[int]) -> None:
    """While ever more urgent messages come."""
    waiting, ahead = Waiting(every), 3
    waiting.publish(0, -100, ahead)
    gone = 0
    for limit in limits:
        waiting.publish(1, 100, limit + 1)
        for _, priority in waiting.take(limit):
            gone += 1
            ahead -= priority == -100
            if not ahead:
                assert gone <= 3 * every + limit
                return
    assert gone < 3 * every, "it still waits"


def test_strictly_none_goes_before_a_better_one() -> None:
    waiting = Waiting(0)
    waiting.publish(0, -1, 3)
    for _ in range(100):
        waiting.publish(1, 1, 10)
        assert all(priority == 1 for _, priority in waiting.take(10))


@pytest.mark.parametrize("every", [0, 1, 3])
def test_an_ordering_key_keeps_its_own_order(every: int) -> None:
    """Within a key the priority counts, whoever's turn it is."""
    harness = Harness()
    harness.run(f"declare q=q oldest_every={every}")
    for number, priority in enumerate((0, 5, 9)):
        harness.run(f"publish ordering_key=k priority={priority} k{number}")
        harness.run(f"publish priority={priority} m{number}")
    harness.run("consume credit=1")
    got = []
    while harness.held and len(got) < 6:
        (_, body), *_ = harness.held
        got.append(body)
        harness.run(f"ack {body}")
        harness.held.pop(("A", body), None)
    assert sorted(got) == ["k0", "k1", "k2", "m0", "m1", "m2"]
    assert [body for body in got if body[0] == "k"] == ["k2", "k1", "k0"]
