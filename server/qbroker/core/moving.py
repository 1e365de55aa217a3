"""Moves: waiting messages of one queue go on to wait in another, with all that is known of them.

A message's bytes name the queue it was published to, for ever. So one that was moved has an
entry in ``attempts`` from then on, also if nobody was ever given it (``deliveries`` 0): the run
in which it waits. Look-ups, cancels, claims and expiries go by that before they look at bytes.
"""

from qbroker.core import records as r
from qbroker.core.burying import revive
from qbroker.core.leases import UNSEEN, Attempts
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey
from qbroker.core.walking import HELD, SCHEDULED, Spot


def moved(state: BrokerState, now: Now, target: Queue, spots: list[Spot]) -> list[r.Record]:
    """The record that moves these, and those that open the lanes it needs."""
    survey, ready, scheduled, held = Survey(state, now), [], [], []
    for spot in spots:
        assert spot.run is not None
        lane, priority = spot.run.lane, spot.run.priority
        number = survey.lane_beyond(target.name, lane)
        if spot.place == HELD:
            held.append([lane.number, priority, number, spot.first])
        elif spot.place == SCHEDULED:
            scheduled.append([lane.number, priority, number, spot.first, spot.due_ms])
        else:
            ready.append([lane.number, priority, number, spot.first, spot.size])
    return [*survey.opened, r.Moved(ready, scheduled, held)]


def apply_moved(state: BrokerState, _position: int, record: r.Moved) -> None:
    """They wait elsewhere: ready ones behind those that are there, others for the same time."""
    for number, priority, to, first, count in record.ready:
        source, target = state.lanes[number].run(priority), state.lanes[to].run(priority)
        source.remove(first, count)
        source.lane.queue.less(source.lane, count)
        leave_key(source, range(first, first + count))
        note(state, source, target, range(first, first + count), 0)
        state.ready(target, range(first, first + count))
    gone: dict[int, list[tuple[int, int, int]]] = {}
    for number, priority, to, position, due_ms in record.scheduled:
        source, target = state.lanes[number].run(priority), state.lanes[to].run(priority)
        queue = source.lane.queue
        gone.setdefault(queue.number, []).append((due_ms, position, source.number))
        is_expiring = position in queue.delayed
        source.lane.undelay(position)
        leave_key(source, range(position, position + 1))
        if is_expiring:
            target.lane.queue.delay({position})
        note(state, source, target, range(position, position + 1), due_ms)
        state.later(target, position, due_ms)
    for group, entries in gone.items():
        state.timers.remove(group, entries)
    for number, priority, to, position in record.held:
        source, target = state.lanes[number].run(priority), state.lanes[to].run(priority)
        known = state.attempts.get(position, UNSEEN)
        state.attempts[position] = known._replace(run=target, waits=False)
        state.graphs.move(position, target.number, is_keyed=bool(target.lane.keys))
        source.lane.queue.nodes -= 1
        target.lane.queue.nodes += 1
        count_moved(source, target, 1)


def leave_key(source: Run, positions: range) -> None:
    """Who held an ordering key holds it no more: elsewhere it is behind those that wait."""
    ordering = source.lane.ordering
    if ordering:
        ordering.is_left(ordering.position if ordering.position in positions else 0)


def note(state: BrokerState, source: Run, target: Run, positions: range, due_ms: int) -> None:
    """What is known of the messages says where they wait now, and for that time, if it is not 0."""
    attempts = state.attempts
    if source.lane.queue.holds_letters and not target.lane.queue.holds_letters:
        for position in [each for each in positions if state.letters.get(each)]:
            revive(state, position)
    before: Attempts | None = None
    after = UNSEEN
    for position in positions:
        known = attempts.get(position, UNSEEN)
        if known is not before:
            before, after = known, known._replace(run=target, waits=bool(due_ms))
        attempts[position] = after
    if state.catalogue.shaped:
        weigh_again(state, source, target, positions, due_ms)
    count_moved(source, target, len(positions))


def count_moved(source: Run, target: Run, count: int) -> None:
    """So many went from one queue to the other."""
    source.lane.queue.counts["moved_out"] += count
    target.lane.queue.counts["moved_in"] += count


def weigh_again(
    state: BrokerState, source: Run, target: Run, positions: range, due_ms: int
) -> None:
    """Where bytes or messages are limited they count elsewhere; what does not fit goes."""
    catalogue = state.catalogue
    for position in positions:
        size = catalogue.gone(source.lane.queue, position)
        if target.lane.queue.options.is_bounded:
            catalogue.arrive(target, position, size, due_ms)
