"""Real workers: ``qworker`` processes with the ledger's tasks, and what they wrote down.

Rule 1. A fleet has a process group of its own; ``close`` leaves nothing of it behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from e2e.daemon import PATIENCE_S, SCRIPTS, Daemon, clean_env, until

HERE = Path(__file__).parent
TASKS = "ledger"


class Fleet:
    """A worker with its children, and the ledger that its tasks write."""

    def __init__(self, folder: Path, broker: Daemon, *flags: str) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.output = folder / "worker.log"
        self.broker = broker
        self.flags = flags or ("-P", "prefork", "-c", "2")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait_for_ready: bool = True) -> Fleet:
        """Its children take tasks; or, without waiting, will soon."""
        begin = self.output.stat().st_size if self.output.exists() else 0
        command = [str(SCRIPTS / "qworker"), "-A", f"{TASKS}:app", "--workdir", str(HERE)]
        command += ["--broker", self.broker.url, "--log-format", "json", *self.flags]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_env(LEDGER=str(self.folder), LEDGER_BROKER=self.broker.url),
                start_new_session=True,
            )
        if not wait_for_ready:
            return self
        until(lambda: '"ready"' in self._said(begin) or not self.runs, "the worker's start")
        assert self.runs, f"the worker ended at its start:\n{self.last_words()}"
        return self

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _said(self, begin: int = 0) -> str:
        with self.output.open("rb") as output:
            output.seek(begin)
            return output.read().decode(errors="replace")

    def last_words(self) -> str:
        return self._said()[-2000:]

    def told(self) -> str:
        """What broker and worker have to say, for who must find out why nothing moves."""
        tables = [self.broker.command(name, "--json") for name in ("queues", "stats")]
        alive = "runs" if self.runs else "has ended"
        return f"queues and stats {tables}\nthe worker {alive}:\n{self.last_words()}"

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The lines of its log about these events."""
        lines = (json.loads(line) for line in self._said().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") in names]

    def kill(self) -> None:
        """Parent and children are gone at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """It drained and ended; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.process.wait(PATIENCE_S)

    # Its tasks.

    def marks(self, name: str = "runs") -> Counter[str]:
        """How often each mark was left."""
        place = self.folder / name
        return Counter(place.read_text().split()) if place.exists() else Counter()

    def release(self, name: str) -> None:
        """Tasks that wait for the file of that name may end."""
        (self.folder / name).touch()


def load_tasks(broker: Daemon) -> ModuleType:
    """The ledger's application as a client of ``broker``: a module of its own for each call."""
    from importlib.util import module_from_spec, spec_from_file_location  # noqa: PLC0415

    spec = spec_from_file_location(TASKS, HERE / f"{TASKS}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    os.environ["LEDGER_BROKER"] = broker.url
    spec.loader.exec_module(module)
    return module
