"""A real engine over a real log on a real disk, with peers that are lists of frames."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qbroker.ages import Ages
from qbroker.config import Config
from qbroker.core.broker import Broker
from qbroker.core.settings import Settings
from qbroker.engine import Engine
from qbroker.log.disk import File, FileDisk, OsFile
from qbroker.log.log import Log
from qbroker.replaying import replay
from qbroker.timings import Timings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.codec import Assembler, Decoder
from qprotocol.message import Message, walk

F = TypeVar("F", bound=f.Frame)
WAIT_S = 20


class Peer:
    """The other end of a connection: what it was sent, frame by frame."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.frames: list[f.Frame] = []
        self.closed = False
        self.unsent_bytes = 0
        self.durable = 0
        """The highest durable batch when the last frame was sent."""
        self._decoder = Decoder()
        self._assembler = Assembler(100 << 20)
        self._asked = 0
        self._news = asyncio.Event()

    # What the engine sees.

    def send(self, data: bytes) -> None:
        self.durable = self.engine._log.durable
        for frame in self._decoder.feed(data):
            if isinstance(frame, f.Part):
                self._assembler.add(frame)
            else:
                self.frames.append(self._assembler.complete(frame))
        self._news.set()

    def close(self) -> None:
        self.closed = True

    def welcomed(self) -> None: ...

    def refused(self) -> None: ...

    # What the tests say.

    def say(self, frame: f.Frame) -> None:
        self.engine.submit(self, frame)
        self.engine.arrived()

    async def ask(self, frame: f.Frame) -> Any:
        """Send a request; its answer."""
        self._asked += 1
        frame.correlation = self._asked
        self.say(frame)
        return await self.get(f.Frame, lambda found: found.correlation == frame.correlation)

    async def get(self, kind: type[F], fits: Callable[[F], bool] = lambda _: True) -> F:
        """The first frame of that kind that fits; it is taken."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for frame in self.frames:
                    if isinstance(frame, kind) and fits(frame):
                        self.frames.remove(frame)
                        return frame
                self._news.clear()
                await self._news.wait()

    async def hello(self, role: str = "producer", session: bytes = b"", **more: Any) -> f.Welcome:
        welcome = await self.ask(
            f.Hello(protocol=1, role=role, client_id="test", session=session, **more)
        )
        assert isinstance(welcome, f.Welcome)
        return welcome

    async def publish(self, *messages: Message, sequence: int, producer: int = 7) -> Any:
        raw = b"".join(message.pack() for message in messages)
        return await self.ask(
            f.Publish(producer=producer, sequence=sequence, count=len(messages), raw=raw)
        )


class Gate(threading.Event):
    """What syncs pass through: shut they hang, with a failure they fail."""

    def __init__(self) -> None:
        super().__init__()
        self.set()
        self.failure: OSError | None = None

    def passed(self) -> None:
        self.wait(WAIT_S)
        if self.failure:
            raise self.failure


class SlowFile(OsFile):
    """A file whose syncs pass through a gate."""

    __slots__ = ("gate",)

    def sync_data(self) -> None:
        self.gate.passed()
        super().sync_data()


class SlowDisk(FileDisk):
    """A real disk that hangs in fdatasync while ``gate`` is not set, and opens nothing if told."""

    __slots__ = ("gate", "refusing")

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.gate = Gate()
        self.refusing: OSError | None = None

    def create(self, name: str) -> File:
        return self._slow(super().create(name))

    def open(self, name: str, *, write: bool = False) -> File:
        if self.refusing:
            raise self.refusing
        return self._slow(super().open(name, write=write))

    def _slow(self, file: File) -> File:
        assert isinstance(file, OsFile)
        slow = SlowFile(file.fd)
        slow.gate = self.gate
        file.fd = -1
        return slow


class Observed:
    """A histogram that keeps everything."""

    def __init__(self) -> None:
        self.amounts: list[float] = []

    def observe(self, amount: float, /) -> None:
        self.amounts.append(amount)


class Place:
    """A data folder in which engines are started one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk: SlowDisk
        self.log: Log
        self.core: Broker
        self.observed = Observed()
        self._peers = 0

    @asynccontextmanager
    async def engine(self, *, killed: bool = False, **settings: Any) -> AsyncIterator[Engine]:
        """A running engine; stopped cleanly at the end unless it failed or is ``killed``."""
        self.disk = SlowDisk(str(self.folder))
        self.log = Log.open(self.disk)
        config = Config(**settings)
        chosen = {key: value for key, value in settings.items() if key in Settings.__slots__}
        self.core, ages = Broker(Settings(**chosen)), Ages()
        replay(self.log, self.core, ages, lambda _batch, _last: None)
        watched = Timings(self.observed, Observed(), Observed())
        engine = Engine(config, self.log, self.core, ages, watched)
        engine.boot("test", "here")
        running = asyncio.create_task(engine.run())
        await asyncio.sleep(0)
        try:
            yield engine
        finally:
            self.disk.gate.set()
            await engine.stop()
            if engine.failure is None:
                await running
            if killed:
                self.disk.unlock()
            else:
                self.log.close(clean=engine.failure is None)

    def peer(self, engine: Engine) -> Peer:
        self._peers += 1
        peer = Peer(engine, self._peers)
        engine.connected(peer)
        return peer


def bodies(deliver: f.Deliver) -> list[bytes]:
    """The packed messages of a delivery."""
    at = wire.RUN.size * deliver.runs + wire.TOUCHED.size * deliver.touched
    return [deliver.raw[a:b] for a, b in walk(deliver.raw, at)]


def ack_all(deliver: f.Deliver) -> f.Ack:
    """The frame that acks a whole delivery."""
    runs = wire.RUN.iter_unpack(deliver.raw[: wire.RUN.size * deliver.runs])
    return f.Ack(raw=b"".join(wire.ACK_RUN.pack(deliver.grant, *run) for run in runs))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "log")
