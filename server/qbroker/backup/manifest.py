"""What a backup's folder holds: a manifest, and the files it names, each under its own digest.

    manifest.json        which files made up the data folder: path, size, digest
    objects/<digest>     their bytes; never changed, shared by one backup and the next
    restores             how often something was restored from here, as a number

Rule 1. The manifest is written last, by rename: until then the backup before it is whole.
Rule 2. Nothing is believed that does not have the digest it is named by.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

MANIFEST = "manifest.json"
OBJECTS = "objects"
RESTORES = "restores"
RESTORES_MAX = 4_096
"""With 2,048 boot epochs each: half of the 24 bits that a token has for them."""
FORMAT = 1
DIGEST_BYTES = 32
CHUNK_BYTES = 1 << 20

Progress = Callable[[int], None]
"""Told of bytes that were read."""


class BackupError(Exception):
    """The backup cannot be made or used: what is wrong, what that means, what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the data folder. ``mark`` tells a sealed segment: its footer, in hex."""

    path: str
    bytes: int
    mode: int
    digest: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup: when it was begun (ms since 1970), of which log, and its files."""

    made_ms: int
    log: str
    batch: int
    """The last batch in it."""
    entries: tuple[Entry, ...]


class Objects:
    """The folder of a backup, locked while it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / OBJECTS

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works in the folder. Makes it if it is missing. Raises BackupError."""
        self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BackupError(
                f"{self.folder} is in use by another backup; wait for it, or use another folder"
            ) from error
        else:
            yield
        finally:
            os.close(fd)

    def path(self, digest: str) -> Path:
        return self._objects / digest

    def put(self, source: Path, size: int, progress: Progress) -> str:
        """The first ``size`` bytes of the file are here, durable but for the name; their digest."""
        fresh = self._objects / "new.tmp"
        with source.open("rb") as read, fresh.open("wb") as write:
            digest = copied(read, write, size, progress)
            write.flush()
            os.fsync(write.fileno())
        fresh.chmod(0o400)
        fresh.rename(self.path(digest))
        return digest

    def has(self, entry: Entry) -> bool:
        """Whether the bytes are here, by name and size; their digest is checked by a restore."""
        path = self.path(entry.digest)
        return path.is_file() and path.stat().st_size == entry.bytes

    def check(self, entry: Entry, progress: Progress) -> None:
        """Raise BackupError unless the file's bytes are those that were put in."""
        path = self.path(entry.digest)
        try:
            with path.open("rb") as file:
                found = copied(file, None, entry.bytes + 1, progress)
        except OSError as error:
            raise damaged(self.folder, entry, error.strerror or str(error)) from error
        if found != entry.digest or path.stat().st_size != entry.bytes:
            raise damaged(self.folder, entry, "its bytes are not those that were backed up")

    def write(self, manifest: Manifest) -> None:
        """The folder holds this backup, durably, and nothing that it does not name."""
        sync_folder(self._objects)
        body = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1)
        self._replace(MANIFEST, f"{body}\n{digest_of(body.encode())}\n")
        named = {entry.digest for entry in manifest.entries}
        for path in self._objects.iterdir():
            if path.name not in named:
                path.unlink()

    def count_restore(self) -> int:
        """One more restore is counted, durably; how many there were before.

        Raises BackupError if the number cannot be read.
        """
        path = self.folder / RESTORES
        try:
            before = int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            before = 0
        except ValueError as error:
            raise BackupError(
                f"{path} is damaged ({error}): how many restores there were cannot be told, and "
                "their tokens must differ; nothing was restored; write a number into it that is "
                "surely higher"
            ) from error
        if not 0 <= before < RESTORES_MAX:
            raise BackupError(
                f"{path} says {before}: a folder can be restored from {RESTORES_MAX} times, for "
                "boot epochs are finite; nothing was restored; take backups into a new folder"
            )
        self._replace(RESTORES, f"{before + 1}\n")
        return before

    def _replace(self, name: str, text: str) -> None:
        """The folder's file of that name is this text, durably."""
        fresh = self.folder / f"{name}.tmp"
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.folder / name)
        sync_folder(self.folder)

    def read(self) -> Manifest:
        """The backup that is here. Raises BackupError; FileNotFoundError if there is none."""
        text = (self.folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
        body, _, digest = text.rstrip("\n").rpartition("\n")
        if digest_of(body.encode()) != digest:
            raise BackupError(
                f"{self.folder / MANIFEST} is damaged: its digest disagrees; nothing was restored; "
                "use another backup"
            )
        found = json.loads(body)
        if found.pop("format") != FORMAT:
            raise BackupError(
                f"{self.folder} was written by a newer version; use that, or a later one"
            )
        found["entries"] = tuple(Entry(**entry) for entry in found["entries"])
        return Manifest(**found)


def damaged(folder: Path, entry: Entry, why: str) -> BackupError:
    return BackupError(
        f"the backup in {folder} is damaged: {entry.path} ({OBJECTS}/{entry.digest}): {why}; "
        "nothing was restored; use another backup"
    )


def copied(read: BinaryIO, write: BinaryIO | None, size: int, progress: Progress) -> str:
    """Up to ``size`` bytes from one file to the other, if there is one; their digest."""
    hashed = blake2b(digest_size=DIGEST_BYTES)
    while size > 0:
        data = read.read(min(size, CHUNK_BYTES))
        if not data:
            break
        hashed.update(data)
        if write is not None:
            write.write(data)
        size -= len(data)
        progress(len(data))
    return hashed.hexdigest()


def digest_of(data: bytes) -> str:
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def sync_folder(folder: Path) -> None:
    """Names in the folder are durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
