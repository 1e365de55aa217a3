"""How many tasks a second pass from producer to worker when both are busy, results ignored?

The worker is up and idle when the producer begins; they share one CPU, as on a small machine.
"""

from __future__ import annotations

from harness.arena import Arena


def measure(arena: Arena) -> dict[str, float]:
    """Tasks a second, from the first call to the last task's run."""
    return {"rate": arena.end_to_end(arena.many(ours=300_000, theirs=5_000))}
