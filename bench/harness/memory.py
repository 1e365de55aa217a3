"""What a process has in memory, and what lies in a folder."""

from __future__ import annotations

from pathlib import Path

from harness.processes import descendants


def resident_bytes(pid: int) -> int:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmRSS line for {pid}")


def resident_with_children(pid: int) -> int:
    """The same of a process and all below it; one that ends meanwhile counts nothing."""
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            total += resident_bytes(each)
        except (OSError, AssertionError):
            continue
    return total


def disk_bytes(folder: Path) -> int:
    """What the files below the folder take on disk, blocks reserved ahead included."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # deleted while we looked
    return total
