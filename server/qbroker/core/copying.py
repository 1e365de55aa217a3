"""Messages with an exchange become one copy for each queue that its bindings lead to.

    | fixed | route: exchange, key, task, keys | id | meta | headers | body |
    | fixed | route: "", queue, task, keys     | id | meta + ORIGIN | headers | body |   each queue

Rule 1. A copy is a message like any other: its own position, lane, lease and end.
Rule 2. All of a chunk, copies and others, are one batch: all of it or nothing.
Rule 3. The order of a chunk holds within each queue. Between queues it does not, so copies for
        one queue lie side by side: neighbours are handed out, and kept, in runs.
"""

from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from qbroker.core import records as r
from qbroker.core.exchanges import Exchange
from qbroker.core.settings import ROUTED_BYTES_MAX, ROUTED_MESSAGES_MAX
from qbroker.core.survey import ROUTED, RefusedError, Survey, bad
from qprotocol import wire
from qprotocol.header import decode_map
from qprotocol.message import names_end, pack_fields, pack_origin, pack_route, unpack_route

_FIXED = wire.MESSAGE.size
_U16 = 0xFFFF
_NO_NAMES = bytes(4)
"""Root, parent, principal and trace context, all empty."""


class Found(NamedTuple):
    """What becomes of messages with one route."""

    exchange: Exchange
    routes: tuple[bytes, ...]
    """The packed routes of the copies, by queue."""
    origin: bytes
    """The meta field that every copy gets."""


class Entry(NamedTuple):
    """One message of the batch to be."""

    place: tuple[int, int]
    """Lane number, priority."""
    due_ms: int
    of: int
    """The number in its frame of the message it is a copy of, or itself."""
    raw: bytes


@dataclass(slots=True)
class Copies:
    """The batch to be, by queue."""

    survey: Survey
    source: r.MessageBatch
    by_queue: dict[bytes, list[Entry]] = field(default_factory=dict)
    counts: dict[Exchange, Counter[str]] = field(default_factory=dict)
    count: int = 0
    size: int = 0
    """Bytes."""

    def put(self, queue: bytes, entry: Entry) -> None:
        """The message is the last one for its queue. Raises RefusedError if all are too many."""
        self.by_queue.setdefault(queue, []).append(entry)
        self.count += 1
        self.size += len(entry.raw)
        if self.count > ROUTED_MESSAGES_MAX or self.size > ROUTED_BYTES_MAX:
            raise RefusedError(
                "BATCH_TOO_LARGE",
                f"the copies for all queues are over {ROUTED_MESSAGES_MAX} messages or "
                f"{ROUTED_BYTES_MAX} bytes: send fewer messages in a frame, or smaller ones",
            )

    def copy(self, index: int, start: int, end: int, priority: int, due_ms: int) -> None:
        """The message at ``start``, which names an exchange, for each queue of its."""
        raw, survey = self.source.raw, self.survey
        fixed = wire.MESSAGE.unpack_from(raw, start)
        _, version, kind, _, flags, due, expires, n_route, n_id, content, n_meta, n_head = fixed
        id_at = start + _FIXED + n_route
        meta_at = id_at + n_id
        head_at = meta_at + n_meta
        route = raw[start + _FIXED : id_at]
        found = self.found(route, index, raw[head_at : head_at + n_head])
        counts = self.counts.setdefault(found.exchange, Counter())
        counts["published"] += 1
        counts["routed"] += len(found.routes)
        if not found.routes:
            self.unroutable(found, route, index, flags)
            counts["dropped"] += 1
            return
        meta = with_origin(raw[meta_at:head_at], flags, found.origin)
        if len(meta) > _U16:
            raise bad(index, f"its meta has no room for its origin: {len(meta)} bytes")
        behind = b"".join((raw[id_at:meta_at], meta, raw[head_at:end]))
        size, marked, pack = _FIXED - 4 + len(behind), flags | wire.MARKED, wire.MESSAGE.pack
        for each in found.routes:
            n = len(each)
            head = pack(
                *(size + n, version, kind, priority, marked, due, expires),
                *(n, n_id, content, len(meta), n_head),
            )
            place = survey.place(each, index)[0], priority
            self.put(queue_in(each), Entry(place, due_ms, index, b"".join((head, each, behind))))

    def found(self, route: bytes, index: int, headers: bytes) -> Found:
        """What becomes of the message: as before, or looked for."""
        exchanges = self.survey.state.exchanges
        known = exchanges.resolved.get(route)
        if known is None and route in exchanges.resolved:
            known = exchanges.resolved.get((route, headers))
        if known is None:
            known = self.find(route, index, headers)
        found: Found = known
        return found

    def find(self, route: bytes, index: int, headers: bytes) -> Found:
        """Ask the bindings, and remember what they said."""
        exchanges = self.survey.state.exchanges
        name, key, task, keys = unpack_route(route)

        def decoded() -> dict[str, Any]:
            try:
                return user_headers(headers)
            except ValueError as error:
                raise bad(index, f"exchange {name!r} looks into headers: {error}") from error

        resolved = exchanges.resolve(exchanges.by_name[name], key, decoded)
        most = self.survey.state.settings.copies_max
        if len(resolved.queues) > most:
            raise RefusedError(
                "LIMIT_REACHED",
                f"message {index}: {len(resolved.queues)} queues are bound for exchange {name!r} "
                f"and key {key!r}: copies_max is {most}, raise it or bind fewer",
                index=index,
            )
        routes = tuple(pack_route("", queue, task, keys) for queue in resolved.queues)
        origin = pack_fields({wire.ORIGIN: pack_origin(name, key)})
        found = Found(resolved.exchange, routes, origin)
        if resolved.by_headers:
            exchanges.keep(route, None)
            exchanges.keep((route, headers), found)
        else:
            exchanges.keep(route, found)
        return found

    def unroutable(self, found: Found, route: bytes, index: int, flags: int) -> None:
        """Raise RefusedError if a message that no queue gets is an error."""
        exchange = found.exchange
        if flags & wire.MAY_DROP or exchange.options.unroutable == "drop":
            return
        key = unpack_route(route)[1]
        raise RefusedError(
            "NO_ROUTE",
            f"message {index}: no queue is bound for exchange {exchange.name!r} and key {key!r}: "
            "bind one, give the exchange an alternate, or say that such messages may be dropped",
            index=index,
            exchange=exchange.name,
            key=key,
        )

    def batch(self, last: bytes) -> r.MessageBatch:
        """All of it. What is for the queue ``last`` comes last: it goes on in the next part."""
        source = self.source
        starts = source.offsets
        assert starts is not None
        made = r.MessageBatch(offsets=starts[:0], keys=source.keys)
        assert made.offsets is not None
        expires = {row[0]: row[1] for row in source.expiring}
        firsts: dict[int, int] = {}
        lead = source.raw[: starts[0]] if starts else source.raw
        pieces, at, index, run = [lead], len(lead), 0, [-1, 0, 0, 1]
        if last in self.by_queue:
            self.by_queue[last] = self.by_queue.pop(last)
        for entries in self.by_queue.values():
            for place, due_ms, of, raw in entries:
                if place == (run[0], run[1]) and not due_ms and not run[3]:
                    run[2] += 1
                else:
                    run = [*place, 1, due_ms]
                    made.runs.append(run)
                firsts.setdefault(of, index)
                if of in expires:
                    made.expiring.append([index, expires[of]])
                made.offsets.append(at)
                pieces.append(raw)
                at, index = at + len(raw), index + 1
        made.named = [[firsts[of], name] for of, name in source.named if of in firsts]
        made.named.sort(key=itemgetter(0))
        made.raw, made.count = b"".join(pieces), index
        self.survey.shifted = index != source.count or list(firsts) != list(range(index))
        return made


