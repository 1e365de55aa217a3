"""The walk over packed messages: what they are, where they go, what must be opened first.

The broker's whole look at a message. It reads the fixed part and cuts out route and id;
headers and body are never touched.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from qbroker.core import records as r
from qbroker.core.closing import free_numbers, lanes_open
from qbroker.core.keying import Keying, mark_of, note_dues, without
from qbroker.core.lanes import Lane, kind_of
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError, bad, too_large
from qbroker.core.shaping import Shape
from qbroker.core.state import BrokerState
from qbroker.core.weaving import Weaving, hold_back
from qprotocol import wire
from qprotocol.ids import minted_ms, pack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import meta_fields, unpack_meta, unpack_route
from qprotocol.names import check_queue_name
from qprotocol.options import dead_queue

_FIXED = wire.MESSAGE.size
_FIXED_REST = _FIXED - 4
_MINTED_BYTES = 16
ROUTED = -2
"""In the place of a lane's number: an exchange says where the message goes, see copying.py."""


@dataclass(slots=True)
class Survey:
    """What a walk over packed messages found, and the queues and lanes it needs first."""

    state: BrokerState
    now: Now
    opened: list[r.Record] = field(default_factory=list)
    planned: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Routes not yet known, to number and kind of the lane that will be opened."""
    planned_lanes: dict[tuple[str, str, bytes], int] = field(default_factory=dict)
    numbers: Iterator[int] | None = None  # for planned lanes
    homes: dict[int, str] = field(default_factory=dict)
    """Planned lanes, to the names of their queues."""
    planned_queues: dict[str, int] = field(default_factory=dict)
    relaxed: set[int] = field(default_factory=set)
    """Planned lanes of queues whose confirms wait for the kernel only."""
    synced: bool = False
    names: set[bytes] = field(default_factory=set)
    """Chosen ids seen so far."""
    replacing: int = -1
    """The position of a message whose id may be used again."""
    started: set[int] = field(default_factory=set)
    """Positions that an outcome before this one said to have begun, acks early."""
    following: bool = False
    """What is walked over follows on an outcome."""
    shape: Shape | None = None
    """What comes into queues whose options say something of it, if there are any."""
    count: int = 0
    """Messages walked over: copies are made later."""
    routed: bool = False
    """Whether one of them names an exchange."""
    shifted: bool = False
    """Whether message i of the chunk is not message i of the batch, for copies are."""
    staging: bool = False
    """It is a part of a publish: keys are looked at when all of it has come."""
    ending: int = 0
    """The position of a message that is over when these come."""
    keying: Keying | None = None
    """What keys of messages come to, if one has any."""
    weaving: Weaving | None = None
    """The graph that they are nodes of, if they are."""

    def walk(self, raw: bytes, at: int, end_max: int) -> r.MessageBatch:
        """The batch in ``raw[at:]``; the last message may end as late as ``end_max``.

        Raises RefusedError. Costs about a microsecond a message.
        """
        unpack, known, planned = wire.MESSAGE.unpack_from, self.state.routes, self.planned
        body_max, now_ms = self.state.settings.body_bytes_max, self.now.wall_ms
        offsets = array("I")
        batch = r.MessageBatch(raw=raw, offsets=offsets)
        runs, note = batch.runs, offsets.append
        minted: list[bytes] = []
        index, total, last_lane, last_priority, run = 0, len(raw), -1, 0, [0, 0, 0, 0]
        while at < total:
            if total - at < _FIXED:
                raise bad(index, f"only {total - at} bytes are left for it")
            size, version, kind, priority, flags, due, expires, n_route, n_id, _, n_meta, n_head = (
                unpack(raw, at)
            )
            start, end = at + _FIXED, at + 4 + size
            if end > end_max or size < _FIXED_REST + n_route + n_id + n_meta + n_head:
                raise bad(index, "its lengths disagree with the bytes that came")
            if size > body_max:
                raise too_large(index, size, body_max)
            route = raw[start : start + n_route]
            lane = known.get(route)
            if lane:
                number, due_kind = lane.number, lane.kind
            else:
                number, due_kind = planned.get(route) or self.plan(route, index)
            if version != 1 or kind != due_kind or not -100 <= priority <= 100:
                raise bad(index, f"version {version}, kind {kind} and priority {priority}")
            start += n_route
            if flags & wire.ID_MINTED:
                if n_id != _MINTED_BYTES:
                    raise bad(index, f"a minted id of {n_id} bytes")
                minted.append(raw[start : start + n_id])
            elif n_id:
                batch.named.append([index, raw[start : start + n_id]])
            if n_meta:
                meta = raw[start + n_id : start + n_id + n_meta]
                self.look_at_meta(batch, flags, route, raw[start : start + n_id], meta)
            if expires:
                batch.expiring.append([index, expires])
            due = due if due > now_ms else 0
            if number == last_lane and priority == last_priority and not due and not run[3]:
                run[2] += 1
            else:
                run = [number, priority, 1, due]
                runs.append(run)
                last_lane, last_priority = number, priority
            note(at)
            at, index = end, index + 1
        batch.count = index
        return self.checked(batch, minted)

    def look_at_meta(
        self, batch: r.MessageBatch, flags: int, route: bytes, raw_id: bytes, meta: bytes
    ) -> None:
        """What the next message of the batch says beside. Raises RefusedError."""
        assert batch.offsets is not None
        index = len(batch.offsets)
        fields = check_meta(index, flags, meta)
        if wire.NODE in fields:
            self.weaving = self.weaving or Weaving(self.state.settings)
            self.weaving.take(batch, index, fields, route)
        if fields and (index or self.replacing < 0):
            mark = mark_of(index, fields, route, flags, raw_id)
            batch.marks += [mark] if mark else []

    def keys(self) -> Keying:
        """What keys of messages come to; made on first use."""
        if self.keying is None:
            self.keying = Keying(self.state, self.now, following=self.following)
        self.keying.ending = self.ending
        return self.keying

    def keyed(self, batch: r.MessageBatch) -> r.MessageBatch:
        """The batch without messages that others stand for. Raises RefusedError."""
        keying = self.keys()
        keyed = keying.decide(batch.marks)
        self.synced = self.synced or keying.synced
        if keyed.dropped:
            return without(batch, keyed)
        batch.keyed, batch.marks = keyed, []
        return batch

    def redelays(self) -> list[r.Record]:
        """The record for messages that are due at another time now, if there are any."""
        return self.keying.redelays() if self.keying else []

    def checked(self, batch: r.MessageBatch, minted: list[bytes]) -> r.MessageBatch:
        """What is looked at once a batch; what there is to store of it. Raises RefusedError."""
        self.count += batch.count
        if batch.marks:
            note_dues(batch)
            batch = batch if self.staging else self.keyed(batch)
        self.check_dues(batch)
        self.settle_ids(batch, minted)
        self.note_queues(batch)
        if self.weaving and batch.count:  # a part may bring the middle of a message alone
            hold_back(batch)
        if not self.routed:
            self.fit(batch)
        return batch

    def fit(self, batch: r.MessageBatch) -> None:
        """The batch is as the options of its queues have it, and says who of it was cancelled
        before. Raises RefusedError.
        """
        notices = self.state.notices
        if notices.ids:
            batch.revoked = notices.met(batch, self.now, int(self.replacing >= 0))
        catalogue = self.state.catalogue
        if catalogue.shaped or (catalogue.policies and self.opened):
            self.shaped().take(batch)

    def shaped(self) -> Shape:
        """What comes into queues whose options say something of it; made on first use."""
        if self.shape is None:
            self.shape = Shape(self.state, self.now, self.homes, following=self.following)
        return self.shape

    def plan(self, route: bytes, index: int) -> tuple[int, int]:
        """Number and kind of the lane a new route leads to: it exists, or will be opened."""
        found = self.state.exchanges.resolved.get(route)
        if found is not None:
            self.routed = True
            place = self.planned[route] = ROUTED, found.kind
            return place
        try:
            exchange, key, task, keys = unpack_route(route)
            if not exchange:
                check_queue_name(key)
            wants = LaneKeys.unpack(keys)
        except ValueError as error:
            raise bad(index, str(error)) from error
        if exchange:
            if exchange not in self.state.exchanges.by_name:
                raise no_exchange(index, exchange)
            self.routed = True
            place = self.planned[route] = ROUTED, kind_of(task)
            return place
        self.check_weight(index, key, task, wants)
        lane = self.lane(key, task, keys)
        if isinstance(lane, Lane):
            self.state.routes[route] = lane
            return lane.number, lane.kind
        place = self.planned[route] = lane, kind_of(task)
        return place

    def place(self, route: bytes, index: int) -> tuple[int, int]:
        """Number and kind of the lane of a route without exchange that the state has not."""
        return self.planned.get(route) or self.plan(route, index)

    def lane(self, queue_name: str, task: str, keys: bytes, *, beyond: bool = False) -> Lane | int:
        """The lane, or the number it will have once ``opened`` is applied.

        ``beyond``: for dead letters, which no limit may leave without a place.
        """
        state = self.state
        queue = state.queues.get(queue_name)
        lane = queue.lane(task, keys) if queue else None
        if lane is not None:
            return lane
        planned = self.planned_lanes.get((queue_name, task, keys))
        if planned is not None:
            return planned
        number = queue.number if queue else self.queue(queue_name, beyond=beyond)
        there = lanes_open(state) - state.catalogue.gone_lanes + len(self.planned_lanes)
        if there >= state.settings.lanes_max and not beyond:
            raise limit("lanes_max", state.settings.lanes_max)
        self.numbers = self.numbers or free_numbers(state)
        lane_number = next(self.numbers)
        self.planned_lanes[queue_name, task, keys] = lane_number
        if not (queue.synced if queue else state.synced_by_name(queue_name)):
            self.relaxed.add(lane_number)
        self.homes[lane_number] = queue_name
        self.opened.append(r.LaneOpened(lane_number, number, task, keys))
        return lane_number

    def lane_beyond(self, queue_name: str, lane: Lane) -> int:
        """The number of the lane of that queue for messages of ``lane``, whatever the limits."""
        found = self.lane(queue_name, lane.task, lane.keys, beyond=True)
        return found.number if isinstance(found, Lane) else found

    def dead_lane(self, lane: Lane) -> int:
        """The number of the lane in which the dead letters of ``lane`` wait."""
        return self.lane_beyond(dead_queue(lane.queue.name, lane.queue.options), lane)

    def check_weight(self, index: int, queue_name: str, task: str, wants: LaneKeys) -> None:
        """Raise RefusedError for a message that a limit could never admit."""
        why = self.state.limits.refuses(queue_name, task, wants)
        if why:
            raise RefusedError(
                "NEVER_ADMITTED",
                f"message {index}: {why}; it would wait for ever: send it with a smaller weight, "
                "or have the limit raised",
                index=index,
            )

    def queue(self, name: str, *, beyond: bool = False) -> int:
        """The number of a queue that will be opened."""
        planned = self.planned_queues.get(name)
        if planned is not None:
            return planned
        number = len(self.state.numbered) + len(self.planned_queues)
        count = len(self.state.queues) + len(self.planned_queues)
        if count >= self.state.settings.queues_max and not beyond:
            raise limit("queues_max", self.state.settings.queues_max)
        self.planned_queues[name] = number
        self.opened.append(r.QueueOpened(number, name, {}))
        return number

    def queue_of(self, number: int) -> int:
        """The number of a lane's queue; either may be one that will be opened."""
        lane = self.state.lane_numbered(number)
        queue = lane.queue if lane else self.state.queues.get(self.homes[number])
        return queue.number if queue else self.planned_queues[self.homes[number]]

    def settle_ids(self, batch: r.MessageBatch, minted: list[bytes]) -> None:
        """Check chosen ids against live ones, and note the mint times of the others."""
        state = self.state
        if minted:
            batch.keys = minted_ms(min(minted)), minted_ms(max(minted))
        if not batch.named:
            return
        check_named(state, len(self.names) + len(batch.named))
        for index, name in batch.named:
            check_name(index, name)
            if name in self.names or state.named.get(name, self.replacing) != self.replacing:
                raise duplicate(index, name)
            self.names.add(name)

    def check_dues(self, batch: r.MessageBatch) -> None:
        """Check that nothing waits for longer than is allowed."""
        now_ms, index = self.now.wall_ms, 0
        for _, _, count, due_ms in batch.runs:
            if due_ms - now_ms > self.state.settings.delay_max_ms:
                raise bad(index, f"due in {due_ms - now_ms} ms, over delay_max_ms")
            index += count

    def note_queues(self, batch: r.MessageBatch) -> None:
        """Which queues are touched, and whether one of them wants stable storage."""
        known = self.state.lane_numbered
        for number, _, _, _ in batch.runs:
            if number == ROUTED:
                continue
            lane = known(number)
            if lane.queue.synced if lane else number not in self.relaxed:
                self.synced = True
                return


