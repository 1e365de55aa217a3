"""The machine and the versions that a table stands for, and how busy others kept it."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path

from harness.environment import ROOT, VENV_PYTHON

_PACKAGES = ("celery", "kombu", "redis", "qbrokerd", "msgpack", "uvloop")


def describe_machine(directory: Path) -> dict[str, str]:
    """CPU, cores, memory, kernel and the file system of `directory`."""
    cpu_info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", cpu_info)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    assert memory
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "ram": f"{int(memory[1]) / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(directory),
    }


def describe_versions() -> dict[str, str]:
    """Python, Redis, our commit, and the packages in the bench's environment."""
    script = (
        "import importlib.metadata as m\n"
        f"names = {{d.name.lower(): d.version for d in m.distributions()}}\n"
        f"for n in {_PACKAGES!r}: print(n, names.get(n, ''))"
    )
    versions = {"python": platform.python_version()}
    for line in _output([str(VENV_PYTHON), "-c", script]).splitlines():
        name, _, version = line.partition(" ")
        if version:
            versions[name] = version
    if found := re.search(r"v=(\S+)", _output(["redis-server", "--version"])):
        versions["redis-server"] = found[1]
    return versions


def commit() -> str:
    """The checkout's commit, with `+` if its files differ from it; empty without git."""
    git = ["git", "-C", str(ROOT)]
    if not (short := _output([*git, "rev-parse", "--short", "HEAD"]).strip()):
        return ""
    sources = ["server", "client", "worker", "protocol"]
    return short + "+" * bool(_output([*git, "status", "--porcelain", "--", *sources]).strip())


def file_system(directory: Path) -> str:
    """The type of the file system that holds `directory`, for example ext4."""
    found = _output(["stat", "-f", "-c", "%T", str(directory)]).strip()
    return "ext4" if found == "ext2/ext3" else found


class OtherLoad:
    """How much CPU others used meanwhile: what the machine did less what our children did."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_s = _busy_s()
        self._ours_s = _children_s()

    def percent(self) -> float:
        """Of all cores, since this object was made. Our children must have ended."""
        foreign = _busy_s() - self._busy_s - (_children_s() - self._ours_s)
        available = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, 100 * foreign / available)


def _busy_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