def copies(survey: Survey, source: r.MessageBatch) -> r.MessageBatch:
    """The batch with copies in the place of messages that name an exchange. Raises RefusedError.

    The very batch if there are none. A chosen id is that of the first copy alone. Costs about
    2 µs a copy.
    """
    if not survey.routed:
        return source
    raw, starts = source.raw, source.offsets
    assert starts is not None
    made, last = Copies(survey, source), b""
    ends = [*starts[1:], len(raw)]
    goes_on = starts[-1] + 4 + wire.SIZE.unpack_from(raw, starts[-1])[0] > len(raw)
    places = [run for run in source.runs for _ in range(run[2])]
    for index, (start, end, (number, priority, _, due_ms)) in enumerate(
        zip(starts, ends, places, strict=True)
    ):
        if number != ROUTED:
            last = queue_in(raw, start + _FIXED)
            made.put(last, Entry((number, priority), due_ms, index, raw[start:end]))
        elif survey.replacing >= 0 and not index:
            raise RefusedError(
                "BAD_REQUEST", "a replacement with an exchange: it takes a place, name its queue"
            )
        else:
            made.copy(index, start, end, priority, due_ms)
    batch = made.batch(last if goes_on else b"")
    survey.note_queues(batch)
    if not batch.count:
        survey.synced = survey.synced or survey.state.synced
    for exchange, counts in made.counts.items():
        exchange.counts.update(counts)
        survey.state.exchanges.counts.update(counts)
    return batch


def queue_in(raw: bytes, at: int = 0) -> bytes:
    """The queue's name in the packed route at ``at``, which names no exchange."""
    return raw[at + 2 : at + 2 + raw[at + 1]]


def with_origin(meta: bytes, flags: int, origin: bytes) -> bytes:
    """The meta section with that field more. Bytes that are no fields are left out."""
    if not meta:
        return _NO_NAMES + origin
    return (meta if flags & wire.MARKED else meta[: names_end(meta)]) + origin


def user_headers(raw: bytes) -> dict[str, Any]:
    """What a message's sender gave as headers: the map under "user". Raises ValueError."""
    found = decode_map(raw).get("user") if raw else None
    return found if isinstance(found, dict) else {}
