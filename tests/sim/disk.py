"""A SimDisk that knows where it was when it failed.

The kinds of calls are the failpoints: the power can be cut at the n-th call, or at the next
one of a kind. Those that many seeds never meet are cut by the stories of the rooms.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from random import Random

from qbroker.log.format import (
    SEGMENT_HEADER_BYTES,
    BatchInfo,
    Malformed,
    unpack_batch_header,
    unpack_segment_header,
)
from sim.world import PowerCut
from simdisk import SECTOR, Call, Inode, SimDisk, SimFile, kind_of
from simdisk import keep_all as keep_everything
from simdisk import lose_all as lose_everything


class FaultyFile(SimFile):
    """A file that the disk may refuse to read for a while."""

    disk: FaultyDisk

    def read_at(self, offset: int, length: int) -> bytes:
        data = super().read_at(offset, length)
        start, stop = self.disk.bad.get(self.inode, (0, 0))
        if start < offset + len(data) and offset < stop:
            self.disk.refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), "read")
        return data


class BesideFile(FaultyFile):
    """A file that another process reads: it may outlive the broker, not the machine."""

    def __init__(self, beside: Beside, inode: Inode) -> None:
        super().__init__(beside.disk, inode, write=False)
        self.beside = beside
        self.life = beside.disk.machines

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            return super().read_at(offset, length)
        except OSError:
            self.beside.was_refused = True
            raise

    def call(self, what: str) -> str | None:
        self.beside.pause()
        assert self.life == self.beside.disk.machines, "a dead machine reads"
        return self.disk.call(what, self.inode.name)


class Beside:
    """The same disk as another process sees it; ``pause`` comes before each of its calls."""

    def __init__(self, disk: FaultyDisk, pause: Callable[[], None]) -> None:
        self.disk = disk
        self.pause = pause
        self.was_refused = False
        """Whether the disk ever refused it a read."""

    def open(self, name: str, *, write: bool = False) -> BesideFile:
        assert not write
        self.pause()
        return BesideFile(self, self.disk.open(name).inode)

    def names(self) -> list[str]:
        self.pause()
        return self.disk.names()


class FaultyDisk(SimDisk):
    """``cut_at`` (a number of calls) and ``cut_site`` say where the power, or the process, ends."""

    def __init__(self, rng: Random) -> None:
        super().__init__(seed=rng.getrandbits(32))
        self.rng = rng
        self.off = False
        self.machines = 0
        """Power cuts so far."""
        self.bad: dict[Inode, tuple[int, int]] = {}
        """Sectors that cannot be read: of which file, from which byte to which."""
        self.refused = 0
        """Reads that met some."""
        self.cut_at = 0
        self.cut_site: Call | None = None
        self.cut_unseen = False
        """It ends at the next call of a site that has not been met before: rare ones are these."""
        self.lose_all = False
        """The next power cut keeps nothing that was not synced."""

    def call(self, what: str, name: str = "") -> str | None:
        kind = what, kind_of(name)
        if self.off:
            raise PowerCut
        is_new = self.cut_unseen and kind not in self.made
        if self.calls + 1 == self.cut_at or kind == self.cut_site or is_new:
            self.made[kind] += 1
            self.spoiled[kind] += 1
            self.cut_at, self.cut_site, self.off = 0, None, True
            self.cut_unseen = False
            raise PowerCut
        return super().call(what, name)

    def on_again(self, *, power: bool) -> None:
        """After ``kill`` or ``crash``: the machine is on, and files have the names they have."""
        self.cut_at, self.off = 0, False
        self.trace.clear()
        if power:
            self.machines += 1
            lose_all = self.lose_all or self.rng.random() < 0.3
            self.lose_all = False
            keep_all = self.rng.random() < 0.1
            if lose_all:
                self.crash(lose_everything)
            else:
                self.crash(keep_everything if keep_all else self.rng.randrange)
        else:
            self.kill()

    def create(self, name: str) -> FaultyFile:
        return FaultyFile(self, super().create(name).inode, write=True)

    def open(self, name: str, *, write: bool = False) -> FaultyFile:
        return FaultyFile(self, super().open(name, write=write).inode, write=write)

    # At rest.

    def flip(self, inode: Inode, at: int, bit: int) -> None:
        """One bit is another one now, on the disk and in what is read of it."""
        for content in (inode.cached, inode.durable):
            if at < len(content):
                content[at] ^= 1 << bit

    def batches_at(self, inode: Inode, at: int, length: int = 1) -> tuple[int, int]:
        """The batches, first and last, that may be lost with the bytes there: those they are of.

        (1, 0) for none. Also those that are only written: who reads them may be told so.
        """
        numbers = [
            info.number
            for start, info in self._headers(bytes(inode.cached))
            if start < at + length and at < start + info.length
        ]
        return (numbers[0], numbers[-1]) if numbers else (1, 0)

    def batches(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """Each batch of a segment that is on the disk, and where it begins and ends."""
        for start, info in self._headers(bytes(inode.durable)):
            yield info.number, start, start + info.length

    def proved_bytes(self, name: str) -> int:
        """How many bytes of an unsealed segment a later batch header proves to be durable."""
        ends, proved = {0: 0}, 0
        for start, info in self._headers(bytes(self.files[name].durable)):
            ends[info.number] = start + info.length
            proved = max(proved, info.durable_upto)
        return ends.get(proved, 0)

    def _headers(self, data: bytes) -> Iterator[tuple[int, BatchInfo]]:
        """Where each batch of a segment begins, and what its header says, if that is whole."""
        at = SEGMENT_HEADER_BYTES
        try:
            seed = unpack_segment_header(data[:SEGMENT_HEADER_BYTES]).seed
        except Malformed:
            return
        while at < len(data):
            try:
                info = unpack_batch_header(data, at, seed)
            except Malformed:
                at += SECTOR
            else:
                yield at, info
                at += info.length
