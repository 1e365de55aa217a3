"""That a backup is a log: opened as a start would open it, with nothing changed."""

import os
from pathlib import Path

from qbroker.backup.manifest import BackupError, Manifest, Objects
from qbroker.log.disk import OsFile
from qbroker.log.errors import LogError
from qbroker.log.log import Log, LogSettings
from qbroker.ops.overlay import OverlayDisk, RealFile

PREFIX = "log/"


class BackupDisk:
    """The log's directory, as the files of a backup. Has the shape of overlay's RealDisk."""

    def __init__(self, objects: Objects, manifest: Manifest) -> None:
        self._objects = objects
        self._entries = {
            entry.path.removeprefix(PREFIX): entry
            for entry in manifest.entries
            if entry.path.startswith(PREFIX)
        }

    def open(self, name: str, *, write: bool = False) -> RealFile:  # noqa: ARG002  # Disk's
        entry = self._entries.get(name)
        if entry is None:
            raise FileNotFoundError(name)
        return BackupFile(self._objects.path(entry.digest), entry.mode)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def free_bytes(self) -> int:
        return 1 << 40

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)

    def lock(self) -> None:
        """Held already: see Objects.locked."""

    def unlock(self) -> None:
        """As lock."""


class BackupFile(OsFile):
    """A file with the permission bits that it had."""

    __slots__ = ("_mode",)

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(os.open(path, os.O_RDONLY))
        self._mode = mode

    def mode(self) -> int:
        return self._mode


def prove(objects: Objects, manifest: Manifest) -> None:
    """Raise BackupError unless a broker would start with this log. Reads the last segment."""
    try:
        log = Log.open(OverlayDisk(BackupDisk(objects, manifest)), LogSettings())
        written = log.written
        log.close()
    except LogError as error:
        raise BackupError(
            f"what was copied is no log that a broker would start with: {error}"
        ) from error
    if written != manifest.batch:
        raise BackupError(
            f"what was copied ends at batch {written}, not {manifest.batch}; try again, and if it "
            "stays so, see qbroker log verify"
        )
