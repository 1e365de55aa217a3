"""A queue of its own for each test, workers on it, and what their tasks left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any

from qclient import App

APPS = Path(__file__).parent / "apps"
PATIENCE_S = 20.0


def until(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of ``holds()``. Fails with ``what`` after ``patience_s``."""
    deadline, pause = time.monotonic() + patience_s, threading.Event()
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:g} s"
        pause.wait(0.01)
    return value


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def below(pid: int) -> list[int]:
    """Every living process under ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        pending += (children := parents.get(pending.pop(), []))
        found += children
    return found


class Broker:
    """The real broker on a free port; it can be killed and started again."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder, self.flags = folder, flags
        self.listen = "127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"qbroker://{self.listen}"

    def start(self) -> None:
        """It listens, on the port of its first start."""
        log = self.folder / "broker.log"
        begin = log.stat().st_size if log.exists() else 0
        command = [str(Path(sys.executable).parent / "qbroker"), "serve", "--http", ""]
        command += ["--disk-low-bytes", "64MiB", "--disk-critical-bytes", "16MiB"]  # of any disk
        command += ["--data", str(self.folder / "data"), "--listen", self.listen, *self.flags]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

        def listening() -> str:
            assert self.process is not None
            said = log.read_bytes()[begin:].decode()
            assert self.process.poll() is None, f"the broker ended:\n{said}"
            return said.partition("listening on ")[2].partition("\n")[0]

        self.listen = until(listening, "the broker listens").split()[0]

    def kill(self) -> None:
        """It is gone at once, without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


class Workshop:
    """One test's queue, workers and marks."""

    def __init__(self, folder: Path, broker: Broker, pool: str, queue: str) -> None:
        self.folder, self.broker, self.pool, self.queue = folder, broker, pool, queue
        self.marks_file = folder / "marks"
        self.gates = folder / "gates"
        self.gates.mkdir(parents=True, exist_ok=True)
        self.app = App("tests", broker=broker.url, set_as_current=False)
        self.workers: list[Worker] = []
        self.env: dict[str, str] = {}
        """For workers from now on."""

    def worker(
        self, *flags: str, ready: bool = True, app: str = "shop", broker: str = ""
    ) -> Worker:
        """A worker on this queue, ready to run tasks; its application may name another broker."""
        worker = Worker(self, ["-A", app, "-P", self.pool, *flags], broker or self.broker.url)
        self.workers.append(worker)
        if ready:
            worker.wait_for("ready name=")
        return worker

    def send(self, name: str, *args: Any, **options: Any) -> Any:
        """A task of the shop is sent; its handle."""
        return self.app.send_task(f"shop.{name}", args, queue=self.queue, **options)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """The result of a task of the shop."""
        return self.send(name, *args, **options).get(timeout=PATIENCE_S)

    def waits(self) -> dict[str, int]:
        """Why messages of the queue are not handed out, by reason."""
        command = [str(Path(sys.executable).parent / "qbroker"), "queues", "--json"]
        said = subprocess.check_output([*command, "--broker", self.broker.url])
        (found,) = [each for each in json.loads(said) if each["name"] == self.queue]
        return dict(found["waiting"])

    def marks(self, first: str = "") -> list[list[str]]:
        """What tasks left, in order: those lines that begin with ``first``."""
        if not self.marks_file.exists():
            return []
        lines = [line.split() for line in self.marks_file.read_text().splitlines()]
        return [line[1:] if first else line for line in lines if not first or line[0] == first]

    def wait_for_mark(self, *words: str) -> list[str]:
        """The first mark that begins with ``words``, once it is there."""

        def found() -> list[str] | None:
            return next((m for m in self.marks() if m[: len(words)] == list(words)), None)

        return until(found, f"the mark {' '.join(words)}; marks: {self.marks()}; {self.logs()}")

    def open_gate(self, name: str) -> None:
        """Tasks that wait for the gate go on."""
        (self.gates / name).touch()

    def logs(self) -> str:
        return "\n".join(worker.log for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.app.close()


class Worker:
    """A ``qworker`` process and its log."""

    def __init__(self, shop: Workshop, flags: list[str], broker: str) -> None:
        self.shop = shop
        self.log_file = shop.folder / f"worker-{len(shop.workers)}.log"
        program = str(Path(sys.executable).parent / "qworker")
        env = {
            **os.environ,
            "SHOP_BROKER": broker,
            "SHOP_QUEUE": shop.queue,
            "SHOP_MARKS": str(shop.marks_file),
            "SHOP_GATES": str(shop.gates),
            **shop.env,
        }
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                [program, *flags], cwd=APPS, env=env, stdout=output, stderr=output
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, text: str, times: int = 1) -> None:
        """``text`` is in the log, that many times."""

        def said() -> bool:
            return self.log.count(text) >= times

        try:
            until(said, f"the worker says {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.log}") from None

    def processes(self) -> list[int]:
        """The import process, and the children if it forks any."""
        return below(self.pid)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, number: int = SIGTERM) -> int:
        """Its exit code after a signal."""
        self.signal(number)
        return self.exit_code()

    def exit_code(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not end; its log:\n{self.log}") from None

    def close(self) -> None:
        """Nothing of it is left, however the test ended."""
        if self.process.poll() is None:
            family = self.processes()
            self.process.kill()
            self.process.wait()
            until(lambda: not any(map(alive, family)), "its processes end with it")
