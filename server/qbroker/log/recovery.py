"""A directory becomes a log again, or a sentence why not.

The steps, as in LOG.md:

 1. Sync the directory; remove half-made files (*.tmp) except the spare segment.
 2. Read META. No META: nothing was ever confirmed here, make a new log.
 3. Of the segments find those META counts; the newest and the cleaned must be there.
 4. Each but the last must be sealed; each, and each gap, must continue the one before.
    Only then remove files that a drop or an adoption had left over.
 5. The last: sync it, drop its cached pages, then read. Sealed: done; its footer says
    whether by a clean stop.
 6. Not sealed: walk its batches to the first that is not intact, at batch L.
 7. Search all behind it for batch headers and footers. D is the highest batch any of
    them says was durable. L <= D: confirmed data is damaged, stop.
 8. L > D: never confirmed. Keep the bytes as *.torn, seal the segment in their place.
 9. Make a new segment. An empty last one is cut to its header and taken again.

Each step may be cut off and done again.
"""

from __future__ import annotations

from dataclasses import dataclass

from qbroker.log.active import (
    SEGMENT_BYTES_MIN,
    SPARE_NAME,
    SegmentWriter,
    allocated,
    create_segment,
)
from qbroker.log.disk import FULL, READ_WRITE, Disk, File, write_whole
from qbroker.log.errors import CorruptError, ForeignError
from qbroker.log.format import (
    BATCH_MAGIC,
    FOOTER_BYTES,
    FOOTER_MAGIC,
    SECTOR_BYTES,
    SEGMENT_HEADER_BYTES,
    Malformed,
    SegmentHeader,
    unpack_batch_header,
    unpack_footer,
)
from qbroker.log.manifest import check_order, check_sealed, counted, open_segment
from qbroker.log.meta import META_NAME, NO_CLUSTER, Meta, read_meta, write_meta
from qbroker.log.segment import REPLAY_BYTES, SUFFIX, Segment, segment_name
from qbroker.log.walk import Walk


@dataclass(slots=True)
class Recovered:
    """What recovery hands to Log: sealed segments, oldest first, and the new active one.

    META need not count the active one yet.
    """

    meta: Meta
    sealed: list[Segment]
    active: SegmentWriter
    torn_bytes: int
    clean: bool
    """The stop before was a clean one, or there was none."""


def recover(disk: Disk, segment_bytes: int, cluster: bytes = NO_CLUSTER) -> Recovered:
    """The directory is a log whose every kept batch is durable; a new segment is active.

    The caller holds the lock. Raises CorruptError, ForeignError, FormatError, OSError.
    Reads the last segment whole if the stop was not clean, of the others both ends.
    """
    disk.sync_directory()
    names = tidied(disk)
    spare = disk.open(SPARE_NAME, write=True) if SPARE_NAME in names else None
    if META_NAME not in disk.names():
        return _create(disk, names, segment_bytes, cluster, spare)
    meta = read_meta(disk)
    if cluster not in (meta.cluster, NO_CLUSTER):
        raise ForeignError(META_NAME, f"cluster {meta.cluster.hex()}, not {cluster.hex()}")
    kept, leftovers = counted(meta, names)
    segments = [_opened(disk, name, meta, is_last=name == kept[-1]) for name in kept]
    check_order(meta, segments)
    for name in leftovers:
        disk.remove(name)
    last = segments[-1]
    torn_bytes = 0 if last.sealed else _settle_tail(disk, last)
    if last.empty:
        active = _taken_again(disk, segments.pop())
    else:
        active = next_segment(disk, last, (SEGMENT_BYTES_MIN, segment_bytes), spare)
    return Recovered(meta, segments, active, torn_bytes, last.clean)


def next_segment(
    disk: Disk, last: Segment, sizes: tuple[int, int], spare: File | None
) -> SegmentWriter:
    """A new segment continues `last`; META does not count it yet.

    `sizes` are the least and the wanted number of bytes.
    """
    salt = int.from_bytes(disk.entropy(8), "little")
    old = last.header
    header = SegmentHeader(
        old.cluster, old.log, last.number_last + 1, last.last + 1, last.chain, salt, sizes[1]
    )
    return create_segment(disk, header, sizes[0], spare)


def tidied(disk: Disk) -> list[str]:
    """What is in the directory once half-made files are gone. The spare holds nothing, but room."""
    kept = []
    for name in disk.names():
        if name.endswith(".tmp") and name != SPARE_NAME:
            disk.remove(name)
        else:
            kept.append(name)
    return kept


def _create(
    disk: Disk, names: list[str], segment_bytes: int, cluster: bytes, spare: File | None
) -> Recovered:
    """A new log. META comes last: without it, whatever is here was never used."""
    for name in names:
        if not name.endswith(SUFFIX):
            continue
        if name != segment_name(1) or written_end(disk.open(name), SEGMENT_HEADER_BYTES):
            raise CorruptError(META_NAME, 0, 1, 1, f"it is missing, but {name} holds data")
    meta = Meta(cluster, disk.entropy(16), 1)
    salt = int.from_bytes(disk.entropy(8), "little")
    header = SegmentHeader(cluster, meta.log, 1, 1, bytes(16), salt, segment_bytes)
    active = create_segment(disk, header, SEGMENT_BYTES_MIN, spare)
    write_meta(disk, meta)
    return Recovered(meta, [], active, 0, clean=True)


