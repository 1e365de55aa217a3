"""Messages in: chunks and their producers, and publishes that come in parts.

A publish is all or nothing. One in parts is staged as it arrives, in the log and in an
Upload, and becomes true with the Publish that ends it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from qbroker.core import records as r
from qbroker.core.chunks import answer_to, note_chunk, seen_before
from qbroker.core.copying import copies
from qbroker.core.decision import Decision
from qbroker.core.graphs import Graph
from qbroker.core.keying import hold, tell_existing
from qbroker.core.moment import Now
from qbroker.core.overflow import note_arrivals
from qbroker.core.pausing import check_intake
from qbroker.core.refusals import RefusedError, too_large
from qbroker.core.settings import RETRY_AFTER_MS
from qbroker.core.shaping import check_deleted
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey, check_named, duplicate
from qbroker.core.timers import Entry
from qbroker.core.uploads import Arrival, Upload
from qbroker.core.weaving import add_piece
from qprotocol import wire
from qprotocol.frames import Frame, Part, Publish, Published
from qprotocol.limits import (
    FRAME_BYTES_MAX,
    MESSAGES_PER_FRAME_MAX,
    PARTED_MAX,
)

_FIXED = wire.MESSAGE.size


def check_open(state: BrokerState) -> None:
    """Raise RefusedError if nothing new is taken in.

    Messages that follow on a completion are: they are part of it, and each takes the place
    of one that is over.
    """
    if state.closed_to_publishes:
        raise RefusedError(
            "RESOURCE_EXHAUSTED", state.closed_to_publishes, retry_after_ms=RETRY_AFTER_MS
        )


def decide_publish(state: BrokerState, now: Now, connection: int, frame: Publish) -> Decision:
    """Records that make the chunk true, or the answer that it is so already."""
    key = connection, frame.correlation
    arrival = state.arrivals.pop(key, None)
    if seen_before(state, frame.producer, frame.sequence):
        state.duplicates += 1
        durability = "synced" if state.synced else "written"
        reply = Published(first=0, count=frame.count, durability=durability, duplicate=True)
        tell_existing(reply, answer_to(state, frame.producer, frame.sequence))
        return Decision(given_up(state, connection, frame.correlation), reply)
    check_open(state)
    survey, keyed = Survey(state, now), None
    if arrival:
        count, commit, records = last_part(survey, arrival, key, frame)
        keyed = commit.keyed
    else:
        if frame.count > MESSAGES_PER_FRAME_MAX:
            raise too_many(f"{frame.count} messages in a frame")
        batch = copies(survey, survey.walk(frame.raw, 0, len(frame.raw)))
        count, keyed = survey.count, batch.keyed
        check_paused(survey, batch)
        if survey.shape:
            survey.shape.check_room()
        if survey.weaving:
            survey.weaving.check_end()
            survey.weaving.check_room(state.graphs.nodes)
        records = [r.Published(frame.producer, frame.sequence, now.wall_ms, batch)]
    if count != frame.count or not count:
        raise RefusedError("BAD_MESSAGE", f"{count} messages where {frame.count} were announced")
    durability = "synced" if survey.synced else "written"
    reply = Published(first=0, count=count, durability=durability)
    if keyed:
        tell_existing(reply, keyed.existing)
    records = [*survey.opened, *survey.redelays(), *records]
    positioned = arrival is None and not survey.shifted and reply.existing < count
    return Decision(records, reply, synced=survey.synced, positioned=positioned)


def check_paused(survey: Survey, batch: r.MessageBatch) -> None:
    """Raise RefusedError if one of the batch's queues takes nothing in."""
    state = survey.state
    if state.pauses.intake:
        check_intake(state, survey.now, {survey.queue_of(run[0]) for run in batch.runs})


def too_many(what: str) -> RefusedError:
    """The refusal of a frame with more messages than a turn has time for."""
    most = f"messages_per_frame_max is {MESSAGES_PER_FRAME_MAX}, send more in further parts"
    return RefusedError("BATCH_TOO_LARGE", f"{what}: {most}")


# Parts.


