"""Do messages that may not go hold up those behind them? A million of them at a queue's head.

Once a rule lets no more of their task begin, once the consumer does not know it. Another task's
messages are published behind them and taken, and the same through a queue with nothing before.
"""

from __future__ import annotations

from statistics import median

from harness.arena import Arena
from harness.lanes import drain, packed, pour, set_limit

ROUNDS = 3
BODY_BYTES = 100
DAY_MS = 86_400_000
QUICK = "bench.quick"


def measure(arena: Arena) -> dict[str, float]:
    """Percent of the rate through the clear queue, of the same round."""
    before = arena.many(ours=1_000_000, theirs=0)
    count = arena.many(ours=300_000, theirs=0)
    set_limit(arena.port, "daily", task="bench.limited", rate=1, window_ms=DAY_MS)
    figures = {}
    for held, tasks in ("limited", ()), ("unknown", (QUICK,)):
        pour(arena.port, before, [packed(held, BODY_BYTES, task=f"bench.{held}")] * 100)
        shares = []
        for _ in range(ROUNDS):
            clear = taken(arena, count, "clear", tasks)
            shares.append(100 * taken(arena, count, held, tasks) / clear)
        figures[f"{held}_percent"] = median(shares)
    return figures


def taken(arena: Arena, count: int, queue: str, tasks: tuple[str, ...]) -> float:
    """Messages a second, from the first publish to the last ack."""
    seconds = pour(arena.port, count, [packed(queue, BODY_BYTES, task=QUICK)] * 100)
    return count / (seconds + drain(arena.port, count, [queue], *tasks))
