"""A witness of a log's lives: what was written, what was promised, and whether it was kept.

Every start of a life holds the log against what the witness saw in the ones before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest

from qbroker.log.cleaning import rewrite
from qbroker.log.errors import LogFailed, NoRoom, UnreadableError
from qbroker.log.format import StoredRecord
from qbroker.log.log import Log, LogSettings
from qbroker.log.reader import LogReader
from simdisk import SimDisk, keep_all, lose_all, random_choice

TROUBLE = (LogFailed, UnreadableError)
SMALL = LogSettings(segment_bytes=8 << 10)
Content = dict[int, list[tuple[int, bytes]]]


def keep_even(record: StoredRecord) -> tuple[int, list[bytes]] | None:
    return (record.type, [record.body]) if record.position >> 20 & 1 == 0 else None


class Witness:
    """One writer's life, over many crashes: what it wrote, and what it was promised."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.log: Log | None = None
        self.wrote: Content = {}
        self.confirmed = 0
        self.dead: set[int] = set()

    def start(self) -> None:
        """Open, and hold the log against the promise."""
        self.log = Log.open(self.disk, SMALL)
        found: Content = {
            info.number: [(record.position, record.body) for record in records]
            for info, records in self.log.replay()
        }
        assert list(found) == sorted(found)
        assert self.log.written == self.log.durable >= self.confirmed, "a durable batch is lost"
        for number in range(1, self.log.written + 1):
            if number not in found:
                assert number in self.dead, f"batch {number} is lost"
        for number, batch in found.items():
            assert batch == self.wrote.get(number), f"batch {number} was never written"
        assert set(found) >= set(range(self.log.whole_from, self.log.written + 1))
        self.wrote = {n: batch for n, batch in self.wrote.items() if n <= self.log.written}
        self.confirmed = self.log.durable

    def write(self, bodies: list[bytes], *, sync: bool) -> None:
        assert self.log is not None
        batch = self.log.begin()
        keys = batch.number, batch.number
        self.wrote[batch.number] = [(batch.add(1, body, keys=keys), body) for body in bodies]
        try:
            self.log.commit(batch, sync=sync, wall_ms=0, epoch=1)
        except NoRoom:  # somebody frees some, and the same batch is committed again
            self.disk.capacity = None
            self.log.commit(batch, sync=sync, wall_ms=0, epoch=1)
        self.confirmed = self.log.durable

    def trim(self, before: int) -> None:
        assert self.log is not None
        self.dead.update(range(1, before))
        self.log.trim(before)

    def clean(self, count: int) -> None:
        """So many sealed segments are written anew; every second batch dies, and empty ones."""
        assert self.log is not None
        try:
            segments = LogReader.open(self.disk).sealed(self.log.durable)[:count]
            made = rewrite(self.disk, segments, keep_even) if segments else None
        except (OSError, UnreadableError):
            return  # it is another process that ends so
        if made is not None:
            span = range(made.first, made.last + 1)
            self.dead.update(n for n in span if n % 2 or not self.wrote.get(n))
            self.log.adopt(made)

    def drop(self) -> None:
        """The sealed segment in the middle goes."""
        assert self.log is not None
        rows = self.log.segments()[:-1]
        if rows:
            row = rows[len(rows) // 2]
            self.dead.update(range(row.first, row.last + 1))
            self.log.drop([row.first])

    def live(self) -> None:
        """A short life that touches every path of the log."""
        self.start()
        assert self.log is not None
        for turn in range(8):
            number = self.log.written + 1
            self.write(
                [b"%d" % number * 40, bytes([number]) * (number * 211 % 1500)], sync=turn % 3 > 0
            )
            if turn == 3:
                self.log.prepare_next()
        self.trim(self.log.written - 6)
        self.log.sync()
        self.confirmed = self.log.durable
        self.log.close()


def cleaning(witness: Witness) -> None:
    """A short life that cleans, cleans again, merges and drops."""
    witness.start()
    witness.clean(1)
    witness.drop()
    witness.clean(2)
    witness.write([b"and goes on"], sync=True)
    assert witness.log is not None
    witness.log.close()


@cache
def _many_segments() -> Witness:
    witness = Witness(SimDisk())
    witness.start()
    assert witness.log is not None
    for number in range(1, 13):
        witness.write([bytes([number]) * 1400], sync=True)
    witness.log.close()
    witness.disk.kill()
    return witness


def of_many_segments() -> Witness:
    """One whose log, of several sealed segments, was left by a clean stop."""
    model = _many_segments()
    witness = Witness(model.disk.copy())
    witness.wrote, witness.confirmed = dict(model.wrote), model.confirmed
    return witness


def survives(
    end: Callable[[SimDisk], None],
    how: int | str,
    *,
    sticky: bool,
    life: Callable[[Witness], None] = Witness.live,
    first: Callable[[], Witness] = lambda: Witness(SimDisk()),
) -> int:
    """Lives whose nth call fails, n = 1, 2, 3 ... until one gets through; how many there were."""
    for nth in range(1, 1000):
        witness = first()
        witness.disk.fail(nth, how, sticky=sticky)
        with suppress(*TROUBLE):
            life(witness)
        if not witness.disk.failed:
            return nth
        end(witness.disk)
        life(witness)
        life(witness)
    pytest.fail("no life without a fault")


ENDS: dict[str, Callable[[SimDisk], None]] = {
    "the process ends": SimDisk.kill,
    "power is cut, all unsynced lost": lambda disk: disk.crash(lose_all),
    "power is cut, all unsynced kept": lambda disk: disk.crash(keep_all),
    "power is cut, any of it": lambda disk: disk.crash(random_choice(disk.calls)),
}
