"""One broker from start to end: what is built, in which order, and what ends it.

    lock, open, recover the log -> replay -> boot (a new epoch is durable) -> listen
    SIGTERM: no new peers -> Goaway -> drain -> last turn -> log sealed -> 0

Rule 1. Nobody is let in before everything that was confirmed is known again.
Rule 2. It is stopped in the reverse order of its start.
Rule 3. After a failed disk nothing more is said to anybody: connections are cut.
Rule 4. A bug in the engine ends the broker; one in a connection ends that connection.
        A new start tells what is true, a broker in doubt does not.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from qbroker.ages import Ages
from qbroker.config import Config, is_loopback
from qbroker.core.broker import Broker
from qbroker.core.settings import Settings
from qbroker.engine import Engine
from qbroker.log.disk import FULL, FileDisk
from qbroker.log.errors import (
    CorruptError,
    ForeignError,
    FormatError,
    LockedError,
    LogError,
    LogFailed,
    NoRoom,
    OwnerError,
)
from qbroker.log.log import Log, LogSettings
from qbroker.machine import Machine, wall_ms
from qbroker.net.connection import Limits
from qbroker.net.listener import Listener
from qbroker.net.session import Terms
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.health import Health
from qbroker.ops.http import Http
from qbroker.ops.metrics import Metrics, Snapshot
from qbroker.replaying import replay
from qbroker.space import Room, Space
from qbroker.timings import Timings
from qbroker.writer import Writer
from qprotocol import __version__
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX, PRODUCER_WINDOW

LOG_FOLDER = "log"
"""Within the data folder, which other things will share."""
PROGRESS_S = 1.0
QUIESCE_S = 0.1
"""Between the last delivery begun and the Goaway: a sync or two."""
FLUSH_S = 1.0

_log = logging.getLogger("qbroker")

Say = Callable[[str], None]


LOG_EXITS: dict[type[LogError], Exit] = {
    CorruptError: Exit.CORRUPT,
    ForeignError: Exit.CORRUPT,
    FormatError: Exit.CORRUPT,
    LockedError: Exit.LOCKED,
    OwnerError: Exit.LOCKED,
    LogFailed: Exit.DISK,
    NoRoom: Exit.DISK,
}


@dataclass(frozen=True, slots=True)
class Stores:
    """What a start has read: the log, and what it says."""

    log: Log
    core: Broker
    ages: Ages
    space: Space


def open_stores(config: Config, say: Say) -> Stores:
    """The data folder is locked, the log recovered and replayed. Raises Trouble."""
    try:
        settings = LogSettings(config.segment_bytes, config.batch_bytes_max)
    except ValueError as error:
        raise Trouble(str(error), Exit.USAGE) from error
    try:
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        low, critical = config.disk_low, config.disk_critical
        space = Space(config.data, low, critical, config.segment_bytes)
        log = open_log(config.data, settings, space)
    except OSError as error:
        raise Trouble(
            f"{config.data} cannot be used: {error.strerror or error}; "
            "make it a folder of your own, or choose another with --data",
            Exit.LOCKED,
        ) from error
    except LogError as error:
        raise Trouble(str(error), LOG_EXITS.get(type(error), Exit.FAILED)) from error
    try:
        core = Broker(Settings(**{f.name: getattr(config, f.name) for f in fields(Settings)}))
        ages = Ages()
        replay(log, core, ages, Progress(say))
    except LogError as error:
        log.close()
        raise Trouble(str(error), LOG_EXITS.get(type(error), Exit.FAILED)) from error
    # What was just built stays: the collector need not walk it again and again.
    gc.freeze()
    return Stores(log, core, ages, space)


def open_log(data: Path, settings: LogSettings, space: Space) -> Log:
    """The log, opened; on a full disk it may take the reserve's room. Raises LogError, OSError."""
    folder = str(data / LOG_FOLDER)
    try:
        return Log.open(FileDisk(folder), settings)
    except LogFailed as failure:
        if failure.cause.errno not in FULL or not space.give_up_reserve():
            raise
        return Log.open(FileDisk(folder), settings)


class Progress:
    """A line a second while the log is replayed; none if it is quick."""

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._due = clock() + PROGRESS_S

    def __call__(self, batch: int, last: int) -> None:
        now = self._clock()
        if now >= self._due:
            self._due = now + PROGRESS_S
            self._say(f"replaying the log: batch {batch:,} of {last:,}")


