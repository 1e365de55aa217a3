"""Into the queue of dead letters and out of it: what changes of a message, and of its expiry."""

from qbroker.core.letters import Letter
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qbroker.core.state import BrokerState
from qbroker.core.timers import Entry


def buried(state: BrokerState, run: Run, position: int, wall_ms: int, worker: bytes = b"") -> None:
    """A message of ``run`` is a dead letter now: it waits where its counters say, and may expire
    there.
    """
    target = state.attempts[position].run
    assert target is not None, position
    state.keys.end(position)
    queue, options = target.lane.queue, target.lane.queue.options
    state.ready(target, (position,))
    size = state.catalogue.gone(run.lane.queue, position)
    expires_ms = wall_ms + options.message_ttl_ms if options.message_ttl_ms else 0
    if expires_ms:
        state.expiries.push(queue.number, expires_ms, position, target.number)
    if options.is_bounded:
        state.catalogue.arrive(target, position, size, 0)
    letter = Letter(0, wall_ms, run.lane.queue.name, worker, expires_ms)
    state.letters.add(position, letter)


def revive(state: BrokerState, position: int) -> None:
    """The message is no dead letter any more, and nothing of its end is remembered."""
    for place in state.places_of(position) if state.graphs.owners else ():
        state.graphs.under_way(place)
    state.letter_gone(position)
    state.results.drop(position)
    state.attempts[position] = state.attempts[position]._replace(reason="")


def lies_in(state: BrokerState, position: int) -> Queue | None:
    """The queue in which the dead letter there waits, or of which it was handed out."""
    grant = state.leases.get(position)
    if grant:
        return grant.run_of(position).lane.queue
    attempts = state.touched(position)
    return attempts.run.lane.queue if attempts and attempts.run else None


def expiring_run(state: BrokerState, group: int, entry: Entry) -> Run | None:
    """Where a message waits whose entry in the expiries is due, if that counts.

    An entry was made when the message was published to the queue with that number, or when it died
    into it. It counts wherever the message was moved, but one of the queue of dead letters only
    there, and only there while it is dead; one of an earlier death counts no more. The entry's run
    is that of a message which is where it was; else its lane may be another one by now.
    """
    due_ms, position, number = entry
    attempts = state.attempts.get(position)
    if attempts is None:
        run = state.run_numbered(number)
        here = position in run.lane.queue.delayed or position in run
        return run if here or state.graphs.is_held(position) else None
    waits = attempts.run
    if waits is None or waits.is_purged:
        return None
    letter = state.letters.get(position)
    if waits.lane.queue.number == group:
        return waits if letter is None or due_ms >= letter.expires_ms else None
    return None if attempts.reason or state.numbered[group].holds_letters else waits
