"""The group commit: which effects wait for which batch, and when a batch is written.

Rule 1. An effect leaves when the log head, as it stood when the effect was decided, is
        durable; an effect that asks for no more, when that head is written.
Rule 2. Grants and the like (Record.lazy) do not move the head: nobody waits for them. They
        are written with the next batch, or after LAZY_MS.
Rule 3. A batch is written when somebody waits for it. What is decided while it is being
        written goes into the next one.

No clock, thread or loop here: the engine brings those, and the tests their own.
"""

from collections import deque
from dataclasses import dataclass

from qbroker.bodies import Bodies
from qbroker.config import Config
from qbroker.core import effects as e
from qbroker.core import records as r
from qbroker.log.batch import BatchBuilder
from qbroker.log.log import Log

LAZY_MS = 20
"""Records that nobody waits for are written this late if nothing else is."""
IDLE_MS = 100
"""After this long without a batch an empty one says what is durable (LOG.md, recovery)."""
BATCH_ROOM_BYTES = 2 * 1024 * 1024
"""A batch this close to batch_bytes_max takes no more frames."""


@dataclass(slots=True)
class Held:
    """Effects of one turn, and the batch they wait for."""

    batch: int
    effects: list[e.Effect]


@dataclass(slots=True)
class Commit:
    """A batch to be written, and how."""

    batch: BatchBuilder
    sync: bool


class GroupCommit:
    """Collects records, holds effects, says what to write. One commit at a time."""

    def __init__(
        self, log: Log, bodies: Bodies, *, fsync: str, interval_ms: int, batch_bytes_max: int
    ) -> None:
        self._log = log
        self._bodies = bodies
        self._fsync = fsync
        self._interval_ms = interval_ms
        self._full_at = max(batch_bytes_max - BATCH_ROOM_BYTES, batch_bytes_max // 2)
        self._closed: deque[BatchBuilder] = deque()
        """Batches that had no room for a record; to be written before the one below."""
        self._batch = log.begin()
        self._head = log.written
        """The latest batch that somebody may wait for."""
        self._held: deque[Held] = deque()
        self._told_durable = True
        self._committed_ms = self._synced_ms = 0

    # In.

    def append(self, record: r.Record) -> int:
        """The record is in the batch being collected, or in the next if that has no room."""
        parts, slots = record.parts(), record.slots
        if not self._batch.fits(sum(map(len, parts)), slots):
            self._close_batch()
        position = self._batch.add(record.TYPE, parts, slots, keys=keys_of(record))
        self._bodies.note(position, record)
        if not record.lazy:
            self._head = self._batch.number
        return position

    def _close_batch(self) -> None:
        """The batch is to be written as it is; a new one is begun."""
        self._closed.append(self._batch)
        self._batch = self._log.begin()

    def hold(self, effects: list[e.Effect]) -> None:
        """These wait for the log head as it stands now."""
        if effects:
            self._held.append(Held(self._head, effects))

    @property
    def full(self) -> bool:
        """Whether the batch takes no more frames until it is written."""
        return bool(self._closed) or self._batch.bytes > self._full_at

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self._batch.empty and not self._closed

    # Out.

    def released(self) -> list[e.Effect]:
        """The effects that may leave now, in order. They are not held any more."""
        durable, written = self._log.durable, self._log.written
        out: list[e.Effect] = []
        held = self._held
        while held and held[0].batch <= durable:
            out += held.popleft().effects
        for each in held:
            if each.batch > written:
                break
            early = [effect for effect in each.effects if not effect.synced]
            if early:
                each.effects = [effect for effect in each.effects if effect.synced]
                out += early
        return out

    def add_empty(self) -> None:
        """A batch follows soon, an empty one if there is nothing to write."""
        self._told_durable = False

    def drop(self) -> None:
        """The disk failed: nothing leaves any more."""
        self._held.clear()

    # Writing.

    def due(self, mono_ms: int) -> Commit | None:
        """The batch to write now, if there is one; a new one is begun."""
        waited = mono_ms - self._committed_ms
        awaited = self._head == self._batch.number
        lazy = not self._batch.empty and waited >= LAZY_MS
        idle = not self._told_durable and waited >= IDLE_MS
        if not (awaited or lazy or idle or self.full or self._sync_owed(mono_ms)):
            return None
        return self.take(sync=self._sync_wanted(mono_ms))

    def take(self, *, sync: bool) -> Commit:
        """The batch as it is, to be written; a new one is begun."""
        if not self._closed:
            self._close_batch()
        batch = self._closed.popleft()
        self._told_durable = batch.empty
        return Commit(batch, sync)

    def committed(self, mono_ms: int) -> None:
        """The batch that ``due`` gave is written."""
        self._committed_ms = mono_ms
        if self._log.durable == self._log.written:
            self._synced_ms = mono_ms
        self._bodies.shrink()

    def wait_ms(self) -> int:
        """Milliseconds after which ``due`` should be asked again, if nothing else happens."""
        if not self._batch.empty:
            return LAZY_MS
        waits = [] if self._told_durable else [IDLE_MS]
        if self._fsync == "interval" and self._log.durable < self._log.written:
            waits.append(self._interval_ms)
        return min(waits, default=1_000)

    def _sync_owed(self, mono_ms: int) -> bool:
        """Whether what is written must be synced: for somebody who waits, or by the interval."""
        if self._log.durable == self._log.written:
            return False
        if any(each.synced for held in self._held for each in held.effects):
            return True
        return self._fsync == "interval" and mono_ms - self._synced_ms >= self._interval_ms

    def _sync_wanted(self, mono_ms: int) -> bool:
        """Whether this batch is to be synced: for those who wait for it, or by default."""
        waiting = [each.synced for held in self._held for each in held.effects]
        if any(waiting) or self._sync_owed(mono_ms):
            return True
        return self._fsync == "always" and not waiting


def keys_of(record: r.Record) -> tuple[int, int]:
    """The range of mint times of the messages in it, (0, 0) for none."""
    if isinstance(record, r.Published | r.PartStored | r.LetterEdited):
        return record.batch.keys
    return record.follow_on.keys if isinstance(record, r.Settled) else (0, 0)


def collector(config: Config, log: Log, bodies: Bodies) -> GroupCommit:
    """What collects records into batches, as the settings say."""
    return GroupCommit(
        log,
        bodies,
        fsync=config.fsync,
        interval_ms=config.fsync_interval_ms,
        batch_bytes_max=config.batch_bytes_max,
    )
