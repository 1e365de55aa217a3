"""What does the archive cost: how much slower are tasks with it, and while it is searched?

The end-to-end question of the core path, three rounds by turns: without the archive, with it, and
with it while another client searches. Every task is a row; results are ignored.
"""

from __future__ import annotations

from statistics import median

from harness.arena import Arena
from harness.backlog import searching

ROUNDS = 3
SIDES = {"without": "false", "with": "true", "searched": "true"}


def measure(arena: Arena) -> dict[str, float]:
    """Percent of the tasks a second that are lost, of the round's own rate without the archive."""
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(ROUNDS):
        for name, is_on in SIDES.items():
            arena.fresh_broker(QBROKER_ARCHIVE=is_on)
            beside = searching(arena.port) if name == "searched" else None
            rates[name].append(arena.end_to_end(arena.many(ours=300_000, theirs=0), beside))
    lost = {
        name: median(
            100 * (1 - rate / bare)
            for rate, bare in zip(rates[name], rates["without"], strict=True)
        )
        for name in SIDES
    }
    return {
        "rate_without": median(rates["without"]),
        "lost_percent": lost["with"],
        "lost_searched_percent": lost["searched"] - lost["with"],
    }
