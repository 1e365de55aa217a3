"""Durable state to bytes and back: what a checkpoint holds.

    state by the snapshot and the log behind it  ==  state by the whole log

``encode`` gives named sections, ``decode`` makes a broker's state of them; SECTIONS (sections.py)
says which fields of BrokerState each holds. What is not there is VOLATILE, by name.

Rule. Nothing is worked out from messages' bytes: a snapshot is the state, no more.
"""

from collections.abc import Iterator, Mapping

from qbroker.core.burying import expiring_run
from qbroker.core.purging import finish
from qbroker.core.sections import SECTIONS, Block, version_of
from qbroker.core.settings import PRODUCER_IDLE_MS, Settings
from qbroker.core.state import BrokerState

Sections = Mapping[str, Block]

VOLATILE = frozenset(
    {
        # Made of the configuration.
        *("settings", "synced"),
        # About connections, which the next life does not have.
        *("members", "roles", "consumers", "leaving", "remains", "listening", "arrivals"),
        "orders",
        "peeks",
        # Found again when they are needed.
        *("routes", "dirty", "keeper", "effects", "next_sweep_ms", "looked_ms", "head"),
        *("idle", "no_lane"),
        # Counted since the start.
        *("closed_to_publishes", "lease_lost", "duplicates"),
    }
)
"""Fields of BrokerState that no snapshot holds."""


class SnapshotError(ValueError):
    """The sections are not those of a snapshot that this version reads."""


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
            if section.since > 1 and version_of(sections["broker"]) < section.since:
                if section.without:
                    section.without(state)
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
    due = list(state.expiries.take(state.expiries.due(wall_ms, state.expiries.size)))
    for group, entries in due:
        for entry in entries:
            if entry[1] in state.leases or expiring_run(state, group, entry):
                state.expiries.push(group, *entry)
    state.limits.forget(wall_ms, len(state.lanes))
