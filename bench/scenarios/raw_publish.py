"""How many messages a second can be published with confirms, without any client library?

1 and 8 producers, 1 and 100 messages a frame, bodies of 100 B and 1 KiB; 1,000 single messages or
32 batches are under way in all.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.arena import Arena
from harness.raw import Load, publish


def measure(arena: Arena) -> dict[str, float]:
    """Messages a second for each combination."""
    return {name: publish(arena.port, load) for name, load in loads(arena)}


def loads(arena: Arena) -> Iterator[tuple[str, Load]]:
    """Every combination by the name of its figure, each with a queue of its own."""
    for peers in (1, 8):
        for batch in (1, 100):
            for size in (100, 1024):
                full = 80_000 if batch == 1 else 800_000 if size == 100 else 160_000
                total = arena.many(ours=full, theirs=0)
                name = f"peers_{peers}_batch_{batch}_bytes_{size}"
                yield name, Load(name, peers, batch, size, total)
