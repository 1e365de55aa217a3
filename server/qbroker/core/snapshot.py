"""Durable state to bytes and back: what a checkpoint holds.

    state by the snapshot and the log behind it  ==  state by the whole log

``encode`` gives named sections, ``decode`` makes a broker's state of them; SECTIONS says
which fields of BrokerState each holds. What is not there is VOLATILE, by name.

Rule 1. Nothing is worked out from messages' bytes: a snapshot is the state, no more.
Rule 2. Numbers by the million are columns (columns.py), small things msgpack.
Rule 3. A section whose form changes gets a new VERSION; the old one is read on.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.leases import Attempts, Grant, Session
from qbroker.core.pauses import Pauses
from qbroker.core.purging import finish
from qbroker.core.results import Results
from qbroker.core.settings import PRODUCER_IDLE_MS, Settings
from qbroker.core.state import BrokerState, Producer, Upload
from qbroker.core.timers import Timers
from qprotocol.limits import PRODUCER_WINDOW
from qprotocol.options import QueueOptions

VERSION = 4
READ = (1, 2, 3, 4)
"""Versions that are read. The first knew nothing of what queues had counted, the first two
nothing of which grants can be claimed. What later ones added are sections of their own."""

Block = bytes | memoryview
Sections = Mapping[str, Block]

VOLATILE = frozenset(
    {
        # Made of the configuration.
        *("settings", "synced"),
        # About connections, which the next life does not have.
        *("members", "roles", "consumers", "leaving", "remains", "listening", "arrivals"),
        # Found again when they are needed.
        *("routes", "dirty", "effects", "next_sweep_ms"),
        # Counted since the start.
        *("closed_to_publishes", "lease_lost", "duplicates"),
    }
)
"""Fields of BrokerState that no snapshot holds."""


class SnapshotError(ValueError):
    """The sections are not those of a snapshot that this version reads."""


@dataclass(frozen=True, slots=True)
class Section:
    """How some fields become bytes, and come back. Restored in the order of SECTIONS."""

    fields: tuple[str, ...]
    save: Callable[[BrokerState], bytes]
    restore: Callable[[BrokerState, Block], None]
    since: int = 1
    """The version that it came with: it may be missing in one before, and is empty then."""


def encode(state: BrokerState) -> Iterator[tuple[str, bytes]]:
    """The sections, by name. The state must not change before the last is taken.

    What was purged is swept first.
    Sessions without leases are left out: a worker that comes back makes its own anew.
    Uploads under way are kept: their end may be in the log behind this. Costs some 10 ms
    for a million waiting messages, and some microseconds for each that was handed out before.
    """
    finish(state)
    for name, section in SECTIONS.items():
        yield name, section.save(state)


def decode(settings: Settings, sections: Sections) -> BrokerState:
    """The state that was encoded, with volatile things as after a start.

    Raises SnapshotError.
    """
    state = BrokerState(settings)
    for name, section in SECTIONS.items():
        if name not in sections:
            if section.since > 1 and unpack_columns(sections["broker"])[0][0] < section.since:
                continue
            raise SnapshotError(f"section {name!r} is missing")
        try:
            section.restore(state, sections[name])
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise SnapshotError(f"section {name!r} cannot be read: {error!r}") from error
    return state


def tidy(state: BrokerState, wall_ms: int) -> None:
    """What time has made void is gone, as far as no record tells of it.

    A running broker drops results, producers and expiries as time passes; one that only
    follows the log would keep them for ever.
    """
    for position in state.results.prune(wall_ms, len(state.results.finished)):
        state.drop_move(position)
    old = wall_ms - PRODUCER_IDLE_MS
    for number in [n for n, p in state.producers.items() if p.seen_ms < old]:
        del state.producers[number]
    due = state.expiries.pop(state.expiries.due(wall_ms, state.expiries.size))
    for due_ms, position, number in due:
        if position in state.leases or state.waits_in(number, position):
            group = state.run_numbered(number).lane.queue.number
            state.expiries.push(group, due_ms, position, number)


# Queues, lanes and what waits in them.


def save_broker(state: BrokerState) -> bytes:
    """The version stands first, and is read by every version."""
    return pack_columns([VERSION, state.epoch, state.boots, state.granted])


def restore_broker(state: BrokerState, block: Block) -> None:
    """Raises ValueError for a version not known."""
    version, *values = unpack_columns(block)[0]
    if version not in READ:
        raise ValueError(f"it is of version {version}, this broker reads {VERSION} and before")
    state.epoch, state.boots, state.granted = values


def save_queues(state: BrokerState) -> bytes:
    """Queues and lanes in the order of their numbers."""
    queues = [
        [q.name, q.options.as_dict(), q.ready, q.scheduled, q.leased, dict(q.counts)]
        for q in state.numbered
    ]
    lanes = [[lane.queue.number, lane.task, lane.keys] for lane in state.lanes]
    return pack_columns([queues, lanes], [column(sorted(q.delayed)) for q in state.numbered])


def restore_queues(state: BrokerState, block: Block) -> None:
    """Whether a queue's confirms wait for the disk is as the settings say now."""
    (queues, lanes), delayed = unpack_columns(block)
    for number, (name, options, ready, scheduled, leased, *counts) in enumerate(queues):
        queue = state.open_queue(number, name, QueueOptions.parse(options))
        queue.ready, queue.scheduled, queue.leased = ready, scheduled, leased
        queue.counts.update(*counts)
        queue.delayed = set(delayed[number])
    for number, (of, task, keys) in enumerate(lanes):
        state.open_lane(number, state.numbered[of], task, keys)


