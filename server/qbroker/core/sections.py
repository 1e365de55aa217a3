"""The sections of a snapshot: how fields of the state become bytes, and come back.

Rule 1. Numbers by the million are columns (columns.py), small things msgpack.
Rule 2. A section whose form changes gets a new VERSION; the old one is read on. A new section
        says since when it is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.leases import Attempts, Grant, Session
from qbroker.core.pauses import Pauses
from qbroker.core.policies import Policy
from qbroker.core.results import Results
from qbroker.core.savedgraphs import restore_graphs, save_graphs
from qbroker.core.savedkeys import restore_keys, restore_producers, save_keys, save_producers
from qbroker.core.savedlanes import (
    count_scheduled,
    restore_lanes,
    restore_queues,
    restore_runs,
    save_lanes,
    save_queues,
    save_runs,
)
from qbroker.core.savedletters import find_letters, restore_letters, save_letters
from qbroker.core.savedlimits import restore_limits, restore_orderings, save_limits, save_orderings
from qbroker.core.saveduploads import restore_uploads, save_uploads
from qbroker.core.state import BrokerState
from qbroker.core.timers import Timers
from qbroker.core.weights import Weights

VERSION = 6
READ = (1, 2, 3, 4, 5, 6)
"""Versions that are read. The first knew nothing of what queues had counted, the first two
nothing of which grants can be claimed. What later ones added are sections of their own."""
WITHOUT_GRAPHS = 5
"""The version of a snapshot in which there is no graph: a broker that knows none reads it."""

Block = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Section:
    """How some fields become bytes, and come back. Restored in the order of SECTIONS."""

    fields: tuple[str, ...]
    save: Callable[[BrokerState], bytes]
    restore: Callable[[BrokerState, Block], None]
    since: int = 1
    """The version that it came with: it may be missing in one before, and is empty then."""
    without: Callable[[BrokerState], None] | None = None
    """What makes its fields where it is missing, if they follow from others."""


# The broker, and what was said of its queues.


def save_broker(state: BrokerState) -> bytes:
    """The version stands first, and is read by every version."""
    woven = state.graphs or any(upload.graph for upload in state.uploads.values())
    version = VERSION if woven else WITHOUT_GRAPHS
    return pack_columns([version, state.epoch, state.boots, state.granted])


def version_of(block: Block) -> int:
    """Which version wrote a snapshot, by its section ``broker``."""
    return int(unpack_columns(block)[0][0])


def restore_broker(state: BrokerState, block: Block) -> None:
    """Raises ValueError for a version not known."""
    version, *values = unpack_columns(block)[0]
    if version not in READ:
        raise ValueError(f"it is of version {version}, this broker reads {VERSION} and before")
    state.epoch, state.boots, state.granted = values


def save_terms(state: BrokerState) -> bytes:
    """Policies; a row a queue of which something was said, and of its weights; those as columns."""
    policies = [
        [each.name, each.pattern, each.priority, each.operator, dict(each.options)]
        for each in state.catalogue.policies.values()
    ]
    terms = [
        [queue.number, dict(queue.terms.changed), queue.terms.owner, queue.terms.deleted]
        for queue in state.numbered
        if queue.terms.changed or queue.terms.owner or queue.terms.deleted
    ]
    weights, columns = [], []
    for number, each in state.catalogue.weights.items():
        firsts, pieces = each.saved()
        weights.append([number, firsts])
        columns += pieces
    return pack_columns([policies, terms, weights], columns)


def restore_terms(state: BrokerState, block: Block) -> None:
    """Options are what they come to; of deleted queues only what is left is known."""
    (policies, terms, weights), columns = unpack_columns(block)
    catalogue = state.catalogue
    catalogue.policies = {row[0]: Policy(*row) for row in policies}
    for number, changed, owner, deleted in terms:
        own = state.numbered[number].terms
        own.changed, own.owner, own.deleted = changed, owner, deleted
    state.queues = {q.name: q for q in state.numbered if not q.terms.deleted}
    for queue in state.numbered:
        if queue.terms.deleted:
            catalogue.drop(queue)
        else:
            state.refresh(queue)
    waiting = iter(columns)
    for number, firsts in weights:
        catalogue.weights[number] = Weights.restored(firsts, list(islice(waiting, len(firsts))))


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
                [
                    [first, count, run.number]
                    for first, count, run in grant.entries
                    if state.lane_numbered(run.lane.number) is run.lane
                ],
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
        for position in held:
            lane = grant.run_of(position).lane
            lane.leased += 1
            if lane.ordering:
                lane.ordering.goes_out(position)
            lane.shelf.leased += 1
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


def save_notices(state: BrokerState) -> bytes:
    return pack_columns(list(state.notices.ids), [column(state.notices.ids.values())])


def restore_notices(state: BrokerState, block: Block) -> None:
    names, (untils,) = unpack_columns(block)
    state.notices.ids = dict(zip(names, untils, strict=True))


def save_results(state: BrokerState) -> bytes:
    return pack_columns(*state.results.saved())


def restore_results(state: BrokerState, block: Block) -> None:
    state.results = Results.restored(state.settings.results_max, *unpack_columns(block))


def save_exchanges(state: BrokerState) -> bytes:
    """A row an exchange, with its bindings."""
    return pack_columns(state.exchanges.saved())


def restore_exchanges(state: BrokerState, block: Block) -> None:
    state.exchanges.restore(unpack_columns(block)[0])


SECTIONS: dict[str, Section] = {
    "broker": Section(("epoch", "boots", "granted"), save_broker, restore_broker),
    "queues": Section(("queues", "numbered", "lanes"), save_queues, restore_queues),
    "terms": Section(("catalogue",), save_terms, restore_terms, since=4),
    "runs": Section((), save_runs, restore_runs),
    "timers": timers("timers"),
    "expiries": timers("expiries"),
    "positions": Section(POSITIONS, save_positions, restore_positions),
    "lanes": Section(("closed",), save_lanes, restore_lanes, since=5, without=count_scheduled),
    "leases": Section(("leases", "sessions"), save_leases, restore_leases),
    "attempts": Section(("attempts",), save_attempts, restore_attempts),
    "moved": Section(("moved", "origin"), save_moved, restore_moved),
    "named": Section(("named", "names"), save_named, restore_named),
    "continued": Section(("continued",), save_continued, restore_continued),
    "quarantined": Section(("quarantined",), save_quarantined, restore_quarantined),
    "producers": Section(("producers",), save_producers, restore_producers),
    "results": Section(("results",), save_results, restore_results),
    "uploads": Section(("uploads",), save_uploads, restore_uploads),
    "limits": Section(("limits",), save_limits, restore_limits, since=4),
    "orderings": Section(("orderings",), save_orderings, restore_orderings, since=4),
    "pauses": Section(("pauses",), save_pauses, restore_pauses, since=4),
    "keys": Section(("keys",), save_keys, restore_keys, since=4),
    "notices": Section(("notices",), save_notices, restore_notices, since=4),
    "exchanges": Section(("exchanges",), save_exchanges, restore_exchanges, since=4),
    "letters": Section(("letters",), save_letters, restore_letters, since=4, without=find_letters),
    "graphs": Section(("graphs",), save_graphs, restore_graphs, since=6),
}
"""What a snapshot holds. Lanes come before what waits in them."""
