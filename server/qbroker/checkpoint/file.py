"""One checkpoint on disk: how it is written, proved and read.

    0        8        12    16       32      40          56        64        128
    | magic  | format | crc | log id | batch | chain 16  | wall_ms | version |
    section: | crc | length of the name | length of the body | name | body |
    end:     | magic | length of all before | digest 16 |

Little-endian. ``chain`` is the digest of the log's last batch that is in it: it stands for
every byte of the log up to there. The header's crc is over the header with zeros in its
place; a section's over what follows it; the digest is BLAKE2b-128 over all before the end.

Rule 1. A name without ``.tmp`` means: written, synced, read back and found the same.
Rule 2. Only a little is unsynced at any time, so that the log's own syncs stay short.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import Struct
from struct import error as StructError  # noqa: N812  # it is a class
from zlib import crc32

from qbroker.checkpoint.errors import DamagedError
from qbroker.log.disk import Disk, File, write_whole

SUFFIX = ".qckp"
FORMAT = 1
HEADER = Struct("<8sII16sQ16sQ64s")
MAGIC, END_MAGIC = b"QBCHKPNT", b"QBCHKEND"
SECTION = Struct("<IIQ")
END = Struct("<8sQ16s")
PIECE_BYTES = 4 << 20
"""Written and synced, or read, at once."""
DIGEST_BYTES = 16


@dataclass(slots=True)
class Checkpoint:
    """What a file says: whose state it is, as of which batch, and the state in sections."""

    log: bytes
    batch: int
    chain: bytes
    wall_ms: int
    version: str
    sections: dict[str, memoryview] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its file's name; sorting names sorts batches."""
        return name_of(self.batch)


def name_of(batch: int) -> str:
    """The name of the checkpoint that covers the log up to this batch."""
    return f"{batch:020d}{SUFFIX}"


def pack_header(about: Checkpoint) -> bytes:
    """The first 128 bytes."""

    def block(crc: int) -> bytes:
        version = about.version.encode()
        return HEADER.pack(
            MAGIC, FORMAT, crc, about.log, about.batch, about.chain, about.wall_ms, version
        )

    return block(crc32(block(0)))


def unpack_header(name: str, block: bytes) -> Checkpoint:
    """What the header says. Raises DamagedError."""
    try:
        magic, form, _, log, batch, chain, wall_ms, version = HEADER.unpack_from(block)
    except StructError as error:
        raise DamagedError(name, f"it has {len(block)} bytes") from error
    if magic != MAGIC:
        raise DamagedError(name, "it does not begin as a checkpoint does")
    if form != FORMAT:
        raise DamagedError(name, f"it has format {form}, this version reads format {FORMAT}")
    text = version.rstrip(b"\0").decode("utf-8", "replace")
    about = Checkpoint(log, batch, chain, wall_ms, text)
    if pack_header(about) != block[: HEADER.size]:
        raise DamagedError(name, "the checksum of its header disagrees")
    if about.name != name.removesuffix(".tmp"):
        raise DamagedError(name, f"its header says it is {about.name}")
    return about


# Writing.


class Pen:
    """Writes a file from its beginning, in synced pieces, and digests what it writes."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._unsynced = 0
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """The bytes are with the kernel, and most of them on disk. Raises OSError."""
        self._digest.update(data)
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            write_whole(self._file, self.bytes, piece)
            self.bytes += len(piece)
            self._unsynced += len(piece)
            if self._unsynced >= PIECE_BYTES:
                self._file.sync_data()
                self._unsynced = 0

    def finish(self) -> None:
        """The end stands behind it, and all is on disk."""
        self.write(END.pack(END_MAGIC, self.bytes, self._digest.digest()))
        self._file.sync()


def write(disk: Disk, about: Checkpoint, sections: Iterable[tuple[str, bytes]]) -> int:
    """The checkpoint stands under its name, and was read back; its bytes.

    Raises OSError; DamagedError if the disk gives back something else. Then there is
    nothing new under any name but a temporary one.
    """
    temporary = f"{about.name}.tmp"
    if temporary in disk.names():
        disk.remove(temporary)
    file = disk.create(temporary)
    try:
        size = write_sections(file, about, sections)
        file.forget_cache()
        prove(temporary, file)
    except OSError:
        disk.remove(temporary)  # its room may be what the disk lacks
        raise
    file.close()
    disk.rename(temporary, about.name)
    disk.sync_directory()
    return size


def write_sections(file: File, about: Checkpoint, sections: Iterable[tuple[str, bytes]]) -> int:
    """All of it is on disk; its bytes. Raises OSError."""
    pen = Pen(file)
    pen.write(pack_header(about))
    for name, body in sections:
        title = name.encode()
        lengths = SECTION.pack(0, len(title), len(body))[4:]
        crc = crc32(body, crc32(title, crc32(lengths)))
        pen.write(crc.to_bytes(4, "little") + lengths + title)
        pen.write(body)
    pen.finish()
    return pen.bytes


# Reading.


def prove(name: str, file: File) -> None:
    """The file is as it was written, to the last byte; else DamagedError. Holds a piece only."""
    size = file.size() - END.size
    digest = blake2b(digest_size=DIGEST_BYTES)
    for at in range(0, size, PIECE_BYTES):
        digest.update(file.read_at(at, min(PIECE_BYTES, size - at)))
    check_end(name, size, file.read_at(max(size, 0), END.size), digest.digest())


def check_end(name: str, size: int, end: bytes, digest: bytes) -> None:
    """Raise DamagedError unless this is the end of ``size`` bytes with that digest."""
    if len(end) < END.size:
        raise DamagedError(name, f"it ends after {max(size, 0) + len(end)} bytes")
    magic, length, wanted = END.unpack(end)
    if magic != END_MAGIC or length != size:
        raise DamagedError(name, "its end is missing")
    if wanted != digest:
        raise DamagedError(name, "its digest disagrees")


def read_header(disk: Disk, name: str) -> Checkpoint:
    """What the file says of itself, without its sections. Raises DamagedError."""
    try:
        file = disk.open(name)
        block = file.read_at(0, HEADER.size)
        file.close()
    except OSError as error:
        raise unreadable(name, error) from error
    return unpack_header(name, block)


def read(disk: Disk, name: str) -> Checkpoint:
    """The checkpoint, proved. Raises DamagedError. Holds the file's bytes in memory once."""
    try:
        file = disk.open(name)
        data = file.read_at(0, file.size())
        file.close()
    except OSError as error:
        raise unreadable(name, error) from error
    about = unpack_header(name, data)
    view = memoryview(data)
    at, stop = HEADER.size, len(data) - END.size
    while at < stop:
        start = at + SECTION.size
        if start > stop:
            raise DamagedError(name, f"it ends inside the section at byte {at}")
        crc, n_title, n_body = SECTION.unpack_from(data, at)
        end = start + n_title + n_body
        if end > stop or crc32(view[at + 4 : end]) != crc:
            raise DamagedError(name, f"the checksum of the section at byte {at} disagrees")
        title = bytes(view[start : start + n_title]).decode()
        about.sections[title] = view[start + n_title : end]
        at = end
    digest = blake2b(view[:at], digest_size=DIGEST_BYTES).digest()
    check_end(name, at, data[at:], digest)
    return about


def unreadable(name: str, error: OSError) -> DamagedError:
    return DamagedError(name, f"the disk says: {error.strerror or error}")