def save_runs(state: BrokerState) -> bytes:
    """What waits: a row a run that is not empty, a column a chunk."""
    rows, columns = [], []
    for lane in state.lanes:
        for run in lane.runs.values():
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
            run.lane.queue.offer(run)


def timers(name: str) -> Section:
    """The section for a field that holds Timers."""

    def save(state: BrokerState) -> bytes:
        return pack_columns(*getattr(state, name).saved())

    def restore(state: BrokerState, block: Block) -> None:
        setattr(state, name, Timers.restored(*unpack_columns(block)))

    return Section((name,), save, restore)


POSITIONS = ("late", "cancelled")


def save_positions(state: BrokerState) -> bytes:
    """Sets of positions, a column each."""
    return pack_columns(None, [column(sorted(getattr(state, name))) for name in POSITIONS])


def restore_positions(state: BrokerState, block: Block) -> None:
    for name, found in zip(POSITIONS, unpack_columns(block)[1], strict=True):
        setattr(state, name, set(found))


# What was handed out.


def save_leases(state: BrokerState) -> bytes:
    """A row a grant: holder, where its messages go back to, which of them it still holds."""
    grants = {id(grant): grant for grant in state.leases.values()}
    rows = []
    for grant in grants.values():
        session = grant.member.session
        rows.append(
            [
                session.id if session else b"",
                grant.member.number,
                grant.number,
                [[first, count, run.number] for first, count, run in grant.entries],
                [p for p in grant.positions() if state.leases.get(p) is grant],
                sorted(grant.started),
                sorted(grant.early),
            ]
        )
    return pack_columns(rows)


def restore_leases(state: BrokerState, block: Block) -> None:
    """Held as after a replay: sessions may come and claim, plain consumers cannot."""
    for name, number, grant_number, entries, held, started, early in unpack_columns(block)[0]:
        session = state.sessions.get(name)
        if session is None:
            session = state.sessions[name] = Session(name)
        member = session.member(number)
        grant = member.grants[grant_number] = Grant(grant_number, member, None)
        grant.entries = [(*where, state.run_numbered(run)) for *where, run in entries]
        grant.remaining = len(held)
        grant.started.update(started)
        grant.early.update(early)
        state.leases.update(dict.fromkeys(held, grant))


COUNTERS = ("deliveries", "failures", "crashes", "error", "waits", "claims_from")


def save_attempts(state: BrokerState) -> bytes:
    """Columns: position, run number plus 1 or 0 for none, COUNTERS. Reasons by row."""
    found = state.attempts.values()
    reasons = {row: each.reason for row, each in enumerate(found) if each.reason}
    columns = [
        column(state.attempts),
        column(each.run.number + 1 if each.run else 0 for each in found),
        *(column(getattr(each, name) for each in found) for name in COUNTERS),
    ]
    return pack_columns(reasons, columns)


def restore_attempts(state: BrokerState, block: Block) -> None:
    """Messages that went the same way share one value again."""
    reasons, columns = unpack_columns(block)
    if len(columns) == 2 + len(COUNTERS) - 1:
        columns.append(column([0] * len(columns[0])))  # before version 3
    shared: dict[Attempts, Attempts] = {}
    for row, (position, run, *counters, waits, claims) in enumerate(zip(*columns, strict=True)):
        where = state.run_numbered(run - 1) if run else None
        deliveries, failures, crashes, error = counters
        reason = reasons.get(row, "")
        each = Attempts(deliveries, failures, crashes, error, reason, where, bool(waits), claims)
        state.attempts[position] = shared.setdefault(each, each)


def save_pauses(state: BrokerState) -> bytes:
    return state.pauses.saved()


def restore_pauses(state: BrokerState, block: Block) -> None:
    state.pauses = Pauses.restored(block)
    for number in state.pauses.dispatch:
        state.numbered[number].held += 1


# Messages under other positions and names.


