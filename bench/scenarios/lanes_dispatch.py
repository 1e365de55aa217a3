"""How fast are messages handed out that limits count? A number of slots and a rate, both wide.

The protocol itself, in batches of 100, three rounds by turns: a queue that rules cover, and one
that none does.
"""

from __future__ import annotations

from statistics import median

from harness.arena import Arena
from harness.lanes import drain, packed, pour, set_wide_limits

ROUNDS = 3
BODY_BYTES = 100
QUEUES = ("plain", "limited")


def measure(arena: Arena) -> dict[str, float]:
    """Messages a second, taken and acknowledged; percent of the round's own plain rate."""
    count = arena.many(ours=300_000, theirs=0)
    set_wide_limits(arena.port, "limited")
    rates: dict[str, list[float]] = {queue: [] for queue in QUEUES}
    for _ in range(ROUNDS):
        for queue in QUEUES:
            pour(arena.port, count, [packed(queue, BODY_BYTES, task="bench.work")] * 100)
            rates[queue].append(count / drain(arena.port, count, [queue]))
    shares = [
        100 * limited / plain
        for limited, plain in zip(rates["limited"], rates["plain"], strict=True)
    ]
    return {"limited_rate": median(rates["limited"]), "limited_percent": median(shares)}
