"""A log on a simulated disk, with a memory of what was put into it."""

from __future__ import annotations

import pytest

from qbroker.log.log import Log, LogSettings
from simdisk import SimDisk

SETTINGS = LogSettings(segment_bytes=16 << 10, batch_bytes_max=64 << 10)


class Story:
    """What happened to a log: batches by number, each the bodies it was given."""

    def __init__(self, disk: SimDisk | None = None, settings: LogSettings = SETTINGS) -> None:
        self.disk = disk or SimDisk()
        self.settings = settings
        self.given: dict[int, list[bytes]] = {}
        self.log = Log.open(self.disk, settings)

    def put(self, *bodies: bytes, sync: bool = True, keys: tuple[int, int] = (0, 0)) -> list[int]:
        """One batch of these bodies; their positions."""
        batch = self.log.begin()
        positions = [batch.add(1, body, keys=keys) for body in bodies]
        self.given[batch.number] = list(bodies)
        self.log.commit(batch, sync=sync, wall_ms=1_700_000_000_000, epoch=3)
        return positions

    def fill(self, batches: int, size: int = 100, *, sync: bool = True) -> None:
        """So many batches of one body, each different."""
        for _ in range(batches):
            self.put(bytes([self.log.written % 251 + 1]) * size, sync=sync)

    def reopen(self) -> Log:
        self.log = Log.open(self.disk, self.settings)
        return self.log

    def killed(self) -> Log:
        self.disk.kill()
        return self.reopen()

    def contents(self) -> dict[int, list[bytes]]:
        return contents(self.log)

    def file(self, number: int = -1) -> bytearray:
        """The bytes of one segment, the last by default, to be damaged at rest."""
        name = [name for name in sorted(self.disk.files) if name.endswith(".qlog")][number]
        inode = self.disk.files[name]
        inode.flush()
        inode.durable = inode.cached
        return inode.cached


def contents(log: Log) -> dict[int, list[bytes]]:
    return {info.number: [record.body for record in found] for info, found in log.replay()}


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def new_story() -> type[Story]:
    return Story
