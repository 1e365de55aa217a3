"""Answers to Inspect: the tables that the command line shows."""

from dataclasses import asdict

from qbroker.core.statistics import Statistics
from qbroker.log.log import Log
from qbroker.outgoing import report
from qprotocol.frames import Error, Frame, Inspect


def inspected(statistics: Statistics, log: Log, frame: Inspect) -> Frame:
    """The Report, or an Error for a table that does not exist."""
    if frame.what == "queues":
        return report([asdict(queue) for queue in statistics.queues], frame.correlation)
    if frame.what == "stats":
        found = asdict(statistics)
        found["queues"] = len(statistics.queues)
        found["quarantined"] = len(statistics.quarantined)
        found["log"] = asdict(log.statistics())
        return report(found, frame.correlation)
    if frame.what == "quarantine":
        return report([asdict(row) for row in statistics.quarantined], frame.correlation)
    return Error(
        code="BAD_REQUEST",
        message=f"there is no table {frame.what!r}: queues, stats or quarantine",
        correlation=frame.correlation,
    )
