"""What does the archive cost: how much slower are tasks with it, and while it is searched?

The end-to-end question of the core path, three rounds by turns: without the archive, with it, and
with it while another client searches. Every task is a row; results are ignored.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
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
            rates[name].append(end_to_end(arena, searched=name == "searched"))
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


def end_to_end(arena: Arena, *, searched: bool) -> float:
    """Tasks a second, from the first call to the last task's run."""
    count = arena.many(ours=300_000, theirs=0)
    with arena.worker():
        arena.wait_for_worker()
        with ExitStack() as stack:
            if searched:
                stack.enter_context(searching(arena.port))
            began_ns = time.monotonic_ns()
            arena.tasks.send_many("tick", [count] * count)
            arena.wait_for_mark("last")
    (last,) = arena.marks("last")
    arena.forget_marks()
    return count / ((last - began_ns) / 1e9)
