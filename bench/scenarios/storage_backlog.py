"""Does it matter how long a queue is? Ten million messages of 200 bytes, in 512 MB of memory.

The broker runs in a memory cgroup that its backlog does not fit into, page cache included. A rate
with the backlog behind it is set against the same rate of the empty broker, minutes before.
"""

from __future__ import annotations

import time

from harness.arena import Arena
from harness.backlog import draining, fill, fill_with_ids, latencies, lookups, percentile, take
from harness.fence import fence
from harness.memory import resident_bytes, resident_with_children
from harness.metrics import Turns
from harness.processes import BenchError
from harness.raw import Connection
from qprotocol.states import State

BODY_BYTES = 200
FENCE_BYTES = 512 << 20
DRAIN_A_SECOND = 100_000
"""About what a worker takes at most (see `drain` in the table of the core path)."""
STOP_S = 60.0


def measure(arena: Arena) -> dict[str, float]:
    """Memory, shares of the empty rates, others' latency, look-ups, and starts."""
    count = arena.many(ours=10_000_000, theirs=0)
    some = count // 5
    turns = Turns()
    arena.fresh_broker(QBROKER_HTTP=turns.listen)
    with fence(FENCE_BYTES) as fenced:
        fenced.enclose(arena.broker_pid)
        figures = {"fenced": float(fenced.works)}
        empty_publish = fill(arena.port, "warm", some, BODY_BYTES)
        empty_take = take(arena.port, "warm", some, BODY_BYTES)
        quiet = percentile(latencies(arena.port, "other", 10, 50), 99)

        before = resident_bytes(arena.broker_pid)
        ids = fill_with_ids(arena.port, "deep", count, BODY_BYTES, every=max(1, count // 2000))
        figures["bytes_a_message"] = (resident_bytes(arena.broker_pid) - before) / count
        figures["all_bytes_a_message"] = (resident_with_children(arena.broker_pid) - before) / count

        turns.begin()
        publish_rate = fill(arena.port, "warm", some, BODY_BYTES)
        figures["publish_percent"] = 100 * publish_rate / empty_publish
        figures["hot_take_percent"] = 100 * take(arena.port, "warm", some, BODY_BYTES) / empty_take
        took = lookups(arena.port, ids, int(State.QUEUED))
        figures["lookup_p99_ms"] = percentile(took, 99) * 1e3
        cold_rate = take(arena.port, "deep", some, BODY_BYTES)
        figures["cold_take_percent"] = 100 * cold_rate / empty_take
        with draining(arena.port, "deep", DRAIN_A_SECOND):
            busy = percentile(latencies(arena.port, "other", 10, 50), 99)
        figures["others_p99_times"] = busy / quiet
        figures["turns_over_5_ms"] = 1000 * turns.share_over(0.005)
        figures["turns_over_10_ms"] = 1000 * turns.share_over(0.01)
        figures["peak_mb"] = fenced.peak_bytes() / 1e6

        fill(arena.port, "deep", some, BODY_BYTES)  # ten million again
        figures["start_killed_s"] = restarted(arena, killed=True)
        figures["start_clean_s"] = restarted(arena, killed=False)
        arena.stop_broker(within_s=STOP_S)
    return figures


def restarted(arena: Arena, *, killed: bool) -> float:
    """Seconds from the start of the process until it has said Welcome; all that was queued is."""
    before = queued(arena)
    if killed:
        arena.kill_broker()
    else:
        arena.stop_broker(within_s=STOP_S)
    began = time.monotonic()
    arena.start_broker()
    Connection(arena.port, "admin").close()
    took = time.monotonic() - began
    if (after := queued(arena)) != before:
        raise BenchError(f"{after} messages are queued after the start, {before} were before")
    return took


def queued(arena: Arena) -> int:
    """How many messages wait in the deep queue."""
    connection = Connection(arena.port, "admin")
    count = connection.queued("deep")
    connection.close()
    return count
