"""What people do with dead letters: look through them, replay, edit and drop them.

    list ----> rows and numbers --> ReplayDead, DropDead: these, as far as they are still there

Orders name dead letters one by one, by position and number. So what a filter means is settled by
who asks, a page at a time; each order is one record; and to give an order twice does it once, for
a dead letter that was replayed and died again has another number.
"""

from qbroker.core import records as r
from qbroker.core.asking import known, lookup
from qbroker.core.burying import revive
from qbroker.core.decision import Decision
from qbroker.core.effects import LetterRow, LettersShown, Lookup
from qbroker.core.lanes import Lane
from qbroker.core.leases import UNSEEN
from qbroker.core.letters import Letter
from qbroker.core.moment import Now
from qbroker.core.publishing import apply_messages
from qbroker.core.refusals import RefusedError, check_text, checked
from qbroker.core.results import Found
from qbroker.core.runs import Run
from qbroker.core.settings import (
    AUTHOR_BYTES_MAX,
    LETTER_NUMBERS_MAX,
    LETTER_ROWS_MAX,
    LETTERS_LOOKED_MAX,
)
from qbroker.core.shaping import size
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey, id_of
from qprotocol import wire
from qprotocol.causes import cause_of, check_cause
from qprotocol.frames import DeadLetters, DropDead, EditDead, Ok, ReplayDead
from qprotocol.limits import LETTERS_MAX
from qprotocol.message import unpack_route
from qprotocol.names import check_queue_name
from qprotocol.options import is_dead_queue
from qprotocol.wire import NUMBERS, ROWS, WHOLE

# Looking.


def decide_dead_letters(
    state: BrokerState, now: Now, connection: int, frame: DeadLetters, found: Found | None
) -> Decision:
    """A page of them, or the one with that id."""
    if frame.cause:
        checked(check_cause, frame.cause)
    if frame.detail not in (NUMBERS, ROWS, WHOLE) or (frame.detail == WHOLE and not frame.id):
        raise RefusedError("BAD_REQUEST", f"detail {frame.detail}: 0 or 1, and 2 with an id")
    shown = LettersShown(connection, frame, last=state.letters.count)
    if frame.id:
        position, entry = known(state, now, frame, found)
        if entry is None:
            return lookup(state, connection, frame, found)
        letter = state.letters.get(position)
        if letter and is_seen(state, position):
            shown.rows.append(row(state, position, letter))
            if frame.detail == WHOLE:
                shown.continued = state.parts_of((position,))
    else:
        fill(state, now, frame, shown)
    return Decision(effects=[shown])


def fill(state: BrokerState, now: Now, frame: DeadLetters, shown: LettersShown) -> None:
    """The page has those that fit behind the place that the frame names."""
    reads = frame.detail == ROWS or bool(frame.error)
    most = max(1, min(frame.limit, LETTER_ROWS_MAX if reads else LETTER_NUMBERS_MAX))
    before_ms = now.wall_ms - frame.older_ms
    at = frame.after
    for number, position, letter in state.letters.after(frame.after):
        if len(shown.rows) == most or shown.looked == LETTERS_LOOKED_MAX:
            shown.next = at
            return
        shown.looked, at = shown.looked + 1, number
        # Without an age all are meant, also who died by a clock that was set back since.
        is_old = letter and (not frame.older_ms or letter.died_ms <= before_ms)
        if letter and is_old and is_seen(state, position):
            found = row(state, position, letter)
            if fits(frame, found):
                shown.rows.append(found)


def fits(frame: DeadLetters, found: LetterRow) -> bool:
    """Whether the letter is meant, as far as the core knows; its error is read later."""
    return (
        (not frame.queue or frame.queue in (found.queue, found.dead_queue))
        and (not frame.task or frame.task == found.task)
        and (not frame.cause or frame.cause == found.cause)
        and found.worker.startswith(frame.worker)
    )


