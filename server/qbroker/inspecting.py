"""Answers to Inspect: the tables that the command line shows."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.statistics import Statistics
from qbroker.log.log import Log
from qbroker.outgoing import report
from qprotocol.frames import Error, Frame, Inspect

TABLES: dict[str, Callable[[Broker], Any]] = {
    "bindings": Broker.bindings,
    "policies": Broker.policies,
    "definitions": Broker.definitions,
}
"""What only the core can tell."""
NAMES = "queues, queue, exchanges, bindings, policies, limits, definitions, stats or quarantine"


def inspected(statistics: Statistics, log: Log, frame: Inspect, core: Broker, now: Now) -> Frame:
    """The Report, or an Error for a table that does not exist."""
    if frame.what == "limits":
        return report(core.limits(now), frame.correlation)
    if frame.what == "queues":
        return report([asdict(queue) for queue in statistics.queues], frame.correlation)
    if frame.what == "stats":
        found = asdict(statistics)
        found["queues"] = len(statistics.queues)
        found["quarantined"] = len(statistics.quarantined)
        found["exchanges"] = len(statistics.exchanges)
        found["log"] = asdict(log.statistics())
        return report(found, frame.correlation)
    if frame.what == "exchanges":
        return report([asdict(row) for row in statistics.exchanges], frame.correlation)
    if frame.what in TABLES:
        return report(TABLES[frame.what](core), frame.correlation)
    if frame.what == "queue":
        found = core.queue_described(frame.name) or {}
        if found:
            return report(found, frame.correlation)
        text = f"there is no queue {frame.name!r}"
        return Error(code="NO_QUEUE", message=text, correlation=frame.correlation)
    if frame.what == "quarantine":
        return report([asdict(row) for row in statistics.quarantined], frame.correlation)
    return Error(
        code="BAD_REQUEST",
        message=f"there is no table {frame.what!r}: {NAMES}",
        correlation=frame.correlation,
    )
