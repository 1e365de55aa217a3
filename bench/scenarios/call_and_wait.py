"""How many calls a second when each waits for its result before the next is made?"""

from __future__ import annotations

import time

from harness.arena import Arena


def measure(arena: Arena) -> dict[str, float]:
    """Calls a second of one thread, after 50 to warm up."""
    echo = arena.tasks.echo
    with arena.worker():
        for number in range(50):
            echo.delay(number).get(timeout=30)
        began = time.monotonic()
        done = 0
        while (elapsed := time.monotonic() - began) < arena.seconds:
            assert echo.delay(done).get(timeout=30) == done
            done += 1
    return {"rate": done / elapsed}
