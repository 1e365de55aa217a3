"""A memory cgroup around the broker and its children, where this machine lets us make one.

The page cache of what they write counts too: so a backlog larger than the fence is a backlog
that lies on disk. Both versions of the interface are known: v1 has a tree for memory alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from harness.processes import descendants

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class Fence:
    """One cgroup. Without the right to make one nothing is limited, and `works` says so."""

    def __init__(self, limit_bytes: int) -> None:
        v1 = (_V1 / "memory.limit_in_bytes").exists()
        self._group = (_V1 if v1 else _V2) / f"qbroker-bench-{os.getpid()}"
        self._limit = "memory.limit_in_bytes" if v1 else "memory.max"
        self._peak = "memory.max_usage_in_bytes" if v1 else "memory.peak"
        try:
            self._group.mkdir()
            (self._group / self._limit).write_text(str(limit_bytes))
            self.works = True
        except OSError:
            self.works = False

    def enclose(self, pid: int) -> None:
        """The process, its threads and the children it has and will have are inside."""
        if self.works:
            for each in (pid, *descendants(pid)):
                (self._group / "cgroup.procs").write_text(str(each))

    def peak_bytes(self) -> int:
        """The most that was in use at once, page cache included; 0 if nobody counted."""
        path = self._group / self._peak
        return int(path.read_text()) if self.works and path.exists() else 0

    def remove(self) -> None:
        """The cgroup is gone. Its processes must have ended; the kernel may take a moment."""
        for _ in range(50 if self.works else 0):
            with contextlib.suppress(OSError):
                self._group.rmdir()
                return
            time.sleep(0.1)


@contextlib.contextmanager
def fence(limit_bytes: int) -> Iterator[Fence]:
    """A fence that is removed afterwards; whoever is inside must have ended by then."""
    made = Fence(limit_bytes)
    try:
        yield made
    finally:
        made.remove()
