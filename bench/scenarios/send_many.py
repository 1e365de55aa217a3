"""How many calls a second can be published when there are many to publish?

Ours: one `app.send_many(...)`. Celery has no batch publish; its best practice is a loop that holds
one producer (a `group` was slower), see `apps/celery_side/bench_app.py`.
"""

from __future__ import annotations

import time

from harness.arena import Arena


def measure(arena: Arena) -> dict[str, float]:
    """Calls a second, from the first to the confirmation of the last."""
    count = arena.many(ours=300_000, theirs=10_000)
    arena.tasks.send_many("noop", range(100))
    began = time.monotonic()
    arena.tasks.send_many("noop", range(count))
    return {"rate": count / (time.monotonic() - began)}
