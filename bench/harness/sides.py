"""The two sides as data: how to start a broker and a worker, and where the client's code is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.targets import OURS, THEIRS

_BIN = Path(sys.executable).parent
APPS = Path(__file__).resolve().parent.parent / "apps"


@dataclass(frozen=True)
class Side:
    """What differs between the sides; all else is the same code."""

    name: str
    apps: Path
    url: Callable[[int], str]
    broker_command: Callable[[int, Path], list[str]]
    worker_command: Callable[[str], list[str]]


def _redis(port: int, directory: Path) -> list[str]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    return [*command, "--save", "", "--appendonly", "no", "--dir", str(directory)]


def _celery_worker(level: str) -> list[str]:
    command = [str(_BIN / "celery"), "-A", "bench_app", "worker", "-P", "prefork", "-c", "1"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return [*command, "-Q", "q", "-l", level, *quiet]


def _qbroker(port: int, directory: Path) -> list[str]:
    command = [str(_BIN / "qbroker"), "serve", "--data", str(directory)]
    return [*command, "--listen", f"127.0.0.1:{port}"]


def _qworker(level: str) -> list[str]:
    command = [str(_BIN / "qworker"), "-A", "bench_app", "-P", "prefork", "-c", "1"]
    return [*command, "-Q", "q", "-l", level]


SIDES = {
    THEIRS: Side(
        THEIRS,
        APPS / "celery_side",
        lambda port: f"redis://127.0.0.1:{port}/0",
        _redis,
        _celery_worker,
    ),
    OURS: Side(
        OURS,
        APPS / "qbroker_side",
        lambda port: f"qbroker://127.0.0.1:{port}",
        _qbroker,
        _qworker,
    ),
}
