"""Effects to bytes: the last step of a turn, where positions become messages."""

import json
from bisect import bisect_right
from dataclasses import dataclass, replace

from qbroker.bodies import Bodies, Cold, Damaged, Lost
from qbroker.core import effects as e
from qbroker.letterrows import leave_out, letters_need, letters_report
from qprotocol import wire
from qprotocol.causes import CAUSES, cause_of
from qprotocol.codec import encode, encode_in_parts
from qprotocol.failure import Failure
from qprotocol.frames import Deliver, Inputs, Peeked, Report, Result
from qprotocol.limits import FRAME_BYTES_MAX
from qprotocol.states import State

_DELIVER_ROOM = FRAME_BYTES_MAX - 256
"""Raw bytes that always fit into a Deliver beside its header."""


@dataclass(slots=True)
class Chunk:
    """Neighbouring messages of one record, as one slice."""

    first: int
    count: int
    raw: bytes


class Outgoing:
    """Builds frames. Raises Cold where a body is not in memory; nothing is changed then."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._pushes = 1 << 32
        """Correlation ids of pushes in parts: above those that clients count up from 1."""

    def frames(self, effect: e.Effect) -> list[bytes]:
        """The bytes of an effect, in pieces to be sent in order."""
        if isinstance(effect, e.Send):
            # Only a Settled can be so large: one that names very many lost positions.
            large = len(effect.frame.raw) > _DELIVER_ROOM
            return encode_in_parts(effect.frame) if large else [encode(effect.frame)]
        if isinstance(effect, e.Hand):
            return self._deliver(effect)
        if isinstance(effect, e.Tell):
            return self._tell(effect)
        if isinstance(effect, e.GiveInputs):
            return self._inputs(effect)
        if isinstance(effect, e.LettersShown):
            found = letters_report(self._bodies, effect)
            return encode_in_parts(report(found, effect.frame.correlation))
        assert isinstance(effect, e.Peeked)
        return self._peeked(effect)

    def leave_out(self, effect: e.Effect, damaged: Damaged) -> list[int]:
        """The effect does without what is damaged there; the messages that nobody gets for it.

        A message is damaged if any record is in which it begins or goes on. An error or a result
        is left out alone.
        """
        at = damaged.position
        if isinstance(effect, e.Tell):
            effect.entry = replace(effect.entry, record=0)
        elif isinstance(effect, e.GiveInputs):
            gone = e.Input(wire.LOST, 0, 0)
            effect.rows = [gone if row.record == at else row for row in effect.rows]
        elif isinstance(effect, e.LettersShown):
            leave_out(effect, at)
        elif isinstance(effect, e.Peeked):
            effect.rows = [
                (*row[:7], 0 if row[7] == at else row[7])
                for row in effect.rows
                if row[0] != at and at not in effect.continued.get(row[0], ())
            ]
        elif isinstance(effect, e.Hand):
            positions = [p for first, count in effect.runs for p in range(first, first + count)]
            lost = [p for p in positions if self._is_lost(p, effect.continued, damaged.lost)]
            keep_only(effect, [p for p in positions if p not in set(lost)], positions)
            return lost
        return []

    def _is_lost(self, position: int, continued: e.Continued, lost: Lost) -> bool:
        """Whether that loss is the message's."""
        for each in (position, *continued.get(position, ())):
            try:
                self._bodies.body(each)
            except Damaged as damaged:
                if damaged.lost == lost:
                    return True
            except Cold:
                continue
        return False

    def needs(self, effect: e.Effect) -> list[int]:
        """A position of every record whose bytes the effect will show."""
        if isinstance(effect, e.Hand):
            needed = [first for first, _ in effect.runs]
        elif isinstance(effect, e.GiveInputs):
            return [row.record for row in effect.rows if row.record]
        elif isinstance(effect, e.Tell):
            return [effect.entry.record] if effect.entry.record and effect.kept is None else []
        elif isinstance(effect, e.LettersShown):
            needed = letters_need(effect)
        elif isinstance(effect, e.Peeked):
            needed = [row[0] for row in effect.rows]
            needed += [row[7] for row in effect.rows if row[7]]
        else:
            return []
        for parts in effect.continued.values():
            needed += parts
        return needed

    def _deliver(self, hand: e.Hand) -> list[bytes]:
        if not hand.runs:
            return []
        chunks = [chunk for run in hand.runs for chunk in self._chunks(*run, hand.continued)]
        total = sum(len(chunk.raw) for chunk in chunks)
        fixed = wire.RUN.size * len(chunks) + wire.TOUCHED.size * len(hand.touched)
        if total + fixed <= _DELIVER_ROOM:
            return [encode(deliver_frame(hand, chunks, hand.touched))]
        return self._deliver_in_frames(hand, chunks)

    def _chunks(self, first: int, count: int, continued: e.Continued) -> list[Chunk]:
        """The messages of a position run, one chunk a record they are in."""
        out = []
        while count:
            body = self._bodies.body(first)
            index = first - body.first
            taken = min(count, body.count - index)
            starts = body.starts()
            last = index + taken == body.count
            end = len(body.raw) if last else starts[index + taken]
            raw = body.raw[starts[index] : end]
            if last and continued:
                raw += self._bodies.ends(continued.get(first + taken - 1))
            out.append(Chunk(first, taken, raw))
            first += taken
            count -= taken
        return out

    def _deliver_in_frames(self, hand: e.Hand, chunks: list[Chunk]) -> list[bytes]:
        """As many frames as it takes; a message too large for one goes alone, in parts."""
        touched = {row[0]: row for row in hand.touched}
        pieces: list[bytes] = []
        batch: list[Chunk] = []
        room, index, begun = _DELIVER_ROOM, 0, 0

        def flush() -> None:
            nonlocal batch, room, begun
            if batch:
                rows = [(i - begun, *touched[i][1:]) for i in range(begun, index) if i in touched]
                frame = deliver_frame(hand, batch, rows)
                if len(frame.raw) > _DELIVER_ROOM + 200:
                    self._pushes += 1
                    frame.correlation = self._pushes
                pieces.extend(encode_in_parts(frame))
            batch, room, begun = [], _DELIVER_ROOM, index

        overhead = wire.TOUCHED.size
        for chunk in chunks:
            for small in split(chunk):
                size = len(small.raw) + wire.RUN.size + overhead * small.count
                if size > room:
                    flush()
                batch.append(small)
                room -= size
                index += small.count
        flush()
        return pieces

    def _tell(self, tell: e.Tell) -> list[bytes]:
        entry = tell.entry
        raw = tell.kept or b""
        if entry.record and tell.kept is None:
            raw = self._bodies.head(entry.record)
        if not raw and entry.reason:
            is_revoked = entry.state is State.REVOKED
            kind = "Revoked" if is_revoked else CAUSES[cause_of(entry.reason)].kind
            raw = Failure(kind, entry.reason).pack()
        result = Result(
            id=tell.id,
            state=int(entry.state),
            position=tell.position,
            content=entry.content,
            failures=entry.failures,
            finished_ms=entry.finished_ms,
            run_ms=entry.run_ms,
            stored=bool(entry.record),
            noticed_until_ms=entry.keep_until_ms if entry.state is State.UNKNOWN else 0,
            raw=raw,
            correlation=tell.correlation,
        )
        return encode_in_parts(result)

    def _inputs(self, give: e.GiveInputs) -> list[bytes]:
        out = []
        for state, content, record in give.rows:
            raw = self._bodies.head(record) if record else b""
            out.append(wire.INPUT.pack(state, content, len(raw)) + raw)
        frame = Inputs(
            position=give.position,
            grant=give.grant,
            total=give.total,
            first=give.first,
            count=len(out),
            raw=b"".join(out),
            correlation=give.correlation,
        )
        if not frame.correlation and len(frame.raw) > _DELIVER_ROOM:
            self._pushes += 1
            frame.correlation = self._pushes
        return encode_in_parts(frame)

    def _peeked(self, peeked: e.Peeked) -> list[bytes]:
        out = []
        for position, due, deliveries, failures, crashes, state, reason, error in peeked.rows:
            raw = self._bodies.message(position, peeked.continued.get(position))
            failure = self._bodies.head(error) if error else b""
            why = reason.encode()
            out.append(
                wire.PEEKED.pack(
                    position, due, deliveries, failures, crashes, state, len(why), len(failure)
                )
                + why
                + failure
                + raw
            )
        frame = Peeked(count=len(out), raw=b"".join(out), correlation=peeked.correlation)
        return encode_in_parts(frame)


