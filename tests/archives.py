"""A real archivist and its questions, in a folder of their own, moved by hand; and a log for it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from qbroker.archive.archivist import Archivist, Keeping
from qbroker.archive.questions import Questions
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import open_store
from qbroker.archive.walking import Query
from qbroker.core import records as r
from qbroker.log.disk import Disk
from qbroker.log.log import Log
from qbroker.log.reader import LogReader
from qprotocol.message import Message
from simdisk import SimDisk

NOW = 1_700_000_000_000
DAY = 86_400_000
KEEPING = Keeping(ttl_ms=7 * DAY, bytes_max=1 << 30)


class Archive:
    """The archive of the log on a disk. Its clock stands still until it is set."""

    def __init__(self, disk: Disk, folder: Path | None = None) -> None:
        self.disk = disk
        made = folder or Path(tempfile.mkdtemp(prefix="qbroker-archive-"))
        if not folder:
            weakref.finalize(self, shutil.rmtree, made)
        self.path = made / FILE_NAME
        self.questions = Questions(self.path)
        self.keeping = KEEPING
        self.is_patient = True
        self.wall_ms = 0
        self.mono_ms = 0
        self.start()

    def start(self) -> None:
        """A new process opens the same file."""
        reader = LogReader.open(self.disk)
        self.store = open_store(self.path, reader.log_id)
        self.archivist = Archivist(
            *(reader, self.store, self.keeping, lambda: self.wall_ms, lambda: self.mono_ms),
            is_patient=self.is_patient,
        )

    def kill(self) -> None:
        """The process dies with what it read since the last transaction, and starts again."""
        self.store._db.close()
        self.start()

    def read(self, upto: int, *, is_shedding: bool = False) -> int:
        """It has read up to that batch; how many transactions that took."""
        return sum(1 for _ in self.archivist.advance(upto, is_shedding=is_shedding))

    def advance(self, upto: int, *, is_shedding: bool = False) -> int:
        """It has read and saved up to that batch; the last position it tells of."""
        self.read(upto, is_shedding=is_shedding)
        self.archivist.save()
        return (self.store.batch + 1 << 20) - 1

    def rows(self) -> list[dict[str, Any]]:
        """All rows, newest first."""
        return self.questions.search(Query(limit=1_000)).rows

    def damage(self) -> None:
        """The file is no archive any more."""
        self.questions.close()
        self.store._db.close()
        self.path.write_bytes(b"no database" * 100)

    def close(self) -> None:
        self.questions.close()
        self.store._db.close()


class Books:
    """A log written by hand, and its archive."""

    def __init__(self, folder: Path, *, history: str = "", keeping: Keeping | None = None) -> None:
        self.disk = SimDisk()
        self.log = Log.open(self.disk)
        options = {"history": history}
        self.write(r.QueueOpened(0, "q", options), r.LaneOpened(0, 0, "t", b""))
        self.archive = Archive(self.disk, folder)
        self.archive.wall_ms = NOW
        if keeping:
            self.archive.keeping = keeping
            self.archive.kill()
        self.count = 0

    def write(self, *records: r.Record) -> list[int]:
        batch = self.log.begin()
        found = [batch.add(record.TYPE, record.parts(), record.slots) for record in records]
        self.log.commit(batch, sync=True, wall_ms=NOW, epoch=1)
        return found

    def handed_out(self, count: int = 1, headers: bytes = b"") -> tuple[int, int]:
        """So many tasks are with a worker: the first position, and the grant."""
        self.count += 1
        names = [f"t{self.count}.{i}" for i in range(count)]
        raws = [
            Message("q", b"x" * 20, name, "t", root="t0", headers=headers).pack() for name in names
        ]
        batch = r.MessageBatch([[0, 0, count, 0]], [], [], b"".join(raws), count)
        (first,) = self.write(r.Published(0, 0, NOW, batch))
        self.write(r.Granted(self.count, b"s" * 16, 1, [[0, 0, first, count]]))
        return first, self.count

    def acked(self, count: int = 1, headers: bytes = b"") -> int:
        first, grant = self.handed_out(count, headers)
        self.write(r.Acked([[grant, first, count]]))
        return first

    def settled(
        self, change: int, state: int, result: bytes, keep_ms: int, headers: bytes = b""
    ) -> int:
        first, grant = self.handed_out(1, headers)
        until = NOW + keep_ms if keep_ms else 0
        values = (change, first, grant, state, NOW, 5, 1, until, 0, 0, "", result, False)
        self.write(r.Settled(*values, r.MessageBatch()))
        return first

    def go_on(self, **more: Any) -> list[str]:
        """The archive tells of all of it; the ids it has, in the order they were sent."""
        self.archive.advance(self.log.durable, **more)
        return [row["id"] for row in reversed(self.archive.rows())]

    def swept(self, after_ms: int) -> list[str]:
        self.archive.wall_ms = NOW + after_ms
        self.archive.mono_ms += 10_000
        self.archive.archivist.sweep()
        return [row["id"] for row in reversed(self.archive.rows())]
