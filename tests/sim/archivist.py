"""The archivist's real process beside the broker: started, told and heard by the real Archiving.

All of `qbroker.archive` runs as it is, SQLite too, in a thread of its own that goes on only
while the world lets it: from one wait to the next, in one event. Replaced are its clock, what
it waits with, and the disk that it reads the log from. Its own file is a real one in memory:
what SQLite has committed with ``synchronous=FULL`` is there after any crash, the rest is not.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qbroker.archive import process as real
from qbroker.archive.archivist import Keeping
from qbroker.log.disk import FileDisk
from sim.disk import Beside, FaultyDisk
from sim.loop import SimLoop
from sim.swarm import Swarm
from sim.world import MS, S, Violation, World

Words = dict[str, Any]


class Gone(BaseException):
    """The process was killed: its thread ends where it stands."""


_here = threading.local()


def me() -> Archivist | None:
    """The archivist whose thread this is."""
    return getattr(_here, "archivist", None)


class Archivist:
    """One life of it. ``heard`` gets each line it says, ``ended`` its exit code."""

    def __init__(self, books: Books, *, is_patient: bool) -> None:
        self.books = books
        self.is_patient = is_patient
        self.world = books.world
        self.swarm = books.swarm
        self.rng = books.rng
        self.disk = Beside(books.disk, self.read_slowly)
        self.code: int | None = None
        self.heard: Callable[[bytes], None] = lambda line: None
        self.ended: Callable[[int], None] = lambda code: None
        self.frozen_until = self._heard_at = 0
        self.orphaned = False
        """Its broker is gone: nobody hears it."""
        self.waits = False
        """For its orders: these wake it."""
        self._orders, self._said = os.pipe()
        self._killed = False
        self._turns = 0
        self._trouble: BaseException | None = None
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        self.wake(self.latency() + 20 * MS)

    # The process, in its own thread.

    def _main(self) -> None:
        _here.archivist = self
        config = self.swarm.config
        keeping = Keeping(config["archive_ttl_ms"], 1 << 30)
        code = -9
        self._go.acquire()
        try:
            if not self._killed:
                process = real.Process(real.Orders(self._orders), self)
                more = {"may_move_aside": False, "is_patient": self.is_patient}
                code = process.run(self.books.data, keeping, **more)
        except Gone:
            pass
        except BaseException as error:
            self._trouble = error
        os.close(self._orders)
        self.code = code
        self._back.release()

    def pause(self, us: int) -> None:
        """The world goes on for so long, or until somebody wakes this. Raises Gone."""
        self.wake(us)
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Gone

    def select(self, fds: list[int], timeout_s: float) -> tuple[list[int], list[Any], list[Any]]:
        """What select.select says, after simulated time."""
        ready = select.select(fds, [], [], 0)[0]
        if ready or not timeout_s:
            self.pause(self.latency() // 4)
        else:
            self.waits = bool(fds)
            self.pause(round(timeout_s * S))
            self.waits = False
            ready = select.select(fds, [], [], 0)[0]
        return ready, [], []

    def read_slowly(self) -> None:
        """Sometimes much happens between two reads of the log."""
        if self.rng.random() < 0.02:
            self.pause(self.rng.randint(50, 20 * MS))

    def write(self, line: str) -> None:
        """What was committed is said a moment later, if it is still there to say it."""
        self.pause(self.latency())
        if not self.orphaned:
            self.books.hear(self, json.loads(line))
        self._later(self.rng.randint(10, 2 * MS), lambda: self.heard(line.encode()))

    def _later(self, us: int, do: Callable[[], None]) -> None:
        """The broker hears of it, and of nothing before what was said before."""
        self._heard_at = max(self._heard_at, self.world.now + us)
        self.world.after(self._heard_at - self.world.now, do)

    def flush(self) -> None:
        """A line is written at once."""

    def latency(self) -> int:
        if self.swarm.fails("archivist slow"):
            return self.rng.choice((1, 20, 300)) * MS
        return self.rng.randint(50, 2 * MS)

    # The process, as the world has it.

    def wake(self, us: int) -> None:
        self._turns += 1
        self.world.after(us, self._turn, self._turns)

    def _turn(self, turn: int) -> None:
        if turn != self._turns or self.code is not None:
            return
        if self.world.now < self.frozen_until:
            self.wake(self.frozen_until - self.world.now)
            return
        self._step()

    def _step(self) -> None:
        """Its thread goes on until it waits, or ends."""
        self._go.release()
        self._back.acquire()
        if self.code is None:
            return
        self._thread.join()
        self.hang_up()  # or thousands of seeds would use up the descriptors
        self.books.lives.remove(self)
        self.world.note("archivist", "ends with code %d", self.code)
        trouble, self._trouble = self._trouble, None
        if isinstance(trouble, Exception) and not isinstance(trouble, Violation):
            raise Violation(f"a bug in the archivist: {trouble!r}") from trouble
        if trouble is not None:
            raise trouble
        code = self.code
        self._later(self.latency(), lambda: self.ended(code))

    def tell(self, data: bytes) -> None:
        """The broker writes to it. Raises BrokenPipeError."""
        if self.code is not None:
            raise BrokenPipeError
        os.write(self._said, data)
        self._called()

    def hang_up(self) -> None:
        """The broker's end of the pipe is closed. Twice is once."""
        if self._said >= 0:
            os.close(self._said)
            self._said = -1
            self._called()

    def _called(self) -> None:
        if self.waits and self.code is None:
            self.waits = False
            self.wake(self.latency())

    def freeze(self, us: int) -> None:
        self.frozen_until = self.world.now + us

    def kill(self) -> None:
        """SIGKILL: gone, wherever it was."""
        if self.code is None:
            self._killed = True
            self._step()


