"""What every pool does alike, tried in each: outcomes, retries, requests, crashes, endings."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest

from qclient import App, TaskFailure
from qclient.link import Link
from qprotocol.frames import Publish, Published
from qprotocol.message import Message
from worker.workshop import PATIENCE_S, Workshop, alive, until


def test_a_result_comes_back(shop: Workshop):
    """A task runs, and its result is the caller's."""
    shop.worker()
    assert shop.call("add", 2, 3) == 5


def test_many_tasks_run_once_each(shop: Workshop):
    """A thousand calls are a thousand runs, however they are fetched and settled."""
    shop.worker("-l", "WARNING", ready=False)
    calls = [shop.app.signature("shop.note", (i,), queue=shop.queue) for i in range(1000)]
    shop.app.send_many(calls)
    until(lambda: len(shop.marks("note")) >= 1000, "a thousand runs")
    shop.call("add", 1, 1)
    assert sorted(int(word) for word, _ in shop.marks("note")) == list(range(1000))


def test_a_failure_comes_back_as_data(shop: Workshop):
    """The caller gets the error's kind, its text and a traceback that begins in user code."""
    worker = shop.worker()
    with pytest.raises(ValueError, match="no such size") as caught:
        shop.call("boom", "no such size")
    assert isinstance(caught.value, TaskFailure)
    assert "in boom" in caught.value.traceback
    assert "in inner" in caught.value.traceback
    assert "qworker" not in caught.value.traceback
    assert 'error="ValueError: no such size"' in worker.log
    assert shop.call("add", 1, 1) == 2


def test_a_task_that_asks_for_a_retry_runs_again(shop: Workshop):
    """self.retry counts failures, and the third run's result is the task's."""
    shop.worker()
    assert shop.call("third_time") == 2
    assert shop.marks("try") == [["0"], ["1"], ["2"]]


def test_only_declared_errors_are_retried(shop: Workshop):
    """autoretry_for retries what it names, max_retries times; anything else is final."""
    shop.worker()
    with pytest.raises(KeyError):
        shop.call("by_itself", "key")
    with pytest.raises(ValueError, match="value"):
        shop.call("by_itself", "value")
    assert shop.marks("try") == [["key"], ["key"], ["value"]]


def test_a_retry_may_bring_other_arguments(shop: Workshop):
    """The same task id runs again with the arguments that self.retry was given."""
    shop.worker()
    assert shop.call("other_arguments", 1) == 3


def test_ignored_rejected_and_given_back(shop: Workshop):
    """Ignore is done without a result, Reject a dead letter, requeue another delivery."""
    worker = shop.worker("-c", "1")
    shop.send("ignored")
    worker.wait_for("task ignored name=shop.ignored")
    with pytest.raises(TaskFailure):
        shop.call("rejected")
    assert shop.call("given_back") == 0
    assert shop.marks("try") == [["1"], ["2"], ["3"]]


def test_an_unknown_task_waits_for_a_worker_that_knows_it(shop: Workshop):
    """A rolling deploy: tasks of the new code wait for it, and keep nobody behind them waiting."""
    shop.worker()
    waits = shop.send("later", 4)
    assert shop.call("add", 1, 2) == 3
    assert waits.state == "QUEUED"
    assert shop.waits() == {"no_worker_knows": 1}
    shop.worker(app="newer")
    assert waits.get(timeout=PATIENCE_S) == 5
    assert shop.waits() == {}


def test_two_workers_that_know_different_tasks_share_a_queue(prefork: Workshop):
    """Nobody gets what it does not know, whoever comes first in the queue."""
    prefork.worker()
    prefork.worker(app="newer")
    handles = []
    for number in range(20):
        handles += [prefork.send("later", number), prefork.send("add", number, 1)]
    assert [each.get(timeout=PATIENCE_S) for each in handles[::2]] == list(range(1, 21))
    assert [each.get(timeout=PATIENCE_S) for each in handles[1::2]] == list(range(1, 21))


