"""What a restore leaves behind: the first boot on it takes an epoch that nobody had.

    restore: marker, then the log -> start: a boot far above, durable -> no marker

Rule 1. A token is an epoch and a count. The lost broker went on after its backup, through
        epochs that the backup does not know; a token of theirs must not look like a new one.
Rule 2. Nor may the tokens of two restores of one backup: the folder counts its restores, and each
        begins RESTORE_EPOCHS above the one before, whenever they were. Two copies of a folder
        count alike: then chance tells them apart, and the time between them.
Rule 3. The marker is there before the log can be opened, and goes once the boot is durable.
        One that a crash left over is seen to be done with: nothing is skipped twice.
"""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from qbroker.backup.manifest import BackupError, sync_folder

NAME = "restored.json"
EPOCHS = 4_096
"""Skipped at least: as many starts since the backup, and clocks that disagree."""
BOOT_S = 10
"""And one for so many seconds since: nobody starts more often for long."""
RESTORE_EPOCHS = 2_048
"""And so many for each restore before: the starts one may have had above what time gives it."""
CHANCE_EPOCHS = 1_024
"""Below which one is drawn on top."""


@dataclass(frozen=True, slots=True)
class Marker:
    """In a data folder that was restored and has not been started since."""

    batch: int
    """The last in the backup."""
    epochs: int
    """How many the first boot skips."""

    @classmethod
    def of(cls, batch: int, age_s: int, nth: int) -> Self:
        """For the nth restore of a backup that ends with this batch, and was begun so long ago."""
        since = max(0, age_s) // BOOT_S + nth * RESTORE_EPOCHS
        return cls(batch, EPOCHS + since + secrets.randbelow(CHANCE_EPOCHS))

    def leave(self, data: Path) -> None:
        """It is in the folder, durable. OSError."""
        fresh = data / f"{NAME}.tmp"
        with fresh.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(data / NAME)
        sync_folder(data)

    def skipped(self, booted: int) -> int:
        """How many epochs the next boot leaves out; 0 if one, in this batch, has done so."""
        return self.epochs if booted <= self.batch else 0


def find_marker(data: Path) -> Marker | None:
    """The one in the folder. BackupError if it cannot be read, OSError."""
    try:
        return Marker(**json.loads((data / NAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BackupError(
            f"{data / NAME} is damaged ({error}): whether this folder was started since it was "
            "restored cannot be told; restore it once more into a new folder"
        ) from error


def remove_marker(data: Path) -> None:
    """None is in the folder, durably. OSError."""
    (data / NAME).unlink(missing_ok=True)
    sync_folder(data)
