"""How long does a chord of a thousand trivial tasks take, from the call to its result?

Each side as its users write it: `chord([echo.s(n) ...])(total.s())`, one child, one chord after the
other.
"""

from __future__ import annotations

import time

from harness.arena import Arena

MEMBERS = 1_000


def measure(arena: Arena) -> dict[str, float]:
    """Chords a second, after one to warm up."""
    tasks, count = arena.tasks, arena.many(ours=20, theirs=3)
    with arena.worker():
        _chord(tasks)
        began = time.monotonic()
        for _ in range(count):
            _chord(tasks)
        elapsed = time.monotonic() - began
    return {"rate": count / elapsed}


def _chord(tasks: object) -> None:
    members = [tasks.echo.s(number) for number in range(MEMBERS)]
    found = tasks.chord(members)(tasks.total.s()).get(timeout=120)
    assert found == sum(range(MEMBERS)), found
