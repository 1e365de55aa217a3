"""META: a few lines of text by which a directory says that it is a log, and which.

    qbroker log
    format 1
    cluster 00000000000000000000000000000000
    log 5f1c...
    oldest 1
    newest 4711
    crc 1a2b3c4d

The first two lines are for every version there will ever be. The CRC covers all
before it. Replaced by rename, so that it is whole, old or new, at any moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from qbroker.log.disk import Disk, write_whole
from qbroker.log.errors import CorruptError, FormatError
from qbroker.log.format import FORMAT

META_NAME = "META"
META_TITLE = "qbroker log"
NO_CLUSTER = bytes(16)


@dataclass(slots=True)
class Meta:
    """What the directory says of itself. Ids are 16 bytes.

    `oldest` is the first batch kept, `newest` the first of the newest segment that was
    used: both files must be there.
    """

    cluster: bytes
    log: bytes
    oldest: int
    newest: int


def write_meta(disk: Disk, meta: Meta) -> None:
    """The directory says this of itself, durably, whatever it said before."""
    text = (
        f"{META_TITLE}\nformat {FORMAT}\ncluster {meta.cluster.hex()}\nlog {meta.log.hex()}\n"
        f"oldest {meta.oldest}\nnewest {meta.newest}\n"
    )
    temporary = f"{META_NAME}.tmp"
    file = disk.create(temporary)
    try:
        write_whole(file, 0, f"{text}crc {crc32(text.encode()):08x}\n".encode())
        file.sync()
    except OSError:
        disk.remove(temporary)
        raise
    file.close()
    disk.rename(temporary, META_NAME)
    disk.sync_directory()


def read_meta(disk: Disk) -> Meta:
    """What the directory says of itself. FormatError, CorruptError: absence is never inferred."""
    file = disk.open(META_NAME)
    content = file.read_at(0, 4096)
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
        cluster, log, oldest, newest = (line.partition(" ")[2] for line in lines[2:6])
        return Meta(bytes.fromhex(cluster), bytes.fromhex(log), int(oldest), int(newest))
    except (ValueError, IndexError) as error:
        raise CorruptError(META_NAME, 0, 1, 1, f"it cannot be read ({error})") from error
