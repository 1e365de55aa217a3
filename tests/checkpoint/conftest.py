"""A broker on one simulated disk, and checkpoints of it on another."""

from __future__ import annotations

import pytest

from e2e.talker import deliveries
from harness import Machine
from qbroker.checkpoint.keeper import Kept, Order, Told, keep, pack_line, unpack_line
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.settings import Settings
from qbroker.log.cleaning import Rewritten
from qbroker.log.log import Log, LogSettings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.message import Delivery, Message, Outcome
from simdisk import SimDisk

LOG = LogSettings(segment_bytes=24 << 10)


class Room:
    """A machine whose log has checkpoints."""

    def __init__(self) -> None:
        self.machine = Machine(log_settings=LOG)
        self.disk = SimDisk()
        self.shelf = Shelf(self.disk)
        self.correlation = 100
        self.held: dict[str, Delivery] = {}
        self.cleaned: list[Told] = []
        self.connect()

    def connect(self) -> None:
        """A new conversation with the broker that runs now."""
        self.peer = self.machine.connect()
        self.say(f.Hello(protocol=1, role="consumer", client_id="c"))

    def publish(self, *bodies: str) -> None:
        raw = b"".join(Message("q", body.encode()).pack() for body in bodies)
        self.say(f.Publish(producer=0, sequence=0, count=len(bodies), raw=raw))
        assert any(isinstance(each, f.Published) for each in self.peer.received)

    def take(self, *bodies: str, result: bytes = b"") -> None:
        """These are delivered and done, whatever else is delivered; credit is enough for all."""
        for frame in [each for each in self.peer.received if isinstance(each, f.Deliver)]:
            for delivery in deliveries(frame):
                self.held[delivery.message.body.decode()] = delivery
        self.peer.received.clear()
        for body in bodies:
            done = self.held.pop(body)
            flags = wire.HAS_RESULT if result else 0
            outcome = Outcome(wire.ACK, done.position, done.grant, result=result, flags=flags)
            self.say(f.Settle(count=1, raw=outcome.pack()))

    def say(self, frame: f.Frame) -> None:
        self.correlation += 1
        frame.correlation = self.correlation
        self.machine.submit(self.peer, frame)
        self.machine.settle()

    def keep(self, live_percent: int = 0, file_bytes: int = LOG.segment_bytes) -> Kept:
        """A keeper has run as the broker would order it now, and the log did what it told."""
        told: list[Told] = []
        durable, now_ms = self.machine.log.durable, self.machine.wall_ms
        order = Order(durable, now_ms, Settings(), live_percent, file_bytes)
        keep(self.machine.disk, self.shelf, order, told.append)
        done, *self.cleaned = [unpack_line(pack_line(each)) for each in told]
        assert isinstance(done, Kept)
        for each in self.cleaned:
            log = self.machine.log
            assert log.adopt(each) if isinstance(each, Rewritten) else log.drop(each)
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
