"""Messages by position, as the archivist needs them: heads, never bodies.

What passes while the log is followed is kept for a while, because most tasks are settled
soon. What is older is read in blocks: acks come in runs of neighbours.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from qbroker.bodies import Body, stored_body
from qbroker.core import records as r
from qbroker.log.errors import CorruptError, LogError, UnreadableError
from qbroker.log.format import StoredRecord
from qprotocol import wire

KEPT_BYTES_MAX = 32 * 1024 * 1024
READ_BYTES = 256 * 1024
_ENTRY_BYTES = 200


class Blocks(Protocol):
    """What of the log is read here."""

    def read_block(self, batch: int, min_bytes: int = ...) -> list[StoredRecord]: ...


@dataclass(slots=True)
class Passed:
    """A record that holds messages, and when it was written."""

    body: Body
    wall_ms: int

    @property
    def position(self) -> int:
        return self.body.position


_position = attrgetter("position")


class Messages:
    """The latest records with messages, by batch, and the log behind them."""

    def __init__(
        self, log: Blocks, bytes_max: int = KEPT_BYTES_MAX, *, is_patient: bool = True
    ) -> None:
        """``is_patient``: what the disk refuses is an error, not something that is gone."""
        self._log = log
        self._is_patient = is_patient
        self._bytes_max = bytes_max
        self._batches: OrderedDict[int, list[Passed]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._bytes = 0

    def note(self, stored: StoredRecord) -> None:
        """Keep a record that passes, if it holds messages."""
        passed = passed_record(stored)
        if passed is not None:
            batch = wire.batch_of(stored.position)
            found = self._batches.setdefault(batch, [])
            if found and found[-1].position >= stored.position:
                return  # it was read ahead
            found.append(passed)
            size = len(passed.body.raw) + _ENTRY_BYTES
            self._sizes[batch] = self._sizes.get(batch, 0) + size
            self._bytes += size

    def shrink(self) -> None:
        """Drop the least recently used, down to the limit."""
        while self._bytes > self._bytes_max and len(self._batches) > 1:
            batch, _ = self._batches.popitem(last=False)
            self._bytes -= self._sizes.pop(batch)

    def runs(self, first: int, count: int) -> Iterator[tuple[Passed | None, int, int]]:
        """Neighbours, a record at a time: the record, index of the first in it, how many.

        None for a record: the log does not have these messages any more. Raises
        UnreadableError if the disk refuses: they may be intact.
        """
        while count:
            passed = self._covering(first)
            if passed is None:
                yield None, first, count
                return
            index = first - passed.body.first
            taken = min(count, passed.body.count - index)
            yield passed, index, taken
            first, count = first + taken, count - taken

    def _covering(self, position: int) -> Passed | None:
        batch = wire.batch_of(position)
        if batch not in self._batches:
            try:
                self._load(batch)
            except LogError as error:
                if self._is_patient and isinstance(error, UnreadableError):
                    raise
                return None
        else:
            self._batches.move_to_end(batch)
        found = self._batches.get(batch, [])
        passed = found[bisect_right(found, position, key=_position) - 1] if found else None
        if passed and passed.body.first <= position < passed.body.first + passed.body.count:
            return passed
        return None

    def _load(self, batch: int) -> None:
        """Read that batch and some that follow; alone, if these are damaged. Raises LogError."""
        try:
            read = self._log.read_block(batch, READ_BYTES)
        except CorruptError:
            read = self._log.read_block(batch, 1)
        here = {wire.batch_of(each.position) for each in read} & self._batches.keys()
        for each in read:
            if wire.batch_of(each.position) not in here:
                self.note(each)


def passed_record(stored: StoredRecord) -> Passed | None:
    """The record as one that holds messages; None if it holds none. Copies nothing."""
    if stored.type == r.Published.TYPE:
        at = r.raw_at(stored.body)
        body = Body(stored.position, stored.position, stored.count, stored.body, at)
        return Passed(body, stored.wall_ms)
    found = stored_body(stored)
    return Passed(found, stored.wall_ms) if found and found.count else None
