"""A data folder out of a backup."""

import os
import time
from pathlib import Path

from qbroker.backup.manifest import (
    BackupError,
    Manifest,
    Objects,
    Progress,
    copied,
    damaged,
    sync_folder,
)
from qbroker.backup.marker import Marker
from qbroker.backup.proof import prove

LAST = "log/META"
"""Without it no broker starts: a restore that was cut off is noticed."""


def restore(folder: Path, data: Path, progress: Progress) -> Manifest:
    """``data`` is as it was when the backup in ``folder`` was taken, and marked as restored.

    Everything is verified first, and nothing written before. Raises BackupError, OSError.
    """
    objects = Objects(folder)
    if not folder.is_dir():
        raise BackupError(f"{folder} is no folder: give one that qbroker backup has written")
    if data.exists() and any(data.iterdir()):
        raise BackupError(
            f"{data} is not empty: nothing was restored; give a new folder, and move this one away "
            "only when no broker uses it"
        )
    with objects.locked():
        try:
            manifest = objects.read()
        except FileNotFoundError as error:
            raise BackupError(
                f"{folder} holds no backup that was finished: give a folder that qbroker backup "
                "has written to its end"
            ) from error
        for entry in manifest.entries:
            objects.check(entry, progress)
        prove(objects, manifest)
        nth = objects.count_restore()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        age_s = time.time_ns() // 10**9 - manifest.made_ms // 1000
        Marker.of(manifest.batch, age_s, nth).leave(data)
        folders = {data}
        for entry in sorted(manifest.entries, key=lambda entry: entry.path == LAST):
            path = data / entry.path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folders.add(path.parent)
            with objects.path(entry.digest).open("rb") as read, path.open("xb") as write:
                if copied(read, write, entry.bytes, progress) != entry.digest:
                    raise damaged(folder, entry, "it changed while it was read")
                write.flush()
                os.fsync(write.fileno())
                os.fchmod(write.fileno(), entry.mode)
        for each in folders:
            sync_folder(each)
    return manifest
