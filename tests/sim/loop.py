"""The broker's event loop in simulated time, and the threads beside it as later events.

A loop belongs to one life of the broker. Frozen (SIGSTOP) its events wait; dead they are
dropped. There is no selector: bytes arrive as events of the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from random import Random
from typing import Any

from qbroker.machine import Machine
from qbroker.writer import Done, Job
from sim.swarm import Swarm
from sim.world import MS, PowerCut, S, Violation, World


class Handle:
    """A call that is due."""

    __slots__ = ("_cancelled", "args", "do", "due")

    def __init__(self, due: int, do: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.due = due
        self.do = do
        self.args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self.due / S


class SimLoop(asyncio.AbstractEventLoop):
    """One life's loop. ``on_trouble`` hears of what a callback raised.

    What the broker does not use of a loop raises NotImplementedError.
    """

    def __init__(
        self,
        world: World,
        listen: Callable[[Any, Any], Any],
        spawn: Callable[[Any, Any, Any], Any],
    ) -> None:
        self.world = world
        self.tasks: list[asyncio.Task[Any]] = []
        self.dead = False
        self.frozen_until = 0
        self._held: list[Any] = []
        self.on_trouble: Callable[[Exception], None] = self._raise
        self._listen = listen
        self._spawn = spawn

    def _raise(self, error: Exception) -> None:
        raise error

    def end(self) -> None:
        """The process is gone: nothing of it happens any more."""
        self.dead = True
        if asyncio._get_running_loop() is self:
            asyncio._set_running_loop(None)

    # Calls.

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._push(0, callback, args)

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._push(max(0, round(delay * S)), callback, args)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._push(max(0, round(when * S) - self.world.now), callback, args)

    def _push(self, delay: int, do: Callable[..., Any], args: tuple[Any, ...]) -> Handle:
        handle = Handle(self.world.now + delay, do, args)
        self.world.after(delay, self._run, handle)
        return handle

    def _run(self, handle: Any) -> None:
        if handle._cancelled or self.dead:
            return
        if self.world.now < self.frozen_until or self._held:
            if not self._held:
                self.world.after(max(0, self.frozen_until - self.world.now), self._thaw)
            self._held.append(handle)
            return
        self._do(handle)

    def _thaw(self) -> None:
        """All that waited for the end of the freeze happens, in the order it came."""
        if self.world.now < self.frozen_until:
            self.world.after(self.frozen_until - self.world.now, self._thaw)
            return
        held, self._held = self._held, []
        for handle in held:
            if not self.dead and not handle._cancelled:
                self._do(handle)

    def _do(self, handle: Any) -> None:
        try:
            handle.do(*handle.args)
        except Violation:
            raise
        except Exception as error:
            self.on_trouble(error)

    # What tasks and futures need.

    def time(self) -> float:
        return self.world.now / S

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name or "sim")
        task._log_destroy_pending = False  # a killed broker leaves its tasks where they are
        self.tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Heard through ``on_trouble`` already, or of a dead process."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        assert isinstance(executor, SimReaders)
        return executor.do(func, *args)

    async def create_server(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        return self._listen(self, protocol_factory)

    async def subprocess_exec(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        return self._spawn(self, protocol_factory, args)


class SimWriter:
    """The thread that waits for the disk: its job is done some time after it began."""

    def __init__(self, loop: SimLoop, rng: Random, swarm: Swarm) -> None:
        self._loop = loop
        self._rng = rng
        self._swarm = swarm
        self._busy = False
        self._done: Done | None = None

    def attach(self, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        self._done = done

    def start(self, job: Job) -> None:
        assert not self._busy, "one job at a time"
        self._busy = True
        rng, swarm, world = self._rng, self._swarm, self._loop.world
        took = rng.randint(*swarm.sync_us)
        if rng.random() < swarm.slow_sync:
            took = rng.randint(10 * MS, 300 * MS)
            world.fault("slow sync")
        elif rng.random() < swarm.hung_sync:
            took = rng.randint(1 * S, 20 * S)
            world.fault("hung sync")
        self._loop._push(took, self._work, (job,))

    def _work(self, job: Job) -> None:
        """The disk has done it; that the loop hears of it takes a moment."""
        try:
            result: Any = job()
        except Exception as error:
            result = error
        self._loop._push(self._rng.randint(1, 2 * MS), self._finished, (result,))

    def _finished(self, result: Any) -> None:
        self._busy = False
        if self._done is not None:
            self._done(result)

    def stop(self) -> None:
        self._done = None


class SimReaders(Executor):
    """The threads that read: each job is done at one moment, some time later."""

    def __init__(self, loop: SimLoop, rng: Random, swarm: Swarm) -> None:
        self._loop = loop
        self._rng = rng
        self._swarm = swarm
        self._waiting: list[Callable[[], None]] = []

    def do(self, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def job() -> None:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            try:
                result = func(*args)
            except PowerCut:
                raise
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
                    future.exception()
            else:
                if not future.done():
                    future.set_result(result)

        self._waiting.append(job)
        self._loop._push(self._rng.randint(*self._swarm.read_us), job, ())
        return future

    def forget(self) -> None:
        """What has not begun is never done."""
        self._waiting.clear()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.do(fn, *args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for job in list(self._waiting):
            job()


def machine(world: World, loop: SimLoop, swarm: Swarm) -> Machine:
    """What the engine has of the simulated machine."""
    rng = world.rng(f"machine {world.life}")
    boot_ms = rng.randint(0, 10**9)
    spent = [0.0]

    def seconds() -> float:
        """Thinking costs no simulated time, but the engine believes that it does."""
        spent[0] += 0.006 if rng.random() < swarm.long_turn else 20e-6
        return world.now / S + spent[0]

    def writer() -> Any:
        return SimWriter(loop, rng, swarm)

    def mono_ms() -> int:
        return boot_ms + world.now // MS

    return Machine(world.wall_ms, mono_ms, seconds, writer, lambda: SimReaders(loop, rng, swarm))
