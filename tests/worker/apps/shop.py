"""The application that the worker's tests run. Tasks leave marks in a file: what, when, who."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from qclient import App, Ignore, Reject, SoftCancelled

app = App("shop", broker=os.environ["SHOP_BROKER"])
app.conf.task_default_queue = os.environ["SHOP_QUEUE"]
MARKS = os.environ["SHOP_MARKS"]
GATES = Path(os.environ["SHOP_GATES"])


def mark(*words):
    """A line in the marks file, in one write."""
    fd = os.open(MARKS, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def wait_for_gate(name, timeout_s=30.0):
    """Returns once the test has opened the gate."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (GATES / name).exists():
        assert time.monotonic() < deadline, f"nobody opened the gate {name}"
        pause.wait(0.005)


@app.task
def add(a, b):
    return a + b


@app.task(ignore_result=True)
def note(word):
    mark("note", word, os.getpid())


@app.task
def held(gate):
    mark("began", gate, os.getpid())
    wait_for_gate(gate)
    mark("ended", gate, os.getpid())
    return gate


@app.task
def boom(text):
    inner(text)


def inner(text):
    raise ValueError(text)


@app.task(bind=True, max_retries=3)
def third_time(self):
    mark("try", self.request.retries)
    if self.request.retries < 2:
        raise self.retry(exc=RuntimeError("not yet"), countdown=0.02)
    return self.request.retries


@app.task(autoretry_for=(KeyError,), max_retries=1, default_retry_delay=0.02)
def by_itself(name):
    mark("try", name)
    if name == "key":
        raise KeyError(name)
    raise ValueError(name)


@app.task(bind=True)
def other_arguments(self, number):
    if number < 3:
        raise self.retry(args=(number + 1,), countdown=0)
    return number


@app.task
def ignored():
    raise Ignore


@app.task
def rejected():
    raise Reject("not for us")


@app.task(bind=True)
def given_back(self):
    mark("try", self.request.deliveries)
    if self.request.deliveries < 3:
        raise Reject(requeue=True)
    return self.request.retries


@app.task
def unsendable():
    return object()


@app.task
def leaves(how):
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    raise MemoryError("no room")


@app.task(bind=True)
def dies(self, how):
    mark("died", os.getpid(), self.request.crashes)
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)  # tidy: it is the task's work


@app.task(acks="early")
def once(how):
    mark("once", how)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return how


@app.task(bind=True)
def describe(self, *args, **kwargs):
    request = self.request
    return {
        "id": request.id,
        "task": request.task,
        "args": request.args,
        "kwargs": request.kwargs,
        "retries": request.retries,
        "deliveries": request.deliveries,
        "queue": request.queue,
        "hostname": request.hostname,
        "headers": request.headers,
        "root": request.root_id,
        "parent": request.parent_id,
        "priority": request.priority,
        "info": request.delivery_info,
    }


@app.task
def parent():
    return describe.delay().id


@app.task
def waits_for_another(number, how):
    options = {} if how == "refused" else {"disable_sync_subtasks": False}
    result = add.delay(number, 1)
    if how == "asyncio":
        return asyncio.run(result.get_async(timeout=20))
    return result.get(timeout=20, **options)


@app.task
def forks():
    """A copy of the runner comes back from user code; it must not go on as one."""
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"


@app.task
async def coroutine():
    return 1


@app.task
def sleeps(seconds, word=""):
    mark("began", word, os.getpid())
    time.sleep(seconds)  # tidy: it is the task's work
    mark("ended", word, os.getpid())
    return word


@app.task(ignore_result=True)
def short(number):
    mark("short", number, os.getpid(), time.monotonic_ns())


@app.task
def pid():
    return os.getpid()


@app.task
def pid_of(_number):
    return os.getpid()


@app.task
def hog(mib):
    hogged.append(b"x" * (mib * 1024 * 1024))
    return os.getpid()


hogged: list[bytes] = []


@app.task
def big(size):
    return b"x" * size


@app.task
def holds_interpreter(seconds):
    """C code that keeps the interpreter's lock for so long: no other thread runs meanwhile."""
    mark("began", "gil", os.getpid())
    started = time.monotonic()
    # A PyDLL keeps the lock while its functions run, as many C extensions do.
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))
    return time.monotonic() - started


@app.task
def tidies(word):
    mark("began", word, os.getpid())
    try:
        time.sleep(60)  # tidy: it is the task's work
    except SoftCancelled:
        mark("tidied", word, os.getpid())
        raise


@app.task
def deaf(word):
    mark("began", word, os.getpid())
    while True:
        try:
            time.sleep(60)  # tidy: it is the task's work
        except SoftCancelled:
            mark("heard", word, os.getpid())