def test_a_body_that_cannot_be_decoded_fails_its_task_alone(shop: Workshop):
    """Garbage in a body is a failure of that message; the worker goes on."""
    shop.worker()
    handle = shop.send("add", 1, 1, countdown=3600)
    bad = Message(shop.queue, b"\xc1\xc1", id=f"garbage-{shop.queue}", task="shop.add", content=1)
    publish(shop, bad)
    with pytest.raises(TaskFailure, match="cannot be decoded"):
        shop.app.AsyncResult(bad.id).get(timeout=10)
    assert shop.call("add", 1, 1) == 2
    handle.revoke()


def publish(shop: Workshop, message: Message) -> None:
    """A message of any bytes is in the queue."""
    link = Link.open(shop.app.address, shop.app.hello(), timeout_s=5)
    producer = secrets.randbits(64)
    link.send(Publish(producer=producer, sequence=1, count=1, raw=message.pack(), correlation=5))
    frames = until(lambda: link.receive(1.0), "the broker's answer")
    assert isinstance(frames[0], Published)
    link.close()


def test_a_plain_message_is_set_aside(shop: Workshop):
    """What is not a task goes to the dead letters with a reason, and stops nothing."""
    worker = shop.worker()
    publish(shop, Message(shop.queue, b"hello"))
    worker.wait_for("it is a plain message")
    assert shop.call("add", 1, 1) == 2


def test_a_result_that_cannot_be_sent_is_a_failure_that_says_so(shop: Workshop):
    """The caller learns which class the task returned."""
    shop.worker()
    with pytest.raises(TypeError, match="the result of shop.unsendable: an object of class object"):
        shop.call("unsendable")


def test_a_result_over_the_brokers_limit_is_a_failure_that_says_so(shop: Workshop):
    """A refused settlement becomes the task's failure; others of its batch are not harmed."""
    shop.worker()
    assert len(shop.call("big", 900_000)) == 900_000
    with pytest.raises(TaskFailure):
        shop.call("big", 3_000_000)
    assert shop.call("add", 1, 1) == 2


@pytest.mark.parametrize("how", ["exit", "interrupt", "memory"])
def test_a_task_cannot_end_its_child_by_an_exception(shop: Workshop, how):
    """SystemExit, KeyboardInterrupt and MemoryError are failures of the task; the child lives."""
    shop.worker("-c", "1")
    before = shop.call("pid")
    with pytest.raises(TaskFailure):
        shop.call("leaves", how)
    assert shop.call("pid") == before


def test_an_async_function_is_refused_by_name(shop: Workshop):
    """No pool here awaits; the failure says so instead of a coroutine never awaited."""
    shop.worker()
    with pytest.raises(TypeError, match="shop.coroutine is an async function"):
        shop.call("coroutine")


def test_a_task_sees_its_request(shop: Workshop):
    """self.request has what Celery's has, in our words."""
    shop.worker("-n", "alice@%n")
    handle = shop.send("describe", 1, priority=7, headers={"tenant": "t1"})
    seen = handle.get(timeout=10)
    assert seen["id"] == seen["root"] == handle.id
    assert seen["parent"] == ""
    assert (seen["task"], seen["args"], seen["kwargs"]) == ("shop.describe", (1,), {})
    assert (seen["retries"], seen["deliveries"], seen["priority"]) == (0, 1, 7)
    assert seen["queue"] == seen["info"]["routing_key"] == shop.queue
    assert seen["hostname"].startswith("alice@")
    assert seen["headers"] == {"tenant": "t1"}


def test_a_task_sent_by_a_task_knows_its_parent(shop: Workshop):
    """Root and parent ids follow the tree of calls."""
    shop.worker("-c", "1")
    above = shop.send("parent")
    seen = shop.app.AsyncResult(above.get(timeout=10)).get(timeout=10)
    assert seen["parent"] == seen["root"] == above.id


