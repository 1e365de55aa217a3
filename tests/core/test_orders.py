"""What the scenarios do not show of orders: gaps, limits, and why a message waits."""

from __future__ import annotations

import json

import pytest

from digest import check_places
from harness import Harness, Words
from machine import Machine
from qbroker.core import orders, walking
from qbroker.core.gates import Gate, attach
from qbroker.core.lanes import Lane
from qbroker.core.moment import Now
from qbroker.core.timers import Timers
from qbroker.core.why import by_reason
from qprotocol import frames as f


def told(*lines: str) -> list[str]:
    """What the last line came to."""
    harness = Harness()
    return [harness.run(line) for line in lines][-1]


# --- Walks


def test_a_walk_passes_over_what_was_taken_out_of_the_middle() -> None:
    said = told(
        "publish id=a a",
        "publish id=b b",
        "publish c d",
        "publish id=e e",
        "publish f",
        "cancel id=b",
        "cancel id=e",
        "cancel_many q=q dry",
    )
    assert said == ["A     Ok count=4"]


def test_neighbours_with_a_gap_are_two_spans() -> None:
    harness = Harness()
    for line in ("publish a b c d", "declare q=to", "consume credit=4", "credit 0"):
        harness.run(line)
    for line in ("release d", "release a"):
        harness.run(line)
    assert harness.run("move to=to")[-1] == "A     Ok count=2"
    assert harness.run("move q=to to=q")[-1] == "A     Ok count=2"
    check_places(harness.machine.core.state)


def test_a_chunk_that_was_left_by_moves_has_holes() -> None:
    """One in the middle goes away and comes back: behind the others, and once."""
    harness = Harness()
    for line in ("declare q=to", "publish a b", "publish id=m m", "publish id=z z"):
        harness.run(line)
    for line in ("move to=to id=m", "move q=to to=q", "cancel id=z"):
        harness.run(line)
    (run,) = [run for lane in harness.machine.core.state.lanes for run in lane.runs if run.size]
    assert len(list(run)) == 3
    assert harness.run("cancel_many q=q dry") == ["A     Ok count=3"]
    assert harness.run("cancel_many q=q")[-1] == "A     Ok count=3"
    check_places(harness.machine.core.state)


def test_a_text_that_is_too_long_is_refused() -> None:
    said = told("publish a", f"pause dispatch why={'x' * 1001}")
    assert said == ["A     Error BAD_REQUEST: a reason of 1001 bytes: at most 1000"]


# --- Timers


def test_entries_are_taken_out_of_any_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qbroker.core.timers.LEAF_ENTRIES", 4)
    timers, entries = Timers(), [(due, due, 0) for due in range(10, 30)]
    timers.add(1, entries)
    other = Timers()
    other.add(1, [(due, 1_000 + due, 0) for due in range(2_000)])
    timers.adopt(other)
    gone = [*entries[:5], entries[9], (1, 1, 0), (12, 99, 0)]
    timers.remove(1, gone)
    assert timers.size == 2_000 + 14
    timers.remove(2, gone)
    left = [each for each in entries if each not in gone]
    assert timers.after(1, (14, 0), 3) == [(14, 1014, 0), left[0], (15, 1015, 0)]
    timers.remove(1, left)
    assert timers.size == 2_000
    assert timers.due_of(1, 1_500, 1_000) == 500
    assert timers.due_of(1, 1_500, 1) == 0
    assert timers.due_of(1, 7, 1_000) == 0
    assert [due for due, _, _ in timers.pop(3)] == [0, 1, 2]


# --- Why


class Shut(Gate):
    """Lets nothing through."""

    reason = "shut"

    def room(self, _lane: Lane, _now: Now) -> int:
        return 0

    def charge(self, _lane: Lane, _count: int, _wall_ms: int) -> None:
        """It counts nothing."""

    def credit(self, _lane: Lane, _count: int) -> None:
        """It counts nothing."""


class Later(Shut):
    """Opens in a second."""

    def opens_ms(self, _lane: Lane, now: Now) -> int:
        return now.mono_ms + 1_000


def why(machine: Machine, task_id: str) -> list[dict[str, object]]:
    peer = machine.connect()
    hello = f.Hello(correlation=1, protocol=1, role="admin", client_id="t")
    machine.submit(peer, hello)
    machine.submit(peer, f.Why(id=task_id, correlation=2))
    machine.settle()
    report = peer.received[-1]
    assert isinstance(report, f.Report)
    return json.loads(report.raw)["reasons"]


def test_a_limit_says_what_it_is_and_when_there_may_be_room() -> None:
    harness = Harness()
    harness.run("publish id=a task=t a")
    machine = harness.machine
    (lane,) = machine.core.state.lanes
    attach(lane, (Shut(),))
    harness.run("consume c=W")
    assert why(machine, "a") == [{"reason": "shut", "opens_in_ms": None, "leased": 0}]
    attach(lane, (Later(),))
    machine.settle()
    assert why(machine, "a") == [{"reason": "shut", "opens_in_ms": 1_000, "leased": 0}]


