"""Runs, lanes and queues against a list: what waits, and in which order it leaves."""

from __future__ import annotations

import sys
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Harness
from qbroker.core import spans
from qbroker.core.gates import Gatekeeper
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.runs import CHUNK_POSITIONS, Run
from qprotocol.options import QueueOptions


def new_queue(lanes: int = 1) -> Queue:
    queue = Queue(0, "q", QueueOptions(oldest_every=0), synced=True)
    for number in range(lanes):
        lane = Lane(number, queue, f"task{number}", b"")
        lane.shelf.place(lane)
    queue.select(None)
    return queue


def take(queue: Queue, limit: int) -> list[tuple[Run, int, int]]:
    return queue.selections[None].take(limit, Gatekeeper(), Now(0, 0))


def taken(queue: Queue, limit: int) -> list[int]:
    return [p for _, first, n in take(queue, limit) for p in range(first, first + n)]


def put(queue: Queue, run: Run, first: int, count: int = 1) -> None:
    run.extend(first, count)
    queue.ready += count
    queue.offer(run, count)


def give_back(queue: Queue, run: Run, position: int, count: int = 1) -> None:
    run.give_back(position, count)
    queue.ready += count
    queue.offer(run, count)


class Twins:
    """A queue that hands out, one that replays what the first did, and a list of what waits."""

    def __init__(self, lanes: int) -> None:
        self.live, self.replayed = new_queue(lanes), new_queue(lanes)
        self.waits: dict[int, tuple[int, int]] = {}
        self.out: dict[int, tuple[int, int]] = {}
        self.next = 1

    def runs(self, lane: int, priority: int) -> list[tuple[Queue, Run]]:
        return [(queue, queue.lanes[lane].run(priority)) for queue in (self.live, self.replayed)]

    def put(self, lane: int, priority: int, count: int, gap: int) -> None:
        self.next += gap
        for queue, run in self.runs(lane, priority):
            put(queue, run, self.next, count)
        self.waits |= {self.next + i: (lane, priority) for i in range(count)}
        self.next += count

    def adopt(self, lane: int, priority: int, count: int) -> None:
        for queue, run in self.runs(lane, priority):
            run.adopt(array("Q", range(self.next, self.next + count)))
            queue.ready += count
            queue.offer(run, count)
        self.waits |= {self.next + i: (lane, priority) for i in range(count)}
        self.next += count

    def take(self, limit: int) -> None:
        best = list(self.live.waiting())[:limit]
        entries = take(self.live, limit)
        got = [(run, p) for run, first, n in entries for p in range(first, first + n)]
        assert got == best, "peek tells the order in which messages leave"
        for run, first, count in entries:
            lane, priority = run.lane.number, run.priority
            self.replayed.lanes[lane].run(priority).remove(first, count)
            self.replayed.less(self.replayed.lanes[lane], count)
        for _, position in got:
            self.out[position] = self.waits.pop(position)

    def remove(self, nth: int) -> None:
        if self.waits:
            position = sorted(self.waits)[nth % len(self.waits)]
            place = self.waits.pop(position)
            self.out[position] = place
            for queue, run in self.runs(*place):
                assert position in run
                run.remove(position, 1)
                queue.less(run.lane, 1)

    def give_back(self, nth: int, most: int) -> None:
        """Some neighbours of one run that are out."""
        if self.out:
            first = sorted(self.out)[nth % len(self.out)]
            place, count = self.out[first], 0
            while count < most and self.out.get(first + count) == place:
                self.waits[first + count] = self.out.pop(first + count)
                count += 1
            for queue, run in self.runs(*place):
                give_back(queue, run, first, count)

    def bury(self, nth: int, lane: int) -> None:
        """One that is out comes to the end of a run, as a dead letter does."""
        if self.out:
            position = sorted(self.out)[nth % len(self.out)]
            _, priority = self.out.pop(position)
            self.waits[position] = lane, priority
            for queue, run in self.runs(lane, priority):
                put(queue, run, position)
            assert [*self.runs(lane, priority)[0][1]][-1] == position

    def replace(self, nth: int, most: int) -> None:
        """A newer one takes the place of one that is out, and goes first."""
        if self.out:
            place = self.out.pop(sorted(self.out)[nth % len(self.out)])
            self.next += most
            for queue, run in self.runs(*place):
                give_back(queue, run, self.next)
            self.waits[self.next] = place
            self.next += 1

    def check(self) -> None:
        order = [position for _, position in self.live.waiting()]
        assert sorted(order) == sorted(self.waits)
        assert order == [position for _, position in self.replayed.waiting()]
        for queue in (self.live, self.replayed):
            assert queue.ready == len(order)
            for lane in queue.lanes:
                for run in lane.runs:
                    assert run.size == len(list(run))
                    assert all(position in run for position in run)
                    assert not any(position in run for position in self.out)
        heads = [run.turn() for lane in self.live.lanes for run in lane.runs if run.size]
        assert self.live.oldest(self.live.shelves.values()) == min(heads, default=0)


