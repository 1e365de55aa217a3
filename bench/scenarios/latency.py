"""How long from before `.delay()` to the task's first line, at 50 tasks a second?

The task receives the caller's CLOCK_MONOTONIC reading and writes the difference.
"""

from __future__ import annotations

import time

from harness.arena import Arena

RATE = 50


def measure(arena: Arena) -> dict[str, float]:
    """Median and 99th percentile in milliseconds, over 20 s."""
    count = RATE * (4 if arena.quick else 20)
    with arena.worker():
        arena.wait_for_worker()
        _send_evenly(arena, RATE)
        arena.wait_for_mark("latency", RATE)
        arena.forget_marks()
        _send_evenly(arena, count)
        arena.wait_for_mark("latency", count)
    waits = sorted(arena.marks("latency"))
    return {"p50_ms": waits[count // 2] / 1e6, "p99_ms": waits[count * 99 // 100] / 1e6}


def _send_evenly(arena: Arena, count: int) -> None:
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        arena.tasks.stamp.delay(time.monotonic_ns())
