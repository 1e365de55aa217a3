"""META: a few lines of text by which a directory says that it is a log, and which.

    qbroker log
    format 2
    cluster 00000000000000000000000000000000
    log 5f1c...
    newest 4711
    gap 1 900 1 3 0000... 9b1e...
    cleaned 901 2000 4 6 9b1e... 77c0... 2 ab34...
    crc 1a2b3c4d

The first two lines are for every version there will ever be. The CRC covers all
before it. Replaced by rename, so that it is whole, old or new, at any moment.

`gap` and `cleaned` lines are spans: batches, segments, the digest they continue and the
one that continues them; in order, a line each for what was dropped and for what was
cleaned (then also generation and digest of the file). Segments that are as they were
written need no line: their headers say which they continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

from qbroker.log.disk import Disk, write_whole
from qbroker.log.errors import CorruptError, FormatError
from qbroker.log.format import FORMAT

META_NAME = "META"
META_TITLE = "qbroker log"
META_BYTES_MAX = 64 << 20
"""A line is some 140 bytes: this is half a million segments cleaned, and never merged."""
NO_CLUSTER = bytes(16)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the log: batches `first` to `last`, of segments `number` to `number_last`.

    `previous` is the digest it continues, `chain` the one that what follows must continue.
    """

    first: int
    last: int
    number: int
    number_last: int
    previous: bytes
    chain: bytes

    def __add__(self, after: Span) -> Span:
        """Both, the other one following."""
        return Span(
            self.first, after.last, self.number, after.number_last, self.previous, after.chain
        )

    def continued_by(self, after: Span) -> bool:
        """Whether nothing is missing, or foreign, between the two."""
        follows = (self.last + 1, self.number_last + 1, self.chain)
        return (after.first, after.number, after.previous) == follows


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned segment: which file stands for the span. `digest` is that of its footer."""

    span: Span
    generation: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Meta:
    """What the directory says of itself. Ids are 16 bytes.

    `newest` is the first batch of the newest segment that was used. Gaps and cleaned
    spans are in order and do not touch each other's batches.
    """

    cluster: bytes
    log: bytes
    newest: int
    gaps: tuple[Span, ...] = field(default=())
    cleaned: tuple[Cleaned, ...] = field(default=())

    @property
    def whole_from(self) -> int:
        """The lowest batch from which on everything is as it was written."""
        spans = [*self.gaps[-1:], *(cleaned.span for cleaned in self.cleaned[-1:])]
        return max((span.last for span in spans), default=0) + 1


def stage_meta(disk: Disk, meta: Meta) -> int:
    """What META shall say waits, durably, for publish_meta; returns its bytes.

    OSError, and nothing is left, if the disk refuses.
    """
    temporary = f"{META_NAME}.tmp"
    content = _packed(meta)
    file = disk.create(temporary)
    try:
        write_whole(file, 0, content)
        file.sync()
    except OSError:
        disk.remove(temporary)
        raise
    file.close()
    return len(content)


def publish_meta(disk: Disk) -> None:
    """META says what was staged, durably. After an OSError it may, or may not."""
    disk.rename(f"{META_NAME}.tmp", META_NAME)
    disk.sync_directory()


def write_meta(disk: Disk, meta: Meta) -> int:
    """The directory says this of itself, durably, whatever it said before; returns bytes."""
    length = stage_meta(disk, meta)
    publish_meta(disk)
    return length


def read_meta(disk: Disk) -> Meta:
    """What the directory says of itself. FormatError, CorruptError: absence is never inferred."""
    file = disk.open(META_NAME)
    content = file.read_at(0, META_BYTES_MAX)
    file.close()
    try:
        lines = content.decode("ascii").splitlines()
        title, format_line = lines[0], lines[1]
        found = int(format_line.removeprefix("format "))
        if title == META_TITLE and found > FORMAT:
            raise FormatError(META_NAME, found, FORMAT)
        text, _, crc = content.decode("ascii").rpartition("crc ")
        if title != META_TITLE or crc != f"{crc32(text.encode()):08x}\n":
            raise ValueError("checksum disagrees")
        if found != FORMAT:
            raise FormatError(META_NAME, found, FORMAT)
        return _unpacked(lines[2:-1])
    except (ValueError, IndexError) as error:
        raise CorruptError(META_NAME, 0, 1, 1, f"it cannot be read ({error})") from error


def _packed(meta: Meta) -> bytes:
    lines = [
        META_TITLE,
        f"format {FORMAT}",
        f"cluster {meta.cluster.hex()}",
        f"log {meta.log.hex()}",
        f"newest {meta.newest}",
        *(f"gap {_words(gap)}" for gap in meta.gaps),
        *(f"cleaned {_words(c.span)} {c.generation} {c.digest.hex()}" for c in meta.cleaned),
    ]
    text = "".join(f"{line}\n" for line in lines)
    return f"{text}crc {crc32(text.encode()):08x}\n".encode()


def _words(span: Span) -> str:
    numbers = f"{span.first} {span.last} {span.number} {span.number_last}"
    return f"{numbers} {span.previous.hex()} {span.chain.hex()}"


def _unpacked(lines: list[str]) -> Meta:
    cluster, log, newest = (line.partition(" ")[2] for line in lines[:3])
    gaps, cleaned = [], []
    for line in lines[3:]:
        kind, *words = line.split(" ")
        if kind == "gap":
            gaps.append(_span(words))
        else:
            cleaned.append(Cleaned(_span(words), int(words[6]), bytes.fromhex(words[7])))
    return Meta(
        bytes.fromhex(cluster), bytes.fromhex(log), int(newest), tuple(gaps), tuple(cleaned)
    )


def _span(words: Sequence[str]) -> Span:
    first, last, number, number_last = map(int, words[:4])
    return Span(first, last, number, number_last, bytes.fromhex(words[4]), bytes.fromhex(words[5]))
