"""What only processes can do: limits, recycling, sharing what is in hand, surviving deaths."""

from __future__ import annotations

import os
import signal
import time

import pytest

from qclient import TaskFailure
from worker.workshop import Workshop, alive, until


def test_a_soft_limit_raises_inside_the_task(prefork: Workshop):
    """The task may clean up and return; one that is in time notices nothing."""
    prefork.worker("-c", "1", app="limits")
    assert limited(prefork, "soft", 30).get(timeout=10) == "cleaned up"
    assert limited(prefork, "soft", 0).get(timeout=10) == "in time"


def limited(shop: Workshop, name: str, *args, **options):
    """A task of the limits application is sent."""
    return shop.app.send_task(f"limits.{name}", args, queue=shop.queue, **options)


def test_a_hard_limit_kills_the_child_and_fails_the_task(prefork: Workshop):
    """TimeLimitExceeded comes at once, counts as a failure and not as a crash."""
    worker = prefork.worker("-c", "1", app="limits")
    with pytest.raises(TaskFailure) as caught:
        limited(prefork, "hard").get(timeout=10)
    assert caught.value.kind == "TimeLimitExceeded"
    assert len(prefork.marks("hard")) == 1
    assert "hard time limit of limits.hard[" in worker.log
    assert "counted as a crash" not in worker.log
    assert prefork.call("add", 1, 1) == 2


def test_limits_of_the_worker_and_of_a_call(prefork: Workshop):
    """--time-limit holds for tasks that say nothing; a call may say otherwise."""
    prefork.worker("-c", "1", "--time-limit", "0.5")
    with pytest.raises(TaskFailure, match="over its hard time limit"):
        prefork.call("sleeps", 60)
    assert prefork.call("sleeps", 0.8, "longer", time_limit=30) == "longer"
    with pytest.raises(TaskFailure, match="the soft time limit of this task has passed"):
        prefork.call("sleeps", 60, soft_time_limit=0.2)


def test_a_limit_never_hits_the_next_task(prefork: Workshop):
    """Tasks that end just around their soft limit: each result is its own."""
    prefork.worker("-c", "1", "--soft-time-limit", "0.21")
    handles = [prefork.send("sleeps", 0.2 + i / 500, f"t{i}") for i in range(8)]
    for number, handle in enumerate(handles):
        try:
            assert handle.get(timeout=15) == f"t{number}"
        except TaskFailure as failure:
            assert failure.kind.endswith("SoftTimeLimitExceeded")  # noqa: PT017 - either is right
    assert prefork.call("add", 1, 1) == 2


def test_children_are_recycled_after_so_many_tasks(prefork: Workshop):
    """--max-tasks-per-child: a new process every three tasks, and none is lost between."""
    prefork.worker("-c", "1", "--max-tasks-per-child", "3")
    pids = [handle.get(timeout=15) for handle in [prefork.send("pid") for _ in range(9)]]
    assert sorted(pids.count(pid) for pid in set(pids)) == [3, 3, 3]


def test_a_child_over_its_memory_is_recycled_after_its_task(prefork: Workshop):
    """--max-memory-per-child: the task ends, the child ends, another takes its place."""
    worker = prefork.worker("-c", "1", "--max-memory-per-child", "100MB")
    large = prefork.call("hog", 120)
    worker.wait_for("another takes its place")
    until(lambda: not alive(large), "the large child ends")
    assert prefork.call("pid") != large


def test_no_idle_child_waits_while_another_hoards(prefork: Workshop):
    """One child runs a 3 s task with short ones behind it: the other child gets them."""
    prefork.worker("-c", "2", "-l", "DEBUG")
    # Given two children that were busy with short tasks, and so fetch many at once
    prefork.app.send_many(
        [prefork.app.signature("shop.short", (i,), queue=prefork.queue) for i in range(500)]
    )
    until(lambda: len(prefork.marks("short")) == 500, "the short tasks run")
    # When a long task comes with many short ones behind it
    began = time.monotonic_ns()
    calls = [prefork.app.signature("shop.sleeps", (3.0, "long"), queue=prefork.queue)]
    calls += [
        prefork.app.signature("shop.short", (i,), queue=prefork.queue) for i in range(500, 900)
    ]
    prefork.app.send_many(calls)
    # Then all short ones have run long before it ends
    until(lambda: len(prefork.marks("short")) == 900, "the short ones run")
    assert not [mark for mark in prefork.marks("ended") if mark[0] == "long"]
    last = max(int(mark[2]) for mark in prefork.marks("short"))
    assert (last - began) / 1e9 < 2.0


def test_settlements_do_not_wait_for_the_end_of_a_long_task(prefork: Workshop):
    """The result of a short task is there while the long one behind it still runs."""
    prefork.worker("-c", "1")
    first = prefork.send("held", "first")
    prefork.wait_for_mark("began", "first")
    second = prefork.send("add", 1, 2)
    prefork.send("held", "second")
    prefork.open_gate("first")
    assert first.get(timeout=5) == "first"
    assert second.get(timeout=5) == 3
    prefork.wait_for_mark("began", "second")
    prefork.open_gate("second")


