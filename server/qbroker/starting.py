"""A data folder becomes a log, and the state that the log says.

    lock, recover the log -> newest checkpoint that is whole -> the log behind it, applied

Rule 1. Nothing is guessed: what disagrees stops the start with a sentence and an exit code.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from qbroker.ages import Ages
from qbroker.backup.manifest import BackupError
from qbroker.backup.marker import find_marker, remove_marker
from qbroker.checkpoint.errors import CheckpointError
from qbroker.checkpoint.shelf import FOLDER, Restored, Shelf
from qbroker.config import SETTINGS, Config
from qbroker.core.broker import Broker
from qbroker.core.settings import Settings
from qbroker.core.state import BrokerState
from qbroker.log.disk import FULL, FileDisk
from qbroker.log.errors import (
    CorruptError,
    ForeignError,
    FormatError,
    LockedError,
    LogError,
    LogFailed,
    NoRoom,
    OwnerError,
)
from qbroker.log.format import SLOT_BITS
from qbroker.log.log import Log, LogSettings
from qbroker.ops.exits import Exit, Trouble
from qbroker.replaying import replay
from qbroker.space import Space

LOG_FOLDER = "log"
"""Within the data folder, which other things share."""
PROGRESS_S = 1.0

_log = logging.getLogger("qbroker")

Say = Callable[[str], None]

LOG_EXITS: dict[type[LogError], Exit] = {
    CorruptError: Exit.CORRUPT,
    ForeignError: Exit.CORRUPT,
    FormatError: Exit.CORRUPT,
    LockedError: Exit.LOCKED,
    OwnerError: Exit.LOCKED,
    LogFailed: Exit.DISK,
    NoRoom: Exit.DISK,
}


def log_trouble(error: LogError, data: Path) -> Trouble:
    """How a command ends for it, and what can be done about damage without a backup."""
    code = next((code for kind, code in LOG_EXITS.items() if isinstance(error, kind)), Exit.FAILED)
    text = str(error)
    if isinstance(error, CorruptError):
        text += (
            f'; to see what a cut there would lose: "qbroker log repair {data} '
            f'--truncate-at {error.first << SLOT_BITS}"'
        )
    return Trouble(text, code)


@dataclass(frozen=True, slots=True)
class Stores:
    """What a start has read: the log, what it says, and where that came from."""

    log: Log
    core: Broker
    ages: Ages
    shelf: Shelf
    restored: Restored
    replayed_bytes: int
    """Of the log behind the checkpoint."""
    space: Space


def open_stores(config: Config, say: Say) -> Stores:
    """The data folder is locked, the log recovered, its end replayed. Raises Trouble."""
    began = time.monotonic()
    log, space = open_log(config)
    try:
        shelf = Shelf(FileDisk(str(config.data / FOLDER)))
        found, size = restore(log, shelf, core_settings(config), Progress(say))
    except OSError as error:
        log.close(clean=log.clean)
        raise unusable(config, error) from error
    except CheckpointError as error:
        log.close(clean=log.clean)
        raise Trouble(str(error), Exit.CORRUPT) from error
    except LogError as error:
        log.close(clean=log.clean)
        raise log_trouble(error, config.data) from error
    took_s = time.monotonic() - began
    if took_s > PROGRESS_S:
        where = f"the checkpoint of batch {found.batch:,} and " if found.batch else ""
        _log.info("read %s%d MB of log in %.1f s", where, size // 10**6, took_s)
    return Stores(log, found.core, found.ages, shelf, found, size, space)


def open_log(config: Config) -> tuple[Log, Space]:
    """The log, locked and recovered, and the room that is left. Raises Trouble."""
    try:
        settings = LogSettings(config.segment_bytes, config.batch_bytes_max)
    except ValueError as error:
        raise Trouble(str(error), Exit.USAGE) from error
    try:
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        low, critical = config.disk_low, config.disk_critical
        space = Space(config.data, low, critical, config.segment_bytes)
        return recovered(str(config.data / LOG_FOLDER), settings, space), space
    except OSError as error:
        raise unusable(config, error) from error
    except LogError as error:
        raise log_trouble(error, config.data) from error


def recovered(folder: str, settings: LogSettings, space: Space) -> Log:
    """The log, opened; on a full disk it may take the reserve's room. Raises LogError, OSError."""
    try:
        return Log.open(FileDisk(folder), settings)
    except LogFailed as failure:
        if failure.cause.errno not in FULL or not space.give_up_reserve():
            raise
        return Log.open(FileDisk(folder), settings)


def unusable(config: Config, error: OSError) -> Trouble:
    return Trouble(
        f"{config.data} cannot be used: {error.strerror or error}; "
        "make it a folder of your own, or choose another with --data",
        Exit.LOCKED,
    )


@contextmanager
def after_restore(data: Path, state: BrokerState) -> Iterator[int]:
    """How many epochs the boot within skips; once it is durable, that is done. Raises Trouble."""
    try:
        marker = find_marker(data)
        booted = state.boots.get(state.epoch, 0) >> SLOT_BITS
        yield marker.skipped(booted) if marker else 0
        if marker:
            remove_marker(data)
    except BackupError as error:
        raise Trouble(str(error), Exit.CORRUPT) from error
    except OSError as error:
        raise Trouble(f"{data} cannot be used: {error.strerror or error}", Exit.DISK) from error


def core_settings(config: Config) -> Settings:
    """The core's share of the settings; what has no row in the table keeps its default."""
    mine = {each.name for each in fields(Settings)} & SETTINGS.keys()
    return Settings(**{name: getattr(config, name) for name in mine})


def restore(
    log: Log, shelf: Shelf, settings: Settings, progress: Callable[[int, int], None]
) -> tuple[Restored, int]:
    """What the log says, by the newest checkpoint; the bytes of log read behind that.

    Raises CheckpointError, LogError, OSError.
    """
    gc.disable()  # millions of objects are made, and none becomes garbage
    try:
        found = shelf.restore(log, log.durable, settings)
        for each in found.damaged:
            _log.warning("%s; the one before it, or the whole log, is read instead", each)
        size = replay(log, found.core, found.ages, progress, found.batch + 1)
    finally:
        gc.enable()
    return found, size


class Progress:
    """A line a second while the log is replayed; none if it is quick."""

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._due = clock() + PROGRESS_S

    def __call__(self, batch: int, last: int) -> None:
        now = self._clock()
        if now >= self._due:
            self._due = now + PROGRESS_S
            self._say(f"replaying the log: batch {batch:,} of {last:,}")
