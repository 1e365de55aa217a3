"""Cleaning: segments mostly dead are written anew, without what nobody can ask for any more.

Positions, counts and times stay, so nothing that points into the log needs to know. Any
process may rewrite: it reads sealed files, which never change, and writes one of its own
under a temporary name. The broker then adopts that (Log.adopt).

A cleaned file keeps batches, less their dead records, and no batch that is empty. Its own
digests chain inside it, from its own header; its footer keeps the digest that the next
segment continues. Neighbours, and gaps between them, may become one file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from qbroker.log.batch import BatchBuilder, Stamp, pack_batch
from qbroker.log.disk import READ_ONLY, Disk, File, write_whole
from qbroker.log.errors import CorruptError
from qbroker.log.format import (
    FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
    BatchInfo,
    Footer,
    SegmentHeader,
    StoredRecord,
    first_chain,
    pack_footer,
    pack_segment_header,
    rounded,
)
from qbroker.log.manifest import open_segment
from qbroker.log.marks import NO_KEY
from qbroker.log.salvage import Damage
from qbroker.log.segment import Segment, segment_name

WRITE_BYTES = 4 << 20
"""Written and synced at a time, so that the broker's own syncs never wait behind more."""
BATCHES_MAX = 1 << 32
"""Of one file: what an index can count."""

_WAITING = re.compile(r"\d{20}\.\d+-[0-9a-f]{16}\.tmp")

Keep = Callable[[StoredRecord], tuple[int, Sequence[bytes]] | None]
"""The type and body a record has from now on; None if it is dead."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A file that may stand for batches `first` to `last`: what Log.adopt needs to know.

    `sources` are the files it was made of. Plain values, to be sent from one process to
    another; `digest` is hexadecimal.
    """

    name: str
    first: int
    last: int
    generation: int
    file_bytes: int
    digest: str
    sources: Sequence[str]

    def opened(self, disk: Disk, log: bytes) -> Segment:
        """The file is the one that was written, whole; CorruptError, ForeignError, OSError."""
        file = disk.open(self.name)
        name = segment_name(self.first, self.generation)
        segment = open_segment(file, self.name, log, stands_for=name)
        file.close()
        if (segment.last, segment.digest.hex()) != (self.last, self.digest):
            raise CorruptError(self.name, 0, self.first, self.last, "it is another file")
        return segment


def rewrite(
    disk: Disk,
    segments: Sequence[Segment],
    keep: Keep,
    damaged: list[Damage] | None = None,
) -> Rewritten | None:
    """What `keep` keeps of these neighbours waits in a new file, written, synced, verified.

    None, and no file, if it keeps nothing: then drop them. `segments` are sealed and in
    order; between them may be gaps. Raises CorruptError if they or the new file do not
    verify, OSError (with no room, too), and no file is left. With a list for `damaged`,
    bad records are left out and described there: then the file may be adopted only if
    nothing in their slots lives, because it was set aside. Memory: 4 MiB and one batch.
    """
    span = segments[0].span + segments[-1].span
    if span.last - span.first >= BATCHES_MAX:
        raise ValueError(f"batches {span.first} to {span.last} are too many for one file")
    old = segments[0].header
    salt = int.from_bytes(disk.entropy(8), "little")
    generation = max(segment.header.generation for segment in segments) + 1
    header = SegmentHeader(
        old.cluster, old.log, span.number, span.first, span.previous, salt, 0, generation
    )
    name = f"{span.first:020d}.{generation}-{salt:016x}.tmp"
    file = disk.create(name)
    try:
        written = _Writing(file, header)
        for segment in segments:
            source = disk.open(segment.name)
            for info, records in segment.replay(source, 0, damaged):
                written.add(info, records, keep)
            source.close()
        if not written.records:
            disk.remove(name)
            return None
        digest = written.finish(
            Footer(
                span.first,
                span.last,
                written.records,
                written.end,
                *written.keys,
                span.chain,
                span.number_last,
                written.chain,
            )
        )
        _verify(disk, name, old.log, segment_name(span.first, generation))
        disk.protect(name, READ_ONLY)
    except BaseException:
        with suppress(OSError):
            disk.remove(name)
        raise
    size = written.end + FOOTER_BYTES
    sources = [segment.name for segment in segments]
    return Rewritten(name, span.first, span.last, generation, size, digest.hex(), sources)


def sweep(disk: Disk) -> int:
    """Rewritten files that wait for nobody are gone; returns how many.

    What a process left that ended while it cleaned. For the next one to begin with, when
    no other cleans and none of its files is about to be adopted. A start does it, too.
    """
    waiting = [name for name in disk.names() if _WAITING.fullmatch(name)]
    for name in waiting:
        disk.remove(name)
    return len(waiting)


class _Writing:
    """A cleaned file being written: header, batches, footer."""

    __slots__ = ("buffer", "chain", "end", "file", "header", "keys", "records", "written")

    def __init__(self, file: File, header: SegmentHeader) -> None:
        block = pack_segment_header(header)
        self.file = file
        self.header = header
        self.buffer = bytearray(block)
        self.chain = first_chain(block)
        self.end = SEGMENT_HEADER_BYTES
        self.written = 0
        self.records = 0
        self.keys = (NO_KEY, 0)

    def add(self, info: BatchInfo, records: list[StoredRecord], keep: Keep) -> None:
        """What is kept of this batch is in the file."""
        batch = BatchBuilder(info.number)
        for record in records:
            kept = keep(record)
            if kept is not None:
                batch.keep(record, *kept)
        if batch.empty:
            return
        batch.slots = info.slots
        stamp = Stamp(info.durable_upto, info.epoch, info.wall_ms, info.key_min, info.key_max)
        data, self.chain = pack_batch(batch, stamp, self.header.salt, self.header.seed, self.chain)
        self.buffer += data
        self.end += rounded(batch.bytes)
        self.records += len(batch.records)
        if info.key_max:
            low, high = self.keys
            self.keys = (min(low, info.key_min), max(high, info.key_max))
        if len(self.buffer) >= WRITE_BYTES:
            self._write()

    def finish(self, footer: Footer) -> bytes:
        """The footer ends it, and all is on disk; returns the footer's digest."""
        block = pack_footer(footer, self.header.seed)
        self.buffer += block
        self._write()
        self.file.sync()
        return first_chain(block)

    def _write(self) -> None:
        """What was collected is on disk."""
        write_whole(self.file, self.written, self.buffer)
        self.file.sync_data()
        self.written += len(self.buffer)
        self.buffer = bytearray()


def _verify(disk: Disk, name: str, log: bytes, stands_for: str) -> None:
    """What the disk has under the name is what was meant; CorruptError, OSError."""
    file = disk.open(name)
    file.forget_cache()
    segment = open_segment(file, name, log, stands_for)
    for _ in segment.replay(file, 0):
        pass
    file.close()
