"""``make demo CHAOS=1``: kill the broker with -9 in the middle, and prove that nothing is missing.

Rule 1. A kill that came too late proves nothing: then the demo fails, though all is well.
Rule 2. What the broker says is not believed: the totals are counted again in this process, with
        no broker, and must be equal to the last identifier.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from processes import Broker, Worker
from screen import Progress
from totals import Totals, count_alone

from qclient import AsyncResult

LOOKED_AT = 20
"""Tasks at the end of the line whose state is asked just before the kill."""


class Chaos:
    """One kill, and what came of it."""

    def __init__(self, broker: Broker, worker: Worker, results: Sequence[AsyncResult[Any]]) -> None:
        self._broker = broker
        self._worker = worker
        self._results = results
        self.missed = False

    def strike(self, progress: Progress) -> None:
        """The broker is killed, and serves again on the same data and port."""
        last = self._results[progress.done :][-LOOKED_AT:]
        self.missed = all(result.ready() for result in last)
        done_s = time.monotonic() - progress.began
        self._broker.kill()
        ran = len(runs(self._worker))
        down = time.monotonic()
        self._broker.serve()
        back_s = time.monotonic() - down
        progress.say(
            f"  killed the broker with -9 after {done_s:.1f} s, {progress.done:,} results here and "
            f"{ran:,} tasks run; it serves again after {back_s:.2f} s"
        )

    def verdict(self, totals: Totals, paths: list[str]) -> bool:
        """Whether the kill hit, and nothing was lost, doubled or invented. Prints why."""
        again = {task: count for task, count in Counter(runs(self._worker)).items() if count > 1}
        print(f"  tasks run more than once: {len(again):,} of {len(paths):,}")
        print("  counting again in one process, without a broker ...", flush=True)
        began = time.monotonic()
        differences = totals.differences(count_alone(paths))
        took_s = time.monotonic() - began
        if differences:
            print(f"  the totals differ from the recount in: {', '.join(differences)}")
        else:
            print(f"  the totals are equal, to the last identifier and digest ({took_s:.1f} s)")
        if self.missed:
            print(
                "  but the kill missed: all tasks were done before it, so this proves nothing; "
                "try again, or give it more files with DIR="
            )
        return not differences and not self.missed


def runs(worker: Worker) -> list[str]:
    """The ids of the tasks that were run, once for each run, from the worker's log."""
    found = []
    for line in worker.said().splitlines():
        if '"task succeeded"' in line or '"task failed' in line:
            found.append(json.loads(line)["id"])
    return found
