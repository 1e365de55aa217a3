"""The turn: the only place where core, log and net meet.

    frames --> inbox --> [ decide, append, apply ]* --> due --> dispatch --> effects
                                     |                                          |
                                one batch --> commit (one write, one sync)      |
                                     '----------> durable ----------> release --'

Rule 1. One batch is being written at a time. What arrives meanwhile is decided and
        collected in the next one: that is the group commit.
Rule 2. An effect leaves when the log head, as it stood when it was decided, is durable
        (or written, for queues that ask for no more). Grants do not move that head:
        nobody waits for them.
Rule 3. A turn ends after ``turn_ms``; what is left waits for the next one, so the loop
        gets to its sockets.
Rule 4. When the disk fails nothing is answered any more: held effects are dropped, and
        ``run`` raises LogFailed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qbroker.ages import Ages
from qbroker.archiving import Archiving
from qbroker.asides import Asides, Shown
from qbroker.bodies import Bodies
from qbroker.config import Config
from qbroker.core import effects as e
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.statistics import Statistics
from qbroker.delivery import Connection, Delivery
from qbroker.evidence import Evidence
from qbroker.groupcommit import Commit, collector
from qbroker.log.errors import LogFailed
from qbroker.log.format import rounded
from qbroker.log.log import Log
from qbroker.lookups import Lookups
from qbroker.machine import Machine
from qbroker.searching import Searches
from qbroker.stalls import Stalls
from qbroker.timings import Timings
from qprotocol import frames as f

SMALL_BYTES = 64 * 1024
"""A batch up to this size costs less to write than to hand to another thread."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this broker is, in its greeting."""

    cluster: str
    node: str
    epoch: int


