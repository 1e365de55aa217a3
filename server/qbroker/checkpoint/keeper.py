"""The keeper: a broker without peers that follows the log and writes down what it knows.

    newest checkpoint -> the log behind it, up to a durable batch -> next checkpoint

It runs beside the broker, in a process of its own (__main__.py), from time to time. So a
checkpoint costs the broker no turn, whatever waits; and each proves that replay works.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from qbroker.checkpoint.file import Checkpoint
from qbroker.checkpoint.shelf import Shelf
from qbroker.core.settings import Settings
from qbroker.core.snapshot import tidy
from qbroker.log.disk import Disk
from qbroker.log.reader import LogReader
from qbroker.replaying import follow
from qprotocol import __version__


@dataclass(frozen=True, slots=True)
class Order:
    """What the broker asks for."""

    upto: int
    """A batch that is durable."""
    wall_ms: int
    settings: Settings
    log_level: str = "info"
    log_format: str = "text"

    def pack(self) -> str:
        """A line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, line: str) -> Self:
        """Raises ValueError, TypeError or KeyError for what ``pack`` did not make."""
        values = json.loads(line)
        values["settings"] = Settings(**values["settings"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the keeper answers: the checkpoint stands, proved."""

    batch: int
    before: int
    """The checkpoint it began with, which can be read: 0 is none."""
    bytes: int
    replayed_bytes: int
    seconds: float


Tell = Callable[[Kept], None]


def keep(disk: Disk, shelf: Shelf, order: Order, tell: Tell) -> None:
    """The next checkpoint stands, as of the batch that was ordered.

    ``disk`` is the log's. Raises CheckpointError, DamagedError, LogError, OSError. Memory:
    that of the broker's state, and a large part of it once more while it is written.
    """
    began = time.monotonic()
    log = LogReader.open(disk)
    found = shelf.restore(log, order.upto, order.settings)
    batches = log.replay(found.batch + 1, order.upto)
    replayed = follow(batches, found.core, found.ages, lambda _batch: None)
    tidy(found.core.state, found.ages.last_ms)
    digest = log.digest(order.upto)
    about = Checkpoint(log.log_id, order.upto, digest, order.wall_ms, __version__)
    size = shelf.add(about, found.core, found.ages)
    tell(Kept(order.upto, found.batch, size, replayed, time.monotonic() - began))