class Books:
    """What is known of the archive of one seed, whoever wrote it."""

    def __init__(self, world: World, swarm: Swarm, data: Path, disk: FaultyDisk) -> None:
        self.world = world
        self.swarm = swarm
        self.data = data
        self.disk = disk
        self.rng = world.rng("archivist")
        self.lives: list[Archivist] = []
        """Those that run; one that a dead broker left may still be saving what it read."""
        self.batch = 0
        """The highest that was ever said to be archived."""
        self.excuse: Callable[[], bool] = lambda: False
        """Whether the log cannot be read for a reason."""
        self._fresh: set[int] = set()
        self._db: sqlite3.Connection | None = None

    @property
    def path(self) -> Path:
        return self.data / "archive" / real.FILE_NAME

    def start(self, *, is_patient: bool) -> Archivist:
        made = Archivist(self, is_patient=is_patient)
        self.lives.append(made)
        self._fresh.add(id(made))
        self.world.sometimes["an archivist started"] += 1
        return made

    def hear(self, archivist: Archivist, words: Words) -> None:
        """What it says is true, for ever."""
        self.world.note("archivist", "says %s", json.dumps(words))
        if "archived" in words:
            batch: int = words["archived"]
            if batch > self.committed():
                raise Violation(f"batch {batch} is said to be archived; {self.committed()} is")
            if batch < self.batch:
                raise Violation(f"batch {self.batch} was archived, and now only {batch} is")
            if batch > self.batch and id(archivist) in self._fresh:
                self.world.sometimes["a commit outlived its archivist"] += 1
            self._fresh.discard(id(archivist))
            self.batch = batch
            if words["shed"]:
                self.world.sometimes["rows were shed"] += 1
        elif "missed" in words:
            raise Violation(f"{words['missed']} batches were cleaned before they were archived")
        elif words.get("lasting") or not (self.excuse() or archivist.disk.was_refused):
            raise Violation(f"the archivist gave up: {words}")
        else:
            self.world.sometimes["an archivist could not read the log"] += 1

    def committed(self) -> int:
        """The batch that the file tells of."""
        if self._db is None:
            self._db = sqlite3.connect(self.path, check_same_thread=False)
        ((batch,),) = self._db.execute("SELECT value FROM meta WHERE name = 'batch'")
        return int(batch)

    def close(self) -> None:
        """Nobody writes any more, and nobody reads."""
        self.kill()
        if self._db is not None:
            self._db.close()

    def cleaned(self, upto: int) -> None:
        """The log lets go of what was up to that batch."""
        if self.swarm.has("archive") and upto > self.batch:
            raise Violation(f"batch {upto} was cleaned, and {self.batch} is archived")

    def kill(self) -> None:
        """All of them; the broker sees to the next one."""
        for each in list(self.lives):
            each.kill()

    def orphan(self, *, power: bool) -> None:
        """The broker is gone, with its end of the pipe; or with the whole machine."""
        if power or self.rng.random() < 0.3:
            self.kill()
        for each in self.lives:
            each.orphaned = True
            each.ended, each.heard = (lambda code: None), (lambda line: None)
            each.hang_up()
            self.world.sometimes["an archivist outlived its broker"] += 1


