"""When each batch was written, to the second: the age of a queue's oldest message."""

from array import array
from bisect import bisect_left, bisect_right

from qbroker.core.columns import pack_columns, unpack_columns
from qprotocol.wire import SLOT_BITS, batch_of

STEP_MS = 1_000
ENTRIES_MAX = 1_000_000
"""Over eleven days of seconds; then the older half is thinned out."""
_ALL = 2**64 - 1


class Ages:
    """A row a second at most: the first batch of that second, and its time."""

    def __init__(self) -> None:
        self._batches = array("Q")
        self._times = array("Q")

    def note(self, batch: int, wall_ms: int) -> None:
        """``batch`` was written at ``wall_ms``."""
        if self._times and wall_ms < self._times[-1] + STEP_MS:
            return
        self._batches.append(batch)
        self._times.append(wall_ms)
        if len(self._times) > ENTRIES_MAX:
            half = ENTRIES_MAX // 2
            self._batches = self._batches[:half:2] + self._batches[half:]
            self._times = self._times[:half:2] + self._times[half:]

    @property
    def last_ms(self) -> int:
        """The time of the newest row; 0 if there is none."""
        return self._times[-1] if self._times else 0

    def saved(self) -> bytes:
        """The rows, for a checkpoint."""
        return pack_columns(None, [self._batches, self._times])

    @classmethod
    def restored(cls, block: bytes | memoryview) -> "Ages":
        """What was saved. Raises ValueError if it is something else."""
        ages = cls()
        _, (ages._batches, ages._times) = unpack_columns(block)
        return ages

    def before(self, wall_ms: int) -> int:
        """A position below which all was written before ``wall_ms``, and little above it was."""
        index = bisect_left(self._times, max(0, wall_ms - STEP_MS + 1))
        return self._batches[index] << SLOT_BITS if index < len(self._times) else _ALL

    def age_ms(self, position: int, now_ms: int) -> int:
        """How long ago the message at ``position`` was written; 0 for position 0."""
        index = bisect_right(self._batches, batch_of(position)) - 1
        return max(0, now_ms - self._times[index]) if position and index >= 0 else 0
