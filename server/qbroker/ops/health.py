"""Is the broker well: one verdict, from what moved lately.

    ok        nothing waits for the disk, or what waits is moving
    stalled   something has waited for STALLED_S and nothing moved: the disk hangs
    stopping  it was told to end

Rule 1. Health is about progress, not about load: a long queue is a figure, not an illness.
"""

from collections.abc import Callable
from dataclasses import dataclass

STALLED_S = 5.0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is looked at. ``waiting`` is whether anything waits for a turn or for the disk;
    ``progress`` is any value that differs once something moved.
    """

    waiting: bool
    progress: object
    written: int
    durable: int
    last_sync_s: float


class Health:
    """The verdict, kept up to date by ``tick``."""

    def __init__(self, look: Callable[[], Vitals], epoch: int, version: str) -> None:
        self.stopping = False
        self._look = look
        self._epoch = epoch
        self._version = version
        self._progress: object = None
        self._stuck_s = 0.0
        self._uptime_s = 0.0

    def tick(self, elapsed_s: float) -> None:
        """Look again, ``elapsed_s`` after the last time. Cheap: called several times a second."""
        self._uptime_s += elapsed_s
        vitals = self._look()
        if vitals.waiting and vitals.progress == self._progress:
            self._stuck_s += elapsed_s
        else:
            self._progress, self._stuck_s = vitals.progress, 0.0

    @property
    def status(self) -> str:
        if self.stopping:
            return "stopping"
        return "stalled" if self._stuck_s > STALLED_S else "ok"

    def report(self) -> dict[str, object]:
        """What /health says. Times in the units of their names."""
        vitals = self._look()
        return {
            "status": self.status,
            "version": self._version,
            "epoch": self._epoch,
            "log_written": vitals.written,
            "log_durable": vitals.durable,
            "log_durable_lag": vitals.written - vitals.durable,
            "last_sync_ms": round(vitals.last_sync_s * 1000, 3),
            "stuck_ms": round(self._stuck_s * 1000),
            "uptime_s": round(self._uptime_s),
        }
