"""One broker after another on the same disk: built, stopped and ended as server.py does it.

The real log, replay, core, engine, group commit, bodies, delivery, sessions, connections,
listener and watch. What is missing of the real process: sockets, threads, signals, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from digest import check_places, digest
from qbroker.archiving import Archiving
from qbroker.checkpoint.errors import CheckpointError, DamagedError
from qbroker.checkpoint.keeper import Kept, Order, keep
from qbroker.checkpoint.keeping import Keeping
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.engine import Engine
from qbroker.log.cleaning import Rewritten
from qbroker.log.errors import CorruptError, LogError, UnreadableError
from qbroker.log.log import Log, LogSettings
from qbroker.net.connection import Limits
from qbroker.net.listener import Listener
from qbroker.net.session import Terms
from qbroker.starting import core_settings, restore
from qbroker.timings import Timings
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX, PRODUCER_WINDOW
from sim.archivist import Books, end_quietly, spawn
from sim.disk import FaultyDisk
from sim.loop import SimLoop, machine
from sim.net import Net
from sim.restores import Restores
from sim.swarm import Swarm
from sim.world import PowerCut, Violation, World

QUIESCE_S = 0.1
FLUSH_S = 1.0


class Unobserved:
    """A histogram nobody reads."""

    def observe(self, amount: float, /) -> None: ...


class Process:
    """The broker as the operator sees it: it can be started, stopped and killed."""

    def __init__(self, world: World, net: Net, disk: FaultyDisk, swarm: Swarm, data: Path) -> None:
        self.world = world
        self.net = net
        self.disk = disk
        self.config = swarm.config_of(data)
        self.settings = core_settings(self.config)
        self.checkpoints = FaultyDisk(world.rng("checkpoints"))
        self.shelf = Shelf(self.checkpoints)
        self.books = Books(world, swarm, data, disk)
        self.books.excuse = lambda: self.troubled or self.damaged or self.unreadable
        self.restores = Restores(world, data, self.settings)
        self.may_miss_damage = swarm.has("checkpoints")
        """What a checkpoint stands for is not read at a start."""
        self.log_settings = LogSettings(swarm.segment_bytes, swarm.batch_bytes_max)
        self.swarm = swarm
        self.state = "down"
        self.started_at = 0
        self.crashed = False
        """Whether the end before this start was an unclean one."""
        self.hurt = False
        """Whether the disk failed, or was full, in this life."""
        self.damaged = False
        """Whether confirmed bytes are changed, so that a start must refuse."""
        self.spoiled = False
        """Whether some bytes cannot be read, or are not what was written."""
        self.spoiled_until = 0
        self.on_end: Callable[[str], None] = lambda how: None
        self.before_end: Callable[[], None] = lambda: None
        self.on_keep: Callable[[], None] = lambda: None
        self.on_start: Callable[[], None] = lambda: None
        self.loop: SimLoop | None = None
        self.engine: Engine | None = None
        self.log: Log | None = None
        self.core: Broker | None = None
        self.listener: Listener | None = None
        self.archiving: Archiving | None = None
        self.ordering: Any = None
        self._before: Broker | None = None
        """The core of the life before, if all that it knew is in the log."""

    @property
    def troubled(self) -> bool:
        """Whether the disk failed, or was full, in this life."""
        self.hurt = self.hurt or bool(self.disk.failed) or self.disk.capacity is not None
        return self.hurt

    @property
    def unreadable(self) -> bool:
        """Whether reads fail, or did just now; writes and syncs do not."""
        return self.spoiled or self.world.now < self.spoiled_until

    # The start.

    def start(self) -> None:
        """A new life begins; it is up at once, or was refused."""
        assert self.state == "down"
        world = self.world
        world.life += 1
        self.state = "starting"
        self.hurt = False
        self.disk.life += 1
        before, self._before = self._before, None
        loop = self.loop = SimLoop(world, self._listen, partial(spawn, self.books))
        asyncio._set_running_loop(loop)
        loop.on_trouble = self._trouble
        try:
            log, found, behind = self._stores()
            core = found.core
        except (LogError, CheckpointError, OSError) as error:
            self._refused(error)
            return
        if self.damaged and not self.may_miss_damage:
            raise Violation("confirmed bytes of the log were changed, and the broker started")
        self.on_start()
        self._compare(before, core)
        self.log, self.core, self.ages = log, core, found.ages
        try:
            self._build(log, found, behind, loop)
        except LogError as error:
            self._refused(error)

    def _stores(self) -> tuple[Log, Restored, int]:
        """The log, what it says, and how many bytes of it were read behind the checkpoint."""
        log = Log.open(self.disk, self.log_settings)
        try:
            found, behind = restore(log, self.shelf, self.settings, lambda _batch, _last: None)
        except (LogError, CheckpointError, OSError):
            log.close(clean=log.clean)
            raise
        if found.batch:
            self.world.sometimes["a start read a checkpoint"] += 1
        return log, found, behind

    # Checkpoints.

    def keep(self) -> None:
        """The broker orders a checkpoint, if it waits for none."""
        if self.state != "up" or self.log is None or not self.log.durable or self.troubled:
            return
        if self.loop is not None and (self.ordering is None or self.ordering.done()):
            self.ordering = self.loop.create_task(self.keeping.order())
            self.ordering.add_done_callback(self._done)

    def _build(self, log: Log, found: Restored, behind: int, loop: SimLoop) -> None:
        timings = Timings(Unobserved(), Unobserved(), Unobserved())
        made = machine(self.world, loop, self.swarm)
        archive = self.archiving = Archiving(self.config, log, may_move_aside=False)
        archive.on_refusal = self._judge_publishes
        parts = self.config, log, found.core, found.ages, timings
        engine = self.engine = Engine(*parts, machine=made, archive=archive)
        self.keeping = SimKeeping(self, log, engine, archive)
        self.keeping._thread = made.readers()
        self.keeping.resume(found, behind)
        engine.boot("simulated", "here")
        limits = Limits(**{each.name: getattr(self.config, each.name) for each in fields(Limits)})
        self.listener = Listener(engine, self._terms(engine), limits)
        running = loop.create_task(self._run(self.listener, engine, archive))
        running.add_done_callback(self._done)
        self.state = "up"
        self.started_at = self.world.now
        epoch = found.core.state.epoch
        self.restores.note(epoch, f"life {self.world.life}")
        self.world.note("broker", "life %d begins: epoch %d", self.world.life, epoch)

    def _terms(self, engine: Engine) -> Terms:
        return Terms(
            product="qbroker",
            version="simulated",
            cluster=engine.identity.cluster,
            node=engine.identity.node,
            epoch=engine.identity.epoch,
            limits={
                "frame_bytes_max": FRAME_BYTES_MAX,
                "messages_per_frame_max": MESSAGES_PER_FRAME_MAX,
                "producer_window": PRODUCER_WINDOW,
            },
            mechanisms=("none",),
            wall_ms=self.world.wall_ms,
        )

    def _listen(self, loop: SimLoop, factory: Any) -> Any:
        return self.net.listen(loop, factory)

    async def _run(self, listener: Listener, engine: Engine, archive: Archiving) -> None:
        await listener.listen("127.0.0.1", 7717)
        archive.start(engine)
        await engine.run()

    def _judge_publishes(self) -> None:
        """As server.py does it."""
        assert self.engine is not None
        assert self.listener is not None
        why = self.archiving.refusal
        self.world.sometimes["publishes were refused until the archive caught up"] += bool(why)
        self.engine.close_to_publishes(why)
        self.listener.close_to_publishes(why)

    def _refused(self, error: Exception) -> None:
        """It did not start: right if the disk fails or confirmed bytes are changed, else not."""
        unreadable = isinstance(error, UnreadableError)
        self.world.note("broker", "does not start: %s", str(error))
        corrupt = isinstance(error, CorruptError | CheckpointError) and not unreadable
        if corrupt and not self.damaged:
            raise Violation(f"the broker took its own log for damaged: {error}") from error
        if not self.damaged and not self.troubled and not self.unreadable:
            raise Violation(f"the broker did not start: {error}") from error
        if self.damaged:
            self.world.sometimes["a damaged log was refused"] += 1
        self._over("refused", power=False)

    def _compare(self, before: Broker | None, core: Broker) -> None:
        """The log says the same as the broker that wrote it."""
        check_places(core.state)
        if before is None:
            return
        now = Now(self.world.wall_ms(), 0)
        # The time of limits, which no clock that is set back takes back.
        at_ms = before.state.limits.clock.at_ms
        was, is_now = digest(before.state, now, at_ms), digest(core.state, now, at_ms)
        for name, value in was.items():
            if is_now[name] != value:
                raise Violation(f"replay disagrees about {name}: was {value}, is {is_now[name]}")
        self.world.sometimes["replay was compared with the live state"] += 1

    # Ends.

    def _trouble(self, error: Exception) -> None:
        """A callback raised: a failed disk may, anything else is a bug of the broker."""
        if isinstance(error, LogError) and self.troubled:
            self.world.note("broker", "ends: %s", str(error))
            self.die("ended by its disk")
            return
        raise Violation(f"a bug in the broker: {type(error).__name__}: {error}") from error

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, PowerCut | Violation):
            raise error
        if self.state in ("down", "stopping"):
            return
        if isinstance(error, Exception):
            self._trouble(error)

    def stop(self) -> None:
        """SIGTERM."""
        if self.state != "up" or self.loop is None:
            return
        self.state = "stopping"
        self.world.note("broker", "is told to stop")
        task = self.loop.create_task(self._say_goodbye())
        task.add_done_callback(self._stopped)

    async def _say_goodbye(self) -> None:
        listener, engine, log = self.listener, self.engine, self.log
        assert listener is not None
        assert engine is not None
        assert log is not None
        timeout_ms = self.config.shutdown_timeout_ms
        listener.quiesce()
        await asyncio.sleep(QUIESCE_S)
        listener.goaway("the broker is stopping", timeout_ms)
        await listener.emptied(timeout_ms / 1000)
        if engine.failure is None:
            await engine.stop()
        if engine.failure is not None:
            raise engine.failure
        await listener.close(FLUSH_S)
        await self.keeping.stop()
        self.keeping._thread.forget()
        if self.swarm.has("checkpoints"):
            self._keep_last()
        log.close(clean=True)
        await self.archiving.stop()

    def _keep_last(self) -> None:
        """What ``write_last`` has its thread do."""
        assert self.core is not None
        try:
            self.keeping._write(self.core, self.ages)
        except (OSError, LogError, DamagedError) as error:
            self.world.note("broker", "the last checkpoint was not written: %s", str(error))

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if self.state != "stopping":
            return
        error = task.exception()
        if isinstance(error, PowerCut | Violation):
            raise error
        if error is not None:
            assert isinstance(error, Exception)
            self._trouble(error)
            return
        self.world.sometimes["the broker stopped cleanly"] += 1
        assert self.log is not None
        if self.log.written != self.log.durable:
            raise Violation("a clean stop left batches that are not durable")
        self._before = self.core
        self._over("stopped", power=False)

    def die(self, how: str, *, power: bool = False) -> None:
        """The process, or the whole machine, is gone at once."""
        if self.state == "down":
            return
        self._remember(power=power)
        self._over(how, power=power)

    def _remember(self, *, power: bool) -> None:
        """If the log has all that the dead broker knew, the next one must know it too."""
        engine, log = self.engine, self.log
        if engine is None or log is None or self.disk.off or self.troubled:
            return
        told_all = engine._group.empty and not engine._committing and engine.failure is None
        if told_all and self.state == "up" and (not power or log.durable == log.written):
            self._before = self.core

    def _over(self, how: str, *, power: bool) -> None:
        self.before_end()
        self.crashed = how != "stopped"
        self.world.note("broker", "life %d is over: %s", self.world.life, how)
        self.abandon()
        self.net.process_gone(power=power)
        self.books.orphan(power=power)
        self.close()
        self.state = "down"
        self.engine = self.log = self.core = self.listener = self.loop = None
        self.disk.on_again(power=power)
        self.checkpoints.on_again(power=power)
        self.on_end(how)

    def abandon(self) -> None:
        """The loop is dead, and what still waits in it goes with it."""
        if self.loop is not None:
            self.loop.end()
            for task in self.loop.tasks:
                coroutine = task.get_coro()
                if not coroutine.cr_running:
                    end_quietly(coroutine)
            self.loop.tasks.clear()

    def close(self) -> None:
        """No file is open any more."""
        if self.archiving is not None and self.archiving.questions is not None:
            self.archiving.questions.close()

    @property
    def followed(self) -> bool:
        """Whether the archive holds all that is durable."""
        if self.log is None or not self.swarm.has("archive"):
            return self.log is not None
        return self.books.batch >= self.log.durable == self.log.written

    def freeze(self, us: int) -> None:
        """SIGSTOP, and SIGCONT after that time."""
        if self.loop is not None:
            self.loop.frozen_until = max(self.loop.frozen_until, self.world.now + us)

    def number_of(self, token: tuple[int, int]) -> int | None:
        """The number of the child that holds this, 0 for a parent; None if nobody does."""
        grant = self.core.state.leases.get(token[0]) if self.core else None
        return grant.member.number if grant and grant.number == token[1] else None

    def check(self) -> None:
        """The broker's books balance."""
        if self.core is not None and self.state == "up":
            check_places(self.core.state)
            for queue in self.core.state.queues.values():
                most = queue.options.max_length
                there = queue.ready + queue.scheduled + queue.leased
                assert not most or there <= most, f"{there} in {queue.name}, which takes {most}"