def keep_only(hand: e.Hand, kept: list[int], positions: list[int]) -> None:
    """The delivery is of these messages alone, of those it was of."""
    index = {position: at for at, position in enumerate(kept)}
    hand.touched = [
        (index[positions[row[0]]], *row[1:]) for row in hand.touched if positions[row[0]] in index
    ]
    hand.runs = []
    for position in kept:
        if hand.runs and sum(hand.runs[-1]) == position:
            hand.runs[-1] = hand.runs[-1][0], hand.runs[-1][1] + 1
        else:
            hand.runs.append((position, 1))


def deliver_frame(
    hand: e.Hand, chunks: list[Chunk], touched: list[tuple[int, int, int, int]]
) -> Deliver:
    """One Deliver of these messages."""
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and runs[-1][0] + runs[-1][1] == chunk.first:
            runs[-1] = runs[-1][0], runs[-1][1] + chunk.count
        else:
            runs.append((chunk.first, chunk.count))
    parts = [wire.RUN.pack(*run) for run in runs]
    parts += [wire.TOUCHED.pack(*row) for row in touched]
    parts += [chunk.raw for chunk in chunks]
    return Deliver(
        subscription=hand.subscription,
        grant=hand.grant,
        count=sum(count for _, count in runs),
        runs=len(runs),
        touched=len(touched),
        raw=b"".join(parts),
    )


def split(chunk: Chunk) -> list[Chunk]:
    """The chunk in pieces that each fit into a frame, or are a single message."""
    most = _DELIVER_ROOM - 64
    if len(chunk.raw) + wire.TOUCHED.size * chunk.count <= most or chunk.count == 1:
        return [chunk]
    starts, at = [], 0
    for _ in range(chunk.count):
        starts.append(at)
        at += 4 + int.from_bytes(chunk.raw[at : at + 4], "little")
    starts.append(len(chunk.raw))
    out, index = [], 0
    while index < chunk.count:
        fits = bisect_right(starts, starts[index] + most // 2) - 1
        end = max(index + 1, min(fits, chunk.count))
        out.append(Chunk(chunk.first + index, end - index, chunk.raw[starts[index] : starts[end]]))
        index = end
    return out


def report(content: object, correlation: int) -> Report:
    """A Report of ``content`` as JSON."""
    return Report(raw=as_json(content).encode(), correlation=correlation)


def as_json(content: object) -> str:
    """As Reports have it."""
    return json.dumps(content, separators=(",", ":"))
