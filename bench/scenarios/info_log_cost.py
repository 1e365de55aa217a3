"""What does a log line a task cost? The drain at WARNING, then the same at INFO, to a file."""

from __future__ import annotations

from harness.arena import Arena
from scenarios.drain import drain_rate


def measure(arena: Arena) -> dict[str, float]:
    """Tasks a second at INFO, and how much slower than at WARNING that is."""
    at_warning = drain_rate(arena, level="WARNING")
    at_info = drain_rate(arena, level="INFO")
    return {"rate_info": at_info, "slower_percent": (1 - at_info / at_warning) * 100}
