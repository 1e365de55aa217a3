"""Large orders: cancel, purge and move what a filter says. Done so much a turn, told at the end.

Each piece is a record of its own, so a crash between two leaves every message as it was or as
it is to be. The order itself is volatile: whoever gave it hears nothing then, and gives it again.
Nothing is handed out of the queues of an order while it is under way.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qbroker.core import records as r
from qbroker.core.asking import known, lookup
from qbroker.core.decision import Decision
from qbroker.core.effects import Lookup, Send
from qbroker.core.moment import Now
from qbroker.core.moving import moved
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError, queue_named
from qbroker.core.results import Found
from qbroker.core.settings import ORDER_WORK_MAX, ORDERS_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import limit
from qbroker.core.walking import HELD, PLACES, READY, SCHEDULED, STARTED, Picked, Spot, nodes, walk
from qprotocol.frames import CancelGraph, CancelMany, Move, Ok

Act = Callable[[BrokerState, Now, list[Spot]], list[r.Record]]


@dataclass(slots=True, eq=False)
class Order:
    """One that is under way. All volatile."""

    connection: int
    correlation: int
    picked: Picked
    act: Act
    spots: Iterator[Spot]
    count: int = 0
    """Messages it has found so far."""
    over: bool = False

    def step(self, state: BrokerState, now: Now) -> list[r.Record]:
        """Records for the next piece; with the last one the order is ``over``."""
        room, piece = ORDER_WORK_MAX, []
        while room > 0:
            spot = next(self.spots, None)
            if spot is None:
                self.over = True
                break
            room -= spot.weight
            if spot.size:
                piece.append(spot)
        self.count += sum(spot.size for spot in piece)
        return self.act(state, now, piece) if piece else []


def begin(
    state: BrokerState, now: Now, asked: tuple[int, int], picked: Picked, act: Act
) -> Decision:
    """The order's first piece; what is left is in ``state.orders`` for the next turns.

    ``asked`` is who gave it: connection and correlation id.
    """
    if len(state.orders) >= ORDERS_MAX:
        raise limit("orders under way at once", ORDERS_MAX)
    spots = nodes(state, picked.position) if picked.is_graph else walk(state, picked)
    order = Order(*asked, picked, act, spots)
    records = order.step(state, now)
    if order.over:
        return Decision(records, Ok(count=order.count))
    for queue in picked.queues:
        queue.held += 1
    state.orders.append(order)
    return Decision(records)


def carry_on(state: BrokerState, now: Now, append: Callable[[r.Record], int]) -> None:
    """The next piece of the order whose turn it is; who gave it is told once it is done."""
    order = state.orders.popleft()
    for record in order.step(state, now):
        append(record)
    if not order.over:
        state.orders.append(order)
        return
    for queue in order.picked.queues:
        state.let_out(queue)
    answer = Ok(count=order.count, correlation=order.correlation)
    state.effects.append(Send(order.connection, answer, synced=state.synced))


# Cancel and purge by filter.


def decide_cancel_many(
    state: BrokerState, now: Now, connection: int, frame: CancelMany, found: Found | None
) -> Decision:
    """What the filter says is over; or it is counted alone."""
    if frame.older_ms and found is None:
        return asked_when(connection, frame, now, frame.older_ms)
    if not (frame.queue or frame.task or frame.key):
        raise RefusedError("BAD_REQUEST", "name a queue, a task or a key: this would be all")
    usual = (READY, SCHEDULED) if frame.purge else PLACES
    queues = [queue_named(state, frame.queue)] if frame.queue else [*state.queues.values()]
    if not frame.purge:
        queues = [queue for queue in queues if not queue.holds_letters]
        if not queues and frame.queue:
            raise RefusedError(
                "BAD_REQUEST",
                f"queue {frame.queue!r} holds dead letters, whose tasks have ended: purge them",
            )
    picked = Picked(
        queues, cutoff(state, found), places(frame.states, usual), frame.task, frame.key
    )
    if frame.purge and STARTED in picked.places:
        raise RefusedError("BAD_REQUEST", "a purge drops what waits: cancel what is started")
    act: Act = nothing if frame.dry_run else purge if frame.purge else canceller(frame)
    return begin(state, now, (connection, frame.correlation), picked, act)


def decide_cancel_graph(
    state: BrokerState, now: Now, connection: int, frame: CancelGraph, found: Found | None
) -> Decision:
    """What has not ended of the graph is over; or it is counted alone."""
    position, entry = known(state, now, frame, found)
    if entry is None:
        return lookup(state, connection, frame, found)
    picked = Picked([], state.head, position=position, is_graph=True)
    act: Act = nothing if frame.dry_run else canceller(frame)
    return begin(state, now, (connection, frame.correlation), picked, act)


def canceller(frame: CancelMany | CancelGraph) -> Act:
    """What cancels a piece, as the frame says."""

    def cancel(state: BrokerState, now: Now, spots: list[Spot]) -> list[r.Record]:
        until = now.wall_ms + state.settings.result_ttl_ms
        return [
            r.Removed(
                rows(spots),
                "cancelled",
                now.wall_ms,
                until,
                frame.terminate,
                grace_ms=frame.grace_ms,
            )
        ]

    return cancel


def purge(_state: BrokerState, now: Now, spots: list[Spot]) -> list[r.Record]:
    """They are gone, and nothing is kept of them."""
    return [r.Removed(rows(spots), "purged", now.wall_ms, 0)]


def nothing(_state: BrokerState, _now: Now, _spots: list[Spot]) -> list[r.Record]:
    """They are counted."""
    return []


def rows(spots: list[Spot]) -> list[list[int]]:
    """[position, lane number, priority] of each message."""
    return [
        [position, spot.run.lane.number, spot.run.priority]
        for spot in spots
        if spot.run
        for position in range(spot.first, spot.first + spot.size)
    ]


# Move.


def decide_move(
    state: BrokerState, now: Now, connection: int, frame: Move, found: Found | None
) -> Decision:
    """What the filter says waits in the other queue; or it is counted alone."""
    source, target = queue_named(state, frame.queue), queue_named(state, frame.to)
    if source is target:
        raise RefusedError("BAD_REQUEST", f"{frame.queue!r} to itself: name another queue")
    position = 0
    if frame.id:
        position, entry = known(state, now, frame, found)
        if entry is None:
            return lookup(state, connection, frame, found)
        if not position:
            return Decision(reply=Ok())
    elif frame.older_ms and found is None:
        return asked_when(connection, frame, now, frame.older_ms)
    where = places(frame.states, (READY, SCHEDULED, HELD) if frame.id else (READY, SCHEDULED))
    if STARTED in where:
        raise RefusedError("BAD_REQUEST", "what is started cannot be moved: it is with a worker")
    before = state.head if frame.id else cutoff(state, found)
    picked = Picked([source], before, where, frame.task, frame.key, position)
    act: Act = nothing if frame.dry_run else mover(target)
    return begin(state, now, (connection, frame.correlation), picked, act)


def mover(target: Queue) -> Act:
    """What moves a piece to the queue."""

    def move(state: BrokerState, now: Now, spots: list[Spot]) -> list[r.Record]:
        return moved(state, now, target, spots)

    return move


# What both are made of.


def places(named: str, usual: Iterable[str]) -> frozenset[str]:
    """The states that are named, the usual ones if none is. Raises RefusedError."""
    found = frozenset(named.split(",") if named else usual)
    if not found <= frozenset(PLACES):
        raise RefusedError(
            "BAD_REQUEST",
            f"states {', '.join(sorted(found - frozenset(PLACES)))}: there are {', '.join(PLACES)}",
        )
    return found


def asked_when(connection: int, frame: CancelMany | Move, now: Now, older_ms: int) -> Decision:
    """Ask the engine for the first position that is younger than so much."""
    return Decision(effects=[Lookup(connection, frame, moment_ms=max(1, now.wall_ms - older_ms))])


def cutoff(state: BrokerState, found: Found | None) -> int:
    """The first position that an order is not about."""
    return min(state.head, found.before) if found and found.before is not None else state.head
