"""How fast does a prefork worker with one child empty a full queue, results ignored?

The queue is filled first. The clock runs in the child from its first task to its last, so the
worker's start does not count.
"""

from __future__ import annotations

from harness.arena import Arena


def measure(arena: Arena) -> dict[str, float]:
    """Tasks a second."""
    return {"rate": drain_rate(arena, level="WARNING")}


def drain_rate(arena: Arena, *, level: str, **settings: str) -> float:
    """Fills the queue, starts a worker, and answers with tasks a second."""
    count = arena.many(ours=300_000, theirs=5_000)
    arena.forget_marks()
    arena.tasks.send_many("tick", [count] * count)
    with arena.worker(level=level, **settings):
        arena.wait_for_mark("last")
    (first,), (last,) = arena.marks("first"), arena.marks("last")
    return (count - 1) / ((last - first) / 1e9)