def decide_part(state: BrokerState, now: Now, connection: int, frame: Part) -> Decision:
    """Stage a piece of a publish in the log; keep a piece of anything else in memory.

    What is wrong with it is said when the frame comes that it belongs to: a request has
    one answer.
    """
    key = connection, frame.correlation
    arrival = state.arrivals.get(key)
    if frame.index == 0 or arrival is None:
        arrival = state.arrivals[key] = Arrival()
        if sum(each[0] == connection for each in state.arrivals) > PARTED_MAX:
            raise RefusedError("FRAME_TOO_LARGE", f"parts of over {PARTED_MAX} frames at once")
    if arrival.refused:
        return Decision()
    try:
        if frame.index != arrival.parts:
            raise RefusedError(
                "BAD_REQUEST", f"part {frame.index} where part {arrival.parts} was due"
            )
        arrival.parts += 1
        if frame.of == Publish.TYPE:
            check_open(state)
            return Decision(stage(Survey(state, now), arrival, key, frame.raw))
        keep_part(state, arrival, frame)
    except RefusedError as error:
        state.arrivals[key] = Arrival(refused=error)
        return Decision(given_up(state, *key))
    return Decision()


def given_up(state: BrokerState, connection: int, correlation: int | None = None) -> list[r.Record]:
    """Records that make void what the connection has staged, all of it or of one frame."""
    wanted = (connection,) if correlation is None else (connection, correlation)
    return [r.UploadDropped(*key) for key in state.uploads if key[: len(wanted)] == wanted]


def keep_part(state: BrokerState, arrival: Arrival, frame: Part) -> None:
    """Keep a part of a settlement in memory."""
    arrival.raw += frame.raw
    most = state.settings.result_bytes_max + state.settings.body_bytes_max + FRAME_BYTES_MAX
    if len(arrival.raw) > most:
        raise RefusedError("BODY_TOO_LARGE", f"a settlement in parts has at most {most} bytes")


def completed(state: BrokerState, connection: int, frame: Frame) -> Frame:
    """The frame with its parts before its raw section. Raises RefusedError for wrong ones."""
    arrival = state.arrivals.pop((connection, frame.correlation), None)
    if arrival is None:
        return frame
    if arrival.refused:
        raise arrival.refused
    return replace(frame, raw=bytes(arrival.raw) + frame.raw)


def stage(survey: Survey, arrival: Arrival, key: tuple[int, int], raw: bytes) -> list[r.Record]:
    """Records for one more piece of a publish."""
    state, begins = survey.state, arrival.parts == 1
    upload = Upload() if begins else state.uploads[key]
    stored = piece(survey, arrival, key, raw, begins=begins)
    check_size(state, upload, stored.batch)
    check_twice(upload, stored.batch)
    arrival.synced = arrival.synced or survey.synced
    return [*survey.opened, stored]


def last_part(
    survey: Survey, arrival: Arrival, key: tuple[int, int], frame: Publish
) -> tuple[int, r.PartsCommitted, list[r.Record]]:
    """How many messages came in all, the record that makes them true, and all records."""
    state = survey.state
    if arrival.refused:
        raise arrival.refused
    upload = state.uploads.get(key)
    if upload is None:
        raise RefusedError("BAD_REQUEST", "the parts before this were not of a publish")
    stored = piece(survey, arrival, key, frame.raw, begins=False)
    if arrival.tail or arrival.lacking:
        raise RefusedError("BAD_MESSAGE", "the parts end inside a message")
    if arrival.weaving:
        arrival.weaving.check_end()
        arrival.weaving.check_room(state.graphs.nodes)
    check_size(state, upload, stored.batch)
    check_twice(upload, stored.batch)
    check_staged(state, upload, stored.batch)
    check_deleted(state, upload)
    if state.catalogue.shaped or state.catalogue.policies:
        survey.shaped().add_staged(upload)
        survey.shaped().check_room()
    if state.pauses.intake:
        lanes = (state.lanes[number].queue.number for number, _ in upload.staged)
        check_intake(state, survey.now, {*lanes, *(group for group, _ in upload.timers.counts())})
    survey.synced = survey.synced or arrival.synced
    now_ms = survey.now.wall_ms
    commit = r.PartsCommitted(*key, frame.producer, frame.sequence, now_ms)
    if arrival.marks:
        commit.keyed = survey.keys().decide(arrival.marks)
        survey.synced = survey.synced or survey.keys().synced
    return arrival.count, commit, [stored, commit]


