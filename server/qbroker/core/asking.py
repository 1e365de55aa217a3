"""Questions and orders from people and clients about one task: watch, cancel, forget.

A task is known by its id. One that its caller chose is in a table. For others the core
asks for a Lookup first: the message at the position that came as a hint, if it bears
that id, else a search of the log by the id's time. No answer trusts a bare position. Of what
is not in memory any more the archive is asked, last.
"""

from collections.abc import Iterator
from itertools import islice

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.effects import Lookup, Tell
from qbroker.core.graphs import UPSTREAM
from qbroker.core.leases import UNTOUCHED
from qbroker.core.moment import Now
from qbroker.core.notices import noticed
from qbroker.core.refusals import RefusedError, checked
from qbroker.core.results import Finished, Found, Remembered, Waiter
from qbroker.core.runs import Run
from qbroker.core.sessions import run_here, run_of
from qbroker.core.state import BrokerState
from qbroker.core.survey import id_of, place_of
from qprotocol.frames import Cancel, CancelGraph, DeadLetters, Forget, Move, Ok, Watch, Why
from qprotocol.ids import pack_id
from qprotocol.limits import WATCH_MS_MAX
from qprotocol.states import State

Named = Watch | Cancel | CancelGraph | Forget | Move | Why | DeadLetters
"""Frames about a task, by its id."""
UNKNOWN = Finished(State.UNKNOWN, 0, 0, 0, 0, 0)


def known(
    state: BrokerState, now: Now, frame: Named, found: Found | None
) -> tuple[int, Finished | None]:
    """The task's position and what is known of it; None if a Lookup must tell first."""
    read = found or Found()
    for at, entry in in_memory(state, now, frame, read):
        return at, entry
    row = archived(state, now, frame, read)
    if row:
        return row.position, row.entry
    if read.damage:
        raise RefusedError(
            "DATA_DAMAGED",
            f"nobody can tell what became of {frame.id!r}: {read.damage}; if it was ever sent, it "
            "is lost: send it again, or restore the log from a backup",
        )
    return 0, UNKNOWN if read.asked else None


def archived(state: BrokerState, now: Now, frame: Named, read: Found) -> Remembered | None:
    """What the archive said, if that counts still. Raises RefusedError if it could say nothing."""
    row = read.remembered
    is_kept = row and row.entry.keep_until_ms > now.wall_ms
    if row and is_kept and row.position not in state.results.forgotten:
        return row
    if read.trouble:
        raise RefusedError(
            "RESOURCE_EXHAUSTED", f"nobody can tell what became of {frame.id!r}: {read.trouble}"
        )
    return None


def in_memory(
    state: BrokerState, now: Now, frame: Named, read: Found
) -> Iterator[tuple[int, Finished]]:
    """What is known of each message with that id, and its position: an exchange makes copies."""
    name = name_of(frame)
    named = named_position(state, name)
    if named:
        candidates = {named: read.messages.get(named, b"")}
    else:
        candidates = {p: raw for p, raw in read.messages.items() if raw and id_of(raw) == name}
    for position, raw in candidates.items():
        at = state.current(position)
        entry = state.results.get(at, now.wall_ms) or pending(state, at) or waiting(state, at, raw)
        if entry is not None:
            yield at, entry


def name_of(frame: Named) -> bytes:
    """The id as its bytes in a message. Raises RefusedError."""
    return checked(pack_id, frame.id)[0]


def named_position(state: BrokerState, name: bytes) -> int:
    """The position of the task with that chosen id: alive, or finished and remembered."""
    return state.named.get(name) or state.results.names.get(name, 0)


def pending(state: BrokerState, position: int) -> Finished | None:
    """The state of an unfinished message, as far as it is known by position alone; and of one that
    ended with others of its graph, and may be held again.
    """
    failure = state.graphs.failure_of(position)
    if failure is not None:
        return Finished(State.FAILURE, failure, 0, 0, 0, 0, 0, UPSTREAM)
    touched = state.touched(position)
    attempts = touched or UNTOUCHED
    if state.graphs.is_held(position):
        status = State.HELD
    elif position in state.leases:
        status = State.STARTED
    elif not touched:
        return None
    elif attempts.reason:
        status = State.FAILURE
    elif not attempts.waits:
        status = State.QUEUED
    else:
        status = State.RETRY if attempts.failures else State.SCHEDULED
    failures = attempts.failures
    return Finished(status, attempts.error, 0, 0, 0, 0, failures, attempts.reason)


def waiting(state: BrokerState, position: int, raw: bytes) -> Finished | None:
    """The state of a message nobody has touched, from its bytes; None if it does not wait."""
    run = run_of(state, raw)
    if run is None:
        return None
    if position in run:
        return Finished(State.QUEUED, 0, 0, 0, 0, 0)
    if not state.is_waiting(run, position, place_of(raw)[-1]):
        return None
    return Finished(State.SCHEDULED, 0, 0, 0, 0, 0)


