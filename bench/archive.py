"""What the archivist costs, alone: rows a second, CPU a thousand rows, look-ups among them.

    .venv/bin/python bench/archive.py --rows 1000000 --results 100

A log is written as the engine would: chunks of 100 tasks, grants of 100, acks in runs; of a
hundred tasks so many have a result of 100 bytes. Then an archivist goes through it.
"""

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qbroker.archive.archivist import Archivist, Keeping
from qbroker.archive.questions import Questions
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import open_store
from qbroker.archive.walking import Query
from qbroker.core import records as r
from qbroker.log.disk import FileDisk
from qbroker.log.log import Log
from qbroker.log.reader import LogReader
from qprotocol.ids import mint, unpack_id
from qprotocol.message import Message
from qprotocol.options import QueueOptions

CHUNK = 100
START_MS = 1_700_000_000_000
RARE = b"r" * 16
"""The worker that had the first chunk, and no other."""


def written(log: Log, *records: r.Record, wall_ms: int) -> list[int]:
    """The records in a batch of their own; their positions."""
    batch = log.begin()
    found = [batch.add(record.TYPE, record.parts(), record.slots) for record in records]
    log.commit(batch, sync=False, wall_ms=wall_ms, epoch=1)
    return found


def fill(log: Log, rows: int, results: int) -> list[str]:
    """A log of so many tasks, all done; some of their ids."""
    queue = r.QueueOpened(0, "default", QueueOptions().as_dict())
    written(log, queue, r.LaneOpened(0, 0, "shop.work", b""), wall_ms=START_MS)
    some = []
    for number in range(1, rows // CHUNK + 1):
        now = START_MS + number
        ids = [mint(now, random.getrandbits(80)) for _ in range(CHUNK)]
        names = [unpack_id(each, minted=True) for each in ids]
        raw = b"".join(Message("default", b"x" * 50, name, "shop.work").pack() for name in names)
        batch = r.MessageBatch([[0, 0, CHUNK, 0]], [], [], raw, CHUNK)
        (first,) = written(log, r.Published(1, number, now, batch), wall_ms=now)
        grant = 1 << 40 | number
        granted = r.Granted(grant, b"s" * 16 if number > 1 else RARE, 1, [[0, 0, first, CHUNK]])
        written(log, granted, *ends(grant, first, now, results), wall_ms=now)
        if results and number % 97 == 0:
            some.append(names[0])
    log.sync()
    return some


def ends(grant: int, first: int, now: int, results: int) -> Iterator[r.Record]:
    """The first so many have a result, the others are acked."""
    until = now + 10 * 365 * 86_400_000
    for position in range(first, first + results):
        yield r.Settled(
            *(r.SUCCEEDED, position, grant, 6, now, 3, 1, until, 0, 0, "", b"r" * 100, False),
            r.MessageBatch(),
        )
    if results < CHUNK:
        yield r.Acked([[grant, first + results, CHUNK - results]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--results", type=int, default=0, help="of 100 tasks, with a result")
    parser.add_argument("--dir", default="/var/tmp")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qbroker-bench-", dir=given.dir))
    try:
        measure(folder, given.rows, given.results)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, rows: int, results: int) -> None:
    log = Log.open(FileDisk(str(folder / "log")))
    ids = fill(log, rows, results)
    upto = log.durable
    reader = LogReader.open(FileDisk(str(folder / "log")))
    path = folder / FILE_NAME
    store = open_store(path, reader.log_id)
    keeping = Keeping(10 * 365 * 86_400_000, 1 << 40)
    clock = lambda: time.monotonic_ns() // 1_000_000
    archivist = Archivist(reader, store, keeping, lambda: START_MS, clock)
    began, cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in archivist.advance(upto, is_shedding=False))
    archivist.save()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    size = store.figures().bytes
    print(f"{rows:,} rows, {results} of 100 with a result, {count} transactions")
    print(f"  {rows / took:,.0f} rows/s, {used / rows * 1e6:.2f} ms CPU per 1,000 rows")
    print(f"  {size / rows:.0f} bytes a row; {rss} MiB RSS at most, the log's writer included")
    questions = Questions(path)
    times = []
    for name in random.sample(ids, min(2_000, len(ids))):
        began = time.perf_counter()
        found = questions.find(bytes.fromhex(name.replace("-", "")), minted=True)
        times.append(time.perf_counter() - began)
        assert found
        assert len(found.kept) == 100
    if times:
        times.sort()
        p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
        print(f"  an old result by its id: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")
    seldom = Query(worker=f"{RARE.hex()}/")
    for said, query in (
        ("a task's newest 50", Query(task="shop.work")),
        ("failures of one kind", Query(error="X", state=7)),
        ("a worker with 100 rows, all rows walked", seldom),
        ("the same, by task", replace(seldom, task="shop.work")),
        ("arguments nobody has, all rows looked at", Query(preview="x")),
    ):
        began = time.perf_counter()
        page = questions.search(query)
        took, more = (time.perf_counter() - began) * 1e3, ", cut" if page.is_cut else ""
        print(f"  {said}: {len(page.rows)} rows in {took:.1f} ms{more}")
    log.close()


if __name__ == "__main__":
    main()
