"""A backup is taken now and then, and brokers begin from it, beside the one that goes on.

They live no longer than their boot. No token of theirs may look like one of another life, be it
of the broker that was thought lost, or of another restore; and they have what the backup must
hold: all that was confirmed and had not ended when it was taken, nothing that had, and no other.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from random import Random
from unittest.mock import patch

from digest import check_places
from qbroker.backup.marker import Marker
from qbroker.bodies import Bodies
from qbroker.checkpoint.shelf import Shelf
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.settings import Settings
from qbroker.log.log import Log, LogSettings
from qbroker.starting import after_restore, restore
from sim.oracle import NO, YES, Known, Oracle
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
        self.held: list[Known] = []
        """What the backup must hold."""
        self.ended: set[int] = set()
        """Numbers of what had ended before."""
        self.began_at = self.count = 0

    def note(self, epoch: int, whose: str) -> None:
        """A life has this epoch, which none had before."""
        before = self.epochs.setdefault(epoch, whose)
        if before != whose:
            raise Violation(f"epoch {epoch} is that of {whose}, and of {before}")

    def take(self, log: SimDisk, checkpoints: SimDisk, oracle: Oracle) -> None:
        """The folder is as it is now, and nobody uses it; restores are counted with the backup."""
        if self.backup is None:
            self.backup = log.copy(), checkpoints.copy()
            for disk in self.backup:
                disk.capacity = None
            self.began_at = self.world.now
            sure = [known for known in oracle.known.values() if not known.relaxed]
            there = set(map(id, oracle.still()))
            self.oracle = oracle
            self.held = [known for known in sure if id(known) in there and not known.may_rot]
            self.ended = {known.uid for known in sure if known.over == YES}

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
        self.compare(core, log)

    def compare(self, core: Broker, log: Log) -> None:
        """The restored broker has what the backup must hold, and nothing else."""
        bodies, there = Bodies(log, 1 << 30, lambda: 0), set()
        places, parts = check_places(core.state), core.state.continued
        bodies.keep(bodies.load([*places, *(at for each in places for at in parts.get(each, ()))]))
        for position in places:
            continued = parts.get(position)
            known = self.oracle.recognise(bodies.message(position, continued))
            if known.born == NO:
                raise Violation(f"a backup holds {known}, which nobody has sent")
            if known.uid in self.ended:
                raise Violation(f"{known} is back in a backup: it was {known.why_over} before")
            there.add(known.uid)
        lost = [known for known in self.held if known.uid not in there]
        if lost:
            raise Violation(f"a backup lost {', '.join(map(str, lost[:5]))}")
        self.world.sometimes["a restored message was looked at"] += len(there)