def test_c_code_that_holds_the_interpreter_keeps_its_lease(make_broker, workshop):
    """The child is deaf for longer than a session may be silent; the parent speaks for it."""
    broker = make_broker("--session-timeout-ms", "1200", "--heartbeat-ms", "200")
    shop = workshop(broker)
    shop.worker("-c", "1")
    assert shop.call("holds_interpreter", 3) > 2.4
    assert len(shop.marks("began")) == 1


def test_a_running_task_can_be_revoked_with_its_process(prefork: Workshop):
    """revoke(terminate=True) kills the child that runs the task, and nothing else of it."""
    worker = prefork.worker("-c", "1")
    handle = prefork.send("held", "never")
    mark = prefork.wait_for_mark("began", "never")
    handle.revoke(terminate=True)
    until(lambda: not alive(int(mark[2])), "the child is killed")
    assert handle.state == "REVOKED"
    assert prefork.call("add", 1, 1) == 2
    assert "was revoked" in worker.log
    assert len(prefork.marks("began")) == 1


def test_a_running_task_that_is_revoked_with_grace_is_asked_first(prefork: Workshop):
    """SoftCancelled is raised in it; a task that will not hear is killed after the grace."""
    worker = prefork.worker("-c", "1")
    tidies = prefork.send("tidies", "tidies")
    mark = prefork.wait_for_mark("began", "tidies")
    tidies.revoke(terminate=True, grace=30)
    prefork.wait_for_mark("tidied", "tidies")
    assert tidies.state == "REVOKED"
    assert prefork.call("add", 1, 1) == 2
    assert alive(int(mark[2])), "it ended by itself"
    deaf = prefork.send("deaf", "deaf")
    mark = prefork.wait_for_mark("began", "deaf")
    deaf.revoke(terminate=True, grace=0.3)
    prefork.wait_for_mark("heard", "deaf")
    until(lambda: not alive(int(mark[2])), "the child is killed")
    assert "asked to stop" in worker.log


def test_a_waiting_task_that_is_revoked_never_begins(prefork: Workshop):
    """Also one that a child has in hand already."""
    prefork.worker("-c", "1")
    first = prefork.send("held", "first")
    prefork.wait_for_mark("began", "first")
    revoked = [prefork.send("note", "revoked") for _ in range(3)]
    for handle in revoked:
        handle.revoke()
    prefork.open_gate("first")
    assert first.get(timeout=10) == "first"
    assert prefork.call("add", 1, 1) == 2
    assert prefork.marks("note") == []


def test_the_import_process_may_die(prefork: Workshop):
    """It takes its children along; all come back, and the task they ran runs again."""
    worker = prefork.worker("-c", "1")
    handle = prefork.send("held", "gate")
    mark = prefork.wait_for_mark("began", "gate")
    importer = next(pid for pid in worker.processes() if pid != int(mark[2]))
    os.kill(importer, signal.SIGKILL)
    worker.wait_for("the import process was killed by SIGKILL")
    prefork.open_gate("gate")
    assert handle.get(timeout=15) == "gate"


def test_an_idle_child_that_is_killed_is_replaced(prefork: Workshop):
    """Its death is told, and its place is taken."""
    worker = prefork.worker("-c", "1")
    before = prefork.call("pid")
    os.kill(before, signal.SIGKILL)
    worker.wait_for("was killed by SIGKILL (9) while idle")
    assert prefork.call("pid") != before


def test_tasks_finished_before_a_crash_do_not_run_again(prefork: Workshop):
    """Short tasks without results and a deadly one in one batch: each ran once."""
    prefork.worker("-c", "1")
    options = {"queue": prefork.queue, "ignore_result": True}
    calls = [prefork.app.signature("shop.note", (i,), **options) for i in range(50)]
    calls.append(prefork.app.signature("shop.dies", ("SIGKILL",), queue=prefork.queue))
    handles = prefork.app.send_many(calls)
    with pytest.raises(TaskFailure):
        handles[-1].get(timeout=20)
    words = [int(word) for word, _pid in prefork.marks("note")]
    assert sorted(words) == list(range(50))


def test_the_broker_on_the_command_line_is_that_of_the_tasks_too(workshop, make_broker):
    """--broker: what tasks send goes there, whatever the application says."""
    there, nowhere = make_broker(), make_broker()
    shop = workshop(there)
    shop.worker("-c", "1", "-b", there.url, broker=nowhere.url)
    nowhere.kill()
    child = shop.call("parent")
    assert shop.app.AsyncResult(child).get(timeout=10)["id"] == child


def test_the_broker_may_come_late(workshop, make_broker):
    """A worker started before its broker waits for it, and works once it is there."""
    broker = make_broker()
    broker.kill()
    shop = workshop(broker)
    worker = shop.worker("-c", "1", ready=False)
    worker.wait_for("no session")
    broker.start()
    assert shop.call("add", 1, 1) == 2


def test_a_worker_without_a_broker_ends_on_sigterm(workshop, make_broker):
    """Nobody has to kill -9 a worker that waits for its broker."""
    broker = make_broker()
    shop = workshop(broker)
    broker.kill()
    worker = shop.worker("-c", "1", ready=False)
    worker.wait_for("no session")
    assert worker.stop() == 0
