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


def figures(found: Statistics, log: Log) -> dict[str, Any]:
    """All figures; of tables that have their own name, how many rows."""
    return asdict(found) | {
        "queues": len(found.queues),
        "quarantined": len(found.quarantined),
        "exchanges": len(found.exchanges),
        "log": asdict(log.statistics()),
    }


STATISTICS: dict[str, Callable[[Statistics, Log], Any]] = {
    "queues": lambda found, _: [asdict(row) for row in found.queues],
    "stats": figures,
    "exchanges": lambda found, _: [asdict(row) for row in found.exchanges],
    "quarantine": lambda found, _: [asdict(row) for row in found.quarantined],
}
"""What is counted: made of statistics, which cost a step a queue."""
CORE: dict[str, Callable[[Broker, Now], Any]] = {
    "bindings": lambda core, _: core.bindings(),
    "policies": lambda core, _: core.policies(),
    "definitions": lambda core, _: core.definitions(),
    "limits": lambda core, now: core.limits(now),
}
"""What only the core can tell."""
NAMES = "queues, queue, exchanges, bindings, policies, limits, definitions, stats or quarantine"


def inspected(
    statistics: Callable[[], Statistics], log: Log, frame: Inspect, core: Broker, now: Now
) -> Frame:
    """The Report, or an Error for a table that does not exist."""
    if frame.what in STATISTICS:
        return report(STATISTICS[frame.what](statistics(), log), frame.correlation)
    if frame.what in CORE:
        return report(CORE[frame.what](core, now), frame.correlation)
    if frame.what == "queue":
        found = core.queue_described(frame.name)
        if found:
            return report(found, frame.correlation)
        text = f"there is no queue {frame.name!r}"
        return Error(code="NO_QUEUE", message=text, correlation=frame.correlation)
    return Error(
        code="BAD_REQUEST",
        message=f"there is no table {frame.what!r}: {NAMES}",
        correlation=frame.correlation,
    )
