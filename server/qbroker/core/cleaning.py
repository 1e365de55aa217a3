"""What may still be asked for, and what is left of a record when the rest is cleaned away.

Rule 1. What is dead in a state that follows the durable log is dead for ever: no message
        comes back, and no answer shows bytes of one that is over.
Rule 2. Of a finished task whose result is remembered the id is kept: by it the task is found.
Rule 3. Records without messages or results are dead once a checkpoint covers them.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qbroker.core import records as r
from qbroker.core.columns import column
from qbroker.core.state import BrokerState
from qprotocol import wire

Parts = tuple[int, Sequence[bytes]]
"""A record's type and body from now on."""


@dataclass(slots=True)
class Wanted:
    """Positions of one stretch of the log whose bytes may be asked for."""

    whole: set[int]
    """All of the message there; of a Settled the result or error; of a part also its lead."""
    names: set[int]
    """Of the message there, its id."""


class Live:
    """All positions whose bytes may be asked for, as of one state.

    Made in a second for ten million; holds 8 bytes for each that is delayed, and what waits
    as the state itself holds it: the state must not change.
    """

    def __init__(self, state: BrokerState) -> None:
        self._waiting = [
            (chunk, run.skipped)
            for lane in state.lanes
            for run in lane.runs
            for chunk in run.saved()[2]
        ]
        self._delayed = [column(sorted(each)) for each in state.timers.positions() if each]
        self._cancelled = state.cancelled
        self._others = column(sorted(set(others(state))))
        self._names = column(sorted(state.results.finished))

    def count(self, first: int, end: int) -> int:
        """About how many there are from ``first`` on, below ``end``; 0 only if there is none."""
        chunks = [chunk for chunk, _ in self._waiting]
        columns = (*chunks, *self._delayed, self._others, self._names)
        return sum(how_many(each, first, end) for each in columns)

    def between(self, first: int, end: int) -> Wanted:
        """Those from position ``first`` on, below ``end``. Costs a step a chunk, and each found."""
        whole = set(cut(self._others, first, end))
        for chunk, skipped in self._waiting:
            whole.update(set(cut(chunk, first, end)) - skipped)
        for each in self._delayed:
            whole.update(set(cut(each, first, end)) - self._cancelled)
        return Wanted(whole, set(cut(self._names, first, end)) - whole)


def cut(ascending: "array[int]", first: int, end: int) -> "array[int]":
    """What of the column is from ``first`` on and below ``end``."""
    if not ascending or ascending[-1] < first or ascending[0] >= end:
        return _NONE
    return ascending[bisect_left(ascending, first) : bisect_left(ascending, end)]


_NONE = array("Q")


def how_many(ascending: "array[int]", first: int, end: int) -> int:
    """The length of what ``cut`` gives."""
    if not ascending or ascending[-1] < first or ascending[0] >= end:
        return 0
    return bisect_left(ascending, end) - bisect_left(ascending, first)


def others(state: BrokerState) -> Iterator[int]:
    """Positions that are no entry of a chunk or a timer: handed out, parts, errors, results."""
    for lane in state.lanes:
        for run in lane.runs:
            for first, end in run.given:
                yield from range(first, end)
    yield from state.leases
    yield from state.quarantined
    yield from (each.error for each in state.attempts.values() if each.error)
    yield from (each.record for _, each in state.results.entries() if each.record)
    for parts in state.continued.values():
        yield from parts
    yield from state.graphs.wanted()
    for upload in state.uploads.values():
        for positions in upload.staged.values():
            yield from positions
        for positions in upload.timers.positions():
            yield from positions
        for parts in upload.continued.values():
            yield from parts
        if upload.graph:
            yield from upload.graph.wanted()


# What is left of a record.


def left_of(wanted: Wanted, position: int, count: int, number: int, body: bytes) -> Parts | None:
    """The type and body of the record from now on; None if nothing of it is wanted.

    ``count`` are its slots, ``number`` is its type. A record all of which is wanted stays.
    """
    slots = range(position, position + count)
    if not r.HAS_RAW.get(number):
        return None
    if wanted.whole.isdisjoint(slots) and wanted.names.isdisjoint(slots):
        return None
    if wanted.whole.issuperset(slots):
        return number, (body,)
    kept = reduced(wanted, position, opened(r.unpack(number, body)))
    return kept.TYPE, kept.parts()


def opened(record: r.Record) -> r.Kept:
    """A record with messages as if all of it had been kept."""
    if isinstance(record, r.Kept):
        return record
    if isinstance(record, r.Settled):
        batch, own, head, raw = record.follow_on, 1, record.result, record.follow_on.raw
    elif isinstance(record, r.PartStored):
        batch, own = record.batch, 0
        head, raw = batch.raw[: record.lead], batch.raw[record.lead :]
    else:
        assert isinstance(record, r.Published | r.LetterEdited), record
        batch, own, head, raw = record.batch, 0, b"", record.batch.raw
    return r.Kept(own, batch.count, [[0, batch.count]] if batch.count else [], head, raw)


def reduced(wanted: Wanted, position: int, record: r.Kept) -> r.Kept:
    """Only what is wanted of it."""
    first, at, raw = position + record.own, 0, record.messages
    pieces: list[bytes] = []
    runs: list[list[int]] = []
    for start, count in record.runs:
        for index in range(start, start + count):
            end = min(len(raw), at + 4 + int.from_bytes(raw[at : at + 4], "little"))
            where = first + index
            if where in wanted.whole or where in wanted.names:
                whole = where in wanted.whole
                pieces.append(raw[at:end] if whole else name_alone(raw[at:end]))
                if runs and sum(runs[-1]) == index:
                    runs[-1][1] += 1
                else:
                    runs.append([index, 1])
            at = end
    head = record.head if position in wanted.whole else b""
    return r.Kept(record.own, record.count, runs, head, b"".join(pieces))


def name_alone(raw: bytes) -> bytes:
    """The message without its body, meta and headers: enough to find it by its id."""
    size = wire.MESSAGE.size
    _, version, kind, priority, flags, due, expires, n_route, n_id, content, _, _ = (
        wire.MESSAGE.unpack_from(raw)
    )
    rest = raw[size : size + n_route + n_id]
    fixed = (version, kind, priority, flags, due, expires, n_route, n_id, content, 0, 0)
    return wire.MESSAGE.pack(size - 4 + len(rest), *fixed) + rest


def apply_kept(_state: BrokerState, position: int, _record: r.Kept) -> None:
    """Never: a start begins behind the last checkpoint, and cleaning ends before it."""
    raise AssertionError(f"the record at {position} was cleaned: it is no history to replay")
