"""What happens because time passes: delays end, messages expire, workers are lost.

Each step is bounded; what is left is done in the next turn.
"""

from functools import partial

from qbroker.core import peeking
from qbroker.core import records as r
from qbroker.core.advancing import advance, make_room
from qbroker.core.alone import look_again
from qbroker.core.burying import expiring_run, lies_in
from qbroker.core.closing import close_idle
from qbroker.core.consuming import Append
from qbroker.core.declaring import piece, tell_archive
from qbroker.core.deleting import bury_more, overdue
from qbroker.core.effects import Close, Lookup
from qbroker.core.freeing import lapsed
from qbroker.core.leaving import end, give_back, part
from qbroker.core.moment import Now
from qbroker.core.orders import carry_on
from qbroker.core.overflow import relieve, relieve_more
from qbroker.core.pausing import records_over
from qbroker.core.purging import sweep
from qbroker.core.sessions import leave
from qbroker.core.settings import (
    ARCHIVED_MAX,
    DUE_MESSAGES_MAX,
    EXPIRE_MESSAGES_MAX,
    FORGET_KEYS_MAX,
    LAPSED_NOTICES_MAX,
    LOOK_MS,
    LOST_MEMBERS_MAX,
    PAUSES_MAX,
    PRODUCER_IDLE_MS,
    PRUNE_MAX,
)
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey
from qprotocol.frames import Watch


def records_due(state: BrokerState, now: Now) -> list[r.Record]:
    """What time has made true since the last turn."""
    records: list[r.Record] = []
    count = state.timers.due(now.wall_ms, DUE_MESSAGES_MAX)
    if count:
        records.append(r.CameDue(now.wall_ms, count))
    count = state.expiries.due(now.wall_ms, EXPIRE_MESSAGES_MAX)
    if count:
        records += expired(state, now, count)
    records += records_over(state, now.wall_ms, PAUSES_MAX)
    records += overdue(state, now)
    records += lapsed(state, now)
    count = state.notices.lapsed(now, LAPSED_NOTICES_MAX)
    if count:
        records.append(r.CancelNoted([], 0, count))
    upto = state.results.releasable(ARCHIVED_MAX)
    if upto:
        records.append(r.Archived(upto))
    return records


def expired(state: BrokerState, now: Now, count: int) -> list[r.Record]:
    """The record for messages whose time is over while they wait; running ones go on."""
    over: dict[int, list[int]] = {}  # by position: after two deaths one may have two entries
    for group, entries in state.expiries.take(count):
        for entry in entries:
            position = entry[1]
            if position in state.leases:
                state.late.add(position)
            elif run := expiring_run(state, group, entry):
                over[position] = [position, run.lane.number, run.priority]
    if not over:
        return []
    until = now.wall_ms + state.settings.result_ttl_ms
    return [r.Removed(list(over.values()), "expired", now.wall_ms, until)]


def apply_came_due(state: BrokerState, _position: int, record: r.CameDue) -> None:
    """Delayed messages are ready: new ones at the end of their run, others in front."""
    for _, position, number in state.timers.pop(record.count):
        if position in state.cancelled:
            state.cancelled.discard(position)
            continue
        run = state.run_numbered(number)
        run.lane.undelay(position)
        attempts = state.attempts.get(position)
        if attempts:
            state.attempts[position] = attempts._replace(waits=False)
        if attempts and attempts.deliveries:
            state.due_again(run, position)
        else:
            state.ready(run, (position,))


def lose_sessions(state: BrokerState, now: Now) -> None:
    """Take leave of silent workers, and hang up on what is left of them."""
    room = LOST_MEMBERS_MAX
    for session in list(state.sessions.values()):
        if not session.alive_until_ms:
            # Plain consumers went with the broker's last life: nobody can claim for them.
            grace_ms = state.settings.grace_ms if session.id else 0
            session.alive_until_ms = now.mono_ms + grace_ms
        if session.over or session.alive_until_ms > now.mono_ms:
            continue
        for member in session.members.values():
            part(state, member, lost=bool(session.id))
            if member.connection:
                state.effects.append(Close(member.connection))
                leave(state, member.connection)
        end(state, session)
        room -= len(session.members)
        if room <= 0:
            break  # the others are as late in the next turn


