"""Messages with an exchange become one copy for each queue that its bindings lead to.

    | fixed | route: exchange, key, task, keys | id | meta | headers | body |
    | fixed | route: "", queue, task, keys     | id | meta + ORIGIN | headers | body |   each queue

Rule 1. A copy is a message like any other: its own position, lane, lease and end.
Rule 2. All of a chunk, copies and others, are one batch: all of it or nothing.
Rule 3. The order of a chunk holds within each queue. Between queues it does not, so copies for
        one queue lie side by side: neighbours are handed out, and kept, in runs.
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from qbroker.core import records as r
from qbroker.core.exchanges import Exchange
from qbroker.core.keying import NOWHERE
from qbroker.core.lanes import kind_of
from qbroker.core.refusals import RefusedError, bad
from qbroker.core.settings import ROUTED_BYTES_MAX, ROUTED_MESSAGES_MAX
from qbroker.core.survey import ROUTED, Survey
from qprotocol import wire
from qprotocol.header import decode_map
from qprotocol.message import (
    NO_NAMES,
    names_end,
    pack_fields,
    pack_origin,
    pack_route,
    unpack_route,
)

_FIXED = wire.MESSAGE.size
_U16 = 0xFFFF
_CHECK_EVERY = 50
"""Messages after which is looked whether their copies are too many."""
_size = wire.SIZE.pack


@dataclass(slots=True)
class Found:
    """What becomes of messages with one route. Kept as long as no binding changes."""

    exchange: Exchange
    routes: tuple[tuple[bytes, bytes], ...]
    """The queue and the packed route of each copy."""
    origin: bytes
    """The meta field that every copy gets."""
    kind: int
    """Of messages with the route: a task's call, or plain."""
    by_headers: bool
    """Whether it depends on a message's headers, too."""


@dataclass(slots=True, eq=False)
class Recipe:
    """How messages with the same head are copied. Kept as long as no binding changes."""

    exchange: Exchange
    copies: list[tuple[bytes, bytes, bytes]]
    """Head without its size, route and queue of each."""
    meta: bytes
    """What stands between id and headers; with no id it is in the heads already."""


Entry = tuple[bytes, bytes, int, int, int, int]
"""A message of the batch to be: its bytes behind the size, in two pieces; lane number, priority,
due_ms, and the number in its frame of the message that it is, or is a copy of."""