def id_of(raw: bytes, at: int = 0) -> bytes:
    """The id of the packed message at ``at``, as its bytes."""
    fixed = wire.MESSAGE.unpack_from(raw, at)
    start = at + _FIXED + fixed[7]
    return raw[start : start + fixed[8]]


def place_of(raw: bytes) -> tuple[str, str, bytes, int, int]:
    """Queue, task, keys, priority and due_ms of a packed message; its body may be missing.

    For what was taken in: its head was complete, and checked.
    """
    _, _, _, priority, _, due_ms, _, n_route, *_ = wire.MESSAGE.unpack_from(raw)
    _, queue, task, keys = unpack_route(raw[_FIXED : _FIXED + n_route])
    return queue, task, keys, priority, due_ms


def check_meta(index: int, flags: int, meta: bytes) -> dict[int, bytes]:
    """The meta fields. Raises RefusedError for what cannot be read, or is the broker's to say."""
    try:
        _, _, principal, _, behind = unpack_meta(meta)
        fields = meta_fields(behind) if flags & wire.MARKED else {}
    except ValueError as error:
        raise bad(index, str(error)) from error
    if principal:
        raise bad(index, f"the principal {principal!r}: that is for the broker to say")
    if wire.ORIGIN in fields:
        raise bad(index, "the meta field ORIGIN: that is for the broker to say")
    return fields


