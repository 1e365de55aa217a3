"""The client against a real broker: threads, forks and event loops, while the broker is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from types import ModuleType

import pytest

from e2e.daemon import Daemon, until
from e2e.fleet import load_tasks
from e2e.talker import Talker
from qclient.serialization import decode_call, encode_result

pytestmark = pytest.mark.e2e

THREADS = 8
EACH = 60


@pytest.fixture
def tasks(broker: Daemon) -> ModuleType:
    """The ledger's application, with time enough for a restart of the broker."""
    found = load_tasks(broker)
    found.app.conf.broker_timeout_s = 30.0
    return found


def marks_in(broker: Daemon) -> Counter[str]:
    """The marks of all tasks that wait in the queue, each as often as it is there."""
    talker = broker.connect()
    count = talker.queue("default")["ready"]
    talker.consume("default", credit=10_000)
    return Counter(mark_of(talker) for _ in range(count))


def mark_of(talker: Talker) -> str:
    message = talker.receive().message
    args, _ = decode_call(message.content, message.body)
    return str(args[0])


def test_eight_threads_share_a_connection_through_a_crash(
    broker: Daemon, tasks: ModuleType
) -> None:
    """Every call of every thread returns, and its task is there once, whenever the kill fell."""
    begun, ids = threading.Semaphore(0), []

    def send(name: str) -> None:
        for number in range(EACH):
            ids.append(tasks.note.delay(f"{name}-{number}").id)
            begun.release()

    threads = [threading.Thread(target=send, args=(f"t{n}",)) for n in range(THREADS)]
    with tasks.app:
        for thread in threads:
            thread.start()
        for _ in range(THREADS * EACH // 3):
            assert begun.acquire(timeout=30)
        assert len(ids) < THREADS * EACH, "the kill comes too late to show anything"
        broker.restart()
        for thread in threads:
            thread.join(60)
    assert len(set(ids)) == THREADS * EACH
    expected = {f"t{n}-{number}": 1 for n in range(THREADS) for number in range(EACH)}
    assert marks_in(broker) == expected


def test_an_event_loop_goes_on_through_a_crash(broker: Daemon, tasks: ModuleType) -> None:
    """Hundred calls under way at once in asyncio: all return, all are there once."""

    async def story() -> None:
        calls = [tasks.note.delay_async(f"a-{number}") for number in range(100)]
        first = asyncio.gather(*calls)
        broker.kill()
        loop = asyncio.get_running_loop()
        await asyncio.gather(first, loop.run_in_executor(None, broker.start))
        await tasks.app.send_many_async(tasks.note.s(f"b-{number}") for number in range(2_000))
        await tasks.app.close_async()

    asyncio.run(story())
    expected = {f"a-{number}": 1 for number in range(100)}
    assert marks_in(broker) == expected | {f"b-{number}": 1 for number in range(2_000)}


def test_an_atomic_send_of_small_calls_is_cut_by_their_number(
    broker: Daemon, tasks: ModuleType
) -> None:
    """So many fit a frame by their bytes, but not by their number."""
    marks = [str(number) for number in range(1_200)]
    with tasks.app:
        assert len(tasks.app.send_many(map(tasks.note.s, marks), atomic=True)) == len(marks)
    assert marks_in(broker) == dict.fromkeys(marks, 1)


def test_a_result_is_awaited_through_a_crash(broker: Daemon, tasks: ModuleType) -> None:
    """Those who wait for a result get it, though the broker that they asked has died."""

    async def story() -> str:
        try:
            result = await tasks.echo.delay_async("hello")
            waiting = asyncio.ensure_future(result.get_async(timeout=60))
            in_thread = asyncio.get_running_loop().run_in_executor
            await in_thread(None, broker.restart)
            assert not waiting.done()
            await in_thread(None, run_one, broker.connect())
            return str(await waiting)
        finally:
            await tasks.app.close_async()

    assert asyncio.run(story()) == "hello"


def run_one(talker: Talker) -> None:
    """What a worker does with a task that returns its argument."""
    talker.consume("default")
    delivery = talker.receive()
    content, body = delivery.message.content, delivery.message.body
    (value,), _ = decode_call(content, body)
    talker.ack(delivery, result=encode_result("ledger.echo", value, content), content=content)


def test_a_forked_child_is_a_producer_of_its_own(broker: Daemon, tasks: ModuleType) -> None:
    """Parent and child send at the same time after a fork; nobody's tasks are taken for resends."""
    with tasks.app:
        tasks.note.delay("before")
        pid = os.fork()
        if pid == 0:
            os._exit(send_in_child(tasks))
        for number in range(50):
            tasks.note.delay(f"parent-{number}")
        until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), "the child")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        # And the parent's connection was not the child's to close
        tasks.note.delay("after")
    names = [f"{who}-{number}" for who in ("parent", "child") for number in range(50)]
    assert marks_in(broker) == dict.fromkeys(["before", "after", *names], 1)


def send_in_child(tasks: ModuleType) -> int:
    signal.alarm(60)
    try:
        for number in range(50):
            tasks.note.delay(f"child-{number}")
    except BaseException as error:
        os.write(2, f"the child: {error!r}\n".encode())
        return 1
    return 0
