"""Answers to Inspect: the tables that the command line shows."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qbroker.core.broker import Broker
from qbroker.core.census import Census
from qbroker.core.moment import Now
from qbroker.core.refusals import no_queue
from qbroker.core.statistics import QueueStatistics, Statistics
from qbroker.log.log import Log
from qbroker.outgoing import as_json, report
from qprotocol.frames import Error, Frame, Inspect, Report

Ages = Callable[[QueueStatistics], QueueStatistics]
"""The same row with what only the engine knows: when its oldest message was written."""


class Inspection:
    """A question whose answer takes a look at all queues: so much a turn."""

    def __init__(self, connection: int, frame: Inspect, census: Census) -> None:
        self.connection = connection
        self._frame = frame
        self._census = census
        self._rows: list[str] = []

    def step(self, aged: Ages, whole: Callable[[Statistics], Statistics], log: Log) -> Frame | None:
        """Go on; the answer once that is all."""
        self._census.step()
        if self._frame.what == "queues":
            rows = [aged(each) for each in self._census.rows[len(self._rows) :]]
            self._rows += [as_json(asdict(row)) for row in rows]
        if not self._census.is_over:
            return None
        if self._frame.what == "queues":
            raw = f"[{','.join(self._rows)}]".encode()
            return Report(raw=raw, correlation=self._frame.correlation)
        found = whole(self._census.statistics())
        return report(STATISTICS[self._frame.what](found, log), self._frame.correlation)


def figures(found: Statistics, log: Log) -> dict[str, Any]:
    """All figures; of tables that have their own name, how many rows."""
    return asdict(found) | {
        "queues": len(found.queues),
        "quarantined": len(found.quarantined),
        "exchanges": len(found.exchanges),
        "log": asdict(log.statistics()),
    }


STATISTICS: dict[str, Callable[[Statistics, Log], Any]] = {
    "stats": figures,
    "exchanges": lambda found, _: [asdict(row) for row in found.exchanges],
    "quarantine": lambda found, _: [asdict(row) for row in found.quarantined],
}
"""What is counted."""
COUNTED = {"queues", *STATISTICS}
"""What takes a look at all queues."""
CORE: dict[str, Callable[[Broker, Now, str], Any]] = {
    "bindings": lambda core, *_: core.bindings(),
    "policies": lambda core, *_: core.policies(),
    "definitions": lambda core, *_: core.definitions(),
    "limits": lambda core, now, _: core.limits(now),
    "keys": lambda core, now, name: core.keys(now, name),
}
"""What only the core can tell; of one thing alone, if a name is given."""
NAMES = "queues, queue, exchanges, bindings, policies, limits, keys, definitions, stats, quarantine"


def inspected(frame: Inspect, core: Broker, now: Now) -> Frame:
    """The Report, or an Error for a table that does not exist. Those of COUNTED are not for it."""
    if frame.what in CORE:
        return report(CORE[frame.what](core, now, frame.name), frame.correlation)
    if frame.what == "queue":
        found = core.queue_described(frame.name)
        if found:
            return report(found, frame.correlation)
        return Error(code="NO_QUEUE", message=no_queue(frame.name), correlation=frame.correlation)
    return Error(
        code="BAD_REQUEST",
        message=f"there is no table {frame.what!r}: {NAMES}",
        correlation=frame.correlation,
    )