def _opened(disk: Disk, name: str, meta: Meta, *, is_last: bool) -> Segment:
    """The segment as its header and footer describe it.

    The last is first synced and dropped from the cache: a killed process leaves content
    that is not on disk yet, a failed sync leaves content that never will be.
    """
    file = disk.open(name)
    if is_last:
        file.sync()
        file.forget_cache()
    segment = open_segment(file, name, meta.log)
    check_sealed(disk, file, segment, is_last=is_last)
    return segment


def _settle_tail(disk: Disk, segment: Segment) -> int:
    """The unsealed last segment ends at its last intact batch; returns bytes cut.

    CorruptError if anything behind that batch proves that more had been confirmed.
    An empty segment is left as it is: it will be taken again.
    """
    file = disk.open(segment.name, write=True)
    size = file.size()
    why = _walked(file, segment, size)
    offset = segment.end
    torn_bytes = 0
    if not _is_footer(file, segment):
        confirmed = _highest_confirmed(file, segment, size)
        if confirmed > segment.last:
            raise CorruptError(segment.name, offset, segment.last + 1, confirmed, why)
        torn_end = written_end(file, offset)
        if torn_end:
            torn_bytes = torn_end - offset
            _keep_torn(disk, file, segment, torn_end)
    if not segment.empty:
        SegmentWriter(file, segment, size).seal(disk)
    return torn_bytes


def _taken_again(disk: Disk, segment: Segment) -> SegmentWriter:
    """The empty last segment is active again, with nothing behind its header but zeros.

    So starts without work leave no files, and find room on a full disk.
    """
    disk.protect(segment.name, READ_WRITE)
    file = disk.open(segment.name, write=True)
    file.sync()  # the mode before the content: read-only without a footer means damage
    file.truncate(SEGMENT_HEADER_BYTES)
    file.sync()
    size = allocated(file, SEGMENT_HEADER_BYTES, SEGMENT_BYTES_MIN, segment.header.size)
    file.sync()
    return SegmentWriter(file, Segment(segment.header), size)


def _walked(file: File, segment: Segment, size: int) -> str:
    """The segment holds all batches up to the first that is not intact; returns why it is not."""
    walk = Walk(segment, file, REPLAY_BYTES)
    while True:
        try:
            info = walk.step(size)
        except Malformed as error:
            return str(error)
        walk.on(info)
        segment.extend(info, walk.chain)


def _is_footer(file: File, segment: Segment) -> bool:
    """Whether sealing this segment had begun, and only its end is unfinished."""
    try:
        footer = unpack_footer(file.read_at(segment.end, FOOTER_BYTES), 0, segment.seed)
    except Malformed:
        return False
    return footer.last == segment.last


def _highest_confirmed(file: File, segment: Segment, size: int) -> int:
    """D: the highest batch that anything behind the last intact one says was durable; 0 if none.

    Batches and footers begin at sectors, so every sector is looked at: a damaged
    length hides nothing behind it.
    """
    highest = 0
    for start in range(segment.end, size, REPLAY_BYTES):
        data = file.read_at(start, REPLAY_BYTES)
        for at in range(0, len(data), SECTOR_BYTES):
            try:
                if data.startswith(BATCH_MAGIC, at):
                    info = unpack_batch_header(data, at, segment.seed)
                    highest = max(highest, info.durable_upto)
                elif data.startswith(FOOTER_MAGIC, at):
                    highest = max(highest, unpack_footer(data, at, segment.seed).last)
            except Malformed:
                continue
    return highest


def written_end(file: File, offset: int) -> int:
    """The offset behind the last byte that is not zero, from `offset` on; 0 if there is none."""
    end = 0
    for start in range(offset, file.size(), REPLAY_BYTES):
        used = len(file.read_at(start, REPLAY_BYTES).rstrip(b"\0"))
        if used:
            end = start + used
    return end


def _keep_torn(disk: Disk, file: File, segment: Segment, end: int) -> None:
    """What is about to be cut stands in a file of its own, as evidence, if there is room.

    On a full disk it is let go: nobody was ever told of it, and the broker must start.
    """
    name = f"{segment.first:020d}-{segment.header.salt:016x}.torn"
    temporary = f"{name}.tmp"
    copy = disk.create(temporary)
    try:
        for start in range(segment.end, end, REPLAY_BYTES):
            data = file.read_at(start, min(REPLAY_BYTES, end - start))
            write_whole(copy, start - segment.end, data)
        copy.sync()
        disk.rename(temporary, name)
    except OSError as error:
        if error.errno not in FULL:
            raise
        disk.remove(temporary)
    disk.sync_directory()
