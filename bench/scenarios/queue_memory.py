"""What does a queued message of 200 bytes take of the broker's memory, and how long is a start?

Ours: a million plain messages, then a restart with all of them queued. Theirs: 20,000 calls of a
task with a 200-byte argument, which is how a Celery user fills a queue; Redis holds no less for it.
"""

from __future__ import annotations

import time

from harness.arena import Arena
from harness.memory import resident_bytes
from harness.processes import BenchError
from harness.raw import Connection, Load, publish
from harness.targets import THEIRS

BODY_BYTES = 200


def measure(arena: Arena) -> dict[str, float]:
    """Bytes of resident memory a message, and on our side seconds until the broker greets."""
    if arena.side.name == THEIRS:
        return _of_redis(arena)
    count = arena.many(ours=1_000_000, theirs=0)
    publish(arena.port, Load("warm", 1, 100, BODY_BYTES, 1000))
    before = resident_bytes(arena.broker_pid)
    publish(arena.port, Load("full", 1, 100, BODY_BYTES, count))
    grown = resident_bytes(arena.broker_pid) - before
    arena.stop_broker()
    began = time.monotonic()
    arena.start_broker()
    connection = Connection(arena.port, "admin")
    took = time.monotonic() - began
    if (queued := connection.queued("full")) != count:
        raise BenchError(f"{queued} of {count} messages are queued after the restart")
    connection.close()
    return {"bytes_a_message": grown / count, "start_s": took}


def _of_redis(arena: Arena) -> dict[str, float]:
    count = arena.many(ours=0, theirs=20_000)
    arena.tasks.send_many("noop", ["x" * BODY_BYTES] * 100)
    before = resident_bytes(arena.broker_pid)
    arena.tasks.send_many("noop", ["x" * BODY_BYTES] * count)
    return {"bytes_a_message": (resident_bytes(arena.broker_pid) - before) / count}
