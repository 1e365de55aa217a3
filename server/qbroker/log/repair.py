"""Repair: a damaged log is cut where somebody says, once what is lost has been told.

The log ends before a batch then, as if that had never been written; what was behind
it is kept as evidence (*.cut), and positions behind it will be given out again. So a
checkpoint or an archive that knows more must not be used with it any more.

    loss = loss_of(disk, position)                            nothing is changed
    loss = truncate(disk, position, accept_data_loss=True)

The order, so that an interruption loses nothing: copy what is cut off a file, rename
whole files behind it, replace the file, META last. Until then a start refuses, for files
are missing that META counts, and the same repair can be done again and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from qbroker.log.active import SegmentWriter
from qbroker.log.disk import Disk, File, write_whole
from qbroker.log.errors import RepairError
from qbroker.log.format import (
    SEGMENT_HEADER_BYTES,
    SLOT_BITS,
    BatchInfo,
    Malformed,
    unpack_segment_header,
)
from qbroker.log.manifest import check_order, open_segment, sort_names
from qbroker.log.meta import Meta, read_meta, write_meta
from qbroker.log.recovery import tidied, written_end
from qbroker.log.salvage import intact_headers
from qbroker.log.segment import REPLAY_BYTES, Segment
from qbroker.log.walk import Walk
from qbroker.log.window import Window

CUT_NAME = "cut.tmp"


@dataclass(slots=True)
class Loss:
    """What a cut takes away: from batch `first` on, which was `position`'s.

    `batches` and `records` are those whose batch header is still intact, `last` the
    highest of them, written from `first_ms` to `last_ms` (epoch ms; 0 if there is none).
    `confirmed` is the highest batch that anything says was durable. `bytes` lie in
    `files`; `evidence` are the names they are kept under, once it is done.
    """

    position: int
    first: int
    last: int = 0
    batches: int = 0
    records: int = 0
    bytes: int = 0
    confirmed: int = 0
    first_ms: int = 0
    last_ms: int = 0
    files: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)

    def count(self, info: BatchInfo) -> None:
        """One batch more is lost."""
        self.batches += 1
        self.records += info.records
        self.last = max(self.last, info.number)
        self.first_ms = min(self.first_ms or info.wall_ms, info.wall_ms)
        self.last_ms = max(self.last_ms, info.wall_ms)
        self.confirmed = max(self.confirmed, info.durable_upto)


@dataclass(slots=True)
class _Cut:
    """Where: `segment` holds what stays of its file, which is all unless `is_inside`."""

    meta: Meta
    segment: Segment
    is_inside: bool
    behind: list[str]
    """Whole files, oldest first."""


def loss_of(disk: Disk, position: int) -> Loss:
    """What a cut at this position would lose; nothing is changed.

    The whole batch goes, and all behind it. RepairError if the log cannot be cut there,
    CorruptError if what is before it is damaged too; LockedError, OSError. Reads all
    that is lost, and the file it begins in.
    """
    disk.lock()
    try:
        return _loss(disk, position, _planned(disk, position >> SLOT_BITS))
    finally:
        disk.unlock()


def truncate(disk: Disk, position: int, *, accept_data_loss: bool) -> Loss:
    """The log ends before this position's batch; raises as loss_of, and RepairError unless told.

    The next start finds what was before it, and goes on from there.
    """
    disk.lock()
    try:
        cut = _planned(disk, position >> SLOT_BITS)
        loss = _loss(disk, position, cut)
        if not accept_data_loss:
            raise RepairError(
                position,
                f"{loss.batches} batches with {loss.records} records would be lost, up to batch "
                f"{loss.confirmed} they had been confirmed; say that this is accepted",
            )
        tidied(disk)  # of what an earlier try left half made
        loss.evidence = list(_cut_off(disk, cut))
        spans = [cleaned for cleaned in cut.meta.cleaned if cleaned.span.last <= cut.segment.last]
        gaps = [gap for gap in cut.meta.gaps if gap.last < cut.segment.last]
        kept = replace(cut.meta, newest=cut.segment.first, gaps=tuple(gaps), cleaned=tuple(spans))
        write_meta(disk, kept)
        return loss
    finally:
        disk.unlock()


def _planned(disk: Disk, batch: int) -> _Cut:
    """What stays and what goes; see loss_of."""
    meta = read_meta(disk)
    names, _ = sort_names(meta, disk.names())
    before = [name for name in names if int(name[:20]) < batch]
    if not before:
        raise RepairError(batch << SLOT_BITS, "nothing is before it: begin with an empty folder")
    segments = [open_segment(disk.open(name), name, meta.log) for name in before]
    check_order(_before(meta, segments[-1].first), segments)
    last = segments[-1]
    is_whole = last.sealed and batch > last.last
    if not is_whole and last.sparse:
        why = f"{last.name} was cleaned: choose batch {last.first} or {last.last + 1}"
        raise RepairError(batch << SLOT_BITS, why)
    kept = last if is_whole else _walked(disk, last, batch)
    return _Cut(meta, kept, not is_whole, names[len(before) :])


def _before(meta: Meta, first: int) -> Meta:
    """META as far as it speaks of what is before, or in the segment that begins there."""
    return replace(
        meta,
        gaps=tuple(gap for gap in meta.gaps if gap.last < first),
        cleaned=tuple(each for each in meta.cleaned if each.span.first <= first),
    )


def _walked(disk: Disk, old: Segment, batch: int) -> Segment:
    """The segment up to before this batch, all of which is intact; CorruptError."""
    segment = Segment(old.header)
    file = disk.open(old.name)
    size = file.size()
    walk = Walk(segment, file, REPLAY_BYTES)
    while walk.number < batch:
        try:
            info = walk.step(size)
        except (Malformed, OSError) as error:
            raise segment.damaged(walk.offset, walk.number, error) from error
        walk.on(info)
        segment.extend(info, walk.chain)
    return segment


def _loss(disk: Disk, position: int, cut: _Cut) -> Loss:
    """What is behind the cut, as far as it can still be read."""
    loss = Loss(position, position >> SLOT_BITS)
    places = [(name, SEGMENT_HEADER_BYTES) for name in cut.behind]
    if cut.is_inside:
        places.insert(0, (cut.segment.name, cut.segment.end))
    for name, start in places:
        file = disk.open(name)
        loss.files.append(name)
        loss.bytes += max(written_end(file, start) - start, 0)
        for info in _headers(file, start):
            loss.count(info)
    return loss


def _headers(file: File, start: int) -> Iterator[BatchInfo]:
    """Every intact batch header from there on, wherever a sector begins."""
    try:
        seed = unpack_segment_header(file.read_at(0, SEGMENT_HEADER_BYTES)).seed
    except Malformed:
        return
    places = range(start, file.size())
    for _, info in intact_headers(Window(file, REPLAY_BYTES), places, seed):
        yield info


def _cut_off(disk: Disk, cut: _Cut) -> Iterator[str]:
    """All behind the cut is evidence, durably; the names of it."""
    mark = disk.entropy(4).hex()
    segment = cut.segment
    if cut.is_inside:
        file = disk.open(segment.name)
        name = f"{segment.name}-{mark}.cut"
        _copy(disk, file, (segment.end, written_end(file, segment.end)), name)
        yield name
    for whole in reversed(cut.behind):
        disk.rename(whole, f"{whole}-{mark}.cut")
        yield f"{whole}-{mark}.cut"
    disk.sync_directory()
    if cut.is_inside:
        _replace(disk, segment)


def _copy(disk: Disk, file: File, stretch: tuple[int, int], name: str) -> None:
    """These bytes of the file are a file of their own."""
    start, end = stretch
    copy = disk.create(CUT_NAME)
    for offset in range(start, end, REPLAY_BYTES):
        write_whole(copy, offset - start, file.read_at(offset, min(REPLAY_BYTES, end - offset)))
    copy.sync()
    disk.rename(CUT_NAME, name)


def _replace(disk: Disk, segment: Segment) -> None:
    """Its file is sealed behind the batches it has now. The old one stays until that is durable."""
    file, copy = disk.open(segment.name), disk.create(CUT_NAME)
    for offset in range(0, segment.end, REPLAY_BYTES):
        write_whole(copy, offset, file.read_at(offset, min(REPLAY_BYTES, segment.end - offset)))
    name, segment.name = segment.name, CUT_NAME
    SegmentWriter(copy, segment, segment.end).seal(disk)
    segment.name = name
    disk.rename(CUT_NAME, name)
    disk.sync_directory()
