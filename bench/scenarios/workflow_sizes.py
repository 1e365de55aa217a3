"""Does a workflow cost as much a step however large it is, and what is it to others meanwhile?

Chains and chords of three sizes, one child: steps a second from the call to the result. Resident
memory of a node that is held. The latency of another queue at 50 messages a second while the
largest chord runs, beside what it is without.
"""

from __future__ import annotations

import time
from typing import Any

from harness.arena import Arena
from harness.backlog import latencies, percentile
from harness.memory import resident_bytes
from harness.metrics import Turns
from harness.targets import CHAINS, CHORDS

WAIT_S = 300.0


def measure(arena: Arena) -> dict[str, float]:
    """Steps a second by size, bytes a held node, and others' latency."""
    turns = Turns()
    arena.fresh_broker(QBROKER_HTTP=turns.listen)
    tasks: Any = arena.tasks
    held = arena.many(ours=CHORDS[-1], theirs=0)
    before = resident_bytes(arena.broker_pid)
    handle = (tasks.echo.s(1) | chord_of(tasks, held)).delay()
    grown = resident_bytes(arena.broker_pid) - before
    figures: dict[str, float] = {"bytes_a_node": grown / held}
    handle.parent.parent.revoke()  # and with it all that is held
    with arena.worker():
        arena.wait_for_worker()
        quiet = percentile(latencies(arena.port, "other", 5, 50), 99)
        for size in CHAINS:
            steps = arena.many(ours=size, theirs=0)
            figures[f"chain_{size}"] = steps / seconds(chain_of(tasks, steps))
        for size in CHORDS[:-1]:
            members = arena.many(ours=size, theirs=0)
            figures[f"chord_{size}"] = members / seconds(chord_of(tasks, members))
        members = arena.many(ours=CHORDS[-1], theirs=0)
        turns.begin()
        began = time.monotonic()
        handle = chord_of(tasks, members).delay()
        busy = percentile(latencies(arena.port, "other", arena.seconds, 50), 99)
        handle.get(timeout=WAIT_S)
        figures[f"chord_{CHORDS[-1]}"] = members / (time.monotonic() - began)
        figures["others_p99_times"] = busy / quiet
        figures["turns_over_5_ms"] = 1000 * turns.share_over(0.005)
    return figures


def chain_of(tasks: Any, steps: int) -> Any:
    return tasks.chain([tasks.echo.s(1), *[tasks.echo.s() for _ in range(steps - 1)]])


def chord_of(tasks: Any, members: int) -> Any:
    return tasks.chord([tasks.echo.si(number) for number in range(members)], tasks.total.s())


def seconds(step: Any) -> float:
    """From the call to the result."""
    began = time.monotonic()
    step.delay().get(timeout=WAIT_S)
    return time.monotonic() - began