def lookup(state: BrokerState, connection: int, frame: Named, found: Found | None) -> Decision:
    """Ask the engine which message the id means; if the log was asked before, the archive."""
    if found is not None:
        return Decision(effects=[Lookup(connection, frame, id=frame.id, archive=True)])
    hint = named_position(state, name_of(frame)) or frame.position
    positions = (hint,) if hint else ()
    return Decision(effects=[Lookup(connection, frame, id=frame.id, positions=positions)])


def decide_watch(
    state: BrokerState, now: Now, connection: int, frame: Watch, found: Found | None
) -> Decision:
    """Answer at once if the task is finished or nobody wants to wait; else when it is."""
    position, entry = known(state, now, frame, found)
    if entry is None:
        return lookup(state, connection, frame, found)
    if entry.unfinished and frame.wait_ms:
        until = now.mono_ms + min(frame.wait_ms, WATCH_MS_MAX)
        state.results.wait(Waiter(connection, frame.correlation, frame.id, position, until))
        return Decision()
    return Decision(effects=[told(connection, frame, position, entry, found)])


def told(
    connection: int, frame: Watch | Cancel, position: int, entry: Finished, found: Found | None
) -> Tell:
    """The answer; with the bytes, if the archive gave them."""
    row = found.remembered if found and is_remembered(entry, found) else None
    return Tell(connection, frame.correlation, frame.id, position, entry, row.kept if row else None)


def is_remembered(entry: Finished, found: Found | None) -> bool:
    """Whether that is the archive's answer."""
    row = found.remembered if found else None
    return row is not None and row.entry is entry


def decide_cancel(
    state: BrokerState, now: Now, connection: int, frame: Cancel, found: Found | None
) -> Decision:
    """Over at once, unless it is finished already; if nobody knows it, once it comes.

    With it the copies that an exchange made, copies_max at most: answered is the first.
    """
    position, entry = known(state, now, frame, found)
    if entry is None:
        return lookup(state, connection, frame, found)
    records: list[r.Record] = []
    copies = in_memory(state, now, frame, found or Found())
    left = dict.fromkeys(at for at, each in copies if each.unfinished)
    if left:
        until = now.wall_ms + state.settings.result_ttl_ms
        most, grace_ms = state.settings.copies_max, frame.grace_ms
        where = [place(state, at, found) for at in islice(left, most)]
        removed = r.Removed(
            where, "cancelled", now.wall_ms, until, frame.terminate, grace_ms=grace_ms
        )
        records.append(removed)
        if entry.unfinished:
            entry = Finished(State.REVOKED, 0, 0, now.wall_ms, 0, until, 0, "cancelled")
    elif entry is UNKNOWN and state.settings.cancel_notices_max:
        until = now.wall_ms + state.settings.cancel_notice_ttl_ms
        raw_id, minted = pack_id(frame.id)
        records.append(r.CancelNoted([noticed(raw_id, minted=minted)], until))
        entry = Finished(State.UNKNOWN, 0, 0, 0, 0, until)
    return Decision(records, effects=[told(connection, frame, position, entry, found)])


def place(state: BrokerState, position: int, found: Found | None) -> list[int]:
    """An unfinished message, as a row of Removed."""
    run = run_known(state, position, found)
    assert run is not None, f"{position} waits, and nowhere"
    return [position, run.lane.number, run.priority]


def apply_cancel_noted(state: BrokerState, _position: int, record: r.CancelNoted) -> None:
    """Messages with these ids are over when they come; what is lapsed is forgotten."""
    state.notices.drop_oldest(record.lapsed)
    for name in record.ids:
        state.notices.note(name, record.until_ms, state.settings.cancel_notices_max)


def run_known(state: BrokerState, position: int, found: Found | None) -> Run | None:
    """The run that an unfinished message belongs to."""
    here = run_here(state, position)
    return here or run_of(state, (found or Found()).messages.get(position, b""))


def decide_forget(
    state: BrokerState, now: Now, connection: int, frame: Forget, found: Found | None
) -> Decision:
    """The result is gone; count says whether there was one."""
    position, entry = known(state, now, frame, found)
    if entry is None:
        return lookup(state, connection, frame, found)
    kept = position in state.results.finished or is_remembered(entry, found)
    if not kept and state.letters.get(position):
        # What memory knows of a dead letter is no result: that may be in the archive by now.
        if state.settings.archive and not (found and found.asked):
            return lookup(state, connection, frame, found or Found())
        kept = bool(found and archived(state, now, frame, found))
    records: list[r.Record] = [r.Forgotten([position])] if kept else []
    return Decision(records, Ok(count=int(kept)))


def apply_forgotten(state: BrokerState, at: int, record: r.Forgotten) -> None:
    """These results are gone; the archive learns of it later, and is not believed until then."""
    for position in record.positions:
        state.results.drop(position)
        state.drop_move(position)
        if state.settings.archive:
            state.results.forgotten.pop(position, None)
            state.results.forgotten[position] = at


def apply_archived(state: BrokerState, _position: int, record: r.Archived) -> None:
    """The archive is asked from now on for what was settled up to there."""
    for position in state.results.release(record.upto):
        state.drop_move(position)
