"""Queues that are deleted: by order, because nobody uses them, because their owner has gone.

A deleted queue is no more for anybody at once: its name is free, its consumers are told, what
waited in it is purged. Its number stays taken, for the log and the leases speak of it. What is
handed out of it may be finished; what comes back instead is dropped, a piece a turn.
"""

from collections.abc import Iterator
from itertools import islice

from qbroker.core import records as r
from qbroker.core.catalogue import Use
from qbroker.core.consuming import Append
from qbroker.core.decision import Decision
from qbroker.core.effects import Send
from qbroker.core.moment import Now
from qbroker.core.owners import check_owner, is_here
from qbroker.core.pauses import HALVES
from qbroker.core.purging import purge
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError, queue_named
from qbroker.core.settings import DELETED_QUEUES_MAX, LOOK_MS, ROUTES_FORGOTTEN_MAX
from qbroker.core.state import BrokerState
from qprotocol.exchanges import Destination
from qprotocol.frames import DeleteQueue, Ok, QueueGone
from qprotocol.message import pack_route


def decide_delete(state: BrokerState, _now: Now, connection: int, frame: DeleteQueue) -> Decision:
    """The queue is no more, and what waits in it; count says how many those were."""
    queue = queue_named(state, frame.queue)
    check_owner(state, connection, queue)
    there = queue.messages + queue.nodes
    if frame.if_empty and there:
        raise in_use(queue, f"has {there} messages, {queue.leased} of them handed out")
    listeners = len(state.listening[queue.number])
    if frame.if_unused and listeners:
        raise in_use(queue, f"has {listeners} consumers")
    waiting = queue.ready + queue.scheduled + queue.nodes
    return Decision([r.QueueDeleted(queue.number, "deleted by an operator")], Ok(count=waiting))


def in_use(queue: Queue, why: str) -> RefusedError:
    """The refusal of a deletion that was to be done only if nobody minds."""
    return RefusedError("IN_USE", f"queue {queue.name!r} {why}: it was not deleted")


def apply_queue_deleted(state: BrokerState, _position: int, record: r.QueueDeleted) -> None:
    """The queue is no more; a first piece of it is swept, which is all of a small one."""
    queue = state.numbered[record.queue]
    queue.terms.deleted = record.why
    del state.queues[queue.name]
    forget_routes(state, queue)
    listeners, state.listening[queue.number] = state.listening[queue.number], []
    for consumer in listeners:
        consumer.queues = [number for number in consumer.queues if number != queue.number]
        if consumer.contest:
            consumer.contest.forget(queue.number)
            state.listen_again(consumer)
        gone = QueueGone(subscription=consumer.number, queue=queue.name, why=record.why)
        state.effects.append(Send(consumer.connection, gone))
        queue.deselect(consumer.known)
    state.dirty.pop(queue.number, None)
    for half in HALVES:
        state.pauses.half(half).pop(queue.number, None)
    state.exchanges.forget(Destination(to_exchange=False, name=queue.name))
    state.catalogue.drop(queue)
    purge(state, queue)


def forget_routes(state: BrokerState, queue: Queue) -> None:
    """Nothing is sent to the queue's lanes any more because somebody remembers the way."""
    if len(queue.lanes) > ROUTES_FORGOTTEN_MAX:
        state.routes.clear()
        return
    for lane in queue.lanes:
        state.routes.pop(pack_route("", queue.name, lane.task, lane.keys), None)


# What time brings.


def bury_more(state: BrokerState, append: Append) -> None:
    """What came back to deleted queues is dropped; those of which nothing is left are forgotten."""
    catalogue = state.catalogue
    remains = {each.queue for each in state.remains}
    for number in list(islice(catalogue.dying, DELETED_QUEUES_MAX)):
        queue = state.numbered[number]
        if queue.ready or queue.scheduled:
            append(r.Purged(number))
        elif not (queue.leased or queue.nodes) and queue not in remains:
            catalogue.dying.discard(number)


def overdue(state: BrokerState, now: Now) -> list[r.Record]:
    """Records for queues whose time is over. Once in LOOK_MS; costs a look at each that may be."""
    catalogue = state.catalogue
    if now.mono_ms < catalogue.next_look_ms:
        return []
    catalogue.began_ms = catalogue.began_ms or now.mono_ms
    catalogue.next_look_ms = now.mono_ms + LOOK_MS
    found = {**dict(orphaned(state, now)), **dict(left(state)), **dict(unused(state, now))}
    return [r.QueueDeleted(*each) for each in islice(found.items(), DELETED_QUEUES_MAX)]


def orphaned(state: BrokerState, now: Now) -> Iterator[tuple[int, str]]:
    """Exclusive queues whose owner has gone."""
    coming = now.mono_ms < state.catalogue.began_ms + state.settings.grace_ms
    for number in state.catalogue.owned:
        if not is_here(state, state.numbered[number].terms.owner, coming=coming):
            yield number, "exclusive, and its owner has gone"


def left(state: BrokerState) -> Iterator[tuple[int, str]]:
    """Queues that go with their last consumer, which has gone and does not come back."""
    for number, session in list(state.catalogue.left.items()):
        if state.listening[number]:
            del state.catalogue.left[number]
        elif not state.numbered[number].leased and not (session and comes_back(state, session.id)):
            yield number, "auto_delete, and its last consumer has gone"


def comes_back(state: BrokerState, session: bytes) -> bool:
    """Whether the session lives, though a connection of it has ended."""
    found = state.sessions.get(session)
    return found is not None and not found.over


def unused(state: BrokerState, now: Now) -> Iterator[tuple[int, str]]:
    """Queues that nobody has used for too long."""
    for number, use in state.catalogue.unused.items():
        queue = state.numbered[number]
        expires_ms = queue.options.expires_ms
        if is_used(state, queue, use):
            use.used_ms = now.mono_ms
        elif now.mono_ms - use.used_ms >= expires_ms:
            yield number, f"expires_ms is {expires_ms}, and nobody has used it for so long"


def is_used(state: BrokerState, queue: Queue, use: Use) -> bool:
    """Whether anything has happened to it since the last look, or it is in use now."""
    before = use.books
    use.books = (queue.counts["published"], queue.ready, queue.scheduled, queue.leased)
    is_needed = queue.leased or queue.nodes or state.listening[queue.number]
    return bool(use.books != before or is_needed)