def test_a_forked_copy_of_the_runner_does_not_go_on(shop: Workshop):
    """A task that forks and returns in both processes is one task with one result."""
    worker = shop.worker("-c", "1")
    assert shop.call("add", 1, 1) == 2  # so the runner is there: a worker is ready before it
    family = worker.processes()
    assert shop.call("forks") == "parent"
    assert shop.call("add", 1, 1) == 2
    assert worker.processes() == family


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
def test_a_task_that_kills_its_process_is_set_aside_after_three(shop: Workshop, how):
    """Each death is told with its signal or exit code, counted, and the third is the last."""
    worker = shop.worker("-c", "1")
    with pytest.raises(TaskFailure) as caught:
        shop.call("dies", how)
    code = {"exit": "exited with code 7", "SIGKILL": "SIGKILL (9)", "SIGSEGV": "SIGSEGV (11)"}[how]
    assert code in str(caught.value)
    assert "while running shop.dies[" in str(caught.value)
    assert [crashes for _pid, crashes in shop.marks("died")] == ["0", "1", "2"]
    assert worker.log.count("counted as a crash") == 3
    assert shop.call("add", 1, 1) == 2


def test_an_early_acked_task_runs(shop: Workshop):
    """acks="early" has a result like any other."""
    shop.worker()
    assert shop.call("once", "through", acks="early") == "through"


def test_an_early_acked_task_never_runs_twice(shop: Workshop):
    """Its worker dies: that is the end of it. By the caller's word or the task's alone."""
    shop.worker("-c", "1")
    for options in ({"acks": "early"}, {}):
        with pytest.raises(TaskFailure):
            shop.call("once", "die", **options)
    assert shop.marks("once") == [["die"], ["die"]]


def test_sigterm_lets_the_running_task_finish_and_returns_the_others(shop: Workshop):
    """Warm shutdown: exit code 0, one result, and what was prefetched runs elsewhere at once."""
    worker = shop.worker("-c", "1")
    running = shop.send("held", "gate")
    shop.wait_for_mark("began", "gate")
    waiting = [shop.send("add", i, i) for i in range(5)]
    worker.signal(signal.SIGTERM)
    worker.wait_for("draining")
    other = shop.worker("-c", "1")
    assert [handle.get(timeout=10) for handle in waiting] == [0, 2, 4, 6, 8]
    assert worker.process.poll() is None
    shop.open_gate("gate")
    assert running.get(timeout=10) == "gate"
    assert worker.exit_code() == 0
    assert shop.marks("began") == [["gate", shop.marks("ended")[0][1]]]
    assert other.stop() == 0


def test_a_task_over_the_shutdown_timeout_goes_back_uncounted(shop: Workshop):
    """Drain has a deadline: the task runs again elsewhere, and it is no crash of its."""
    worker = shop.worker("-c", "1", "--shutdown-timeout", "0.3")
    handle = shop.send("held", "gate")
    shop.wait_for_mark("began", "gate")
    assert worker.stop() == 3
    assert "counted as a crash" not in worker.log
    shop.open_gate("gate")
    shop.worker("-c", "1")
    assert handle.get(timeout=10) == "gate"


def test_a_second_signal_ends_the_worker_at_once(shop: Workshop):
    """Cold shutdown: the task goes back, nothing is left behind."""
    worker = shop.worker("-c", "1")
    shop.send("held", "gate")
    shop.wait_for_mark("began", "gate")
    family = worker.processes()
    worker.signal(signal.SIGINT)
    worker.wait_for("draining")
    assert worker.stop(signal.SIGINT) == 3
    until(lambda: not any(map(alive, family)), "all processes end")


def test_an_idle_worker_ends_at_once(shop: Workshop):
    """No task runs: SIGINT is exit code 0, with all connections said goodbye to."""
    worker = shop.worker()
    shop.call("add", 1, 1)
    assert worker.stop(signal.SIGINT) == 0