def save_moved(state: BrokerState) -> bytes:
    return pack_columns(None, [column(state.moved), column(state.moved.values())])


def restore_moved(state: BrokerState, block: Block) -> None:
    firsts, afters = unpack_columns(block)[1]
    state.moved = dict(zip(firsts, afters, strict=True))
    state.origin = dict(zip(afters, firsts, strict=True))


def save_named(state: BrokerState) -> bytes:
    return pack_columns(list(state.named), [column(state.named.values())])


def restore_named(state: BrokerState, block: Block) -> None:
    names, (positions,) = unpack_columns(block)
    state.named = dict(zip(names, positions, strict=True))
    state.names = dict(zip(positions, names, strict=True))


def save_continued(state: BrokerState) -> bytes:
    return pack_columns(state.continued)


def restore_continued(state: BrokerState, block: Block) -> None:
    state.continued = unpack_columns(block)[0]


def save_quarantined(state: BrokerState) -> bytes:
    return pack_columns(state.quarantined)


def restore_quarantined(state: BrokerState, block: Block) -> None:
    state.quarantined = {p: tuple(row) for p, row in unpack_columns(block)[0].items()}


_WINDOW_BYTES = PRODUCER_WINDOW // 8


def save_producers(state: BrokerState) -> bytes:
    """Columns: number, highest chunk, last seen. Windows one behind the other."""
    known = state.producers.values()
    windows = b"".join(each.window.to_bytes(_WINDOW_BYTES, "little") for each in known)
    columns = [
        column(state.producers),
        column(each.highest for each in known),
        column(each.seen_ms for each in known),
    ]
    return pack_columns(windows, columns)


def restore_producers(state: BrokerState, block: Block) -> None:
    windows, columns = unpack_columns(block)
    for row, (number, highest, seen_ms) in enumerate(zip(*columns, strict=True)):
        window = windows[row * _WINDOW_BYTES : (row + 1) * _WINDOW_BYTES]
        state.producers[number] = Producer(highest, int.from_bytes(window, "little"), seen_ms)


def save_results(state: BrokerState) -> bytes:
    return pack_columns(*state.results.saved())


def restore_results(state: BrokerState, block: Block) -> None:
    state.results = Results.restored(state.settings.results_max, *unpack_columns(block))


def save_uploads(state: BrokerState) -> bytes:
    """A row an upload; a column for each run it has staged, then those of its timers."""
    rows, columns = [], []
    for key, upload in state.uploads.items():
        timers, expiries = upload.timers.saved(), upload.expiries.saved()
        delayed = {group: list(positions) for group, positions in upload.delayed.items()}
        rows.append(
            [
                *(
                    key,
                    list(upload.staged),
                    timers[0],
                    expiries[0],
                    delayed,
                    list(upload.named.items()),
                ),
                *(upload.continued, upload.last, upload.count, upload.parts),
            ]
        )
        columns += [*upload.staged.values(), *timers[1], *expiries[1]]
    return pack_columns(rows, columns)


def restore_uploads(state: BrokerState, block: Block) -> None:
    rows, columns = unpack_columns(block)
    waiting = iter(columns)
    for key, staged, timers, expiries, delayed, named, *rest in rows:
        state.uploads[tuple(key)] = Upload(
            {tuple(run): next(waiting) for run in staged},
            Timers.restored(timers, list(islice(waiting, 3 * len(timers)))),
            Timers.restored(expiries, list(islice(waiting, 3 * len(expiries)))),
            {group: set(positions) for group, positions in delayed.items()},
            dict(named),
            *rest,
        )


SECTIONS: dict[str, Section] = {
    "broker": Section(("epoch", "boots", "granted"), save_broker, restore_broker),
    "queues": Section(("queues", "numbered", "lanes", "lane_of"), save_queues, restore_queues),
    "runs": Section((), save_runs, restore_runs),
    "timers": timers("timers"),
    "expiries": timers("expiries"),
    "positions": Section(POSITIONS, save_positions, restore_positions),
    "leases": Section(("leases", "sessions"), save_leases, restore_leases),
    "attempts": Section(("attempts",), save_attempts, restore_attempts),
    "moved": Section(("moved", "origin"), save_moved, restore_moved),
    "named": Section(("named", "names"), save_named, restore_named),
    "continued": Section(("continued",), save_continued, restore_continued),
    "quarantined": Section(("quarantined",), save_quarantined, restore_quarantined),
    "producers": Section(("producers",), save_producers, restore_producers),
    "results": Section(("results",), save_results, restore_results),
    "uploads": Section(("uploads",), save_uploads, restore_uploads),
    "pauses": Section(("pauses",), save_pauses, restore_pauses, since=4),
}
"""What a snapshot holds. Lanes come before what waits in them."""
