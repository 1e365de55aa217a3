"""What do limits cost tasks: how many fewer a second pass from producer to worker with them on?

The end-to-end question of the core path, three rounds by turns. Each way sets a broker up in its
own manner; none of them ever holds a task back, so that only the counting is paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from harness.arena import Arena
from harness.lanes import set_wide_limits

ROUNDS = 3
WAYS: dict[str, Callable[[Arena], None]] = {
    "plain": lambda _: None,
    "limited": lambda arena: set_wide_limits(arena.port, "q"),
}


def measure(arena: Arena) -> dict[str, float]:
    """Percent of the tasks a second that are lost, of the round's own rate without."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, prepare in WAYS.items():
            arena.fresh_broker()
            prepare(arena)
            rates[name].append(arena.end_to_end(arena.many(ours=300_000, theirs=0)))
    figures = {"rate_plain": median(rates["plain"])}
    for name in WAYS.keys() - {"plain"}:
        shares = zip(rates[name], rates["plain"], strict=True)
        figures[f"{name}_percent"] = median(100 * (1 - rate / plain) for rate, plain in shares)
    return figures