class Server:
    """A broker that is being built, runs, and stops. ``run`` is all there is to call."""

    def __init__(self, config: Config, stores: Stores, say: Say) -> None:
        self._config = config
        self._log = stores.log
        self._space = stores.space
        self._say = say
        self._version = __version__
        self._started_s = time.time()
        self._metrics = Metrics(self._snapshot)
        begun, done = self._metrics.batch_records, self._metrics.sync_seconds
        timings = Timings(turn=self._metrics.turn_seconds, sync=done, batch_records=begun)
        machine = Machine(writer=partial(Writer, stores.space.patiently))
        self._engine = Engine(
            config, stores.log, stores.core, stores.ages, timings, machine=machine
        )
        self._engine.boot(self._version, socket.gethostname())
        self._health = Health(begun, done, self._engine.identity.epoch, self._version)
        self._http = Http(self._metrics, self._report)
        self._listener = Listener(self._engine, self._terms(), limits(config))
        self._listener.watch.on_tick = self._health.tick
        self._space.on_change = self._room_changed
        self._told_to_stop: asyncio.Event
        self._bug: BaseException | None = None

    async def run(self) -> Exit:
        """Serve until a signal, a failed disk or a bug; how it ended."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_trouble)
        self._told_to_stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._told_to_stop.set)
        turning = loop.create_task(self._engine.run(), name="engine")
        watching = loop.create_task(self._space.watch(), name="space")
        try:
            await self._listen()
            await first_of(turning, self._told_to_stop.wait())
            if not turning.done() and self._bug is None:
                await first_of(turning, self._say_goodbye())
            return await self._end(turning)
        except Trouble:
            await self._engine.stop()
            raise
        finally:
            watching.cancel()
            self._listener.abort()
            await self._http.close()

    async def _listen(self) -> None:
        config = self._config
        if config.insecure_listen:
            for name, address in (("clients", config.listen), ("HTTP", config.http)):
                if address and not is_loopback(address):
                    _log.warning(
                        "listening for %s on %s without TLS and users: whoever reaches it can "
                        "run your tasks; keep the network to yourself",
                        *(name, address),
                    )
        host, port = await listening(self._listener.listen, config.listen_address, "--listen")
        if config.http_address is not None:
            where = await listening(self._http.listen, config.http_address, "--http")
            self._say(f"metrics on http://{show_address(*where)}/metrics")
        self._say(f"listening on {show_address(host, port)}")

    async def _say_goodbye(self) -> None:
        """Connections are told and drained. A second signal ends the wait."""
        self._say("stopping: connections are told to come back later")
        self._health.stopping = True
        self._told_to_stop.clear()
        self._listener.quiesce()
        await asyncio.sleep(QUIESCE_S)
        timeout_ms = self._config.shutdown_timeout_ms
        self._listener.goaway("the broker is stopping", timeout_ms)
        drained = self._listener.emptied(timeout_ms / 1000)
        await first_of(drained, self._told_to_stop.wait())

    async def _end(self, turning: asyncio.Task[None]) -> Exit:
        """The last turn, the seal; or, if the disk or the engine failed, nothing more."""
        if not turning.done() and self._bug is None:
            await self._last_turn()
        failure = turning.exception() if turning.done() and not turning.cancelled() else None
        failure = failure or self._bug
        if failure is None:
            await self._listener.close(FLUSH_S)
            self._log.close()
            self._say("stopped")
            return Exit.OK
        self._listener.abort()
        turning.cancel()
        if isinstance(failure, LogFailed):
            _log.error("%s", failure)
            with contextlib.suppress(LogError):
                self._log.close()
            return Exit.DISK
        _log.critical("stopped by a bug in the broker: %r", failure, exc_info=failure)
        return Exit.BUG

    async def _last_turn(self) -> None:
        """What arrived is durable. A disk that hangs now is given up, and the process with it."""
        timeout_s = max(self._config.shutdown_timeout_ms / 1000, FLUSH_S)
        try:
            await asyncio.wait_for(self._engine.stop(), timeout_s)
        except TimeoutError:
            _log.error("the disk did not finish within %.0f s: ended without its answer", timeout_s)
            logging.shutdown()
            os._exit(Exit.DISK)  # a thread that waits for the disk would be joined for ever

    def _on_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop caught something that nobody else did (rule 4)."""
        trouble = context.get("exception")
        connection = context.get("protocol")
        if connection is not None or "transport" in context:
            if not isinstance(trouble, OSError):  # the network's own troubles are no bugs
                peer = getattr(connection, "peer", "?")
                self._listener.complaints.add("INTERNAL", peer, repr(trouble), trouble)
        elif trouble is None or "future" in context or "task" in context:
            loop.default_exception_handler(context)
        else:
            self._bug = self._bug or trouble
            self._told_to_stop.set()

    def _terms(self) -> Terms:
        config, identity = self._config, self._engine.identity
        return Terms(
            product="qbroker",
            version=self._version,
            cluster=identity.cluster,
            node=identity.node,
            epoch=identity.epoch,
            limits={
                "frame_bytes_max": FRAME_BYTES_MAX,
                "messages_per_frame_max": MESSAGES_PER_FRAME_MAX,
                "producer_window": PRODUCER_WINDOW,
            }
            | {name: getattr(config, name) for name in TOLD},
            mechanisms=("none",),  # config.check_together has refused other networks
            wall_ms=wall_ms,
        )

    def _room_changed(self, room: Room) -> None:
        """Publishes are refused, or taken again; who waits is told."""
        self._engine.close_to_publishes(room.refusal)
        self._listener.close_to_publishes(room.refusal)

    def _report(self) -> dict[str, object]:
        room = self._space.room
        report = self._health.report(self._log.written, self._log.durable)
        return report | {"disk": room.level.name.lower(), "disk_free_bytes": room.free_bytes}

    def _snapshot(self) -> Snapshot:
        log = self._log.statistics()
        return Snapshot(
            statistics=self._engine.statistics(),
            connections=self._listener.counts(),
            protocol_errors=self._listener.complaints.counts,
            inbox_bytes=self._engine.inbox_bytes,
            log_bytes=log.bytes,
            log_segments=log.segments,
            disk_free_bytes=self._space.room.free_bytes,
            disk_level=int(self._space.room.level),
            loop_lag_s=self._listener.watch.take_lag(),
            started_s=self._started_s,
            version=self._version,
            epoch=self._engine.identity.epoch,
        )