def give_back_more(state: BrokerState, now: Now, append: Append) -> None:
    """The next piece of what those hold who are gone."""
    if state.leaving:
        for record in give_back(Survey(state, now)):
            append(record)
        for session in [each for each in state.sessions.values() if each.over]:
            end(state, session)


def drop_old(state: BrokerState, now: Now) -> None:
    """Forget results, producers and expiries whose time is over; nobody is told."""
    for position in state.results.prune(now.wall_ms, PRUNE_MAX):
        state.drop_move(position)
    state.limits.forget(now.wall_ms, FORGET_KEYS_MAX)
    if now.mono_ms >= state.next_sweep_ms:
        state.next_sweep_ms = now.mono_ms + PRODUCER_IDLE_MS // 60
        old = now.wall_ms - PRODUCER_IDLE_MS
        for number in [n for n, p in state.producers.items() if p.seen_ms < old]:
            del state.producers[number]


def answer_late(state: BrokerState, now: Now) -> None:
    """Ask anew for waiters whose time is over: they are told how far the task is."""
    for waiter in state.results.late(now.mono_ms):
        question = Watch(id=waiter.id, position=waiter.position, correlation=waiter.correlation)
        positions = (waiter.position,)
        state.effects.append(Lookup(waiter.connection, question, id=waiter.id, positions=positions))


def next_due(state: BrokerState, now: Now) -> int:
    """Milliseconds until something may be due: LOOK_MS after the last look, or sooner."""
    waits = [state.looked_ms + LOOK_MS - now.mono_ms]
    walls = state.timers.next_ms(), state.expiries.next_ms(), state.pauses.next_ms()
    for wall in (*walls, state.keys.next_ms(), state.notices.next_ms()):
        if wall:
            waits.append(wall - now.wall_ms)
    for mono in (state.results.next_ms(), state.keeper.next_ms()):
        if mono:
            waits.append(mono - now.mono_ms)
    waits += [s.alive_until_ms - now.mono_ms for s in state.sessions.values() if not s.over]
    catalogue = state.catalogue
    held = state.results.holds(state.results.archived) or state.idle.is_due(now.mono_ms)
    begun = (
        held or state.leaving or state.remains or state.orders or state.peeks or catalogue.crowded
    )
    news = state.graphs.has_news
    return 0 if news or begun or catalogue.untold or catalogue.reached >= 0 else max(0, min(waits))


def see_to_queues(state: BrokerState, now: Now, append: Append) -> None:
    """The next piece of what the options of queues want done."""
    catalogue = state.catalogue
    if catalogue.dying:
        bury_more(state, append)
    if catalogue.reached >= 0:
        append(r.PoliciesReached(piece(state)))
    if catalogue.untold:
        tell_archive(state, append)
    if catalogue.waiting:
        look_again(state)
    if catalogue.crowded:
        relieve_more(state, now, append)
    if catalogue.arrived:
        relieve(state, now, append)
    catalogue.alarms.look(now, state.letters, partial(lies_in, state))


def due(state: BrokerState, now: Now, append: Append) -> None:
    """Do all that is due: the records are appended, the effects are in the state."""
    state.looked_ms = now.mono_ms
    for record in records_due(state, now):
        append(record)
    state.limits.now(now)
    if state.limits.clock.was_set():
        state.keeper.wake_all()
    state.keeper.wake(now)
    lose_sessions(state, now)
    give_back_more(state, now, append)
    if state.remains:
        sweep(state)
    if state.orders:
        carry_on(state, now, append)
    if state.peeks:
        peeking.carry_on(state)
    if state.graphs.has_news:
        advance(state, now, append)
    make_room(state, append)
    see_to_queues(state, now, append)  # of what was let go just now, too
    close_idle(state, now, append)
    drop_old(state, now)
    answer_late(state, now)
