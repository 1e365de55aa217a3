"""A backup is taken now and then, and brokers begin from it, beside the one that goes on.

They live no longer than their boot: what counts is that no token of theirs looks like one of
another life, be it of the broker that was thought lost, or of another restore.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from random import Random
from unittest.mock import patch

from qbroker.backup.marker import Marker
from qbroker.checkpoint.shelf import Shelf
from qbroker.core.moment import Now
from qbroker.core.settings import Settings
from qbroker.log.log import Log, LogSettings
from qbroker.starting import after_restore, restore
from sim.world import S, Violation, World
from simdisk import SimDisk


class Restores:
    """Knows the epochs of all lives."""

    def __init__(self, world: World, data: Path, settings: Settings) -> None:
        self.world = world
        self.rng: Random = world.rng("restores")
        self.data = data
        self.settings = settings
        self.epochs: dict[int, str] = {}
        self.backup: tuple[SimDisk, SimDisk] | None = None
        self.began_at = self.count = 0

    def note(self, epoch: int, whose: str) -> None:
        """A life has this epoch, which none had before."""
        before = self.epochs.setdefault(epoch, whose)
        if before != whose:
            raise Violation(f"epoch {epoch} is that of {whose}, and of {before}")

    def take(self, log: SimDisk, checkpoints: SimDisk) -> None:
        """The folder is as it is now, and nobody uses it; restores are counted with the backup."""
        if self.backup is None:
            self.backup = log.copy(), checkpoints.copy()
            for disk in self.backup:
                disk.capacity = None
            self.began_at = self.world.now

    def restore(self) -> None:
        """A broker begins from the backup: it is the n-th that does."""
        if self.backup is None:
            return
        disk, checkpoints = (each.copy() for each in self.backup)
        log = Log.open(disk, LogSettings())
        core = restore(log, Shelf(checkpoints), self.settings, lambda _batch, _last: None)[0].core
        age_s = (self.world.now - self.began_at) // S
        with patch.object(secrets, "randbelow", self.rng.randrange):  # chance comes from the seed
            Marker.of(log.durable, age_s, self.count).leave(self.data)
        self.count += 1
        with after_restore(self.data, core.state) as skipped:
            core.boot(Now(self.world.wall_ms(), 0), "restored", lambda record: 0, skipped)
        self.world.sometimes["a backup was restored"] += 1
        self.note(core.state.epoch, f"restore {self.count}")
