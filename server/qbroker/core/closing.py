"""Lanes are opened for their first message, and closed when they are idle.

    opened --> looked at: idle -- LANE_IDLE_MS --> idle still --> closed --> its number is used anew

So a key that never comes again costs nothing. Idle is a lane in which nothing waits, is delayed or
is handed out. Nothing is noted when messages come and go: a cursor passes over all lanes, so many
a look, and those that it found idle are looked at once more. While more than half of ``lanes_max``
are open, looks are many, and what is idle is closed at once.

A lane without keys stays for as long as its queue: there is one for each task.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from qbroker.core import records as r
from qbroker.core.gates import attach
from qbroker.core.lanes import LANE_NUMBERS, Lane
from qbroker.core.ordering import Ordering
from qbroker.core.settings import (
    LANE_IDLE_MS,
    LANES_CLOSED_MAX,
    LANES_LOOKED_MAX,
    LOOK_CROWDED_MS,
    LOOK_MS,
)
from qprotocol.message import pack_route

if TYPE_CHECKING:
    from qbroker.core.consuming import Append
    from qbroker.core.moment import Now
    from qbroker.core.queues import Queue
    from qbroker.core.state import BrokerState


@dataclass(slots=True)
class Idle:
    """How far the cursor is, and what it found. All volatile."""

    at: int = 0
    """Lanes with lower numbers have been looked at in this pass."""
    pass_ms: int = 0
    """Monotonic: the next pass begins then."""
    looked_ms: int = 0
    """Monotonic: the last look was then."""
    has_found: bool = False
    """Whether that one found some."""
    found: deque[tuple[int, list[Lane]]] = field(default_factory=deque)
    """Lanes that were idle, and when they are looked at once more."""

    def is_due(self, mono_ms: int) -> bool:
        """Whether some are to be looked at once more."""
        return bool(self.found) and self.found[0][0] <= mono_ms


def lanes_open(state: "BrokerState") -> int:
    """How many there are."""
    return len(state.lanes) - len(state.closed)


def free_numbers(state: "BrokerState") -> Iterator[int]:
    """Numbers for lanes that will be opened: of closed ones, the last first, then new ones."""
    return chain(reversed(state.closed), range(len(state.lanes), LANE_NUMBERS))


def open_lane(state: "BrokerState", number: int, queue: "Queue", task: str, keys: bytes) -> Lane:
    """Make the lane true."""
    is_new = task not in queue.shelves
    lane = Lane(number, queue, task, keys)
    if number < len(state.lanes):
        del state.closed[number]
        state.lanes[number] = lane
    else:
        assert number == len(state.lanes), (number, queue.name)
        state.lanes.append(lane)
    lane.shelf.place(lane)
    if is_new:
        state.limits.fit_shelf(lane.shelf)
    state.limits.fit_lane(lane)
    key = lane.wants.ordering
    if key:
        state.orderings.setdefault((queue.number, key), Ordering()).join(lane)
    return lane


def apply_lane_opened(state: "BrokerState", _position: int, record: r.LaneOpened) -> None:
    """The lane exists."""
    open_lane(state, record.number, state.numbered[record.queue], record.task, record.keys)


def close_idle(state: "BrokerState", now: "Now", append: "Append") -> None:
    """The next piece of a pass. Costs a look at LANES_LOOKED_MAX lanes, once in LOOK_MS, or, while
    many are open, once in LOOK_CROWDED_MS and again once all that was found is closed.
    """
    idle = state.idle
    is_crowded = 2 * lanes_open(state) > state.settings.lanes_max
    wait_ms = LOOK_MS
    if is_crowded and not idle.is_due(now.mono_ms):
        wait_ms = 0 if idle.has_found else LOOK_CROWDED_MS
    if now.mono_ms - idle.looked_ms >= wait_ms:
        idle.looked_ms = now.mono_ms
        idle.has_found = look(state, now, 0 if is_crowded else LANE_IDLE_MS)
    if idle.is_due(now.mono_ms):
        lanes = idle.found[0][1]
        some = lanes[-LANES_CLOSED_MAX:]
        del lanes[-LANES_CLOSED_MAX:]
        if not lanes:
            idle.found.popleft()
        held, swept = held_numbers(state), {each.queue for each in state.remains}
        idle_still = [x for x in some if is_idle(state, x) and x.queue not in swept]
        numbers = [x.number for x in idle_still if x.number not in held]
        if numbers:
            append(r.LanesClosed(numbers))


def look(state: "BrokerState", now: "Now", wait_ms: int) -> bool:
    """Note which of the next lanes are idle; whether some are."""
    idle, lanes = state.idle, state.lanes
    if idle.at >= len(lanes):
        if wait_ms and now.mono_ms < idle.pass_ms:
            return False
        idle.at, idle.pass_ms = 0, now.mono_ms + wait_ms
    some = lanes[idle.at : idle.at + LANES_LOOKED_MAX]
    idle.at += len(some)
    found = [lane for lane in some if is_idle(state, lane)]
    if found and wait_ms:
        idle.found.append((now.mono_ms + wait_ms, found))
    elif found:
        idle.found.appendleft((now.mono_ms, found))
    return bool(found)


def is_idle(state: "BrokerState", lane: Lane) -> bool:
    """Whether nothing of the lane is anywhere, as far as its own books say."""
    queue = lane.queue
    is_over = bool(queue.terms.deleted)
    return (
        (bool(lane.keys) or is_over)
        and not (lane.leased or lane.scheduled)
        and (is_over or not queue.held)  # an order that walks it has its runs in hand
        and lane.life == queue.life
        and not any(run.size for run in lane.runs)
        and state.lanes[lane.number] is lane
    )


def held_numbers(state: "BrokerState") -> set[int]:
    """Numbers of lanes that something else speaks of: uploads under way, the quarantine, graphs."""
    found = {row[0] for row in state.quarantined.values()}
    found.update(state.graphs.lanes)
    for upload in state.uploads.values():
        found.update(number for number, _ in upload.staged)
        found.update(upload.scheduled)
        found.update(upload.graph.lanes if upload.graph else ())
    return found


def apply_lanes_closed(state: "BrokerState", _position: int, record: r.LanesClosed) -> None:
    """The lanes are gone; their numbers are free."""
    for number in record.numbers:
        close(state, state.lanes[number])


def close(state: "BrokerState", lane: Lane) -> None:
    """The lane is gone, from all lists and limits; its number is free."""
    queue = lane.queue
    lane.retire()
    lane.shelf.remove(lane)
    state.limits.leave(lane)
    attach(lane, ())
    if lane.ordering:
        lane.ordering.leave(lane)
        if not lane.ordering.lanes:
            del state.orderings[queue.number, lane.wants.ordering]
    state.lanes[lane.number] = state.no_lane
    state.closed[lane.number] = None
    route = pack_route("", queue.name, lane.task, lane.keys)
    if state.routes.get(route) is lane:
        del state.routes[route]
    if queue.terms.deleted:
        state.catalogue.gone_lanes -= 1
