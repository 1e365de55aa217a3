"""Do results take memory, and how fast is an old one found? A million of them.

Tasks with ids of their own are taken and settled with a result of 50 bytes each, 250,000 at a time;
then the archive is given time to catch up. So what the growth shows is what was kept, not the most
that ever waited; nor caches, for half a million come and are asked for before. Old results are
asked for by id alone, as `AsyncResult(id).get()` does.
"""

from __future__ import annotations

import time

from harness.arena import Arena
from harness.backlog import fill_with_ids, in_memory, lookups, percentile, settle_with_results
from harness.memory import disk_bytes, resident_bytes
from qprotocol.states import State

BODY_BYTES = 100
RESULT_BYTES = 50
SLICE, SLICES = 250_000, 4
SETTLE_S = 60.0


def measure(arena: Arena) -> dict[str, float]:
    """Growth of the broker's memory a result, and milliseconds until an old one is there."""
    size = arena.many(ours=SLICE, theirs=0)
    count = SLICES * size
    warm = finished(arena, size) + finished(arena, size)
    lookups(arena.port, warm, int(State.SUCCESS))  # caches and buffers are as large as they get
    before = resident_bytes(arena.broker_pid)
    began = time.monotonic()
    ids = [name for _ in range(SLICES) for name in finished(arena, size)]
    took = lookups(arena.port, ids, int(State.SUCCESS))
    return {
        "bytes_a_result": max(0, resident_bytes(arena.broker_pid) - before) / count,
        "get_p99_ms": percentile(took, 99) * 1e3,
        "archive_bytes_a_result": disk_bytes(arena.data / "archive") / (count + 2 * size),
        "results_a_second": count / (time.monotonic() - began),
    }


def finished(arena: Arena, count: int) -> list[str]:
    """So many tasks have a result, and the archive has what it is going to keep; some ids."""
    ids = fill_with_ids(
        arena.port, "tasks", count, BODY_BYTES, every=max(1, count // 500), task="bench.echo"
    )
    settle_with_results(arena.port, "tasks", count, RESULT_BYTES)
    deadline = time.monotonic() + SETTLE_S
    while in_memory(arena.port) and time.monotonic() < deadline:
        time.sleep(0.2)
    return ids
