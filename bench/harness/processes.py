"""Starts processes on a chosen CPU, and leaves none behind.

`adopt_orphans` makes this process the parent of every descendant whose own parent dies, so that
`end_descendants` finds them all, whatever sessions or forks a library makes of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
STOP_S = 8.0
_TAIL_CHARACTERS = 1500


class BenchError(Exception):
    """Something the person at the terminal should read, without a traceback."""


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root_pid: int) -> list[int]:
    """The living processes under `root_pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if after_name[0] != "Z":
                children.setdefault(int(after_name[1]), []).append(int(entry.name))
    found: list[int] = []
    pending = [root_pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def end_descendants() -> None:
    """No process started from here lives on."""
    while alive := descendants(os.getpid()):
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.01)
    _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _cpus() -> tuple[int, int]:
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[min(1, len(usable) - 1)]


BROKER_CPU, CLIENT_CPU = _cpus()  # the first two we may use; read before anybody is pinned


def start(
    command: Sequence[str], *, cpus: set[int], env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """`command` runs on these CPUs, both its outputs in `log`; it is asked to end if we die.

    It has a session of its own, so that Ctrl-C reaches `run.py` alone, which ends the others.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cpus)), "setpriv", "--pdeathsig", "TERM"]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*pinned, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], within_s: float = STOP_S) -> None:
    """The process has ended: asked first, killed when the time is over."""
    process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    ready: Callable[[], bool],
    *,
    what: str,
    timeout_s: float,
    every_s: float = 0.02,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> None:
    """`ready()` has become true; a `BenchError` if the time is over or `process` has ended."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            reason = "its process ended" if ended else f"not after {timeout_s:g} s"
            tail = log.read_text(errors="replace")[-_TAIL_CHARACTERS:] if log else ""
            raise BenchError(f"waiting for {what}: {reason}\n{tail}".rstrip())
        time.sleep(every_s)


def accepts(port: int) -> bool:
    """Whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True
