"""How many messages a second can be taken and acknowledged, each acknowledgement confirmed?

The combinations of `raw_publish`: 1 and 8 consumers, acknowledged one by one or 100 at a time,
bodies of 100 B and 1 KiB. The queue is full before the clock starts.
"""

from __future__ import annotations

from dataclasses import replace

from harness.arena import Arena
from harness.raw import consume, publish
from scenarios.raw_publish import loads


def measure(arena: Arena) -> dict[str, float]:
    """Messages a second for each combination."""
    rates = {}
    for name, load in loads(arena):
        publish(arena.port, replace(load, peers=1, batch=100))
        rates[name] = consume(arena.port, load)
    return rates
