"""What do limits, unique keys and fair shares cost tasks, from producer to worker?

The end-to-end question of the core path, three rounds by turns. A way sets a broker up, and says
what options each call has; none of them ever holds a task back, and no two calls have one unique
key, so that only the looking is paid for.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from harness.arena import Arena
from harness.lanes import set_wide_limits

ROUNDS = 3
TENANTS = 100
"""Who take turns with each call."""


class Way(NamedTuple):
    """How the tasks are sent."""

    is_limited: bool = False
    """A number of slots and a rate are counted for their queue."""
    options: Callable[[int], dict[str, str]] | None = None
    """The options of each call, by its number."""


def unique(number: int) -> dict[str, str]:
    """A key that no other call has."""
    return {"unique_key": f"user-{number}"}


def fair(number: int) -> dict[str, str]:
    """One of the tenants after the other."""
    return {"fair_key": f"tenant-{number % TENANTS}"}


WAYS = {
    "plain": Way(),
    "limited": Way(is_limited=True),
    "unique": Way(options=unique),
    "fair": Way(options=fair),
    "all": Way(is_limited=True, options=lambda number: unique(number) | fair(number)),
}


def measure(arena: Arena) -> dict[str, float]:
    """Percent of the tasks a second that are lost, of the round's own rate without."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    count = arena.many(ours=300_000, theirs=0)
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            arena.fresh_broker()
            if way.is_limited:
                set_wide_limits(arena.port, "q")
            rates[name].append(arena.end_to_end(count, options=way.options))
    figures = {"rate_plain": median(rates["plain"])}
    for name in WAYS.keys() - {"plain"}:
        shares = zip(rates[name], rates["plain"], strict=True)
        figures[f"{name}_percent"] = median(100 * (1 - rate / plain) for rate, plain in shares)
    return figures
