"""Take a backup of a data folder, beside the broker that works in it or without one.

    checkpoints -> archive -> META -> sealed segments -> the last one, up to a whole batch
         '------ the same as at the beginning? -- no: once more ------'

What is copied first must not be ahead of what is copied last: a checkpoint of a batch, or an
archive up to one, needs the log to reach that far. And nothing that the first needs may be
cleaned away before the last is copied: so META and the checkpoints must be at the end what
they were at the beginning. All that was confirmed before the beginning is in the backup.
A file that was listed and is gone says the same: it was cleaned, or dropped. What was copied by
then of files that never change is not copied again.
"""

import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

from qbroker.backup.manifest import BackupError, Entry, Manifest, Objects, Progress, digest_of
from qbroker.backup.marker import find_marker
from qbroker.backup.proof import prove
from qbroker.log.disk import FileDisk
from qbroker.log.format import FOOTER_BYTES, Malformed
from qbroker.log.manifest import open_segment
from qbroker.log.meta import META_NAME, read_meta
from qbroker.log.segment import REPLAY_BYTES, SUFFIX
from qbroker.log.walk import Walk

TRIES_MAX = 10
LOG, CHECKPOINTS, ARCHIVE = "log", "checkpoints/*.qckp", "archive/archive.sqlite"
SEALED = 0o400


class Moved(Exception):  # noqa: N818  # a state of the folder
    """The broker cleaned up while we looked, as the message says: begin anew."""


@dataclass(slots=True)
class Taken:
    """What a backup cost."""

    files: int = 0
    bytes: int = 0
    copied_files: int = 0
    copied_bytes: int = 0
    batch: int = 0
    tries: int = 0


@dataclass(slots=True)
class Attempt:
    """One try at a backup."""

    data: Path
    objects: Objects
    before: dict[str, Entry]
    """The entries of the backup that is there already, by path."""
    progress: Progress
    entries: list[Entry] = field(default_factory=list)
    copied: list[Entry] = field(default_factory=list)
    batch: int = 0

    def run(self) -> None:
        """All files are in the backup's folder. Raises Moved, OSError, LogError."""
        try:
            self._copy()
        except FileNotFoundError as error:
            raise Moved(f"{error.filename} was there, and is gone") from error

    def _copy(self) -> None:
        pinned = self.pinned()
        for path in sorted(self.data.glob(CHECKPOINTS)):
            about = path.stat()
            self.add(path, about.st_size, mark=f"{about.st_ino} {about.st_mtime_ns}")
        self.add_archive()
        # META first: it names no segment that the list after it lacks.
        meta = self.data / LOG / META_NAME
        self.add(meta, meta.stat().st_size)
        for path in sorted((self.data / LOG).glob(f"*{SUFFIX}")):
            self.add_segment(path)
        if self.pinned() != pinned:
            raise Moved("META or the oldest checkpoint was another one before")

    def pinned(self) -> tuple[object, ...]:
        """What must not change meanwhile: META, but for the newest segment, and checkpoints."""
        text = (self.data / LOG / META_NAME).read_text(encoding="ascii", errors="replace")
        lines = [line for line in text.splitlines() if not line.startswith(("newest ", "crc "))]
        checkpoints = sorted(path.name for path in self.data.glob(CHECKPOINTS))
        return tuple(lines), tuple(checkpoints[:1])

    def add(self, path: Path, size: int, *, mark: str = "", mode: int = 0o600) -> None:
        """The file is in the backup; one that never changes and is there already is not read."""
        name = path.relative_to(self.data).as_posix()
        known = self.before.get(name)
        if known and mark and (known.mark, known.bytes) == (mark, size) and self.objects.has(known):
            self.entries.append(known)
            return
        entry = Entry(name, size, mode, self.objects.put(path, size, self.progress), mark)
        if self.objects.path(entry.digest).stat().st_size != size:
            raise Moved(f"{name} had another size")
        self.entries.append(entry)
        self.copied.append(entry)

    def add_segment(self, path: Path) -> None:
        """A sealed segment whole; the one that is written to up to its last whole batch."""
        disk = FileDisk(str(path.parent))
        file = disk.open(path.name)
        segment = open_segment(file, path.name, read_meta(disk).log)
        if segment.sealed:
            size = file.size()
            footer = file.read_at(size - FOOTER_BYTES, FOOTER_BYTES)
            mark = digest_of(footer) + f" {path.stat().st_ino}"
            self.add(path, size, mark=mark, mode=SEALED)
            self.batch = segment.last
            return
        walk = Walk(segment, file, REPLAY_BYTES)
        size = file.size()
        try:
            while True:
                walk.on(walk.step(size))
        except Malformed:
            self.batch = walk.number - 1
            self.add(path, walk.offset)

    def add_archive(self) -> None:
        """The archive as of one moment, by SQLite's own means; its log file is not needed then."""
        source = self.data / ARCHIVE
        if not source.is_file():
            return
        fresh = self.objects.folder / "archive.tmp"
        fresh.unlink(missing_ok=True)
        read, write = sqlite3.connect(f"file:{source}?mode=ro", uri=True), sqlite3.connect(fresh)
        try:
            read.backup(write)
        finally:
            read.close()
            write.close()
        size = fresh.stat().st_size
        digest = self.objects.put(fresh, size, self.progress)
        fresh.unlink()
        entry = Entry(ARCHIVE, size, 0o600, digest)
        self.entries.append(entry)
        self.copied.append(entry)


def take(data: Path, folder: Path, progress: Progress) -> Taken:
    """``folder`` holds a backup of ``data``. Costs what is new since the one before.

    Raises BackupError, LogError, OSError.
    """
    if not (data / LOG / META_NAME).is_file():
        raise BackupError(f"{data} holds no log: give the folder of a broker with --data")
    if find_marker(data):
        raise BackupError(
            f"{data} was restored and not started since: what is in it is the backup it came from; "
            "keep that one, or start a broker with it first"
        )
    objects = Objects(folder)
    with objects.locked():
        try:
            before = {entry.path: entry for entry in objects.read().entries}
        except FileNotFoundError:
            before = {}
        made_ms = time.time_ns() // 1_000_000
        copied: set[Entry] = set()
        for tries in range(1, TRIES_MAX + 1):
            attempt = Attempt(data, objects, before, progress)
            try:
                attempt.run()
            except Moved as moved:
                why = str(moved)
                before |= {entry.path: entry for entry in attempt.copied}
                continue
            finally:
                copied.update(attempt.copied)
            log = read_meta(FileDisk(str(data / LOG))).log.hex()
            manifest = Manifest(made_ms, log, attempt.batch, tuple(attempt.entries))
            prove(objects, manifest)
            objects.write(manifest)
            fresh = [entry for entry in attempt.entries if entry in copied]
            return Taken(
                len(attempt.entries),
                sum(entry.bytes for entry in attempt.entries),
                len(fresh),
                sum(entry.bytes for entry in fresh),
                attempt.batch,
                tries,
            )
    raise BackupError(
        f"{data} was cleaned up {TRIES_MAX} times while it was copied: in the end {why}; nothing "
        f"was changed in {folder} that the backup before needs; try again when the broker has less "
        "to do"
    )