@dataclass(slots=True)
class Copies:
    """The batch to be, by queue."""

    survey: Survey
    source: r.MessageBatch
    queues: dict[bytes, list[Entry]] = field(default_factory=dict)
    used: list[Recipe] = field(default_factory=list)
    """One for each message that names an exchange."""

    def put(self, index: int, raw: bytes, run: list[int]) -> bytes:
        """The message, which names no exchange, is one for its queue. The queue."""
        queue = queue_in(raw, _FIXED)
        entry = raw[4:], b"", run[0], run[1], run[3], index
        self.queues.setdefault(queue, []).append(entry)
        return queue

    def copy(self, first: int, run: list[int], ends: list[int]) -> None:
        """The messages of a run, the first of that number, for each queue of theirs."""
        raw, queues, used = self.source.raw, self.queues, self.used
        starts, unpack = self.source.offsets, wire.MESSAGE.unpack_from
        state, place = self.survey.state, self.survey.place
        kept, lanes = state.exchanges.recipes, state.routes
        _, priority, count, due_ms = run
        assert starts is not None
        for index in range(first, first + count):
            start = starts[index]
            fixed = unpack(raw, start)
            id_at = start + _FIXED + fixed[7]
            head = raw[start + 4 : id_at]
            recipe: Recipe = kept.get(head) or self.recipe(index, fixed, head, id_at)
            if not recipe.copies:
                unroutable(recipe.exchange, head, index, fixed[4])
            used.append(recipe)
            rest = raw[id_at + fixed[8] + fixed[10] : ends[index]]
            if fixed[8]:
                rest = raw[id_at : id_at + fixed[8]] + recipe.meta + rest
            for packed, route, queue in recipe.copies:
                lane = lanes.get(route)
                number = lane.number if lane else place(route, index)[0]
                entry = packed, rest, number, priority, due_ms, index
                entries = queues.get(queue)
                if entries is None:
                    queues[queue] = [entry]
                else:
                    entries.append(entry)
            if not len(used) % _CHECK_EVERY:
                self.check()

    def recipe(self, index: int, fixed: tuple[int, ...], head: bytes, id_at: int) -> Recipe:
        """How messages like this one are copied; kept, if more of them may come."""
        meta_at = id_at + fixed[8]
        head_at = meta_at + fixed[10]
        meta = self.source.raw[meta_at:head_at]
        headers = self.source.raw[head_at : head_at + fixed[11]]
        found = self.found(head[_FIXED - 4 :], index, headers)
        is_bare = not (fixed[5] or fixed[6] or meta or found.by_headers)
        meta = with_origin(meta, fixed[4], found.origin)
        recipe = Recipe(found.exchange, heads(index, found, fixed, meta), meta)
        if is_bare:
            self.survey.state.exchanges.keep_recipe(head, recipe)
        return recipe

    def found(self, route: bytes, index: int, headers: bytes) -> Found:
        """What becomes of the message: as before, or looked for."""
        resolved = self.survey.state.exchanges.resolved
        known: Found | None = resolved.get(route)
        if known is not None and known.by_headers:
            known = resolved.get((route, headers))
        return self.find(route, index, headers) if known is None else known

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
        routes = tuple(
            (queue.encode(), pack_route("", queue, task, keys)) for queue in resolved.queues
        )
        origin = pack_fields({wire.ORIGIN: pack_origin(name, key)})
        by_headers = resolved.by_headers
        found = Found(resolved.exchange, routes, origin, kind_of(task), by_headers)
        exchanges.keep(route, found)
        if by_headers:
            exchanges.keep((route, headers), found)
        return found

    def batch(self, last: bytes) -> r.MessageBatch:
        """All of it. What is for the queue ``last`` comes last: it goes on in the next part."""
        source, starts = self.source, array("I")
        assert source.offsets is not None
        made = r.MessageBatch(offsets=starts, keys=source.keys)
        pieces, of = [source.raw[: source.offsets[0]]], list[int]()
        at = len(pieces[0])
        if last:
            self.queues[last] = self.queues.pop(last)
        for entries in self.queues.values():
            run = [-1, 0, 0, 1]
            for packed, rest, number, priority, due_ms, index in entries:
                more = len(packed) + len(rest)
                pieces += (_size(more), packed, rest)
                starts.append(at)
                of.append(index)
                at += 4 + more
                if number == run[0] and priority == run[1] and not due_ms and not run[3]:
                    run[2] += 1
                else:
                    run = [number, priority, 1, due_ms]
                    made.runs.append(run)
        if last:
            begins = source.offsets[-1]
            pieces[-3] = source.raw[begins : begins + 4]  # its own size, not what has come of it
        if at > ROUTED_BYTES_MAX:
            raise too_many()
        made.raw, made.count = b"".join(pieces), len(of)
        self.note_marks(made, of)
        return made

    def note_marks(self, made: r.MessageBatch, of: list[int]) -> None:
        """What expires, whose id was chosen, and whether positions are those of the frame."""
        source = self.source
        made.keyed = source.keyed
        if source.expiring:
            expires = {row[0]: row[1] for row in source.expiring}
            made.expiring = [[i, expires[each]] for i, each in enumerate(of) if each in expires]
        if source.named:
            firsts = {each: i for i, each in reversed(list(enumerate(of)))}
            named = [[firsts[each], name] for each, name in source.named if each in firsts]
            made.named = sorted(named, key=itemgetter(0))
        if source.keyed or source.marks:
            self.note_keys(made, of)
        self.survey.shifted = of != list(range(source.count))

    def note_keys(self, made: r.MessageBatch, of: list[int]) -> None:
        """A key is that of the message's first copy; of none if there is no copy."""
        source, places = self.source, dict[int, list[int]]()
        for i, each in enumerate(of):
            places.setdefault(each, []).append(i)
        if made.keyed:
            places[NOWHERE] = [NOWHERE]
            rows = [row for row in made.keyed.taken if row[0] in places]
            made.keyed.taken = [[places[row[0]][0], *row[1:]] for row in rows]
        for mark in source.marks:
            if mark.index in places:
                mark.index, *others = places[mark.index]
                mark.others = tuple(others)
                made.marks.append(mark)

    def note_counts(self) -> None:
        """All of it is taken in: the exchanges have counted it."""
        total = self.survey.state.exchanges.counts
        for recipe, uses in Counter(self.used).items():
            for counts in (recipe.exchange.counts, total):
                counts["published"] += uses
                if recipe.copies:
                    counts["routed"] += len(recipe.copies) * uses
                else:
                    counts["dropped"] += uses

    def check(self) -> None:
        """Raise RefusedError if these are more than a record may hold, or a turn has time for."""
        if sum(map(len, self.queues.values())) > ROUTED_MESSAGES_MAX:
            raise too_many()