numbers = st.integers(0, 5)
steps = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.integers(-1, 1), st.integers(1, 4), numbers),
    st.tuples(st.just("adopt"), st.integers(0, 2), st.integers(-1, 1), st.integers(1, 4)),
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("remove"), numbers),
    st.tuples(st.just("give_back"), numbers, st.integers(1, 4)),
    st.tuples(st.just("replace"), numbers, st.integers(0, 2)),
    st.tuples(st.just("bury"), numbers, st.integers(0, 2)),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=300)
def test_any_story_leaves_each_message_in_one_place_and_replays_the_same(story) -> None:
    twins = Twins(3)
    for verb, *arguments in story:
        getattr(twins, verb)(*arguments)
        twins.check()


def test_what_comes_back_leaves_before_younger_heads_of_other_lanes() -> None:
    queue = new_queue(2)
    a, b = queue.lanes[0].run(0), queue.lanes[1].run(0)
    put(queue, a, 1)
    put(queue, b, 2)
    put(queue, a, 3)
    put(queue, b, 4)
    assert taken(queue, 2) == [1, 2]
    give_back(queue, b, 2)
    give_back(queue, a, 1)
    assert taken(queue, 9) == [1, 2, 3, 4]


def test_what_replaced_a_message_goes_first_and_holds_nobody_up() -> None:
    queue = new_queue(2)
    a, b = queue.lanes[0].run(0), queue.lanes[1].run(0)
    for position, run in enumerate((a, b, a, b, a, b), start=1):
        put(queue, run, position)
    assert taken(queue, 2) == [1, 2]
    give_back(queue, a, 9)  # in the place of 1
    assert [position for _, position in queue.waiting()] == [9, 3, 4, 5, 6]
    assert taken(queue, 9) == [9, 3, 4, 5, 6]


def test_who_comes_back_does_not_bring_its_tasks_next_before_older_ones() -> None:
    """Its task was listed twice meanwhile, and the older entry is not the task's turn."""
    harness = Harness()
    lines = "publish task=t a", "consume credit=1", "publish task=t b", "publish task=u c"
    for line in (*lines, "publish task=t d", "credit 2", "credit 0", "release a"):
        harness.run(line)
    given = "A     Deliver grant=1.3 a@2:2 (deliveries=2), c@4:1"
    assert harness.run("credit 3")[-1] == given


def test_a_batch_that_nobody_hindered_is_one_entry_across_chunks() -> None:
    queue = new_queue()
    run = queue.lanes[0].run(0)
    for first in range(1, 3 * CHUNK_POSITIONS, 1000):
        put(queue, run, first, 1000)
    entries = take(queue, 2 * CHUNK_POSITIONS)
    assert [(first, count) for _, first, count in entries] == [(1, 2 * CHUNK_POSITIONS)]


