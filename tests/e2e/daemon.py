"""The real broker as a process: on a free port, killed, started again on the same data and port.

Rule 1. What it prints goes to a file beside its data, and into the message when something fails.
Rule 2. Every wait has a deadline; nobody sleeps for a fixed time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from e2e.talker import Talker

PATIENCE_S = 30.0
"""For what takes milliseconds: the machine may have other things to do."""
SCRIPTS = Path(sysconfig.get_path("scripts"))
FAULTS = Path(__file__).parent / "faults"
T = TypeVar("T")


def until(what: Callable[[], T], name: str = "it", patience_s: float = PATIENCE_S) -> T:
    """The first true value of ``what()``, looked at again and again until the patience ends."""
    deadline, pause = time.monotonic() + patience_s, threading.Event()
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"{name} did not happen within {patience_s:g} s"
        pause.wait(0.01)


def clean_env(**more: str) -> dict[str, str]:
    """This process's environment, without settings meant for other brokers."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("QBROKER_")}
    return {**ours, **more}


class Daemon:
    """One data folder, one port, and a broker that may be running on them."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.output = folder / "broker.log"
        self.faults = folder / "faults"
        room = {"disk_low_bytes": "64MiB", "disk_critical_bytes": "16MiB"}  # of any machine's disk
        self.settings = {"claims_ms": 300, **room, **settings}
        self.flags: list[str] = []
        """More words for its command line."""
        self.port = 0
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._said_before = 0
        """Bytes of its output that are of earlier lives."""
        self._talkers: list[Talker] = []

    # Its life.

    def start(self, wrapper: Sequence[str] = (), *, is_faulty: bool = False) -> Self:
        """It listens: on a free port the first time, on the same one after that.

        ``wrapper`` is a command to run it under. With ``is_faulty`` its disk may be made to
        hang, fail or be slow: see ``fault``.
        """
        self.launch(wrapper, is_faulty=is_faulty)
        said = until(self.says_it_listens, f"the broker's start in {self.folder}")
        assert said != "ended", f"the broker ended at its start:\n{self.last_words()}"
        self.port = int(said)
        self.starts += 1
        return self

    def launch(self, wrapper: Sequence[str] = (), *, is_faulty: bool = False) -> None:
        """It begins to start. Arguments are those of ``start``."""
        assert not self.runs, "it runs already"
        self._said_before = self.output.stat().st_size if self.output.exists() else 0
        self.process = self._popen(wrapper, is_faulty=is_faulty)

    def _popen(self, wrapper: Sequence[str], *, is_faulty: bool) -> subprocess.Popen[bytes]:
        flags = {"listen": f"127.0.0.1:{self.port}", "http": "", **self.settings}
        command = [*wrapper, str(SCRIPTS / "qbroker"), "serve", "--data", str(self.data)]
        for name, value in flags.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        command += self.flags
        env = clean_env()
        if is_faulty:
            self.faults.mkdir(parents=True, exist_ok=True)
            others = env.get("PYTHONPATH", "")
            env["PYTHONPATH"] = f"{FAULTS}{os.pathsep}{others}" if others else str(FAULTS)
            env["FAULTS_FOLDER"] = str(self.faults)
        self.folder.mkdir(exist_ok=True, parents=True)
        with self.output.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )

    def says_it_listens(self) -> str:
        """The port it says it listens on; "ended" if it has; empty if neither yet."""
        with self.output.open("rb") as output:
            output.seek(self._said_before)
            found = re.search(rb"^listening on \S+:(\d+)$", output.read(), re.MULTILINE)
        if found:
            return found[1].decode()
        return "" if self.runs else "ended"

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """It is gone at once, without a word."""
        self._signal(signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        """Killed, and listening again on the same data and port."""
        self.kill()
        self.start()

    def ask_to_stop(self) -> None:
        """It has got a SIGTERM."""
        self._signal(signal.SIGTERM)

    def stop(self) -> int:
        """It was asked to end, and did; its exit code."""
        self.ask_to_stop()
        return self.wait()

    def _signal(self, number: int) -> None:
        """To it and to what it runs under: they have a process group of their own."""
        assert self.process is not None
        if self.runs:
            os.killpg(self.process.pid, number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        return self.process.wait(patience_s)

    def close(self) -> None:
        """Nothing of it is left but its files."""
        for talker in self._talkers:
            talker.close()
        if self.runs:
            self.kill()

    def last_words(self) -> str:
        return self.output.read_text(errors="replace")[-2000:]

    # What tests do to it.

    def connect(self, role: str = "consumer", **hello: Any) -> Talker:
        """A new open conversation; closed with the daemon."""
        talker = Talker(self.port, role, **hello)
        self._talkers.append(talker)
        return talker

    @property
    def url(self) -> str:
        return f"qbroker://127.0.0.1:{self.port}"

    def fault(self, name: str, *, is_on: bool, text: str = "") -> None:
        """Its disk has a fault from now on, or no more: see faults/sitecustomize.py."""
        place = self.faults / name
        if is_on:
            place.with_suffix(".new").write_text(text)
            place.with_suffix(".new").rename(place)
        else:
            place.unlink()

    def command(self, *arguments: str) -> Any:
        """What ``qbroker ARGUMENTS --json`` says of it."""
        ran = subprocess.run(
            [str(SCRIPTS / "qbroker"), *arguments, "--broker", self.url, "--json"],
            capture_output=True,
            env=clean_env(),
            timeout=PATIENCE_S,
        )
        assert ran.returncode == 0, ran.stderr.decode()
        return json.loads(ran.stdout)

    def rss_kib(self) -> int:
        """Memory that it has in RAM now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1])
