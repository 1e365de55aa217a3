"""The archivist's work: behind the log it goes, a transaction at a time.

    told how far the log is durable -> records -> follower -> rows -> one transaction -> report

Rule 1. Nothing is read that is not durable: the archive is never ahead of the log.
Rule 2. A transaction covers whole batches. What was read since the last one is read again
        after a crash: rows come from records alone, so they are the same.
Rule 3. It may lag, it never stalls anybody: told to shed, it leaves out successes without a
        result, and counts them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from qbroker.archive.errors import ForeignError
from qbroker.archive.following import Follower
from qbroker.archive.messages import Blocks, Messages
from qbroker.archive.store import Figures, Store
from qbroker.log.format import BatchInfo, StoredRecord

ROWS_MAX = 5_000
"""Rows after which a transaction is written."""
RESULT_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of results after which it is."""
WAIT_MS = 250
"""And it is written this long after the first record that it covers was read."""
SWEEP_MS = 1_000
"""Between two looks for rows whose time is over."""
SWEEPS_MAX = 4
"""Steps of such a look, each a transaction; what is left waits for the next."""


class Reader(Blocks, Protocol):
    """The log as it can be followed."""

    @property
    def log_id(self) -> bytes: ...
    @property
    def whole_from(self) -> int: ...
    def replay(self, first: int, upto: int) -> Iterator[tuple[BatchInfo, list[StoredRecord]]]: ...


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much is kept, and for how long."""

    ttl_ms: int
    bytes_max: int
    preview_bytes_max: int = 0
    """Of what clients show of arguments; what is longer is cut."""


class Archivist:
    """One log, one archive. ``wall_ms`` and ``mono_ms`` are clocks."""

    def __init__(
        self,
        reader: Reader,
        store: Store,
        keeping: Keeping,
        wall_ms: Callable[[], int],
        mono_ms: Callable[[], int],
        *,
        is_patient: bool = True,
    ) -> None:
        """``is_patient``: a head that the disk refuses ends it, to be tried again; else the
        row is made without.
        """
        self._reader = reader
        self._store = store
        self._keeping = keeping
        self._wall_ms = wall_ms
        self._mono_ms = mono_ms
        messages = Messages(reader, is_patient=is_patient)
        self._follower = Follower(store.known(), messages, keeping.preview_bytes_max)
        self.read = store.batch
        """The last batch that was read; the store may be behind."""
        self.missed = max(0, reader.whole_from - store.batch - 1) if store.batch else 0
        """Batches the log had let go before they were archived."""
        self._since_ms = 0
        self._swept_ms = 0
        self.seconds = 0.0
        """How long the last transaction took."""

    def advance(self, upto: int, *, is_shedding: bool) -> Iterator[Figures]:
        """Go on to that batch, which is durable; the figures after each transaction.

        Raises ForeignError if the archive is ahead of it, ArchiveError, LogError.
        """
        if self._store.batch > upto:
            raise ForeignError(
                "the archive", f"it tells of batch {self._store.batch}, the log ends at {upto}"
            )
        self._follower.is_shedding = is_shedding
        first = max(self.read + 1, self._reader.whole_from)
        for info, stored in self._reader.replay(first, upto):
            if self.read == self._store.batch:
                self._since_ms = self._mono_ms()
            self._follower.take(stored)
            self.read = info.number
            if self.is_due:
                yield self.save()

    @property
    def is_due(self) -> bool:
        """Whether what was read should be saved."""
        changes = self._follower.changes
        if self.read == self._store.batch:
            return False
        return (
            changes.rows >= ROWS_MAX
            or changes.result_bytes >= RESULT_BYTES_MAX
            or self._mono_ms() - self._since_ms >= WAIT_MS
        )

    def wait_ms(self) -> int:
        """Milliseconds until ``is_due`` is worth another look, if nothing is told meanwhile."""
        if self.read == self._store.batch:
            return SWEEP_MS
        return max(0, WAIT_MS - (self._mono_ms() - self._since_ms))

    def save(self) -> Figures:
        """All that was read is durable in the archive. Raises ArchiveError."""
        began = self._mono_ms()
        follower = self._follower
        self._store.save(self.read, follower.changes, follower.known)
        follower.start_anew()
        self.seconds = (self._mono_ms() - began) / 1000
        self.sweep()
        return self._store.figures()

    def sweep(self) -> None:
        """What may not be kept longer goes, a bounded number of rows. Raises ArchiveError."""
        now_ms = self._mono_ms()
        if now_ms - self._swept_ms < SWEEP_MS:
            return
        for _ in range(SWEEPS_MAX):
            keeping = self._keeping
            if not self._store.sweep(self._wall_ms(), keeping.ttl_ms, keeping.bytes_max):
                self._swept_ms = now_ms
                return

    def figures(self) -> Figures:
        """What the archive holds now. Raises ArchiveError."""
        return self._store.figures()

    def close(self) -> None:
        """What was read is saved, the file is closed. Raises ArchiveError."""
        if self.read != self._store.batch:
            self.save()
        self._store.close()