def test_a_full_chunk_is_never_changed_again() -> None:
    run = new_queue().lanes[0].run(0)
    run.extend(1, CHUNK_POSITIONS)
    chunk = run.chunks[0]
    run.extend(CHUNK_POSITIONS + 1, 1)
    assert len(chunk) == CHUNK_POSITIONS
    assert len(run.chunks) == 2


def test_an_emptied_run_leaves_nothing_behind() -> None:
    queue = new_queue()
    run = queue.lanes[0].run(0)
    put(queue, run, 1, 3)
    give_back(queue, run, 0)
    queue.begin_anew()
    assert run.is_purged
    assert take(queue, 9) == []
    assert queue.oldest(queue.shelves.values()) == 0
    assert queue.selections[None].levels == {}
    put(queue, run.current, 7)
    assert taken(queue, 1) == [7]


def test_neighbours_come_back_around_one_that_kept_its_place() -> None:
    queue = new_queue()
    run = queue.lanes[0].run(0)
    for position in (2, 5, 3):
        put(queue, run, position)
    run.remove(3, 1)
    queue.less(run.lane, 1)
    assert taken(queue, 1) == [2]
    give_back(queue, run, 2, 2)
    assert list(run.given) == [(2, 3)]
    assert taken(queue, 9) == [2, 5, 3]


def test_one_that_left_out_of_order_comes_in_anew_at_the_end() -> None:
    """A dead letter that was claimed and died again, before those in front of it left."""
    queue = new_queue()
    run = queue.lanes[0].run(0)
    for position in (5, 9, 7):
        put(queue, run, position)
    for _ in range(2):
        for position in (9, 7):
            run.remove(position, 1)
            queue.less(run.lane, 1)
        assert [list(run), run.size] == [[5], 1]
        put(queue, run, 9)
        put(queue, run, 7)
        assert [list(run), run.size] == [[5, 9, 7], 3]
    assert taken(queue, 9) == [5, 9, 7]
    assert [run.skipped, len(run.chunks)] == [set(), 0]


def test_a_span_between_two_joins_them() -> None:
    tried = spans.Spans()
    tried.add(1, 3)
    tried.add(5, 6)
    tried.add(3, 5)
    assert list(tried) == [(1, 6)]


span_steps = st.lists(
    st.tuples(st.sampled_from(["add", "cut", "take"]), st.integers(0, 40), st.integers(1, 8))
)


@given(span_steps)
@settings(max_examples=300)
def test_spans_are_a_set_of_positions_in_order(story) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK_SPANS", 4)
        tried, held = spans.Spans(), set()
        for verb, first, count in story:
            if verb == "add" and held.isdisjoint(range(first, first + count)):
                tried.add(first, first + count)
                held.update(range(first, first + count))
            elif verb == "cut":
                stop = tried.cut(first, first + count)
                assert stop == next(
                    p for p in range(first, first + 99) if p not in held or p == first + count
                )
                held.difference_update(range(first, stop))
            elif verb == "take" and held:
                lowest, got = tried.take(count, first)
                assert lowest == min(held)
                assert held.issuperset(range(lowest, lowest + got))
                assert got == 1 or lowest + got <= first
                held.difference_update(range(lowest, lowest + got))
            assert [p for a, b in tried for p in range(a, b)] == sorted(held)
            assert bool(tried) == bool(held)
            assert all((p in tried) == (p in held) for p in range(50))


def test_a_span_costs_16_bytes_wherever_it_goes() -> None:
    tried = spans.Spans()
    for nth in range(20_000):
        tried.add(2 * (nth * 7_919 % 20_000), 2 * (nth * 7_919 % 20_000) + 1)
    columns = [*tried._firsts, *tried._ends]
    assert sum(map(sys.getsizeof, columns)) < 28 * 20_000
    assert max(map(len, columns)) <= spans.BLOCK_SPANS
