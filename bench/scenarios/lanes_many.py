"""What do many keys and many queues cost? A hundred thousand keys, ten thousand queues.

The same messages by turns: with one key and with another key each, under a rule that counts each
key apart; to one queue and to another queue each. Published in batches of 100, then taken.
"""

from __future__ import annotations

from statistics import median

from harness.arena import Arena
from harness.lanes import drain, named, packed, pour, set_limit
from harness.memory import resident_bytes

ROUNDS = 3
BODY_BYTES = 100
TASK = "bench.work"
WARM = 200_000
ROOM = {
    "QBROKER_QUEUES_MAX": "20000",
    "QBROKER_LANES_MAX": "200000",
    "QBROKER_SUBSCRIPTIONS_MAX": "200",
}
"""Limits of the broker that stand a little below what is asked here."""


def measure(arena: Arena) -> dict[str, float]:
    """Percent of the rate with one, of the same round; bytes of memory for each of the many."""
    keys = list(named("key", arena.many(ours=100_000, theirs=0)))
    queues = list(named("queue", arena.many(ours=10_000, theirs=0)))
    warmed_up(arena)
    set_limit(arena.port, "keys", task=TASK, per_key=True, concurrency=10_000)
    one, by_key, bytes_a_key = compared(
        arena,
        len(keys),
        [packed("keyed", BODY_BYTES, task=TASK, key="one")] * 100,
        [packed("keyed", BODY_BYTES, task=TASK, key=key) for key in keys],
        ["keyed"],
    )
    warmed_up(arena)  # what the keys left would be room for the queues
    _, by_queue, bytes_a_queue = compared(
        arena,
        len(queues),
        [packed("keyed", BODY_BYTES)] * 100,
        [packed(queue, BODY_BYTES) for queue in queues],
        queues,
    )
    return {
        "one_rate": one,
        "keys_percent": by_key,
        "bytes_a_key": bytes_a_key,
        "queues_percent": by_queue,
        "bytes_a_queue": bytes_a_queue,
    }


def warmed_up(arena: Arena) -> None:
    """A new broker whose bodies, buffers and free lists are as large as they will be."""
    arena.fresh_broker(**ROOM)
    moved(arena, arena.many(ours=WARM, theirs=0), [packed("warm", BODY_BYTES)] * 100, ["warm"])


def compared(
    arena: Arena, many: int, alike: list[bytes], apart: list[bytes], queues: list[str]
) -> tuple[float, float, float]:
    """The rate of those alike, percent of it of those apart, bytes for each of the latter."""
    count = max(many, arena.many(ours=100_000, theirs=0))
    moved(arena, count, alike, ["keyed"])
    before = resident_bytes(arena.broker_pid)
    pour(arena.port, many, apart)
    bytes_each = (resident_bytes(arena.broker_pid) - before) / many
    drain(arena.port, many, queues)
    rates, shares = [], []
    for _ in range(ROUNDS):
        rates.append(moved(arena, count, alike, ["keyed"]))
        shares.append(100 * moved(arena, count, apart, queues) / rates[-1])
    return median(rates), median(shares), bytes_each


def moved(arena: Arena, count: int, messages: list[bytes], queues: list[str]) -> float:
    """Messages a second, from the first publish to the last ack."""
    return count / (pour(arena.port, count, messages) + drain(arena.port, count, queues))
