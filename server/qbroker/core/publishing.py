"""Messages in: the walk over packed messages, chunks and their producers, parts.

A publish is all or nothing. One in parts is staged as it arrives, in the log and in an
Upload, and becomes true with the Publish that ends it.
"""

from array import array
from dataclasses import dataclass, field

from qprotocol import wire
from qprotocol.errors import Refused
from qprotocol.frames import Part, Publish, Published
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX, PRODUCER_WINDOW
from qprotocol.message import unpack_route
from qprotocol.names import check_queue_name
from qprotocol.options import QueueOptions

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.moment import Now
from qbroker.core.queues import Lane
from qbroker.core.state import BrokerState, Producer, Upload

_FIXED = wire.MESSAGE.size
_FIXED_REST = _FIXED - 4
_MINTED_BYTES = 16
_DELAY_MARGIN_MS = 50
"""A message due sooner than this is ready now: not worth a timer."""


class RefusedError(Exception):
    """Raised inside the walk; ``decide`` turns it into an answer."""

    def __init__(self, code: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.refused = Refused(code, message, details=details)


@dataclass(slots=True)
class Survey:
    """What a walk over packed messages found, and the queues and lanes it needs first."""

    state: BrokerState
    now: Now
    opened: list[r.Record] = field(default_factory=list)
    planned: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    """Routes not yet known, to the number and queue name of the lane that will be opened."""
    planned_lanes: dict[tuple[str, str, bytes], int] = field(default_factory=dict)
    planned_queues: dict[str, int] = field(default_factory=dict)
    synced: bool = False
    names: set[bytes] = field(default_factory=set)
    """Chosen ids seen so far."""
    replacing: int = -1
    """The position of a message whose id may be used again."""

    def walk(self, raw: bytes, at: int, end_max: int) -> r.MessageBatch:
        """The batch in ``raw[at:]``; the last message may end as late as ``end_max``.

        Raises RefusedError. Costs about a microsecond a message.
        """
        state, now = self.state, self.now
        unpack, known, planned = wire.MESSAGE.unpack_from, state.routes, self.planned
        body_max, soon = state.settings.body_bytes_max, now.wall_ms + _DELAY_MARGIN_MS
        offsets = array("I")
        batch = r.MessageBatch(raw=raw, offsets=offsets)
        runs, note = batch.runs, offsets.append
        low, high = b"\xff", b""
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
            if version != wire.ENVELOPE_VERSION or kind > wire.KIND_TASK:
                raise bad(index, f"envelope version {version}, kind {kind}")
            if not -100 <= priority <= 100:
                raise bad(index, f"priority {priority}: from -100 to 100")
            if size > body_max:
                raise too_large(index, size, body_max)
            route = raw[start : start + n_route]
            lane = known.get(route)
            number = lane.number if lane else (planned.get(route) or self.plan(route, index))[0]
            if n_id:
                name = raw[start + n_route : start + n_route + n_id]
                if flags & wire.ID_MINTED:
                    if n_id != _MINTED_BYTES:
                        raise bad(index, f"a minted id of {n_id} bytes")
                    if name < low:
                        low = name
                    if name > high:
                        high = name
                else:
                    batch.named.append([index, name])
            if expires:
                batch.expiring.append([index, expires])
            if due <= soon:
                due = 0
            elif due > now.wall_ms + state.settings.delay_max_ms:
                raise bad(index, f"due in {due - now.wall_ms} ms, over delay_max_ms")
            if number == last_lane and priority == last_priority and not due and not run[3]:
                run[2] += 1
            else:
                run = [number, priority, 1, due]
                runs.append(run)
                last_lane, last_priority = number, priority
            note(at)
            at = end
            index += 1
        batch.count = index
        self.settle_ids(batch, low, high)
        self.note_queues(batch)
        return batch

    def plan(self, route: bytes, index: int) -> tuple[int, str]:
        """The lane a new route leads to: an existing one, or one that will be opened."""
        try:
            exchange, key, task, keys = unpack_route(route)
            if exchange:
                raise RefusedError("NO_EXCHANGE", f"exchange {exchange!r} does not exist")
            check_queue_name(key)
        except ValueError as error:
            raise bad(index, str(error)) from error
        lane = self.lane(key, task, keys)
        if isinstance(lane, Lane):
            self.state.routes[route] = lane
            found = lane.number, key
        else:
            found = lane, key
            self.planned[route] = found
        return found

    def lane(self, queue_name: str, task: str, keys: bytes) -> Lane | int:
        """The lane, or the number it will have once ``opened`` is applied."""
        state = self.state
        queue = state.queues.get(queue_name)
        if queue is not None:
            lane = state.lane_of.get((queue.number, task, keys))
            if lane is not None:
                return lane
        planned = self.planned_lanes.get((queue_name, task, keys))
        if planned is not None:
            return planned
        number = queue.number if queue else self.queue(queue_name)
        lane_number = len(state.lanes) + len(self.planned_lanes)
        if lane_number >= state.settings.lanes_max:
            raise limit("lanes_max", state.settings.lanes_max)
        self.planned_lanes[queue_name, task, keys] = lane_number
        self.opened.append(r.LaneOpened(lane_number, number, task, keys))
        return lane_number

    def queue(self, name: str) -> int:
        """The number of a queue that will be opened."""
        planned = self.planned_queues.get(name)
        if planned is not None:
            return planned
        number = len(self.state.queues) + len(self.planned_queues)
        if number >= self.state.settings.queues_max:
            raise limit("queues_max", self.state.settings.queues_max)
        self.planned_queues[name] = number
        self.opened.append(r.QueueOpened(number, name, QueueOptions().as_dict()))
        return number

    def settle_ids(self, batch: r.MessageBatch, low: bytes, high: bytes) -> None:
        """Check chosen ids against live ones, and note the mint times of the others."""
        state = self.state
        if high:
            batch.keys = int.from_bytes(low[:6], "big"), int.from_bytes(high[:6], "big")
        if not batch.named:
            return
        if len(state.named) + len(batch.named) > state.settings.named_ids_max:
            raise limit("named_ids_max", state.settings.named_ids_max)
        for index, name in batch.named:
            if name in self.names or state.named.get(name, self.replacing) != self.replacing:
                raise RefusedError(
                    "DUPLICATE_ID",
                    f"message {index}: a message with the id {name.decode(errors='replace')!r} "
                    "is still alive",
                    index=index,
                )
            self.names.add(name)

    def note_queues(self, batch: r.MessageBatch) -> None:
        """Which queues are touched, and whether one of them wants stable storage."""
        lanes, default = self.state.lanes, self.state.settings.fsync == "always"
        for number, _, _count, _ in batch.runs:
            if number < len(lanes):
                self.synced = self.synced or lanes[number].queue.synced
            else:
                self.synced = self.synced or default


def bad(index: int, why: str) -> RefusedError:
    """A message breaks the envelope's format."""
    return RefusedError("BAD_MESSAGE", f"message {index}: {why}", index=index)


def too_large(index: int, size: int, most: int) -> RefusedError:
    """A message is over body_bytes_max."""
    return RefusedError(
        "BODY_TOO_LARGE",
        f"message {index} has {size} bytes: body_bytes_max is {most}; "
        "store the data elsewhere and send its address, or raise the limit",
        index=index,
    )


def limit(name: str, most: int) -> RefusedError:
    """A limit of the broker is reached."""
    return RefusedError("LIMIT_REACHED", f"{name} is {most} and reached: raise it or use less")


def seen_before(state: BrokerState, producer: int, sequence: int) -> bool:
    """Whether the chunk is in. Raises RefusedError if it is too old to tell."""
    known = state.producers.get(producer)
    if known is None or sequence > known.highest:
        return False
    if known.highest - sequence >= PRODUCER_WINDOW:
        raise RefusedError(
            "SEQUENCE_TOO_OLD",
            f"chunk {sequence} is {known.highest - sequence} behind the newest of its producer: "
            f"the last {PRODUCER_WINDOW} are remembered, so nobody can tell if it was done",
        )
    return bool(known.window >> (known.highest - sequence) & 1)


def decide_publish(state: BrokerState, now: Now, connection: int, frame: Publish) -> Decision:
    """Records that make the chunk true, or the answer that it is so already."""
    key = connection, frame.correlation
    upload = state.uploads.get(key)
    if seen_before(state, frame.producer, frame.sequence):
        state.duplicates += 1
        state.uploads.pop(key, None)
        durability = "synced" if state.settings.fsync == "always" else "written"
        return Decision(
            reply=Published(first=0, count=frame.count, durability=durability, duplicate=True)
        )
    survey = Survey(state, now)
    if upload is not None:
        stored = piece(survey, upload, connection, frame.correlation, frame.raw)
        if upload.tail or upload.lacking:
            raise RefusedError("BAD_MESSAGE", "the parts end inside a message")
        count = upload.count + stored.batch.count
        commit = r.PartsCommitted(*key, frame.producer, frame.sequence, now.wall_ms)
        records = [*survey.opened, stored, commit]
        synced = survey.synced or upload.synced
    else:
        if frame.count > MESSAGES_PER_FRAME_MAX:
            raise RefusedError(
                "BATCH_TOO_LARGE",
                f"{frame.count} messages in a frame: at most {MESSAGES_PER_FRAME_MAX}",
            )
        batch = survey.walk(frame.raw, 0, len(frame.raw))
        count, synced = batch.count, survey.synced
        published = r.Published(frame.producer, frame.sequence, now.wall_ms, batch)
        records = [*survey.opened, published]
    if count != frame.count or not count:
        raise RefusedError("BAD_MESSAGE", f"{count} messages where {frame.count} were announced")
    durability = "synced" if synced else "written"
    reply = Published(first=0, count=count, durability=durability)
    return Decision(records, reply, synced=synced, positioned=upload is None)


def decide_part(state: BrokerState, now: Now, connection: int, frame: Part) -> Decision:
    """Stage a piece of a publish in the log; keep a piece of anything else in memory."""
    key = connection, frame.correlation
    if frame.of != Publish.TYPE:
        keep_piece(state, key, frame)
        return Decision()
    if frame.index == 0:
        state.uploads[key] = Upload()
    upload = state.uploads.get(key)
    if upload is None:
        return Decision()  # refused before: the Publish that ends it says so
    survey = Survey(state, now)
    try:
        stored = piece(survey, upload, connection, frame.correlation, frame.raw)
        most = state.settings
        if upload.parts + len(frame.raw) > most.upload_bytes_max:
            raise RefusedError("BATCH_TOO_LARGE", f"upload_bytes_max is {most.upload_bytes_max}")
        if upload.count + stored.batch.count > most.upload_messages_max:
            raise RefusedError(
                "BATCH_TOO_LARGE", f"upload_messages_max is {most.upload_messages_max}"
            )
    except RefusedError:
        del state.uploads[key]
        raise
    upload.synced = upload.synced or survey.synced
    return Decision([*survey.opened, stored], synced=False)


def keep_piece(state: BrokerState, key: tuple[int, int], frame: Part) -> None:
    """Keep a part of a settlement until its frame comes. After a refusal the rest is dropped."""
    if frame.index == 0:
        state.pieces[key] = []
    kept = state.pieces.get(key)
    if kept is None:
        return
    kept.append(frame.raw)
    most = state.settings.result_bytes_max
    if sum(map(len, kept)) > most + FRAME_BYTES_MAX:
        del state.pieces[key]
        raise RefusedError("BODY_TOO_LARGE", f"a settlement in parts: result_bytes_max is {most}")


def piece(
    survey: Survey, upload: Upload, connection: int, correlation: int, raw: bytes
) -> r.PartStored:
    """The record for one more piece. Cuts it where a message's head is not complete yet."""
    raw = upload.tail + raw
    lead = min(upload.lacking, len(raw))
    upload.tail = b""
    cut, lacking = lead, upload.lacking - lead
    while cut < len(raw):
        if len(raw) - cut < _FIXED:
            break
        size, *_, n_route, n_id, _, n_meta, n_head = wire.MESSAGE.unpack_from(raw, cut)
        if size > survey.state.settings.body_bytes_max:
            raise too_large(upload.count, size, survey.state.settings.body_bytes_max)
        if len(raw) - cut < _FIXED + n_route + n_id + n_meta + n_head:
            break
        end = cut + 4 + size
        lacking = max(0, end - len(raw))
        cut = min(end, len(raw))
    upload.tail, raw = raw[cut:], raw[:cut]
    batch = survey.walk(raw, lead, cut + lacking)
    upload.lacking = lacking
    return r.PartStored(connection, correlation, lead, batch)


# What the records do.


def apply_messages(
    state: BrokerState, first: int, batch: r.MessageBatch, *, count_as: str = "published"
) -> None:
    """Messages wait, from position ``first`` on."""
    lanes, at = state.lanes, first
    for number, priority, count, due_ms in batch.runs:
        lane = lanes[number]
        run = lane.runs.get(priority) or lane.run(priority)
        if due_ms:
            state.later(run, at, due_ms)
        else:
            state.ready(run, at, count)
        lane.queue.counts[count_as] += count
        at += count
    if batch.expiring:
        places = spread(batch)
        for index, expires_ms in batch.expiring:
            number, priority, due_ms = places[index]
            state.expiries.push(expires_ms, first + index, lanes[number].run(priority).number)
            if due_ms:
                state.delayed.add(first + index)
    for index, name in batch.named:
        state.named[name] = first + index
        state.names[first + index] = name


def spread(batch: r.MessageBatch) -> list[tuple[int, int, int]]:
    """(lane number, priority, due_ms or 0) of each message."""
    return [(run[0], run[1], run[3]) for run in batch.runs for _ in range(run[2])]


def apply_published(state: BrokerState, position: int, record: r.Published) -> None:
    """The chunk is in: its messages wait, its producer has sent it."""
    apply_messages(state, position, record.batch)
    note_chunk(state, record.producer, record.sequence, record.wall_ms)


def note_chunk(state: BrokerState, producer: int, sequence: int, wall_ms: int) -> None:
    """Remember that the chunk is in."""
    if not producer:
        return
    known = state.producers.get(producer)
    if known is None:
        known = state.producers[producer] = Producer()
    known.seen_ms = wall_ms
    ahead = sequence - known.highest
    if ahead > 0:
        known.window = (known.window << min(ahead, PRODUCER_WINDOW) | 1) & _WINDOW_MASK
        known.highest = sequence
    else:
        known.window |= 1 << -ahead


_WINDOW_MASK = (1 << PRODUCER_WINDOW) - 1


def apply_part(state: BrokerState, position: int, record: r.PartStored) -> None:
    """The piece is staged: nobody sees it yet."""
    upload = state.uploads.setdefault((record.connection, record.correlation), Upload())
    batch = record.batch
    if record.lead:
        upload.continued.setdefault(upload.last, []).append(position)
    at = position
    for number, priority, count, due_ms in batch.runs:
        if due_ms:
            upload.delayed.append((due_ms, at, number, priority))
        else:
            staged = upload.staged.setdefault((number, priority), array("Q"))
            staged.extend(range(at, at + count))
        at += count
    if batch.expiring:
        places = spread(batch)
        upload.expiring += [(ms, position + i, *places[i]) for i, ms in batch.expiring]
    upload.named += [(name, position + i) for i, name in batch.named]
    upload.count += batch.count
    upload.parts += len(batch.raw)
    if batch.count:
        upload.last = position + batch.count - 1


def apply_commit(state: BrokerState, _position: int, record: r.PartsCommitted) -> None:
    """The upload is true: its staged runs are hung into their lanes whole."""
    upload = state.uploads.pop((record.connection, record.correlation), Upload())
    for (number, priority), positions in upload.staged.items():
        run = state.lanes[number].run(priority)
        run.adopt(positions)
        state.offered(run, len(positions))
        run.lane.queue.counts["published"] += len(positions)
    for due_ms, position, number, priority in upload.delayed:
        run = state.lanes[number].run(priority)
        state.later(run, position, due_ms)
        run.lane.queue.counts["published"] += 1
    for expires_ms, position, number, priority, due_ms in upload.expiring:
        state.expiries.push(expires_ms, position, state.lanes[number].run(priority).number)
        if due_ms:
            state.delayed.add(position)
    for name, position in upload.named:
        state.named[name] = position
        state.names[position] = name
    state.continued.update(upload.continued)
    note_chunk(state, record.producer, record.sequence, record.wall_ms)
