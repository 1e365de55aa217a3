"""Which segments are dropped or rewritten, once checkpoints stand for what they say.

    sealed, at or below the older of two checkpoints, and archived
        nothing in it is alive      dropped
        little in it is alive       rewritten with that alone, neighbours together
        it is small                 made one with small neighbours, once they are some
        else                        let alone

Rule 1. The keeper reads, and writes files of its own. The broker, whose log it is, drops
        and adopts as it is told.
Rule 2. A segment is read once, to be measured. From then on what is alive in it is counted
        in memory, and its bytes are taken to shrink with that.
Rule 3. A run reads so much and no more; what is left waits for the next checkpoint.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qbroker.core.cleaning import Live, Wanted, left_of
from qbroker.log.cleaning import Rewritten, rewrite
from qbroker.log.disk import Disk
from qbroker.log.errors import CorruptError
from qbroker.log.format import (
    BATCH_OVERHEAD_BYTES,
    FOOTER_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    StoredRecord,
    rounded,
)
from qbroker.log.segment import Segment
from qprotocol.wire import SLOT_BITS

READ_MAX_BYTES = 1 << 30
"""Of the log, read in one run to measure, and as much again to rewrite."""

SMALL = 4
"""A file is small below this part of a segment's size; so many become one."""

Looked = dict[str, tuple[int, int]]
"""A segment's file name to how many positions were alive when it was measured, and their bytes."""

_log = logging.getLogger("qbroker.keeper")


@dataclass(slots=True)
class Group:
    """Neighbours that become one file."""

    segments: list[Segment] = field(default_factory=list)
    left: int = 0
    """About what the file will have."""
    read: int = 0
    gains: bool = False
    """Something in it is dead."""

    @property
    def is_worth_it(self) -> bool:
        """Whether it frees room, or makes one file of some small ones."""
        return self.gains or len(self.segments) >= SMALL

    def add(self, segment: Segment, left: int, *, gains: bool) -> None:
        """Another one, behind them."""
        self.gains = self.gains or gains
        self.segments.append(segment)
        self.left += left
        self.read += segment.disk_bytes


@dataclass(slots=True)
class Plan:
    """What is to be done."""

    dead: list[int] = field(default_factory=list)
    """First batches of segments to be dropped."""
    groups: list[Group] = field(default_factory=list)
    looked: Looked = field(default_factory=dict)


class Cleaner:
    """One run. ``live`` is of a state that is at least as new as the segments."""

    def __init__(self, disk: Disk, live: Live, live_percent: int, file_bytes: int) -> None:
        self._disk = disk
        self._live = live
        self._live_percent = live_percent
        self._file_bytes = file_bytes
        """A group is closed before what is alive in it is more than that."""
        self._read_max = self._read_left = READ_MAX_BYTES

    # Looking.

    def plan(self, segments: list[Segment], looked: Looked) -> Plan:
        """What to do with these, by what was measured before. Reads those not measured yet."""
        plan, group = Plan(), Group()
        for segment in segments:
            count = self._live.count(*positions(segment))
            if not count:
                plan.dead.append(segment.first)
                continue
            left = self._bytes_left(segment, count, looked, plan.looked)
            is_full = left * 100 >= self._live_percent * content_bytes(segment)
            is_small = segment.disk_bytes * SMALL < self._file_bytes
            is_closed = group.left + left > self._file_bytes or group.read > self._read_max // 4
            if is_closed or (is_full and not is_small):
                group = Group()
            if is_small or not is_full:
                if not group.segments:
                    plan.groups.append(group)
                group.add(segment, left, gains=not is_full)
        plan.groups = [each for each in plan.groups if each.is_worth_it]
        return plan

    def _bytes_left(self, segment: Segment, count: int, looked: Looked, news: Looked) -> int:
        """About what the segment would have, rewritten; all it has if that is not known."""
        if segment.name not in looked:
            if segment.disk_bytes > self._read_left:
                return content_bytes(segment)
            self._read_left -= segment.disk_bytes
            looked = {segment.name: (count, self._measured(segment))}
        then, size = news[segment.name] = looked[segment.name]
        return size * min(count, then) // max(1, then)

    def _measured(self, segment: Segment) -> int:
        wanted, size = self._wanted([segment]), 0
        file = self._disk.open(segment.name)
        try:
            for _, records in segment.replay(file, 0):
                kept = [bytes_of(wanted, each) for each in records]
                size += rounded(BATCH_OVERHEAD_BYTES + sum(kept)) if any(kept) else 0
        except CorruptError as error:
            _log.warning("%s is not cleaned: %s", segment.name, error)
            return content_bytes(segment)
        finally:
            file.close()
        return size

    # Doing.

    def clean(self, plan: Plan) -> Iterator[list[int] | Rewritten]:
        """First batches to be dropped, and files to be adopted, each once it is true.

        Raises OSError, a full disk among them; what was given before stands.
        """
        if plan.dead:
            yield plan.dead
        read = 0
        for group in plan.groups:
            read += group.read
            if read > self._read_max and group is not plan.groups[0]:
                return
            segments = group.segments
            try:
                found = rewrite(self._disk, segments, self._keep(segments))
            except CorruptError as error:
                _log.warning("%s is not cleaned: %s", segments[0].name, error)
                continue
            yield found or [segment.first for segment in segments]

    def _keep(
        self, group: list[Segment]
    ) -> Callable[[StoredRecord], tuple[int, tuple[bytes, ...]] | None]:
        wanted = self._wanted(group)

        def keep(each: StoredRecord) -> tuple[int, tuple[bytes, ...]] | None:
            left = left_of(wanted, each.position, each.count, each.type, each.body)
            return left and (left[0], tuple(left[1]))

        return keep

    def _wanted(self, group: list[Segment]) -> Wanted:
        found = Wanted(set(), set())
        for segment in group:
            some = self._live.between(*positions(segment))
            found.whole |= some.whole
            found.names |= some.names
        return found


def content_bytes(segment: Segment) -> int:
    """What its batches take."""
    return segment.disk_bytes - SEGMENT_HEADER_BYTES - FOOTER_BYTES


def positions(segment: Segment) -> tuple[int, int]:
    """The first position of the segment, and the one behind its last."""
    return segment.first << SLOT_BITS, segment.last + 1 << SLOT_BITS


def bytes_of(wanted: Wanted, each: StoredRecord) -> int:
    """What the record takes once it is cleaned; 0 if nothing of it is left."""
    left = left_of(wanted, each.position, each.count, each.type, each.body)
    return RECORD_HEADER_BYTES + sum(map(len, left[1])) if left else 0
