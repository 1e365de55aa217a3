"""The broker and the worker as processes: started, waited for, killed, and never left behind.

Rule 1. Each has a session of its own, so Ctrl-C reaches the demo alone, which ends the others.
Rule 2. Output goes to files in the demo's folder; their last lines are shown if something fails.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

HERE = Path(__file__).parent
PATIENCE_S = 20.0
TAIL_LINES = 12


class DemoError(Exception):
    """Something for the person at the terminal to read, without a traceback."""


class Process:
    """One program of ours, its output in a file."""

    def __init__(self, name: str, folder: Path, *arguments: str, **env: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        program = Path(sysconfig.get_path("scripts")) / name
        self._command = [str(program), *arguments]
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: str) -> None:
        """It runs, and has said ``ready``. Raises DemoError with its last lines if it does not."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        wait_for(lambda: ready in self.said(before) or not self.runs, f"{self.name} to start")
        if not self.runs:
            raise DemoError(f"{self.name} ended at its start:\n{self.last_words()}")

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self, since: int = 0) -> str:
        """Its output from byte ``since`` on."""
        with self.log.open("rb") as output:
            output.seek(since)
            return output.read().decode(errors="replace")

    def last_words(self) -> str:
        return "\n".join(self.said().splitlines()[-TAIL_LINES:])

    def kill(self) -> None:
        """It is gone at once, as if the power had failed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """It has ended: asked first, killed after a while."""
        if not self.runs:
            return
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()


class Broker(Process):
    """``qbroker serve`` on free ports, and on the same ones each time it is started."""

    def __init__(self, folder: Path) -> None:
        self.port, http = free_port(), free_port()
        self.metrics_url = f"http://127.0.0.1:{http}/metrics"
        super().__init__(
            "qbroker",
            folder,
            *("serve", "--data", str(folder / "data")),
            *("--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{http}"),
            # A few megabytes, for a minute: they fit on a disk that is too full for a real one.
            *("--disk-low-bytes", "256MiB", "--disk-critical-bytes", "64MiB"),
        )

    @property
    def url(self) -> str:
        return f"qbroker://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """It listens."""
        self.start(ready="listening on")

    def metrics(self) -> dict[str, float]:
        """What /metrics says now: each series, with its labels, and its value."""
        with urlopen(self.metrics_url, timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {series: float(value) for series, _, value in pairs}


class Worker(Process):
    """``qworker`` with the indexer and two children; its log says what it ran, in JSON."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        super().__init__(
            "qworker",
            folder,
            *("-A", "indexer:app", "-P", "prefork", "-c", "2", "--workdir", str(HERE)),
            *("--broker", broker.url, "--log-format", "json"),
        )

    def work(self) -> None:
        """It takes tasks."""
        self.start(ready='"ready"')


def wait_for(what: Callable[[], bool], name: str) -> None:
    """``what()`` has become true. Raises DemoError when it takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > deadline:
            raise DemoError(f"waited {PATIENCE_S:g} s for {name}, in vain")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_on_signals() -> None:
    """A polite kill, or a closed terminal, ends the demo as Ctrl-C does: with its processes."""

    def interrupt(_signal: int, _frame: object) -> None:
        sys.exit(130)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
