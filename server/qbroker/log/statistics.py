"""What may be looked at of a log: immutable values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What may be looked at. `torn_bytes` were cut at this start; never confirmed."""

    segments: int
    bytes: int
    oldest: int
    written: int
    durable: int
    torn_bytes: int
    last_sync_s: float
    spare_ready: bool