def row(state: BrokerState, position: int, letter: Letter) -> LetterRow:
    """What the core knows of it."""
    attempts, grant = state.attempts[position], state.leases.get(position)
    run = grant.run_of(position) if grant else attempts.run
    assert run is not None, position
    lane = run.lane
    return LetterRow(
        position,
        letter.number,
        letter.home,
        lane.queue.name,
        lane.task,
        run.priority,
        cause_of(attempts.reason),
        attempts.reason,
        letter.died_ms,
        letter.worker.hex(),
        *attempts.counters(),
        letter.due_ms if attempts.waits else 0,
        letter.expires_ms,
        grant is not None,
        attempts.error,
    )


def is_seen(state: BrokerState, position: int) -> bool:
    """Whether the letter is there for people: what was purged is not, though it may be swept
    later.
    """
    return position in state.leases or state.touched(position) is not None


# Orders.


def chosen(state: BrokerState, raw: bytes) -> list[tuple[int, Letter, Run]]:
    """Those of the named letters that are there and wait. Raises RefusedError."""
    if not raw or len(raw) % wire.LETTER.size:
        raise RefusedError("BAD_REQUEST", f"{len(raw)} bytes are no whole dead letters")
    if len(raw) > LETTERS_MAX * wire.LETTER.size:
        count = len(raw) // wire.LETTER.size
        raise RefusedError(
            "BAD_REQUEST", f"{count} dead letters in a frame: at most {LETTERS_MAX}, use more"
        )
    out: dict[int, tuple[int, Letter, Run]] = {}
    for position, number in wire.LETTER.iter_unpack(raw):
        letter = state.letters.get(position)
        if letter and letter.number == number and position not in state.leases:
            attempts = state.touched(position)
            if attempts and attempts.run:
                out[position] = position, letter, attempts.run
    return list(out.values())


def decide_replay(state: BrokerState, now: Now, _connection: int, frame: ReplayDead) -> Decision:
    """They wait in their queues again, or in the one that is named."""
    check_text("an author", frame.author, AUTHOR_BYTES_MAX)
    if frame.queue:
        checked(check_queue_name, frame.queue)
        if is_dead_queue(frame.queue):
            raise RefusedError(
                "BAD_REQUEST", f"{frame.queue!r} is for dead letters: name a queue that runs them"
            )
    late_ms = now.wall_ms + state.settings.delay_max_ms
    if frame.due_ms > late_ms:
        raise RefusedError(
            "BAD_REQUEST", f"due in {frame.due_ms - now.wall_ms} ms, over delay_max_ms"
        )
    survey, entries = Survey(state, now), []
    for position, letter, run in chosen(state, frame.raw):
        to = survey.lane_beyond(frame.queue or letter.home, run.lane)
        was_ms = letter.due_ms if state.attempts[position].waits else 0
        entries.append([run.lane.number, run.priority, to, position, was_ms])
    if not entries:
        return Decision(reply=Ok())
    due_ms = frame.due_ms if frame.due_ms > now.wall_ms else 0
    record = r.Replayed(entries, due_ms, frame.author, now.wall_ms)
    return Decision([*survey.opened, record], Ok(count=len(entries)))


def apply_replayed(state: BrokerState, _position: int, record: r.Replayed) -> None:
    """Nothing is known of them but which grants are over."""
    for number, priority, to, position, was_ms in record.entries:
        source, target = state.lanes[number].run(priority), state.lanes[to].run(priority)
        state.withdraw(source, position, was_ms)
        revive(state, position)
        claims_from = state.attempts[position].claims_from
        state.attempts[position] = UNSEEN._replace(
            run=target, waits=bool(record.due_ms), claims_from=claims_from
        )
        source.lane.queue.counts["replayed"] += 1
        if record.due_ms:
            state.later(target, position, record.due_ms)
        else:
            state.ready(target, (position,))
        size_bytes = state.catalogue.gone(source.lane.queue, position)
        if target.lane.queue.options.is_bounded:
            state.catalogue.arrive(target, position, size_bytes, record.due_ms)