# --- What the broker's loop has of it, as asyncio gives it.


class Stdin(asyncio.WriteTransport):
    """The pipe to the archivist."""

    def __init__(self, loop: SimLoop, archivist: Archivist, broken: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._archivist = archivist
        self._broken = broken
        self._closing = False

    def write(self, data: Any) -> None:
        if self._closing:
            return
        try:
            self._archivist.tell(bytes(data))
        except BrokenPipeError:
            self._closing = True
            self._loop.call_soon(self._broken)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._loop.dead:
            raise Gone
        self._closing = True
        self._archivist.hang_up()


class Child(asyncio.SubprocessTransport):
    """The process, as the broker's loop holds it."""

    def __init__(self, loop: SimLoop, archivist: Archivist, protocol: Any) -> None:
        super().__init__()
        self._loop = loop
        self._archivist = archivist
        self._protocol = protocol
        self._exited: asyncio.Future[int] = loop.create_future()
        self._code: int | None = None
        self._stdin = Stdin(loop, archivist, self._broken)
        archivist.heard = lambda line: self._soon(protocol.pipe_data_received, 1, line)
        archivist.ended = lambda code: self._soon(self._ended, code)
        protocol.connection_made(self)

    def _soon(self, do: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.dead:
            self._loop.call_soon(do, *arguments)

    def _broken(self) -> None:
        self._protocol.pipe_connection_lost(0, BrokenPipeError())

    def _ended(self, code: int) -> None:
        self._code = code
        self._protocol.pipe_connection_lost(1, None)
        self._protocol.process_exited()
        self._exited.set_result(code)

    def get_pid(self) -> int:
        return 4711

    def get_returncode(self) -> int | None:
        return self._code

    def get_pipe_transport(self, fd: int) -> Any:
        return (self._stdin, SimpleNamespace(pause_reading=bool, resume_reading=bool), None)[fd]

    async def _wait(self) -> int:
        return await self._exited

    def kill(self) -> None:
        self._archivist.kill()
        self._archivist.hang_up()

    def close(self) -> None:
        """Everything of it is over."""


def spawn(
    books: Books, loop: SimLoop, factory: Callable[[], Any], command: tuple[str, ...]
) -> tuple[Child, Any]:
    """What the loop answers to subprocess_exec."""
    protocol = factory()
    return Child(loop, books.start(is_patient="--impatient" not in command), protocol), protocol


def end_quietly(coroutine: Any) -> None:
    """What a dead broker's task would do in its last moments, it does not do."""
    with suppress(Gone):
        coroutine.close()


# --- In the archivist's threads its module has another clock, another select, another disk.


def clock(name: str, unit_per_s: int) -> Callable[[], Any]:
    def now() -> Any:
        archivist = me()
        if archivist is None:
            return getattr(time, name)()
        world = archivist.world
        return world.wall_ms() * MS * 1_000 if name == "time_ns" else world.now * unit_per_s // S

    return now


def simulated_select(fds: Any, wanted: Any, odd: Any, timeout: float | None = None) -> Any:
    archivist = me()
    if archivist is None:
        return select.select(fds, wanted, odd, timeout)
    return archivist.select(fds, timeout or 0)


def simulated_disk(folder: str) -> Any:
    archivist = me()
    return archivist.disk if archivist else FileDisk(folder)


real.time = SimpleNamespace(
    time_ns=clock("time_ns", 0),
    monotonic_ns=clock("monotonic_ns", 10**9),
    monotonic=clock("monotonic", 1),
)
real.select = SimpleNamespace(select=simulated_select)
real.FileDisk = simulated_disk
