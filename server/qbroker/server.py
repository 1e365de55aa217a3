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
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import fields
from functools import partial
from typing import Any

from qbroker.alarming import Alarming
from qbroker.archiving import Archiving
from qbroker.checkpoint.keeping import Keeping
from qbroker.config import Config, is_loopback
from qbroker.engine import Engine
from qbroker.garbage import spare_the_old
from qbroker.log.errors import LogError, LogFailed
from qbroker.machine import Machine, wall_ms
from qbroker.net.connection import Limits
from qbroker.net.listener import Listener
from qbroker.net.session import Terms
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.health import Health
from qbroker.ops.http import Http
from qbroker.ops.metrics import Metrics, Snapshot
from qbroker.space import Level
from qbroker.starting import Say, Stores, after_restore, core_settings, open_stores
from qbroker.timings import Timings
from qbroker.writer import Writer
from qprotocol import __version__
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX, PRODUCER_WINDOW

QUIESCE_S = 0.1
"""Between the last delivery begun and the Goaway: a sync or two."""
FLUSH_S = 1.0

_log = logging.getLogger("qbroker")


class Server:
    """A broker that is being built, runs, and stops. ``run`` is all there is to call."""

    def __init__(self, config: Config, stores: Stores, say: Say, *, move_aside: bool) -> None:
        self._config = config
        self._log = stores.log
        self._space = stores.space
        self._say = say
        self._version = __version__
        self._started_s = time.time()
        self._metrics = Metrics()
        self._scraping = asyncio.Lock()
        begun, done = self._metrics.batch_records, self._metrics.sync_seconds
        timings = Timings(turn=self._metrics.turn_seconds, sync=done, batch_records=begun)
        machine = Machine(writer=partial(Writer, stores.space.patiently))
        self._archiving = archive = Archiving(config, stores.log, may_move_aside=move_aside)
        self._engine = Engine(
            config, stores.log, stores.core, stores.ages, timings, machine=machine, archive=archive
        )
        self._stores = stores
        self._keeping = keeping(config, stores, self._engine, archive)
        with after_restore(config.data, stores.core.state) as skipped:
            self._engine.boot(self._version, socket.gethostname(), skipped)
        self._health = Health(begun, done, self._engine.identity.epoch, self._version)
        self._http = Http(self._metrics_text, self._report, config.http_connections_max)
        self._listener = Listener(self._engine, self._terms(), limits(config))
        self._alarming = Alarming(stores.core)
        self._listener.watch.on_tick = self._tick
        self._listener.watch.disk_hangs = lambda: self._health.stalled
        self._space.on_change = archive.on_refusal = self._judge_publishes
        archive.has_room = self._space.has_room
        self._engine.on_append = self._space.appended
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
            self._keeping.start()
            self._archiving.start(self._engine)
            await first_of(turning, self._told_to_stop.wait())
            if not turning.done() and self._bug is None:
                await first_of(turning, self._say_goodbye())
            return await self._end(turning)
        except Trouble:
            await self._engine.stop()
            raise
        finally:
            watching.cancel()
            await self._archiving.stop()
            await self._keeping.stop()
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
            await self._last_checkpoint()
            self._log.close(clean=True)
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
            async with asyncio.timeout(timeout_s):
                await self._engine.stop()
        except TimeoutError:
            _log.error("the disk did not finish within %.0f s: ended without its answer", timeout_s)
            logging.shutdown()
            os._exit(Exit.DISK)  # a thread that waits for the disk would be joined for ever

    async def _last_checkpoint(self) -> None:
        await self._keeping.stop()
        timeout_s = max(self._config.shutdown_timeout_ms / 1000, FLUSH_S)
        await self._keeping.write_last(self._stores.core, self._stores.ages, timeout_s)

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
            features=("limits",),
        )

    def _judge_publishes(self, _: object = None) -> None:
        """Publishes are refused, or taken again; who waits is told."""
        why = self._space.room.refusal or self._archiving.refusal
        self._engine.close_to_publishes(why)
        self._listener.close_to_publishes(why)

    def _tick(self, elapsed_s: float) -> None:
        """Several times a second."""
        self._health.tick(elapsed_s)
        self._alarming.tell()

    def _report(self) -> dict[str, object]:
        room = self._space.room
        report = self._health.report(self._log.written, self._log.durable)
        report |= {"disk": room.level.name.lower(), "archive": self._archiving.report()}
        return report | {"disk_free_bytes": room.free_bytes, "alarms": self._alarming.report()}

    async def _metrics_text(self) -> bytes:
        """For one who asks after the other: written in a thread, for the loop has other work."""
        async with self._scraping:
            return await asyncio.to_thread(self._metrics.text, await self._snapshot())

    async def _snapshot(self) -> Snapshot:
        statistics = await self._engine.statistics()
        log, last = self._log.statistics(), self._keeping.last
        return Snapshot(
            statistics=statistics,
            connections=self._listener.counts(),
            protocol_errors=self._listener.complaints.counts,
            inbox_bytes=self._engine.inbox_bytes,
            log_bytes=log.bytes,
            log_segments=log.segments,
            disk_free_bytes=self._space.room.free_bytes,
            disk_level=int(self._space.room.level),
            checkpoint_batch=last.batch,
            checkpoint_age_s=max(0, wall_ms() - last.wall_ms) / 1000 if last.batch else 0,
            checkpoint_s=last.seconds,
            checkpoint_bytes=last.bytes,
            checkpoint_failures=last.failures,
            archive=self._archiving.statistics(),
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


def keeping(config: Config, stores: Stores, engine: Engine, archive: Archiving) -> Keeping:
    """What sees to checkpoints, from the one that the start found."""
    made = Keeping(
        config.data,
        stores.log,
        stores.shelf,
        core_settings(config),
        log_bytes=config.checkpoint_log_bytes,
        cleaning=(config.clean_live_percent, config.segment_bytes),
        appended=lambda: engine.appended_bytes,
        archived=lambda: archive.upto,
        has_room=stores.space.has_room,
        is_pressed=lambda: stores.space.room.level > Level.OK,
        add_batch=engine.add_batch,
        on_failed=engine.failed,
        wall_ms=wall_ms,
        journal=(config.log_level, config.log_format),
    )
    made.resume(stores.restored, stores.replayed_bytes)
    return made


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


def serve(config: Config, say: Say, *, move_aside: bool = False) -> Exit:
    """Run a broker in this thread until it ends; how it ended. Raises Trouble.

    The process should end right after it, by os._exit: the loop is not closed, for that
    would give SIGTERM back its deadly default, and a late one would replace the exit code.
    """
    stores = open_stores(config, say)
    spare_the_old()  # what was just built, above all
    try:
        server = Server(config, stores, say, move_aside=move_aside)
        return asyncio.Runner(loop_factory=new_loop).run(server.run())
    except LogFailed as failure:  # while the new epoch was written, or the last seal
        raise Trouble(str(failure), Exit.DISK) from failure
    except Trouble:  # nobody was served: what the start found is what it leaves
        with contextlib.suppress(LogFailed):
            stores.log.close(clean=stores.log.clean)
        raise


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is one (not on Windows, not on every Python): twice the frames."""
    try:
        import uvloop  # noqa: PLC0415  # optional, and only here
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
