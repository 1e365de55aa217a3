"""The folder of checkpoints: which of them stands for the log's beginning.

    newest that is whole  and  of this log  and  not beyond its end

Rule 1. One that is damaged is passed over for the one before it, with a warning.
Rule 2. One that is whole and disagrees with the log forbids the start: something is missing
        or mixed up, and to guess which would lose messages.
Rule 3. The log's beginning may be gone. Without a checkpoint nothing can start then.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from qbroker.ages import Ages
from qbroker.checkpoint import file
from qbroker.checkpoint.cleaner import Looked
from qbroker.checkpoint.errors import (
    AheadCheckpoint,
    DamagedError,
    ForeignCheckpoint,
    NoCheckpoint,
)
from qbroker.checkpoint.file import Checkpoint
from qbroker.core.broker import Broker
from qbroker.core.columns import pack_columns, unpack_columns
from qbroker.core.settings import Settings
from qbroker.core.snapshot import SnapshotError, decode, encode
from qbroker.log.disk import Disk
from qbroker.log.errors import TrimmedError

FOLDER = "checkpoints"
"""Within the data folder."""
AGES, LOOKED = "ages", "looked"
"""The sections beside those of the core."""


class ReadableLog(Protocol):
    """What a log is asked: by the broker that has it, or by one that only reads it."""

    @property
    def log_id(self) -> bytes: ...
    @property
    def whole_from(self) -> int: ...
    def digest(self, batch: int) -> bytes: ...


@dataclass(slots=True)
class Restored:
    """A broker's state as of a batch; 0 and empty if there was no checkpoint."""

    core: Broker
    ages: Ages
    batch: int = 0
    wall_ms: int = 0
    """When the checkpoint was made."""
    bytes: int = 0
    """Of the checkpoint."""
    looked: Looked = field(default_factory=dict)
    """What the keeper had measured of segments."""
    damaged: list[DamagedError] = field(default_factory=list)
    """Newer ones that were passed over."""


class Shelf:
    """One folder. One process adds to it at a time; any may read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def names(self) -> list[str]:
        """Whole checkpoints, the newest first; that they can be read is not known."""
        return [name for name in reversed(self._disk.names()) if name.endswith(file.SUFFIX)]

    def restore(self, log: ReadableLog, durable: int, settings: Settings) -> Restored:
        """The state to which the log behind it must be applied.

        ``durable`` is the log's last batch. Raises CheckpointError.
        """
        damaged: list[DamagedError] = []
        for name in self.names():
            try:
                check(file.read_header(self._disk, name), log, durable)
                found = restored(file.read(self._disk, name), settings)
            except DamagedError as error:
                damaged.append(error)
            else:
                found.damaged = damaged
                return found
        if log.whole_from > 1:
            raise NoCheckpoint(log.whole_from, damaged)
        return Restored(Broker(settings), Ages(), damaged=damaged)

    def add(self, about: Checkpoint, core: Broker, ages: Ages, looked: Looked) -> int:
        """The state is on disk and proved; its bytes. Raises OSError, DamagedError."""

        def sections() -> Iterator[tuple[str, bytes]]:
            yield from encode(core.state)
            yield AGES, ages.saved()
            yield LOOKED, pack_columns(looked)

        return file.write(self._disk, about, sections())

    def keep(self, *batches: int) -> None:
        """Only these checkpoints are left, and whatever is newer. Raises OSError."""
        kept = {file.name_of(batch) for batch in batches}
        for name in self._disk.names():
            if name not in kept and name < max(kept):
                self._disk.remove(name)
        self._disk.sync_directory()


def check(about: Checkpoint, log: ReadableLog, durable: int) -> None:
    """Raise CheckpointError unless the log goes on where the checkpoint ends."""
    if about.log != log.log_id:
        raise ForeignCheckpoint(about.name, f"log {about.log.hex()}, not {log.log_id.hex()}")
    if about.batch > durable:
        raise AheadCheckpoint(about.name, about.batch, durable)
    try:
        chain = log.digest(about.batch)
    except TrimmedError as error:
        raise DamagedError(about.name, f"the log behind it is gone: {error}") from error
    if about.chain != chain:
        raise ForeignCheckpoint(
            about.name, f"another history of this log: batch {about.batch} is not the same"
        )


def restored(found: Checkpoint, settings: Settings) -> Restored:
    """The state in the checkpoint. Raises DamagedError."""
    size = sum(map(len, found.sections.values()))
    try:
        core = Broker(settings, decode(settings, found.sections))
        ages = Ages.restored(found.sections[AGES])
        rows = unpack_columns(found.sections[LOOKED])[0] if LOOKED in found.sections else {}
    except (SnapshotError, ValueError, KeyError) as error:
        raise DamagedError(found.name, f"{error} (written by version {found.version})") from error
    looked = {name: (count, left) for name, (count, left) in rows.items()}
    return Restored(core, ages, found.batch, found.wall_ms, size, looked)
