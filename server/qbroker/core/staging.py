"""What the records of a publish in parts do: staged beside the queues, and hung in whole."""

from array import array

from qbroker.core import records as r
from qbroker.core.chunks import note_chunk
from qbroker.core.graphs import Graph
from qbroker.core.keying import hold
from qbroker.core.overflow import note_upload, weighed
from qbroker.core.publishing import expiring, met_by, places_in, revoke
from qbroker.core.state import BrokerState
from qbroker.core.timers import Entry
from qbroker.core.uploads import Upload
from qbroker.core.weaving import add_piece


def apply_part(state: BrokerState, position: int, record: r.PartStored) -> None:
    """The piece is staged: nobody sees it yet."""
    key = record.connection, record.correlation
    if record.begins:
        state.uploads[key] = Upload()
    upload = state.uploads[key]
    batch = record.batch
    if record.lead:
        upload.continued.setdefault(upload.last, []).append(position)
    at = position
    timed: dict[int, list[Entry]] = {}
    for number, priority, count, due_ms in batch.runs:
        if due_ms == r.HELD:
            upload.held[state.lanes[number].queue.number] += count
        elif due_ms:
            lane = state.lanes[number]
            entry = due_ms, at, lane.run(priority).number
            timed.setdefault(lane.queue.number, []).append(entry)
            upload.scheduled[number] = upload.scheduled.get(number, 0) + 1
        else:
            staged = upload.staged.setdefault((number, priority), array("Q"))
            staged.extend(range(at, at + count))
        at += count
    for group, entries in timed.items():
        upload.timers.add(group, entries)
    if batch.expiring:
        expiries, both = expiring(state, position, batch)
        for group, entries in expiries.items():
            upload.expiries.add(group, entries)
        for group, positions in both.items():
            upload.delayed.setdefault(group, set()).update(positions)
    if batch.woven:
        upload.graph = upload.graph or Graph()
        add_piece(state.lanes, upload.graph, position, batch)
    upload.named.update((name, position + i) for i, name in batch.named)
    upload.weighed += weighed(state, position, batch)
    if batch.revoked:
        upload.revoked += met_by(batch, places_in(state, position, batch))
    upload.count += batch.count
    upload.parts += len(batch.raw)
    if batch.count:
        upload.last = position + batch.count - 1


def apply_dropped(state: BrokerState, _position: int, record: r.UploadDropped) -> None:
    """Nothing is staged under these numbers any more."""
    del state.uploads[record.connection, record.correlation]


def apply_commit(state: BrokerState, _position: int, record: r.PartsCommitted) -> None:
    """The upload is true: its staged runs, and its timers, are hung in whole."""
    upload = state.uploads.pop((record.connection, record.correlation))
    keyed = record.keyed
    if keyed:
        places = upload.places()
        dropped = [places[index] for index in keyed.dropped]
        upload.drop(dropped)
    if state.catalogue.shaped:
        note_upload(state, upload)
        for position, number, _ in dropped if keyed else ():
            state.catalogue.gone(state.run_numbered(number).lane.queue, position)
    for (lane, priority), positions in upload.staged.items():
        run = state.lanes[lane].run(priority)
        run.adopt(positions)
        state.offered(run, len(positions))
        run.lane.queue.counts["published"] += len(positions)
    for number, count in upload.scheduled.items():
        state.lanes[number].delay(count)
    for group, count in upload.timers.counts():
        queue = state.numbered[group]
        queue.scheduled += count
        queue.counts["published"] += count
    state.timers.adopt(upload.timers)
    state.expiries.adopt(upload.expiries)
    for group, both in upload.delayed.items():
        state.numbered[group].delay(both)
    if upload.graph:
        state.graphs.add(upload.graph)
        for group, count in upload.held.items():
            state.numbered[group].counts["published"] += count
            state.numbered[group].nodes += count
    state.named.update(upload.named)
    state.names.update(zip(upload.named.values(), upload.named, strict=True))
    state.continued.update(upload.continued)
    if keyed:
        hold(state, keyed, places)
    revoke(state, upload.revoked)
    existing = keyed.existing if keyed else None
    note_chunk(state, record.producer, record.sequence, record.wall_ms, existing)
