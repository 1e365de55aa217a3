"""The keeper: a broker without peers that follows the log and writes down what it knows.

    newest checkpoint -> the log behind it, up to a durable batch -> next checkpoint
                                                                         |
    what is dead below the older of the two: dropped or rewritten  <-----'

It runs beside the broker, in a process of its own (__main__.py), from time to time. So a
checkpoint costs the broker no turn, whatever waits; and each proves that replay works.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from qbroker.checkpoint.cleaner import Cleaner, Looked, Plan
from qbroker.checkpoint.file import Checkpoint
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.cleaning import Live
from qbroker.core.settings import Settings
from qbroker.core.snapshot import tidy
from qbroker.log.cleaning import Rewritten
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
    live_percent: int = 0
    """A segment with less that is alive is rewritten; 0 rewrites none, and drops none.

    Not 0 only if the archive holds what was settled up to ``upto``: it reads messages, too.
    """
    segment_bytes: int = 0
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
    looked: Looked


Told = Kept | list[int] | Rewritten
"""The checkpoint stands; segments to be dropped, by their first batches; a file to be adopted."""
Tell = Callable[[Told], None]


def pack_line(told: Told) -> str:
    """A line of JSON."""
    value = told if isinstance(told, list) else asdict(told)
    return json.dumps([KINDS[type(told)], value])


def unpack_line(line: str) -> Told:
    """What was told. Raises ValueError, TypeError or KeyError for what nobody did."""
    kind, value = json.loads(line)
    if kind == "drop":
        return [int(each) for each in value]
    return Kept(**value) if kind == "kept" else Rewritten(**value)


KINDS: dict[type, str] = {Kept: "kept", list: "drop", Rewritten: "adopt"}


def keep(disk: Disk, shelf: Shelf, order: Order, tell: Tell) -> None:
    """The next checkpoint stands, as of the batch that was ordered; what is dead is cleaned.

    ``disk`` is the log's. Raises CheckpointError, DamagedError, LogError, OSError. Memory:
    that of the broker's state, and a large part of it once more while it is written.
    """
    began = time.monotonic()
    log = LogReader.open(disk)
    found = shelf.restore(log, order.upto, order.settings)
    batches = log.replay(found.batch + 1, order.upto)
    replayed = follow(batches, found.core, found.ages, lambda _batch: None)
    tidy(found.core.state, found.ages.last_ms)
    cleaner, plan = planned(disk, log, found, order)
    digest = log.digest(order.upto)
    about = Checkpoint(log.log_id, order.upto, digest, order.wall_ms, __version__)
    size = shelf.add(about, found.core, found.ages, plan.looked)
    took_s = time.monotonic() - began
    tell(Kept(order.upto, found.batch, size, replayed, took_s, plan.looked))
    for each in cleaner.clean(plan):
        tell(each)


def planned(disk: Disk, log: LogReader, found: Restored, order: Order) -> tuple[Cleaner, Plan]:
    """What to clean below the older of the two checkpoints, which is the one just read."""
    cleaner = Cleaner(disk, Live(found.core.state), order.live_percent, order.segment_bytes)
    segments = log.sealed(found.batch) if order.live_percent else []
    return cleaner, cleaner.plan(segments, found.looked)
