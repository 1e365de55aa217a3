"""Queues, their lanes and what waits in these, in a snapshot."""

from qbroker.core import closing, declaring
from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.policies import NOTHING
from qbroker.core.state import BrokerState
from qprotocol.options import QueueOptions

Block = bytes | memoryview


def save_queues(state: BrokerState) -> bytes:
    """Queues and lanes in the order of their numbers; None is a lane that was closed."""
    queues = [
        [q.name, dict(q.terms.declared), q.ready, q.scheduled, q.leased, dict(q.counts)]
        for q in state.numbered
    ]
    lanes = [
        None if lane is state.no_lane else [lane.queue.number, lane.task, lane.keys]
        for lane in state.lanes
    ]
    return pack_columns([queues, lanes], [column(sorted(q.delayed)) for q in state.numbered])


def restore_queues(state: BrokerState, block: Block) -> None:
    """Whether a queue's confirms wait for the disk is as the settings say now."""
    (queues, lanes), delayed = unpack_columns(block)
    for number, (name, options, ready, scheduled, leased, *counts) in enumerate(queues):
        queue = state.open_queue(number, name, QueueOptions())
        queue.terms.declared = declaring.named(options) or NOTHING
        state.refresh(queue)
        queue.ready, queue.scheduled, queue.leased = ready, scheduled, leased
        queue.counts.update(*counts)
        queue.delay(set(delayed[number]))
    for number, row in enumerate(lanes):
        if row is None:
            state.lanes.append(state.no_lane)
            state.closed[number] = None
        else:
            closing.open_lane(state, number, state.numbered[row[0]], *row[1:])


def save_lanes(state: BrokerState) -> bytes:
    """Columns: numbers that are free, in their order; lanes, and what is delayed of them."""
    some = [lane for lane in state.lanes if lane.scheduled and lane.life == lane.queue.life]
    columns = [
        column(state.closed),
        column(lane.number for lane in some),
        column(lane.scheduled for lane in some),
    ]
    return pack_columns(None, columns)


def restore_lanes(state: BrokerState, block: Block) -> None:
    """Behind the queues, which say what lanes there are."""
    closed, numbers, counts = unpack_columns(block)[1]
    state.closed = dict.fromkeys(closed)
    for number, count in zip(numbers, counts, strict=True):
        state.lanes[number].scheduled = count


def count_scheduled(state: BrokerState) -> None:
    """For a snapshot that does not say. Costs a microsecond a delayed message."""
    for _, position, number in state.timers.entries():
        if position not in state.cancelled:
            state.lanes[number >> 8].scheduled += 1


def save_runs(state: BrokerState) -> bytes:
    """What waits: a row a run that is not empty, a column a chunk."""
    rows, columns = [], []
    for lane in state.lanes:
        for run in lane.runs if lane is not state.no_lane else ():
            given, skipped, chunks = run.saved()
            rows.append([run.number, given, skipped, len(chunks)])
            columns += chunks
    return pack_columns(rows, columns)


def restore_runs(state: BrokerState, block: Block) -> None:
    """Each run is listed by its queue again."""
    rows, columns = unpack_columns(block)
    at = 0
    for number, given, skipped, count in rows:
        run = state.run_numbered(number)
        run.restore(given, skipped, columns[at : at + count])
        at += count
        if run.size:
            run.lane.queue.offer(run, run.size)
