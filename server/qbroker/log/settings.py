"""What may be chosen about a log, with bounds."""

from __future__ import annotations

from dataclasses import dataclass

from qbroker.log.active import SEGMENT_BYTES_MIN
from qbroker.log.format import BATCH_BYTES_MAX, SECTOR_BYTES
from qbroker.log.meta import NO_CLUSTER

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MAX = 2 << 30  # offsets in the index have 32 bits
BATCH_BYTES_LIMIT = 1 << 30  # as has the length of a batch; also what a reader must hold


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What may be chosen. Sizes in bytes; `cluster` is an id of 16 bytes, zeros for none."""

    segment_bytes: int = SEGMENT_BYTES
    batch_bytes_max: int = BATCH_BYTES_MAX
    cluster: bytes = NO_CLUSTER

    def __post_init__(self) -> None:
        for name, size, low, high in (
            ("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            ("batch_bytes_max", self.batch_bytes_max, SECTOR_BYTES, BATCH_BYTES_LIMIT),
        ):
            if not low <= size <= high:
                raise ValueError(
                    f"{name} is {size}; the format cannot hold that; choose {low} to {high}"
                )