def test_a_limit_names_itself_its_key_and_what_is_taken() -> None:
    harness = Harness()
    for line in (
        "limit slots q=q per_key concurrency=2",
        "limit pace q=p rate=1/h",
        "publish limit_key=anna weight=2 x",
        "publish limit_key=anna weight=2 id=a y",
        "publish q=p z",
        "publish q=p id=b z",
        "consume c=W q=q,p credit=9",
    ):
        harness.run(line)
    machine = harness.machine
    assert why(machine, "a")[0] == {
        "reason": "limit",
        "limit": "slots",
        "key": "anna",
        "opens_in_ms": None,
        "leased": 1,
        "slots": 2,
        "slots_used": 2,
        "weight": 2,
    }
    row = why(machine, "b")[0]
    assert 0 < row.pop("opens_in_ms") <= 3_600_000
    assert row == {"reason": "limit", "limit": "pace", "key": "", "leased": 1}


def test_a_task_that_nobody_knows_and_one_that_goes_at_once() -> None:
    harness = Harness()
    harness.run("publish id=a task=t a")
    harness.run("consume c=W credit=5")
    machine = harness.machine
    state = machine.core.state
    harness.run("publish id=b task=t b")
    (consumer,) = state.consumers.values()
    queue = state.queues["q"]
    queue.deselect(None)
    consumer.known = frozenset(("other",))
    queue.select(consumer.known)
    harness.run("publish id=c task=t c")
    assert why(machine, "c") == [{"reason": "no_worker_knows", "task": "t", "consumers": 1}]
    queue.deselect(consumer.known)
    consumer.known = None
    queue.select(None)
    assert why(machine, "c") == [], "the next turn looks at it once it is stirred"


def test_an_order_under_way_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "ORDER_WORK_MAX", 1)
    monkeypatch.setattr(walking, "SWEEP_STEP", 1)
    harness = Harness()
    harness.run("publish id=a a")
    harness.run("publish b c d")
    machine = harness.machine
    peer = machine.connect()
    machine.submit(peer, f.Hello(correlation=1, protocol=1, role="admin", client_id="t"))
    machine.settle()
    machine.submit(peer, f.CancelMany(queue="q", dry_run=True, correlation=2))
    machine.submit(peer, f.Why(id="a", correlation=3))
    machine.turn()
    machine.begin_write()
    machine.write()
    machine.settle()
    reports = [json.loads(each.raw) for each in peer.received if isinstance(each, f.Report)]
    assert [row["reason"] for row in reports[0]["reasons"]] == ["large_order", "no_consumer"]


def test_messages_are_counted_by_what_they_wait_for() -> None:
    harness = Harness()
    harness.run("publish a b")
    harness.run("publish in=1h c")
    harness.run("consume c=W credit=0")
    (queue,) = harness.machine.core.statistics().queues
    assert queue.waiting == {"due": 1, "consumers_full": 2}


def test_what_goes_in_a_coming_turn_waits_for_nothing() -> None:
    """And what a large order holds back waits for that."""
    harness = Harness()
    harness.run("consume c=W credit=5")
    line, machine = Words.of("publish a"), harness.machine
    frame = harness.publish_frame(line, harness.message(line, "a"))
    machine.core.execute(1, frame, machine.now, machine.append)
    state = machine.core.state
    queue = state.queues["q"]
    assert queue.ready == 1
    assert by_reason(state, queue, queue.shelves.values()) == {}
    queue.held += 1
    assert by_reason(state, queue, queue.shelves.values()) == {"large_order": queue.ready}


def test_neighbours_one_of_which_is_gone_are_two_spans() -> None:
    harness = Harness()
    harness.run("publish a b c d")
    state = harness.machine.core.state
    run = state.lanes[0].run(0)
    state.withdraw(run, run.turn() + 2)
    assert harness.run("cancel_many q=q dry") == ["A     Ok count=3"]


def test_a_purge_ends_a_walk_of_what_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "ORDER_WORK_MAX", 5)
    monkeypatch.setattr(walking, "SWEEP_STEP", 1)
    harness = Harness()
    for line in ("publish a b c d e f", "consume c=W credit=6", "disconnect c=W"):
        harness.run(line)
    machine = harness.machine
    peer = machine.connect()
    machine.submit(peer, f.Hello(correlation=1, protocol=1, role="admin", client_id="t"))
    machine.settle()
    machine.submit(peer, f.CancelMany(queue="q", correlation=2))
    machine.turn()
    machine.submit(peer, f.Purge(queue="q", correlation=3))
    machine.settle()
    done = {each.correlation: each.count for each in peer.received if isinstance(each, f.Ok)}
    assert done[2] + done[3] == 6
    assert min(done.values()) > 0
    assert check_places(machine.core.state) == {}


def test_a_limit_that_has_room_is_no_reason() -> None:
    class Wide(Shut):
        def room(self, _lane: Lane, _now: Now) -> int:
            return 5

    harness = Harness()
    harness.run("publish id=a task=t a")
    attach(harness.machine.core.state.lanes[0], (Wide(),))
    assert why(harness.machine, "a") == [{"reason": "no_consumer"}]
