"""What does a worker child weigh, after a thousand tasks?

PSS, which shares a page's weight among the processes that map it; the client of the measurement
runs the same interpreter and maps some of the same pages, alike on both sides.
"""

from __future__ import annotations

from pathlib import Path

from harness.arena import Arena
from harness.processes import descendants


def measure(arena: Arena) -> dict[str, float]:
    """Megabytes (10^6 bytes) of the child, and of all processes of the worker."""
    with arena.worker() as worker_pid:
        arena.wait_for_worker()
        arena.tasks.send_many("noop", range(1000))
        arena.tasks.report_pid.delay(0)
        arena.wait_for_mark("pid")
        (child_pid,) = arena.marks("pid")
        tree = [worker_pid, *descendants(worker_pid)]
        return {
            "child_pss_mb": _pss_mb(child_pid),
            "tree_pss_mb": sum(_pss_mb(pid) for pid in tree),
        }


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"no Pss line for {pid}")