class SimKeeping(Keeping):
    """When a checkpoint is due the operator says; its process runs at one moment, here."""

    def __init__(self, process: Process, log: Log, engine: Engine, archive: Archiving) -> None:
        swarm, settings = process.swarm, process.log_settings
        super().__init__(
            Path("simulated"),
            log,
            process.shelf,
            process.settings,
            log_bytes=1,
            appended=lambda: engine.appended_bytes,
            cleaning=(swarm.live_percent, settings.segment_bytes),
            archived=lambda: archive.upto,
            has_room=lambda size: True,
            is_pressed=lambda: False,
            add_batch=engine.add_batch,
            on_failed=engine.failed,
            wall_ms=process.world.wall_ms,
            journal=("info", "text"),
        )
        self.process = process

    def _run(self, order: Order) -> Kept:
        process, done = self.process, []
        process.on_keep()

        def told(each: Kept | list[int] | Rewritten) -> None:
            if isinstance(each, Kept):
                done.append(each)
                self._shelf.keep(each.batch, each.before)
                process.world.sometimes["a checkpoint was written"] += 1
                process.world.note("keeper", "checkpoint of batch %d", each.batch)
                return
            is_file = isinstance(each, Rewritten)
            process.books.cleaned(each.last if isinstance(each, Rewritten) else max(each))
            self._cleaned(each)
            is_left = isinstance(each, Rewritten) and each.name in process.disk.files
            if is_left and not process.unreadable:
                raise Violation(f"a cleaned segment was not taken: {each}")
            process.world.sometimes[CLEANED[is_file]] += 1

        try:
            keep(process.disk, self._shelf, order, told)
        except (OSError, LogError, CheckpointError, DamagedError) as error:
            if not process.troubled and not process.unreadable:
                raise Violation(f"the keeper failed: {error}") from error
            raise ValueError(str(error)) from error
        return done[0]

    def _failed(self, why: str) -> None:
        super()._failed(why)
        self.process.world.note("keeper", "failed: %s", why)


CLEANED = ("dead segments were dropped", "a segment was cleaned")