def check_name(index: int, name: bytes) -> None:
    """Raise RefusedError for a chosen id that is no text, or a minted one in its long form."""
    try:
        minted = pack_id(name.decode())[1]
    except ValueError as error:
        raise bad(index, f"its id is no text: {error}") from error
    if minted:
        raise bad(index, f"the id {name.decode()}: one like this travels as its 16 bytes")


def check_named(state: BrokerState, more: int) -> None:
    """Raise RefusedError if there is no room for so many chosen ids."""
    most = state.settings.named_ids_max
    if len(state.named) + more > most:
        raise limit("named_ids_max", most)


def duplicate(index: int, name: bytes) -> RefusedError:
    """A message with that chosen id is alive."""
    return RefusedError(
        "DUPLICATE_ID",
        f"message {index}: a message with the id {name.decode()!r} is still alive",
        index=index,
    )


def no_exchange(index: int, exchange: str) -> RefusedError:
    """A message names an exchange that is not there."""
    return RefusedError(
        "NO_EXCHANGE",
        f"message {index}: exchange {exchange!r} does not exist: declare it first",
        index=index,
    )


def limit(name: str, most: int) -> RefusedError:
    """A limit of the broker is reached."""
    return RefusedError("LIMIT_REACHED", f"{name} is {most} and reached: raise it or use less")