def test_killing_the_parent_ends_every_process_and_the_task_runs_elsewhere(make_broker, workshop):
    """kill -9 of the parent: children die with it, its session times out, the task returns."""
    broker = make_broker("--session-timeout-ms", "1000", "--heartbeat-ms", "300")
    for pool in ("prefork", "threads", "solo"):
        shop = workshop(broker, pool)
        worker = shop.worker("-c", "1")
        handle = shop.send("held", "gate")
        shop.wait_for_mark("began", "gate")
        family = worker.processes()
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda family=family: not any(map(alive, family)), "all processes end")
        shop.open_gate("gate")
        shop.worker("-c", "1")
        assert handle.get(timeout=15) == "gate"


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("victim", ["parent", "import process"])
def test_orphans_end_without_the_kernels_help(pool, victim, broker, workshop):
    """Where no signal tells of a parent's death (macOS), processes that run tasks see it."""
    shop = workshop(broker, pool)
    shop.env["PYTHONPATH"] = str(Path(__file__).parent / "orphans")
    worker = shop.worker("-c", "2" if pool != "solo" else "1")
    shop.send("held", "gate")
    began = shop.wait_for_mark("began", "gate")
    (importer, *children) = worker.processes()
    assert int(began[2]) in (importer, *children)
    assert bool(children) == (pool == "prefork")
    # When one is gone that the others live by: the worker's own help is not wanted here
    os.kill(worker.pid, signal.SIGSTOP if victim == "import process" else signal.SIGKILL)
    if victim == "import process":
        os.kill(importer, signal.SIGKILL)
    until(lambda: not any(map(alive, (importer, *children))), "all processes end")
    if victim == "import process":
        os.kill(worker.pid, signal.SIGKILL)


def test_a_running_task_survives_the_brokers_death_and_runs_once(make_broker, workshop):
    """The broker is killed and comes back while a task runs: it runs on, once, to its result."""
    broker = make_broker()
    for pool in ("prefork", "threads", "solo"):
        shop = workshop(broker, pool)
        worker = shop.worker("-c", "1")
        handle = shop.send("held", "gate")
        shop.wait_for_mark("began", "gate")
        waiting = shop.send("add", 20, 22)
        broker.kill()
        worker.wait_for("no session")
        broker.start()
        worker.wait_for("session open")
        shop.open_gate("gate")
        assert handle.get(timeout=15) == "gate"
        assert waiting.get(timeout=15) == 42
        assert len(shop.marks("began")) == 1


@pytest.mark.parametrize("how", ["refused", "asyncio"])
def test_a_task_that_waits_for_another_is_told_before_it_does(shop, how):
    """One child, and two tasks that would need it: the first fails at once, and says why."""
    shop.worker("-c", "1")
    with pytest.raises(TaskFailure, match="would wait for task .* and hold its place in the pool"):
        shop.call("waits_for_another", 1, how)
    until(lambda: shop.call("add", 1, 1) == 2, "the child is free")


def test_a_task_may_wait_for_another_if_it_says_so(prefork):
    """With a child to spare it works."""
    prefork.worker("-c", "2")
    assert prefork.call("waits_for_another", 1, "wanted") == 2


def test_a_queue_that_is_deleted_is_made_anew(shop: Workshop):
    """Somebody deletes the queue of a worker: it says so, and goes on with a new one."""
    worker = shop.worker()
    assert shop.call("add", 2, 3) == 5
    shop.app.queue(shop.queue).delete()
    until(lambda: "queue deleted, and made anew" in worker.log, "the worker hears of it")
    assert shop.call("add", 3, 4) == 7


def test_a_queue_that_is_not_served_is_told_and_asked_for_again(shop: Workshop):
    """It is another's alone: nothing is consumed, and the log says so; then that one goes."""
    owner = App("owner", broker=shop.broker.url, set_as_current=False)
    owner.queue(shop.queue, exclusive=True).declare()
    worker = shop.worker()
    until(lambda: "consumes nothing" in worker.log, "the worker says that it is refused")
    assert "code=QUEUE_LOCKED" in worker.log
    assert "is exclusive, and of another connection or session" in worker.log
    owner.close()
    until(lambda: "consumes again" in worker.log, "it is asked for again")
    assert shop.call("add", 3, 4) == 7