class Engine:
    """The running broker. Belongs to one event loop; started by ``boot``."""

    def __init__(
        self,
        config: Config,
        log: Log,
        core: Broker,
        ages: Ages,
        timings: Timings,
        *,
        machine: Machine | None = None,
        archive: Archiving | None = None,
    ) -> None:
        self._config = config
        self._log = log
        self._core = core
        self._ages = ages
        self._timings = timings
        self._clock = machine = machine or Machine()
        keep = Evidence(config.data, log).keep
        self._bodies = Bodies(log, config.window_bytes_max, machine.mono_ms, keep)
        self._readers, self._writer = machine.readers(), machine.writer()
        self._connections: dict[int, Connection] = {}
        questions, searches = (
            (archive.questions, archive.searches) if archive else (None, Searches(None))
        )
        self._delivery = Delivery(self._bodies, self._connections, self._readers, questions, ages)
        self._lookups = Lookups(self._delivery, self._readers, self._schedule, self._fail)
        self._asides = Asides(self, core, Shown(log, self._bodies, ages), searches, config)
        self._inbox: deque[tuple[Connection, f.Frame | None]] = deque()
        self._group = collector(config, log, self._bodies)
        self._committing = self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._stalls = Stalls(config.heartbeat_ms, self._clock.mono_ms())
        self._due_ms = 0
        """Monotonic: before it, time makes nothing due."""
        self._claims_until_ms = 0
        """Monotonic: until then workers may claim what they run, and nobody gets it anew.

        A crash may have cost the last grants: the log says of those messages that they wait.
        """
        self._preparing = self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Future[None] | None = None
        self._crowded = False
        """The inbox went over its limit and has not been half empty since."""
        self.failure: BaseException | None = None
        self.inbox_bytes = self.appended_bytes = 0
        self.on_drained: Callable[[], None] | None = None
        self.on_append: Callable[[int], bool] = lambda _size: False
        """Told the bytes of each batch before; whether the thread must write it (see Space)."""
        self.identity = Identity("", "", 0)

    # The outside.

    def boot(self, version: str, node: str, skipped: int = 0) -> None:
        """A new epoch is durable: connections may come. Raises LogFailed."""
        self._core.boot(self.now(), version, self._group.append, skipped)
        self._write(self._group.take(sync=True), sync=True)
        epoch = self._core.state.epoch
        self.identity = Identity(self._log.log_id.hex(), node, epoch)

    async def run(self) -> None:
        """Turns, until ``stop``. Raises LogFailed if the disk failed."""
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._writer.attach(self._loop, self._written)
        if not self._log.clean:
            self._claims_until_ms = self._clock.mono_ms() + self._config.claims_ms
        self._schedule()
        await self._over

    async def stop(self) -> None:
        """What arrived is decided and durable; the threads are gone. The log is not closed."""
        while self.failure is None and (self._inbox or self._committing or not self._group.empty):
            self._turn()
            await asyncio.sleep(0.001)
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self._asides.events.close()
        self._writer.stop()
        self._readers.shutdown()
        if self._over and not self._over.done():
            self._over.set_result(None)

    def connected(self, connection: Connection) -> None:
        """Effects for this connection can be sent."""
        self._connections[connection.number] = connection

    def welcomed(self, connection: Connection) -> None:
        """Its Welcome leaves now: it could not be heard of while that waited for the disk."""
        self._core.heard(connection.number, self._clock.mono_ms())

    def submit(self, connection: Connection, frame: f.Frame) -> None:
        """The frame is decided in a coming turn."""
        self._inbox.append((connection, frame))
        self.inbox_bytes += len(frame.raw) + 64
        if self.inbox_bytes > self._config.inbox_bytes_max:
            self._crowded = True
        self._core.heard(connection.number, self._clock.mono_ms())

    def arrived(self) -> None:
        """A connection has submitted all that was there. See that a turn comes.

        If nothing is being written the turn is now: a lone publisher waits for no other
        pass of the loop. Else what others send meanwhile is decided in the same turn.
        """
        if self._committing or self._scheduled or self._loop is None:
            self._schedule()
        elif self._inbox:
            self._turn()

    def disconnected(self, connection: Connection) -> None:
        """The connection is gone; what it sent before is still decided."""
        self._connections.pop(connection.number, None)
        self._delivery.drop(connection.number)
        self._asides.events.disconnected(connection.number)
        self._inbox.append((connection, None))
        self._schedule()

    def writable(self, connection: Connection, is_writable: bool) -> None:
        """The connection can take more deliveries, or none for the moment."""
        self._core.writable(connection.number, is_writable=is_writable)
        if is_writable:
            self._schedule()

    def close_to_publishes(self, why: str) -> None:
        """Nothing new is taken in, for this reason; empty: it is again."""
        self._core.close_to_publishes(why)

    async def statistics(self) -> Statistics:
        """What may be looked at, as it is from now on; taken in steps, between turns."""
        return await self._asides.statistics()

    # A turn.

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None and self.failure is None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def now(self) -> Now:
        """What the clocks say."""
        return Now(self._clock.wall_ms(), self._clock.mono_ms())

    def _turn(self) -> None:
        self._scheduled = False
        if self.failure is not None or self._closed:
            return
        began = self._clock.seconds()
        now = self.now()
        self._core.stalled(self._stalls.missed_ms(now.mono_ms))
        self._group.hold(self._drain(now, began))
        # While the disk works on that, the rest: grants need not be in the same batch.
        self._write_if_due(now)
        # After what arrived: a heartbeat that is here saves its session, and what came too
        # late is expired before it could be handed out.
        out = self._core.due(now, self._group.append) if now.mono_ms >= self._due_ms else []
        claims = now.mono_ms < self._claims_until_ms
        if not claims:
            out += self._core.dispatch(now, self._group.append)
        if self._asides.inspections:
            out += self._asides.carry_on()
        self._group.hold(out)
        self._release()
        self._write_if_due(now)
        more = self._core.has_more and not claims
        if (self._inbox and not self._group.full) or more or self._asides.inspections:
            self._schedule()
        self._set_timer(now)
        self._timings.turn.observe(self._clock.seconds() - began)

    def _drain(self, now: Now, began: float) -> list[e.Effect]:
        """Decide what has arrived, as long as the turn lasts and the batch has room."""
        out: list[e.Effect] = []
        end = began + self._config.turn_ms / 1000
        out += self._lookups.decided(self._core, now, self._group, self._connections)
        inbox = self._inbox
        while inbox and not self._group.full:
            connection, frame = inbox.popleft()
            if frame is None:
                out += self._core.disconnected(connection.number, now, self._group.append)
            else:
                self.inbox_bytes -= len(frame.raw) + 64
                if (aside := self._asides.rules.get(type(frame))) is not None:
                    out += aside(connection, frame)
                else:
                    out += self._core.execute(connection.number, frame, now, self._group.append)
            if self._clock.seconds() > end:
                break
        if self._crowded and self.inbox_bytes < self._config.inbox_bytes_max // 2:
            self._crowded = False
            if self.on_drained:
                self.on_drained()
        return out

    def _release(self) -> None:
        """Send what the log allows, in order."""
        effects = self._group.released()
        if not effects:
            return
        for effect in effects:
            if isinstance(effect, e.Lookup):
                self._lookups.look_up(effect)
        self._delivery.send(effects)

    # The log.

    def _write_if_due(self, now: Now) -> None:
        """Start writing the batch if it is due and the one before it is done.

        A small batch is handed to the kernel here, and the thread only syncs it. What may
        take long, a large one or a new segment, is the thread's altogether.
        """
        commit = None if self._committing else self._group.due(now.mono_ms)
        if commit is None:
            return
        self._committing = True
        self._stalls.disk(now.mono_ms)
        self._timings.batch_records.observe(len(commit.batch.records))
        must_look = self.on_append(rounded(commit.batch.bytes))
        is_small = commit.batch.bytes <= SMALL_BYTES and self._log.has_room(commit.batch)
        if must_look or not is_small:
            self._writer.start(partial(self._write, commit, sync=commit.sync))
            return
        try:
            took = self._write(commit, sync=False)
        except LogFailed as failure:
            self._fail(failure)
            return
        if commit.sync:
            self._writer.start(self._sync)
        else:
            self._written(took)

    def _write(self, commit: Commit, *, sync: bool) -> float:
        """Write the batch; the seconds that took. Here or in the thread. Raises LogFailed."""
        now, epoch = self._clock.wall_ms(), self._core.state.epoch
        self.appended_bytes += rounded(commit.batch.bytes)
        began = self._clock.seconds()
        self._log.commit(commit.batch, sync=sync, wall_ms=now, epoch=epoch)
        self._ages.note(commit.batch.number, now)
        return self._clock.seconds() - began

    def _sync(self) -> float:
        """What is written is durable; the seconds that took. In the thread. Raises LogFailed."""
        began = self._clock.seconds()
        self._log.sync()
        return self._clock.seconds() - began

    def _written(self, result: float | BaseException) -> None:
        """The writer is done with a batch: seconds, or what stopped it."""
        self._committing = False
        self._stalls.disk(None)
        if isinstance(result, BaseException):
            self._fail(result)
            return
        self._release()  # first of all: somebody waits for it
        self._group.committed(self._clock.mono_ms())
        self._timings.sync.observe(result)
        if not self._preparing and not self._log.spare_ready:
            self._preparing = True
            self._readers.submit(self._prepare)
        if self._inbox or not self._group.empty:
            self._schedule()

    def _prepare(self) -> None:
        """Make the next segment, in a thread."""
        try:
            self._log.prepare_next()
        except LogFailed as failure:
            self.failed(failure)
        finally:
            self._preparing = False

    def failed(self, failure: LogFailed) -> None:
        """The log is fenced, says a thread: nothing is answered any more."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._fail, failure)

    def _fail(self, failure: BaseException) -> None:
        """Nothing is answered from now on."""
        self._group.drop()
        self.failure = failure
        if self._over and not self._over.done():
            self._over.set_exception(failure)

    # Questions.

    def archived(self, upto: int) -> None:
        """The archive holds what was settled up to that position; memory lets go of it."""
        self._core.archived(upto)
        self._due_ms = 0
        self._schedule()

    def add_batch(self) -> None:
        """The log has another batch soon, of which there can be a checkpoint."""
        self._group.add_empty()
        self._due_ms = 0
        self._schedule()

    def answer(self, connection: int, answer: f.Frame) -> None:
        """The frame is sent at once: it reveals nothing of the core."""
        self._delivery.send([e.Send(connection, answer)])

    # Time.

    def _set_timer(self, now: Now) -> None:
        """See that a turn comes when something is due. One that comes too early does no harm."""
        if self._loop is None or self._scheduled:
            self._due_ms = 0
            return
        due_in_ms = self._core.next_due_ms(now)
        self._due_ms = now.mono_ms + due_in_ms
        if self._claims_until_ms > now.mono_ms:
            due_in_ms = min(due_in_ms, self._claims_until_ms - now.mono_ms)
        wait_ms = max(1, min(due_in_ms, self._group.wait_ms()))
        wanted = self._loop.time() + wait_ms / 1000
        if self._timer is not None:
            if not self._timer.cancelled() and self._loop.time() < self._timer.when() <= wanted:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_ms / 1000, self._on_timer)

    def _on_timer(self) -> None:
        # Forgotten first: uvloop fires timers up to a millisecond before their own ``when``, and
        # the turn would keep one that never fires again.
        self._timer = None
        self._schedule()
