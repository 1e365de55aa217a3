"""What must be there before the first measurement: Python, a virtual environment, Redis.

The environment `.venv-bench` at the top of the checkout holds Celery and this checkout's own
packages (editable), so that both sides run on one interpreter. It is made again only when what it
was made from has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness.processes import BenchError

_BENCH = Path(__file__).resolve().parent.parent
ROOT = _BENCH.parent
VENV = ROOT / ".venv-bench"
VENV_PYTHON = VENV / "bin" / "python"
_OLDEST = (3, 11)


def prepare(*, celery: bool) -> None:
    """Everything is installed; a `BenchError` of one line says what is missing."""
    if sys.version_info < _OLDEST:
        raise BenchError(f"the bench needs Python {_OLDEST[0]}.{_OLDEST[1]} or later")
    if celery:
        _redis()
    _venv()


def _venv() -> None:
    requirements = _BENCH / "requirements.txt"
    made_from = hashlib.sha256(
        requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + sys.version.encode()
    ).hexdigest()
    stamp = VENV / "made-from"
    if stamp.exists() and stamp.read_text() == made_from:
        return
    print(f"making {VENV.name} (Celery and this checkout) ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(VENV)], "making a virtual environment")
    install = [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
    _run([*install, "-e", f"{ROOT}[all]"], "installing Celery and this checkout with pip")
    stamp.write_text(made_from)


def _redis() -> None:
    if shutil.which("redis-server"):
        return
    print("installing Debian's redis-server ...", flush=True)
    advice = "`apt-get install redis-server` and run again"
    if not shutil.which("apt-get"):
        raise BenchError("redis-server is missing and there is no apt-get: install Redis yourself")
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and not shutil.which("sudo"):
        raise BenchError(f"redis-server is missing and we are not root: {advice}")
    what = f"installing redis-server (do it yourself: {advice})"
    _run([*as_root, "apt-get", "update", "-q"], what)
    _run([*as_root, "apt-get", "install", "-qy", "--no-install-recommends", "redis-server"], what)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise BenchError(f"{what} failed: {lines[-1]}")
