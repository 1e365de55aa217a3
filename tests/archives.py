"""A real archivist and its questions, in a folder of their own, moved by hand."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from qbroker.archive.archivist import Archivist, Keeping
from qbroker.archive.questions import Query, Questions
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import open_store
from qbroker.log.disk import Disk
from qbroker.log.reader import LogReader

KEEPING = Keeping(ttl_ms=7 * 86_400_000, bytes_max=1 << 30)


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
