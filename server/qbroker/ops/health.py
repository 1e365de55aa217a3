"""Is the broker well: one verdict, from what moved lately.

    ok        nothing waits for the disk, or the disk answers
    stalled   a batch has been with the disk for STALLED_S: it hangs
    stopping  it was told to end

Rule 1. Health is about progress, not about load: a long queue is a figure, not an illness.
"""

from typing import Protocol

STALLED_S = 5.0


class Counted(Protocol):
    """Something that counts what it is told, and remembers what came last: a Histogram."""

    @property
    def count(self) -> int: ...
    @property
    def last(self) -> float: ...


class Health:
    """The verdict, kept up to date by ``tick``.

    ``begun`` is told of every batch that goes to the disk, ``done`` of every one that is
    back: one more of the first means that the disk is being waited for.
    """

    def __init__(self, begun: Counted, done: Counted, epoch: int, version: str) -> None:
        self.stopping = False
        self._begun = begun
        self._done = done
        self._ahead = begun.count - done.count
        self._seen = done.count
        self._epoch = epoch
        self._version = version
        self._stuck_s = 0.0
        self._uptime_s = 0.0

    def tick(self, elapsed_s: float) -> None:
        """Look again, ``elapsed_s`` after the last time. Cheap: called several times a second."""
        self._uptime_s += elapsed_s
        waiting = self._begun.count - self._done.count > self._ahead
        moved, self._seen = self._done.count != self._seen, self._done.count
        self._stuck_s = self._stuck_s + elapsed_s if waiting and not moved else 0.0

    @property
    def stalled(self) -> bool:
        """Whether the disk hangs."""
        return self._stuck_s > STALLED_S

    @property
    def status(self) -> str:
        if self.stopping:
            return "stopping"
        return "stalled" if self.stalled else "ok"

    def report(self, written: int, durable: int) -> dict[str, object]:
        """What /health says of a log whose batches are ``written`` and ``durable`` so far."""
        return {
            "status": self.status,
            "version": self._version,
            "epoch": self._epoch,
            "log_written": written,
            "log_durable": durable,
            "log_durable_lag": written - durable,
            "last_sync_ms": round(self._done.last * 1000, 3),
            "stuck_ms": round(self._stuck_s * 1000),
            "uptime_s": round(self._uptime_s),
        }
