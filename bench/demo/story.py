"""The demo itself: send a task for each file, gather the results, show what they come to."""

from __future__ import annotations

import time
from pathlib import Path

from chaos import Chaos
from indexer import app, index_file
from processes import Broker, Worker
from screen import Progress, show
from totals import Totals

from qclient import TaskFailure

PATIENCE_S = 60
"""For one result, once those before it are here."""


def tell(broker: Broker, worker: Worker, folder: Path, paths: list[str], *, is_chaos: bool) -> bool:
    """All of it. Whether it went well."""
    with app:  # closes its connection at the end
        return index(broker, worker, folder, paths, is_chaos=is_chaos)


def index(
    broker: Broker, worker: Worker, folder: Path, paths: list[str], *, is_chaos: bool
) -> bool:
    totals, progress = Totals(), Progress(len(paths))
    results = app.send_many(index_file.s(path) for path in paths)
    sent_ms = (time.monotonic() - progress.began) * 1000
    progress.say(f"  {len(results):,} tasks sent, and on disk, after {sent_ms:.0f} ms")
    chaos = Chaos(broker, worker, results) if is_chaos else None

    for path, result in zip(paths, results, strict=True):
        try:
            totals.add(result.get(timeout=PATIENCE_S))
        except TaskFailure as failure:
            totals.fail(path, failure.kind)
        progress.step(failed=totals.failed > progress.failed)
        if chaos and progress.done == max(len(paths) // 2, 1):
            chaos.strike(progress)

    took_s, rate = time.monotonic() - progress.began, progress.rate
    series = broker.metrics()
    show(totals, folder)
    print(f"  {len(paths):,} tasks in {took_s:.1f} s: {rate:,.0f} tasks/s with two processes")
    print(f"  {broker.metrics_url} gave {len(series):,} series; it ends with the demo")
    for kind, failed in totals.unexpected.items():
        print(f"  not expected: {kind}, of {failed[0]} and {len(failed) - 1:,} more")
    survived = chaos.verdict(totals, paths) if chaos else True
    return survived and not totals.unexpected
