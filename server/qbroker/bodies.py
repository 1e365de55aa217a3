"""Bytes of records near at hand: what was just appended, and what was just read.

Rule 1. Records of batches that are not written yet are never dropped: they are nowhere else.
Rule 2. Everything else may be dropped at any time; the log has it. ``window_bytes_max``
        bounds it.
Rule 3. Looking here never touches the disk: what is missing raises Cold, and the engine
        loads it in a thread.
"""

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from qbroker.core import records as r
from qbroker.evidence import no_evidence, sentence, whole_batch
from qbroker.log.errors import CorruptError, UnreadableError
from qbroker.log.format import Held, StoredRecord
from qbroker.log.log import Log
from qbroker.log.salvage import Damage
from qprotocol import wire

READ_AHEAD_BYTES = 512 * 1024
UNREADABLE_MS = 60_000
"""How long the disk may refuse a batch at every look until it counts as damaged: nobody would
get past it any more. Looks that are a sixth of that apart do not belong together."""
_ENTRY_BYTES = 200
"""What an entry costs beside its bytes."""


class Damaged(Exception):  # noqa: N818  # a state, not a mistake
    """The bytes at a position are damaged on disk: ``lost`` says where and why."""

    def __init__(self, position: int, lost: "Lost") -> None:
        super().__init__(position)
        self.position = position
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Lost:
    """What is known of damaged bytes: a sentence, and the file in which they are kept."""

    why: str
    evidence: str


class Cold(Exception):  # noqa: N818  # a state, not a mistake
    """The record that covers a position, the argument, is not in memory."""


@dataclass(slots=True)
class Body:
    """One record's bytes: its result or lead, then its messages."""

    position: int
    """Of the record itself."""
    first: int
    """Position of its first message: a Settled has its own one before."""
    count: int
    """Messages that begin in it."""
    raw: bytes
    head: int
    """Bytes before the first message: a result, or the end of an earlier message."""
    offsets: "array[int] | None" = None
    lost: Lost | None = None
    """In the place of records that are damaged on disk."""

    def starts(self) -> "array[int]":
        """Where each message begins in ``raw``."""
        if self.offsets is None:
            self.offsets = array("I")
            at = self.head
            for _ in range(self.count):
                self.offsets.append(at)
                at += 4 + int.from_bytes(self.raw[at : at + 4], "little")
        return self.offsets

    def message(self, position: int) -> bytes:
        """The packed message at ``position``, as far as this record holds it.

        Empty if cleaning took it away. Raises IndexError if none begins there.
        """
        index, starts = position - self.first, self.starts()
        if not 0 <= index < self.count:
            raise IndexError(f"position {position} is that of no message")
        end = starts[index + 1] if index + 1 < self.count else len(self.raw)
        return self.raw[starts[index] : end]


_position = attrgetter("position")
Loaded = dict[int, list[Body]]
"""By batch number."""


