"""What a failure costs: the core's work, and the archivist's, for a task by how it ends.

    python bench/dying.py [--count N]                      CPU time, the least of five
    valgrind --tool=cachegrind --cache-sim=no python bench/dying.py core:died --count N
                                                           one of them once; N=0 is the rest of it

`acked` is an ack in a run, `done` an outcome with a result, `retried` one failure before that,
`died` a failure for good. The core publishes, hands out and settles a hundred at a time, as in
turns.py; the archivist reads a log that the engine would have written for the same.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

from archive import CHUNK, START_MS, written
from qbroker.archive.archivist import Archivist, Keeping
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import open_store
from qbroker.core import records as r
from qbroker.log.disk import FileDisk
from qbroker.log.log import Log
from qbroker.log.reader import LogReader
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome
from qprotocol.options import QueueOptions, RetryPolicy
from turns import Stage

REPEATS = 5
ERROR = Failure("ValueError", "no such customer", "Traceback ...\n" * 20).pack()
AT_ONCE = RetryPolicy(retries_max=3, backoff_ms=0, jitter=False).pack()
RESULT = b"r" * 100


def outcomes(stage: Stage, kind: int, **more: object) -> tuple[int, f.Frame]:
    """All that is handed out ends so."""
    raw = [
        Outcome(kind, position, grant, **more).pack()  # type: ignore[arg-type]
        for position, grant in stage.tokens()
    ]
    return 2, f.Settle(count=len(raw), raw=b"".join(raw))


def acked(stage: Stage) -> Iterator[tuple[int, f.Frame]]:
    tokens = stage.tokens()
    first, grant = tokens[0]
    yield 2, f.Ack(raw=wire.ACK_RUN.pack(grant, first, len(tokens)))


def done(stage: Stage) -> Iterator[tuple[int, f.Frame]]:
    yield outcomes(stage, wire.ACK, result=RESULT, flags=wire.HAS_RESULT)


def retried(stage: Stage) -> Iterator[tuple[int, f.Frame]]:
    yield outcomes(stage, wire.FAIL, result=ERROR, policy=AT_ONCE, delay_ms=0)
    yield from done(stage)


def died(stage: Stage) -> Iterator[tuple[int, f.Frame]]:
    yield outcomes(stage, wire.FAIL, result=ERROR, flags=wire.NO_RETRY)


ENDS: dict[str, Callable[[Stage], Iterator[tuple[int, f.Frame]]]] = {
    "acked": acked,
    "done": done,
    "retried": retried,
    "died": died,
}


def core(how: str, count: int) -> float:
    """Seconds of the core."""
    stage = Stage()
    stage.hello(2, b"s" * 16)
    stage.consume(2, CHUNK)
    raw = Message("q", b"x" * 50, task="shop.work").pack() * CHUNK
    stage.measured()
    for _ in range(count // CHUNK):
        stage.turn((1, f.Publish(producer=0, sequence=0, count=CHUNK, raw=raw)))
        for frame in ENDS[how](stage):
            stage.turn(frame)
    return stage.total


def settled(how: str, position: int, grant: int, now: int) -> r.Record:
    """The record with which a task of the archivist's log ends, or is tried again."""
    until = now + 86_400_000
    change, state, result, reason = {
        "done": (r.SUCCEEDED, 6, RESULT, ""),
        "again": (r.RETRIED, 0, ERROR, ""),
        "died": (r.FAILED, 7, ERROR, "failed"),
    }[how]
    lane = 1 if how == "died" else 0
    return r.Settled(
        *(change, position, grant, state, now, 3, 1, until, 0, lane, reason, result, False),
        r.MessageBatch(),
    )


def fill(log: Log, how: str, count: int) -> None:
    """The log of so many."""
    for number, name in enumerate(("default", "default.dead")):
        queue = r.QueueOpened(number, name, QueueOptions().as_dict())
        written(log, queue, r.LaneOpened(number, number, "shop.work", b""), wall_ms=START_MS)
    raw = Message("default", b"x" * 50, task="shop.work").pack() * CHUNK
    grants = 1 << 40
    for number in range(1, count // CHUNK + 1):
        now, batch = START_MS + number, r.MessageBatch([[0, 0, CHUNK, 0]], [], [], raw, CHUNK)
        (first,) = written(log, r.Published(1, number, now, batch), wall_ms=now)
        for step in {"acked": (), "retried": ("again", "done")}.get(how, (how,)):
            grants += 1
            granted = r.Granted(grants, b"s" * 16, 1, [[0, 0, first, CHUNK]])
            ends = [settled(step, first + n, grants, now) for n in range(CHUNK)]
            written(log, granted, *ends, wall_ms=now)
        if how == "acked":
            grants += 1
            granted = r.Granted(grants, b"s" * 16, 1, [[0, 0, first, CHUNK]])
            written(log, granted, r.Acked([[grants, first, CHUNK]]), wall_ms=now)
    log.sync()


def archive(how: str, count: int) -> float:
    """Seconds of the archivist, transactions included."""
    folder = Path(tempfile.mkdtemp(prefix="qbroker-bench-"))
    try:
        log = Log.open(FileDisk(str(folder / "log")))
        fill(log, how, count)
        reader = LogReader.open(FileDisk(str(folder / "log")))
        store = open_store(folder / FILE_NAME, reader.log_id)
        clock = lambda: time.monotonic_ns() // 1_000_000
        keeping = Keeping(10 * 365 * 86_400_000, 1 << 40)
        archivist = Archivist(reader, store, keeping, lambda: START_MS, clock)
        began = process_time()
        for _ in archivist.advance(log.durable, is_shedding=False):
            pass
        archivist.save()
        took = process_time() - began
        log.close()
        return took
    finally:
        shutil.rmtree(folder)


ROOMS = {"core": core, "archive": archive}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="?", default="", help="core:died, archive:retried ...")
    parser.add_argument("--count", type=int, default=20_000)
    given = parser.parse_args()
    if given.case:
        room, how = given.case.split(":")
        ROOMS[room](how, given.count)
        return
    for room, measure in ROOMS.items():
        for how in ENDS:
            took = min(measure(how, given.count) for _ in range(REPEATS))
            print(f"{room:<8} {how:<8} {took / given.count * 1e6:6.1f} us a message")


if __name__ == "__main__":
    main()
