"""How much disk does the log take when nine of ten messages are gone at once, and one stays long?

Ten million messages in frames of a hundred: ninety are consumed at once, ten wait until a million
others of their kind have come behind them.
"""

from __future__ import annotations

import time

from harness.arena import Arena
from harness.backlog import fill, take
from harness.memory import disk_bytes

BODY_BYTES = 200
PACKED_BYTES = 32 + 12 + BODY_BYTES
"""What such a message takes in a record: envelope, route, body."""
STEP = 100_000
KEPT = 1_000_000
SETTLE_S = 20.0
"""After the last message: what cleaning does later than this is not counted."""


def measure(arena: Arena) -> dict[str, float]:
    """Bytes on disk for each live byte: once things have settled, and at most."""
    steps = arena.many(ours=100, theirs=0)
    kept = 0
    peak = 0.0
    for step in range(steps):
        mixed(arena)
        kept += STEP // 10
        if kept > KEPT:
            take(arena.port, "long", STEP // 10, BODY_BYTES)
            kept -= STEP // 10
        if step > steps // 2:
            peak = max(peak, disk_bytes(arena.data / "log") / (kept * PACKED_BYTES))
    end = time.monotonic() + SETTLE_S
    least = peak
    while time.monotonic() < end:
        least = min(least, disk_bytes(arena.data / "log") / (kept * PACKED_BYTES))
        time.sleep(0.5)
    return {"disk_times": least, "disk_times_peak": peak}


def mixed(arena: Arena) -> None:
    """A hundred thousand messages, a tenth of them in the queue that keeps them, interleaved."""
    for _ in range(10):
        fill(arena.port, "long", STEP // 100, BODY_BYTES)
        fill(arena.port, "short", STEP * 9 // 100, BODY_BYTES)
    take(arena.port, "short", STEP * 9 // 10, BODY_BYTES)
