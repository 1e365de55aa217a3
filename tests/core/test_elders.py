"""The oldest ready messages of a queue, against a look at all of them."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digest import check_places
from harness import Harness
from machine import Machine
from qbroker.core import elders, overflow
from qbroker.core.elders import Elders
from qbroker.core.lanes import Lane
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qprotocol.options import QueueOptions


def new_queue() -> Queue:
    return Queue(0, "q", QueueOptions(), synced=True)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "take", "back", "purge", "look", "look"]),
        st.integers(0, 5),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_oldest_are_those_that_a_look_at_all_finds(
    steps: list[tuple[str, int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elders, "SPARE", 3)
        Story().tell(steps)


class Story:
    """Six runs, and what waits in them."""

    def __init__(self) -> None:
        self.queue, self.next = new_queue(), 1
        for number in range(6):
            lane = Lane(number, self.queue, f"task{number}", b"")
            lane.shelf.place(lane)
        self.elders = Elders(self.queue)
        self.elders.list_all()
        self.out: list[tuple[int, int, int]] = []

    def run(self, lane: int) -> Run:
        return self.queue.lanes[lane].run(0)

    def tell(self, steps: list[tuple[str, int, int]]) -> None:
        for step, lane, count in steps:
            getattr(self, step)(lane, count)
        self.look(0, 1_000)

    def put(self, lane: int, count: int) -> None:
        self.run(lane).extend(self.next, count)
        self.next += count + 1
        self.elders.offer(self.run(lane))

    def take(self, lane: int, count: int) -> None:
        if self.run(lane).size:
            self.out += [(lane, *piece) for piece in self.run(lane).take(count)]

    def back(self, nth: int, _count: int) -> None:
        if self.out:
            lane, first, count = self.out.pop(nth % len(self.out))
            self.run(lane).give_back(first, count)
            self.elders.offer(self.run(lane))

    def purge(self, _lane: int, _count: int) -> None:
        self.queue.begin_anew()
        self.elders.clear()
        self.out = []

    def look(self, _lane: int, count: int) -> None:
        waits = sorted(p for lane in self.queue.lanes for run in lane.runs for p in run)
        with closing(self.elders.oldest()) as found:
            assert [position for _, position in islice(found, count)] == waits[:count]


def test_a_run_that_is_in_the_heap_twice_under_one_head_is_one() -> None:
    story = Story()
    story.tell([("put", 0, 3), ("take", 0, 1), ("look", 0, 1), ("back", 0, 1), ("take", 0, 1)])
    story.look(0, 9)


def test_lanes_that_were_there_are_listed_so_many_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit for a queue with many lanes: what is too much goes once all are known."""
    monkeypatch.setattr(elders, "ELDERS_LANES_MAX", 2)
    monkeypatch.setattr(overflow, "OVERFLOW_LATER_MAX", 2)
    harness = Harness()
    for number in range(7):
        harness.run(f"publish task=t{number} m{number}")
    harness.run("set q=q max_length=4 overflow=dead_letter_oldest")
    harness.run("wait 5ms")
    state = harness.machine.core.state
    assert (state.queues["q"].ready, state.queues["q.dead"].ready) == (4, 3)
    dead = [run.lane.task for run, _ in state.queues["q.dead"].waiting()]
    assert dead == ["t0", "t1", "t2"]
    check_places(state)


def test_what_is_listed_anew_is_no_reason_to_clear_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is true: to clear away would be a step for each, in one turn, for nothing."""
    monkeypatch.setattr(elders, "SPARE", 1)
    monkeypatch.setattr(elders.Elders, "_clear_away", pytest.fail)
    harness = Harness()
    for number in range(7):
        harness.run(f"publish task=t{number} m{number}")
    found = elders.Elders(harness.machine.core.state.queues["q"])
    found.list_all()
    with closing(found.oldest()) as oldest:
        assert len(list(oldest)) == 7


def test_after_a_start_the_oldest_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elders, "ELDERS_LANES_MAX", 1)
    harness = Harness()
    harness.machine = Machine()
    harness.run("declare q=q max_length=3 overflow=dead_letter_oldest")
    for number in range(3):
        harness.run(f"publish task=t{number} m{number}")
    harness.machine.save()
    harness.run("crash")
    harness.run("wait 30s")
    harness.run("publish task=t9 m9")
    dead = [run.lane.task for run, _ in harness.machine.core.state.queues["q.dead"].waiting()]
    assert dead == ["t0"]