TOLD = (
    "body_bytes_max",
    "result_bytes_max",
    "delay_max_ms",
    "upload_messages_max",
    "upload_bytes_max",
    "credit_max",
    "subscriptions_max",
)
"""Settings that clients learn from the greeting."""


def limits(config: Config) -> Limits:
    """The net's share of the settings."""
    return Limits(**{f.name: getattr(config, f.name) for f in fields(Limits)})


async def listening(
    listen: Callable[[str, int], Coroutine[Any, Any, tuple[str, int]]],
    address: tuple[str, int],
    flag: str,
) -> tuple[str, int]:
    """The address that ``listen`` got. Raises Trouble in one line."""
    try:
        return await listen(*address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "something listens there already" if taken else error.strerror or str(error)
        raise Trouble(
            f"cannot listen on {show_address(*address)}: {why}; stop it, or choose another "
            f"address with {flag} (port 0 takes a free one)",
            Exit.FAILED,
        ) from error


async def first_of(*awaitables: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """One of them is done. Those given as coroutines are ended; tasks go on."""
    tasks = [
        each if isinstance(each, asyncio.Task) else asyncio.create_task(each) for each in awaitables
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, given in zip(tasks, awaitables, strict=True):
        if task is not given and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def show_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(config: Config, say: Say) -> Exit:
    """Run a broker in this thread until it ends; how it ended. Raises Trouble.

    The process should end right after it, by os._exit: the loop is not closed, for that
    would give SIGTERM back its deadly default, and a late one would replace the exit code.
    """
    stores = open_stores(config, say)
    try:
        server = Server(config, stores, say)
        return asyncio.Runner(loop_factory=new_loop).run(server.run())
    except LogFailed as failure:  # while the new epoch was written
        raise Trouble(str(failure), Exit.DISK) from failure
    except Trouble:
        stores.log.close()
        raise


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one (not on Windows, not on every Python): twice the frames."""
    try:
        import uvloop  # noqa: PLC0415  # optional, and only here
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
