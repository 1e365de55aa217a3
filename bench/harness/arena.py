"""What a scenario is given: a running broker of one side, workers, tasks and the marks file.

An arena lives in the client's process, which runs on the second CPU with the workers; the broker
runs on the first. Everything it writes is under one directory, which its caller removes.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, cast

from harness.processes import (
    BROKER_CPU,
    CLIENT_CPU,
    STOP_S,
    accepts,
    free_port,
    start,
    stop,
    wait_until,
)
from harness.sides import APPS, Side

_BOOT_S = 30.0
_TASKS_S = 180.0


class Result(Protocol):
    """The part of an AsyncResult that both sides have."""

    def get(self, timeout: float) -> object: ...


class Task(Protocol):
    """The part of a task that both sides have."""

    def delay(self, argument: int | str, /) -> Result: ...


Options = Callable[[int], dict[str, str]]
"""Of the call with that number."""


class BenchApp(Protocol):
    """`bench_app.py` of either side; ours alone has what Celery has not."""

    noop: Task
    tick: Task
    stamp: Task
    echo: Task
    report_pid: Task

    def send_many(self, name: str, arguments: Iterable[int | str]) -> None: ...

    def send_many_with(
        self, name: str, arguments: Iterable[int | str], options: Options
    ) -> None: ...


class Arena:
    """One measurement's surroundings."""

    def __init__(self, side: Side, directory: Path, *, quick: bool) -> None:
        self.side = side
        self.quick = quick
        self.port = free_port()
        self.seconds = 1.0 if quick else 5.0
        self._directory = directory
        self._broker_log = directory / "broker.log"
        self._worker_log = directory / "worker.log"
        self._marks = directory / "marks"
        self._marks.touch()
        self._env = os.environ | {
            "BENCH_URL": side.url(self.port),
            "BENCH_MARKS": str(self._marks),
            "QBROKER_HTTP": "",
            "PYTHONPATH": f"{side.apps}:{APPS}",
        }
        self._broker: subprocess.Popen[bytes] | None = None

    def many(self, *, ours: int, theirs: int) -> int:
        """How many calls to make: enough for seconds of work at either side's own pace."""
        count = theirs if self.side.name == "celery" else ours
        return count // 10 if self.quick else count

    @property
    def tasks(self) -> BenchApp:
        """The side's `bench_app`, connected to this arena's broker."""
        if "bench_app" not in sys.modules:
            os.environ.update(self._env)
            sys.path[:0] = [str(self.side.apps), str(APPS)]
        return cast("BenchApp", importlib.import_module("bench_app"))

    # The broker

    @property
    def broker_pid(self) -> int:
        """The broker's process."""
        assert self._broker is not None
        return self._broker.pid

    def fresh_broker(self, **settings: str) -> None:
        """The broker runs anew on an empty folder, with these environment variables."""
        self.stop_broker()
        shutil.rmtree(self.data)
        self.start_broker(**settings)

    def start_broker(self, **settings: str) -> float:
        """The broker accepts connections; answers with the seconds that took."""
        self.data.mkdir(exist_ok=True)
        began = time.monotonic()
        self._broker = start(
            self.side.broker_command(self.port, self.data),
            cpus={BROKER_CPU},
            env=self._env | settings,
            log=self._broker_log,
        )
        wait_until(
            lambda: accepts(self.port),
            what=f"{self.side.name}'s broker",
            timeout_s=_BOOT_S,
            process=self._broker,
            log=self._broker_log,
        )
        return time.monotonic() - began

    def stop_broker(self, *, within_s: float = STOP_S) -> None:
        """The broker has ended: asked first, killed when the time is over."""
        if self._broker is not None:
            stop(self._broker, within_s)
            self._broker = None

    def kill_broker(self) -> None:
        """The broker has ended without a chance to say anything (kill -9)."""
        if self._broker is not None:
            self._broker.kill()
            self._broker.wait()
            self._broker = None

    @property
    def data(self) -> Path:
        """Where the broker keeps its files."""
        return self._directory / "data"

    # Workers

    @contextmanager
    def worker(self, *, level: str = "WARNING", **settings: str) -> Iterator[int]:
        """A worker with one child runs; gives the pid of its first process.

        `settings` are further environment variables. It may still be booting.
        """
        process = start(
            self.side.worker_command(level),
            cpus={CLIENT_CPU},
            env=self._env | settings,
            log=self._worker_log,
        )
        try:
            yield process.pid
        finally:
            stop(process)

    def wait_for_worker(self) -> None:
        """The worker has run 20 tasks, so that imports and connections are behind it."""
        for _ in range(20):
            self.tasks.stamp.delay(time.monotonic_ns())
        self.wait_for_mark("latency", 20)
        self._marks.write_text("")

    # Marks

    def marks(self, word: str) -> list[int]:
        """The values that tasks left under `word`."""
        lines = self._marks.read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.split()[0] == word]

    def wait_for_mark(self, word: str, count: int = 1) -> None:
        """Tasks have left `count` values under `word`. Looks seldom, for it shares their CPU."""
        wait_until(
            lambda: len(self.marks(word)) >= count,
            what=f"{count} times {word!r} of {self.side.name}'s worker",
            timeout_s=_TASKS_S,
            every_s=0.05,
            log=self._worker_log,
        )

    def end_to_end(
        self,
        count: int,
        beside: AbstractContextManager[object] | None = None,
        options: Options | None = None,
    ) -> float:
        """Tasks a second, from the first call to the last task's run; with something ``beside``.

        ``options`` gives those of each call by its number; without, none has any.
        """
        with self.worker():
            self.wait_for_worker()
            with beside or nullcontext():
                began_ns = time.monotonic_ns()
                if options:
                    self.tasks.send_many_with("tick", [count] * count, options)
                else:
                    self.tasks.send_many("tick", [count] * count)
                self.wait_for_mark("last")
        (last,) = self.marks("last")
        self.forget_marks()
        return count / ((last - began_ns) / 1e9)

    def forget_marks(self) -> None:
        """No marks are left of what went before."""
        self._marks.write_text("")


def calls_a_second(operation: Task, seconds: float) -> float:
    """How often `.delay()` returns in one thread, after 100 calls to warm up."""
    for number in range(100):
        operation.delay(number)
    began = time.monotonic()
    done = 0
    while (elapsed := time.monotonic() - began) < seconds:
        operation.delay(done)
        done += 1
    return done / elapsed
