"""How many `.delay()` a second does one caller get, one at a time, results ignored?

On our side each call is on disk when it returns; Redis keeps it in memory only.
"""

from __future__ import annotations

from harness.arena import Arena, calls_a_second


def measure(arena: Arena) -> dict[str, float]:
    """Calls a second of one thread."""
    return {"rate": calls_a_second(arena.tasks.noop, arena.seconds)}