def too_many() -> RefusedError:
    """The refusal of a frame that becomes too much."""
    return RefusedError(
        "BATCH_TOO_LARGE",
        f"the copies for all queues are over {ROUTED_MESSAGES_MAX} messages or "
        f"{ROUTED_BYTES_MAX} bytes: send fewer messages in a frame, or smaller ones",
    )


def copies(survey: Survey, source: r.MessageBatch) -> r.MessageBatch:
    """The batch with copies in the place of messages that name an exchange. Raises RefusedError.

    The very batch if there are none. A chosen id is that of the first copy alone. Costs about
    a microsecond a copy.
    """
    if not survey.routed or not source.count:
        return source
    raw, starts = source.raw, source.offsets
    assert starts is not None
    made, last, first = Copies(survey, source), b"", 0
    ends = [*starts[1:], len(raw)]
    if survey.replacing >= 0 and source.runs[0][0] == ROUTED:
        raise RefusedError(
            "BAD_REQUEST", "a replacement with an exchange: it takes a place, name its queue"
        )
    for run in source.runs:
        if run[0] == ROUTED:
            made.copy(first, run, ends)
        else:
            for index in range(first, first + run[2]):
                last = made.put(index, raw[starts[index] : ends[index]], run)
        first += run[2]
    made.check()
    goes_on = starts[-1] + 4 + wire.SIZE.unpack_from(raw, starts[-1])[0] > len(raw)
    batch = made.batch(last if goes_on else b"")
    survey.note_queues(batch)
    survey.fit(batch)
    if not batch.count:
        survey.synced = survey.synced or survey.state.synced
    made.note_counts()
    return batch


def heads(
    index: int, found: Found, fixed: tuple[int, ...], meta: bytes
) -> list[tuple[bytes, bytes, bytes]]:
    """Of each copy the fixed part, without the size, and its route; then route and queue.

    With no id the meta section is behind.
    """
    _, version, kind, priority, flags, due, expires, _, n_id, content, _, n_head = fixed
    flags, n_meta = flags | wire.MARKED, len(meta)
    if n_meta > _U16:
        raise bad(index, f"its meta has no room for its origin: {n_meta} bytes")
    out = []
    for queue, route in found.routes:
        n = len(route)
        head = wire.MESSAGE.pack(
            *(0, version, kind, priority, flags, due, expires, n, n_id, content, n_meta, n_head)
        )
        out.append((b"".join((head[4:], route, b"" if n_id else meta)), route, queue))
    return out


def unroutable(exchange: Exchange, head: bytes, index: int, flags: int) -> None:
    """Raise RefusedError if a message that no queue gets is an error."""
    if flags & wire.MAY_DROP or exchange.options.unroutable == "drop":
        return
    key = unpack_route(head[_FIXED - 4 :])[1]
    raise RefusedError(
        "NO_ROUTE",
        f"message {index}: no queue is bound for exchange {exchange.name!r} and key {key!r}: "
        "bind one, give the exchange an alternate, or say that such messages may be dropped",
        index=index,
        exchange=exchange.name,
        key=key,
    )


def queue_in(raw: bytes, at: int = 0) -> bytes:
    """The queue's name in the packed route at ``at``, which names no exchange."""
    return raw[at + 2 : at + 2 + raw[at + 1]]


def with_origin(meta: bytes, flags: int, origin: bytes) -> bytes:
    """The meta section with that field more. Bytes that are no fields are left out."""
    if not meta:
        return NO_NAMES + origin
    return (meta if flags & wire.MARKED else meta[: names_end(meta)]) + origin


def user_headers(raw: bytes) -> dict[str, Any]:
    """What a message's sender gave as headers: the map under "user". Raises ValueError."""
    found = decode_map(raw).get("user") if raw else None
    return found if isinstance(found, dict) else {}
