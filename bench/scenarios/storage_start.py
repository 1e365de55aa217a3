"""How long is a start with a million messages queued, and with none?"""

from __future__ import annotations

from harness.arena import Arena
from harness.backlog import fill
from scenarios.storage_backlog import BODY_BYTES, restarted


def measure(arena: Arena) -> dict[str, float]:
    """Seconds until the broker says Welcome: empty, after a clean stop, after kill -9."""
    figures = {"start_empty_s": restarted(arena, killed=False)}
    fill(arena.port, "deep", arena.many(ours=1_000_000, theirs=0), BODY_BYTES)
    figures["start_killed_s"] = restarted(arena, killed=True)
    figures["start_clean_s"] = restarted(arena, killed=False)
    return figures
