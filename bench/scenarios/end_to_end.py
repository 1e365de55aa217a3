"""How many tasks a second pass from producer to worker when both are busy, results ignored?

The worker is up and idle when the producer begins; they share one CPU, as on a small machine.
"""

from __future__ import annotations

import time

from harness.arena import Arena


def measure(arena: Arena) -> dict[str, float]:
    """Tasks a second, from the first call to the last task's run."""
    count = arena.many(ours=300_000, theirs=5_000)
    with arena.worker():
        arena.wait_for_worker()
        began_ns = time.monotonic_ns()
        arena.tasks.send_many("tick", [count] * count)
        arena.wait_for_mark("last")
    (last,) = arena.marks("last")
    return {"rate": count / ((last - began_ns) / 1e9)}