def decide_drop(state: BrokerState, now: Now, _connection: int, frame: DropDead) -> Decision:
    """They are over."""
    check_text("an author", frame.author, AUTHOR_BYTES_MAX)
    rows = [
        [position, run.lane.number, run.priority] for position, _, run in chosen(state, frame.raw)
    ]
    records: list[r.Record] = []
    if rows:
        records.append(r.LettersDropped(rows, frame.author, now.wall_ms))
    return Decision(records, Ok(count=len(rows)))


def apply_dropped_letters(state: BrokerState, _position: int, record: r.LettersDropped) -> None:
    """Nothing is kept of them; what became of their tasks was said when they died."""
    for position, number, priority in record.positions:
        run = state.lanes[number].run(priority)
        state.withdraw(run, position)
        run.lane.queue.counts["dropped"] += 1
        state.catalogue.gone(run.lane.queue, position)
        if position not in state.results.finished:
            state.drop_move(position)
        state.forget(position)


# Edits.


def decide_edit(
    state: BrokerState, now: Now, connection: int, frame: EditDead, found: Found | None
) -> Decision:
    """Another message is the dead letter from now on; what is there is read before, for its id."""
    check_text("an author", frame.author, AUTHOR_BYTES_MAX)
    if found is None:
        return Decision(effects=[Lookup(connection, frame, positions=(frame.position,))])
    before = found.messages.get(frame.position, b"")
    letters = chosen(state, wire.LETTER.pack(frame.position, frame.number))
    if not letters or not before:
        return Decision(reply=Ok())
    ((_, _, run),) = letters
    survey = Survey(state, now, following=True)
    survey.replacing = frame.position
    batch = survey.walk(frame.raw, 0, len(frame.raw))
    if batch.count != 1 or survey.routed:
        raise RefusedError("BAD_MESSAGE", "an edit is one message, to a queue by its name")
    home, task, keys = route_of(frame.raw)
    if is_dead_queue(home):
        raise RefusedError("BAD_REQUEST", f"{home!r} is for dead letters: name one that runs it")
    if id_of(before) != id_of(frame.raw):
        raise RefusedError("BAD_REQUEST", "an edit keeps the id of its message: send it with that")
    place = survey.lane(run.lane.queue.name, task, keys, beyond=True)
    lane = place.number if isinstance(place, Lane) else place
    batch.runs, batch.expiring, batch.sizes = [[lane, batch.runs[0][1], 1, 0]], [], []
    if run.lane.queue.options.max_bytes:
        batch.sizes = [[0, size(frame.raw, 0).to_bytes(4, "little")]]
    record = r.LetterEdited(frame.position, home, frame.author, now.wall_ms, batch)
    return Decision([*survey.opened, record], Ok(count=1))


def route_of(raw: bytes) -> tuple[str, str, bytes]:
    """Queue, task and keys of a packed message that was walked over."""
    n_route = wire.MESSAGE.unpack_from(raw)[7]
    start = wire.MESSAGE.size
    return unpack_route(raw[start : start + n_route])[1:]


def apply_edited(state: BrokerState, position: int, record: r.LetterEdited) -> None:
    """It waits behind the other dead letters; what is known of the one before is known of it."""
    before = record.letter
    known = state.attempts[before]
    assert known.run is not None
    source = known.run
    letter = state.letters.by_position[before]
    state.withdraw(source, before, letter.due_ms if known.waits else 0)
    state.catalogue.gone(source.lane.queue, before)
    state.replace(before, position)
    state.results.drop(before)
    state.forget(before)
    number, priority = record.batch.runs[0][:2]
    target = state.lanes[number].run(priority)
    state.attempts[position] = known._replace(run=target, waits=False)
    state.letters.by_position[position] = letter._replace(home=record.home, due_ms=0)
    if letter.expires_ms:
        group = target.lane.queue.number
        state.expiries.push(group, letter.expires_ms, position, target.number)
    apply_messages(state, position, record.batch, count_as="edited")
