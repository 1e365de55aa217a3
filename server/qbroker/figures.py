"""What the segments of a log hold, each: batches, records by type, bytes, and how much lives."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qbroker.core import records as r
from qbroker.core.cleaning import Live
from qbroker.core.state import BrokerState
from qbroker.log.format import RECORD_HEADER_BYTES, SLOT_BITS, BatchInfo, StoredRecord

SUFFIX = ".qlog"


@dataclass(slots=True)
class SegmentFigures:
    """One file. ``live`` are slots that somebody may still ask for, of ``slots``."""

    name: str
    first: int
    bytes: int
    batches: int = 0
    slots: int = 0
    live: int = 0
    record_bytes: int = 0
    records: Counter[str] = field(default_factory=Counter)

    @property
    def live_bytes(self) -> int:
        """An estimate: as if all slots were of one size."""
        return self.bytes * self.live // self.slots if self.slots else 0

    @property
    def amplification(self) -> float:
        """Bytes of the file for one of the records in it: headers, padding, reserve."""
        return self.bytes / self.record_bytes if self.record_bytes else 0.0


def figures(
    folder: Path, batches: Iterable[tuple[BatchInfo, list[StoredRecord]]], state: BrokerState
) -> list[SegmentFigures]:
    """A row a segment in ``folder``, oldest first. Reads what ``batches`` reads."""
    found = [
        SegmentFigures(path.name, int(path.name[:20]), path.stat().st_blocks * 512)
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    ]
    firsts = [each.first for each in found]
    for info, stored in batches:
        row = found[bisect_right(firsts, info.number) - 1]
        row.batches += 1
        row.slots += info.slots
        for each in stored:
            row.records[r.NAMES.get(each.type, str(each.type))] += 1
            row.record_bytes += len(each.body) + RECORD_HEADER_BYTES
    live = Live(state)
    ends = [first << SLOT_BITS for first in [*firsts[1:], 1 << (64 - SLOT_BITS)]]
    for row, end in zip(found, ends, strict=True):
        row.live = len(live.between(row.first << SLOT_BITS, end).whole)
    return found