class Bodies:
    """Batches in memory, least recently used first."""

    def __init__(
        self,
        log: Log,
        bytes_max: int,
        mono_ms: Callable[[], int],
        keep_evidence: Callable[[Damage], str] = no_evidence,
    ) -> None:
        self.log = log
        self._mono_ms = mono_ms
        self._refused: dict[int, tuple[int, int]] = {}
        """Batches that the disk refuses: since when, and when it last did."""
        self._keep_evidence = keep_evidence
        self._bytes_max = bytes_max
        self._batches: OrderedDict[int, list[Body]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self.bytes = 0

    # In.

    def note(self, position: int, record: r.Record) -> None:
        """Keep a record that was just appended, if it has bytes that may be asked for."""
        body = body_of(position, record)
        if body is not None:
            self._put(wire.batch_of(position), body)

    def _put(self, batch: int, body: Body) -> None:
        found = self._batches.get(batch)
        if found is None:
            found = self._batches[batch] = []
            self._sizes[batch] = 0
        found.append(body)
        size = len(body.raw) + _ENTRY_BYTES + 4 * body.count
        self._sizes[batch] += size
        self.bytes += size

    def shrink(self) -> None:
        """Drop the least recently used of what is written, down to the limit."""
        written = self.log.written
        while self.bytes > self._bytes_max and len(self._batches) > 1:
            batch = next(iter(self._batches))
            if batch > written:
                return
            self._drop(batch)

    def _drop(self, batch: int) -> None:
        del self._batches[batch]
        self.bytes -= self._sizes.pop(batch)

    def missing(self, positions: list[int]) -> list[int]:
        """Those whose batch is not in memory."""
        return [p for p in positions if wire.batch_of(p) not in self._batches]

    def load(self, positions: list[int]) -> Loaded:
        """Read the batches of these positions, and some that follow. For a thread.

        Raises UnreadableError if the disk refuses, for UNREADABLE_MS: the bytes may be intact.
        """
        loaded: Loaded = {}
        for position in positions:
            if wire.batch_of(position) in loaded:
                continue
            damaged: list[Damage] = []
            for each in self._read(wire.batch_of(position), damaged):
                found = loaded.setdefault(wire.batch_of(each.position), [])
                body = stored_body(each)
                if body is not None:
                    found.append(body)
            for damage in damaged:
                if not damage.count:
                    continue  # a digest alone, no record
                found = loaded.setdefault(wire.batch_of(damage.position), [])
                lost = Lost(sentence(damage), self._keep_evidence(damage))
                at = damage.position
                found.append(Body(at, at, damage.count, b"", 0, None, lost))
                found.sort(key=_position)
        return loaded

    def _read(self, batch: int, damaged: list[Damage]) -> list[StoredRecord]:
        """The batch, and some that follow, less what is damaged. Alone, if that is too much."""
        for min_bytes in (READ_AHEAD_BYTES, 1):
            try:
                found = self.log.read_block(batch, min_bytes, damaged)
            except CorruptError as error:
                damaged.clear()
                trouble = error
            else:
                self._refused.pop(batch, None)
                return found
        if isinstance(trouble, UnreadableError) and not self.is_hopeless(batch):
            raise trouble
        damaged.append(whole_batch(trouble, batch, 1 << wire.SLOT_BITS))
        return []

    def is_hopeless(self, batch: int) -> bool:
        """Note that the disk refuses the batch; whether it has done so for UNREADABLE_MS."""
        now = self._mono_ms()
        since, last = self._refused.get(batch, (now, now))
        if now - last > UNREADABLE_MS // 6:
            since = now
        self._refused[batch] = since, now
        return now - since >= UNREADABLE_MS

    def keep(self, loaded: Loaded) -> None:
        """Put in what ``load`` gave, but for batches that are here by now. See ``shrink``."""
        for batch in loaded.keys() - self._batches.keys():
            self._batches[batch], self._sizes[batch] = [], _ENTRY_BYTES
            self.bytes += _ENTRY_BYTES
            for body in loaded[batch]:
                self._put(batch, body)

    # Out.

    def body(self, position: int) -> Body:
        """The body of the record that covers ``position``, or of one before it. Raises Cold or
        Damaged.
        """
        found = self._batches.get(wire.batch_of(position))
        if not found:
            if found is not None:  # nothing of it could be read: to be read again
                self._drop(wire.batch_of(position))
            raise Cold(position)
        self._batches.move_to_end(wire.batch_of(position))
        body = found[max(0, bisect_right(found, position, key=_position) - 1)]
        if body.lost is not None:
            raise Damaged(position, body.lost)
        return body

    def message(self, position: int, continued: list[int] | None = None) -> bytes:
        """The packed message at ``position``; ``continued`` names the parts it goes on in."""
        return self.body(position).message(position) + self.ends(continued)

    def ends(self, continued: list[int] | None) -> bytes:
        """What these parts hold of a message that began before them."""
        return b"".join(map(self.head, continued or ()))

    def head(self, position: int) -> bytes:
        """The result or error of the Settled record there, or a part's end of a message.

        Empty if the record has no bytes: those of another one are not its.
        """
        if self._batches.get(wire.batch_of(position)) == []:
            return b""
        body = self.body(position)
        return body.raw[: body.head] if body.position == position else b""

    def unwritten(self) -> Iterator[Body]:
        """Bodies of batches that the log cannot be asked for yet."""
        written = self.log.written
        for batch, found in reversed(self._batches.items()):
            if batch > written:
                yield from found


def body_of(position: int, record: r.Record) -> Body | None:
    """What to keep of a record, if it has messages or a result."""
    if isinstance(record, r.Published | r.LetterEdited):
        batch = record.batch
        return Body(position, position, batch.count, batch.raw, 0, batch.offsets)
    if isinstance(record, r.PartStored):
        batch = record.batch
        return Body(position, position, batch.count, batch.raw, record.lead, batch.offsets)
    if isinstance(record, r.Settled) and (record.result or record.follow_on.count):
        return Body(position, position + 1, record.follow_on.count, record.raw, len(record.result))
    if isinstance(record, r.Kept):
        return kept_body(position, record)
    return None


def kept_body(position: int, record: r.Kept) -> Body:
    """What cleaning has left of a record: messages that are gone have no bytes."""
    offsets, at, raw = array("I"), len(record.head), record.raw
    for first, count in record.runs:
        offsets.extend([at] * (first - len(offsets)))
        for _ in range(count):
            offsets.append(at)
            at = min(len(raw), at + 4 + int.from_bytes(raw[at : at + 4], "little"))
    offsets.extend([at] * (record.count - len(offsets)))
    first = position + record.own
    return Body(position, first, record.count, raw, len(record.head), offsets)


def stored_body(stored: StoredRecord | Held) -> Body | None:
    """The same for a record read from the log."""
    if not r.HAS_RAW.get(stored.type):
        return None
    return body_of(stored.position, r.unpack(stored.type, stored.body))
