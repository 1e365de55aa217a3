"""Messages in: chunks and their producers, and publishes that come in parts.

A publish is all or nothing. One in parts is staged as it arrives, in the log and in an
Upload, and becomes true with the Publish that ends it.
"""

from array import array

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.moment import Now
from qbroker.core.state import BrokerState, Producer, Upload
from qbroker.core.survey import RefusedError, Survey, too_large
from qprotocol import wire
from qprotocol.frames import Part, Publish, Published
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX, PRODUCER_WINDOW

_FIXED = wire.MESSAGE.size


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
