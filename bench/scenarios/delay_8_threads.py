"""How many `.delay()` a second do 8 threads of one process get together?

Celery's threads take connections from its pool (ten by default); ours share one connection.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from harness.arena import Arena, calls_a_second

THREADS = 8


def measure(arena: Arena) -> dict[str, float]:
    """Calls a second of all threads together."""
    noop = arena.tasks.noop
    with ThreadPoolExecutor(THREADS) as threads:
        rates = threads.map(lambda _: calls_a_second(noop, arena.seconds), range(THREADS))
    return {"rate": sum(rates)}