def check_size(state: BrokerState, upload: Upload, batch: r.MessageBatch) -> None:
    """Raise RefusedError if this is more than may come in parts."""
    most = state.settings
    if upload.parts + len(batch.raw) > most.upload_bytes_max:
        raise RefusedError("BATCH_TOO_LARGE", f"upload_bytes_max is {most.upload_bytes_max}")
    # A graph has a limit of its own: it waits in arrays, and is walked in steps.
    if upload.count + batch.count > most.upload_messages_max and not batch.woven:
        raise RefusedError("BATCH_TOO_LARGE", f"upload_messages_max is {most.upload_messages_max}")


def check_twice(upload: Upload, batch: r.MessageBatch) -> None:
    """Raise RefusedError for a chosen id that an earlier part brought."""
    for nth, (_, name) in enumerate(batch.named):
        if name in upload.named:
            raise duplicate(len(upload.named) + nth, name)


def check_staged(state: BrokerState, upload: Upload, batch: r.MessageBatch) -> None:
    """Raise RefusedError for chosen ids of earlier parts that are alive by now."""
    check_named(state, len(upload.named) + len(batch.named))
    if not state.named.keys().isdisjoint(upload.named):
        alive = (each for each in enumerate(upload.named) if each[1] in state.named)
        raise duplicate(*next(alive))


def piece(
    survey: Survey,
    arrival: Arrival,
    key: tuple[int, int],
    raw: bytes,
    *,
    begins: bool,
) -> r.PartStored:
    """The record for one more piece. Cuts it where a message's head is not complete yet.

    One that names an exchange is kept back until all of it has come: its copies are whole.
    """
    if arrival.tail:
        arrival.tail += raw
        if len(arrival.tail) < arrival.awaited:
            return r.PartStored(*key, begins, 0, r.MessageBatch())
        raw, arrival.awaited = bytes(arrival.tail), 0
    lead = min(arrival.lacking, len(raw))
    cut, lacking, begun = lead, arrival.lacking - lead, 0
    body_max = survey.state.settings.body_bytes_max
    while len(raw) - cut >= _FIXED:
        (size,) = wire.SIZE.unpack_from(raw, cut)
        if size > body_max:
            raise too_large(arrival.count + begun, size, body_max)
        begun += 1
        if begun > MESSAGES_PER_FRAME_MAX:
            raise too_many(f"over {MESSAGES_PER_FRAME_MAX} messages begin in one part")
        end = cut + 4 + size
        if end > len(raw):
            *_, n_route, n_id, _, n_meta, n_head = wire.MESSAGE.unpack_from(raw, cut)
            if len(raw) - cut >= _FIXED + n_route + n_id + n_meta + n_head:
                if n_route and raw[cut + _FIXED]:
                    arrival.awaited = end - cut
                else:
                    cut, lacking = len(raw), end - len(raw)
            break
        cut = end
    arrival.tail, raw = bytearray(raw[cut:]), raw[:cut]
    arrival.lacking, survey.staging, survey.weaving = lacking, True, arrival.weaving
    batch = copies(survey, survey.walk(raw, lead, cut + lacking))
    check_paused(survey, batch)
    for mark in batch.marks:
        mark.number += arrival.count
        mark.index += arrival.placed
        mark.others = tuple(each + arrival.placed for each in mark.others)
    if survey.weaving and arrival.count and not arrival.weaving:
        raise RefusedError("BAD_MESSAGE", "nodes of a graph behind messages that are none")
    arrival.weaving = survey.weaving
    arrival.marks += batch.marks
    arrival.count += survey.count
    arrival.placed += batch.count
    return r.PartStored(*key, begins, lead, batch)


# What the records do.


