"""A broker on one simulated disk, and checkpoints of it on another."""

from __future__ import annotations

import pytest

from harness import Machine
from qbroker.checkpoint.keeper import Kept, Order, keep
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.settings import Settings
from qbroker.log.log import Log, LogSettings
from qprotocol import frames as f
from qprotocol.message import Message
from simdisk import SimDisk

LOG = LogSettings(segment_bytes=8 << 10)


class Room:
    """A machine whose log has checkpoints."""

    def __init__(self) -> None:
        self.machine = Machine(log_settings=LOG)
        self.disk = SimDisk()
        self.shelf = Shelf(self.disk)
        self.peer = self.machine.connect()
        self.machine.submit(self.peer, f.Hello(protocol=1, role="consumer", client_id="c"))
        self.machine.settle()

    def publish(self, *bodies: str) -> None:
        raw = b"".join(Message("q", body.encode()).pack() for body in bodies)
        frame = f.Publish(producer=0, sequence=0, count=len(bodies), raw=raw)
        frame.correlation = 77
        self.machine.submit(self.peer, frame)
        self.machine.settle()
        assert isinstance(self.peer.received[-1], f.Published), self.peer.received

    def keep(self) -> Kept:
        """A keeper has run as the broker would order it now."""
        told: list[Kept] = []
        order = Order(self.machine.log.durable, self.machine.wall_ms, Settings())
        keep(self.machine.disk, self.shelf, order, told.append)
        (done,) = told
        return done

    def restore(self) -> Restored:
        """What a start after a kill finds."""
        twin = self.machine.disk.copy()
        twin.kill()
        log = Log.open(twin, LOG)
        return self.shelf.restore(log, log.durable, Settings())


@pytest.fixture
def room() -> Room:
    return Room()