def apply_messages(
    state: BrokerState, first: int, batch: r.MessageBatch, *, count_as: str = "published"
) -> None:
    """Messages wait, from position ``first`` on."""
    timed: dict[int, list[Entry]] = {}
    for (number, priority, count, due_ms), there in by_lane(first, batch.runs):
        lane = state.lanes[number]
        run = lane.run(priority)
        if not due_ms:
            state.ready(run, there)
        elif due_ms == r.HELD:
            lane.queue.nodes += count  # they are in their graph alone
        else:
            timed.setdefault(lane.queue.number, []).append((due_ms, there[0], run.number))
            lane.scheduled += count
        lane.queue.counts[count_as] += len(there)
    for group, entries in timed.items():
        state.timers.add(group, entries)
        state.numbered[group].scheduled += len(entries)
    if batch.expiring:
        expiries, both = expiring(state, first, batch)
        for group, entries in expiries.items():
            state.expiries.add(group, entries)
        for group, positions in both.items():
            state.numbered[group].delay(positions)
    for index, name in batch.named:
        state.named[name] = first + index
        state.names[first + index] = name
    if state.catalogue.shaped:
        note_arrivals(state, first, batch)
    if batch.woven:
        graph = Graph()
        add_piece(state.lanes, graph, first, batch)
        state.graphs.add(graph)
    if batch.keyed or batch.revoked:
        places = places_in(state, first, batch)
        if batch.keyed:
            hold(state, batch.keyed, places)
        revoke(state, met_by(batch, places))


def by_lane(first: int, runs: list[list[int]]) -> Iterable[tuple[list[int], Sequence[int]]]:
    """The runs of a batch at that position, each with its positions.

    Of those in one lane, at one priority and ready, the first with the positions of all: what
    is done for a lane is done once.
    """
    found: dict[int, tuple[list[int], Sequence[int]]] = {}
    at, delayed = first, 0
    for run in runs:
        count = run[2]
        positions = range(at, at + count)
        at += count
        if run[3]:
            delayed -= 1
            found[delayed] = run, positions
            continue
        place = run[0] << 8 | run[1] + 128
        known = found.get(place)
        if known is None:
            found[place] = run, positions
        elif type(known[1]) is list:
            known[1].extend(positions)
        else:
            found[place] = known[0], [*known[1], *positions]
    return found.values()


def places_in(state: BrokerState, first: int, batch: r.MessageBatch) -> list[tuple[int, int, int]]:
    """By index, each message's position, run number and due_ms. Costs a step a message."""
    places: list[tuple[int, int, int]] = []
    for number, priority, count, due_ms in batch.runs:
        run = state.lanes[number].run(priority).number
        places += [(position, run, due_ms) for position in range(first, first + count)]
        first += count
    return places


def met_by(
    batch: r.MessageBatch, places: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, int, bytes]]:
    """Those of the batch that were cancelled before they came, as ``revoke`` takes them."""
    return ((*places[index][:2], name) for index, name in batch.revoked)


def revoke(state: BrokerState, met: Iterable[tuple[int, int, bytes]]) -> None:
    """These came, and were cancelled before: (position, run number, id as its notice has it)."""
    for position, run, name in met:
        state.notices.ids.pop(name, None)
        state.keys.doomed[position] = run, "cancelled"


def expiring(
    state: BrokerState, first: int, batch: r.MessageBatch
) -> tuple[dict[int, list[Entry]], dict[int, set[int]]]:
    """By queue number: when messages expire, and the positions of those that are delayed, too."""
    places = [run for run in batch.runs for _ in range(run[2])]
    expiries: dict[int, list[Entry]] = {}
    both: dict[int, set[int]] = {}
    for index, expires_ms in batch.expiring:
        number, priority, _, due_ms = places[index]
        lane, position = state.lanes[number], first + index
        group = lane.queue.number
        entry = expires_ms, position, lane.run(priority).number
        expiries.setdefault(group, []).append(entry)
        if due_ms and due_ms != r.HELD:
            both.setdefault(group, set()).add(position)
    return expiries, both


def apply_published(state: BrokerState, position: int, record: r.Published) -> None:
    """The chunk is in: its messages wait, its producer has sent it."""
    apply_messages(state, position, record.batch)
    existing = record.batch.keyed.existing if record.batch.keyed else None
    note_chunk(state, record.producer, record.sequence, record.wall_ms, existing)
