"""A snapshot holds all durable state: by name, in every scenario, at every batch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from digest import exact
from harness import Harness
from machine import Machine
from qbroker.core import closing, endings
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.buckets import Bucket
from qbroker.core.catalogue import Catalogue
from qbroker.core.chunks import Producer
from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.graphs import Graph
from qbroker.core.graphtable import Graphs
from qbroker.core.keys import Holder, Keys
from qbroker.core.lanes import Lane
from qbroker.core.leases import Attempts, Grant, Member, Session
from qbroker.core.letters import Letter, Letters
from qbroker.core.limits import Limit, Limits
from qbroker.core.notices import Notices
from qbroker.core.pauses import Pause
from qbroker.core.policies import Policy, Terms
from qbroker.core.queues import Queue
from qbroker.core.results import Finished, Results
from qbroker.core.runs import Run
from qbroker.core.sections import version_of
from qbroker.core.settings import PRODUCER_IDLE_MS, Settings
from qbroker.core.shelves import Shelf
from qbroker.core.snapshot import SECTIONS, VOLATILE, SnapshotError, decode, encode, tidy
from qbroker.core.state import BrokerState
from qbroker.core.timers import Timers
from qbroker.core.uploads import Upload
from qbroker.core.weights import Weights
from qbroker.log.log import Log
from qprotocol import wire
from qprotocol.frames import Hello, Part, Publish
from qprotocol.graphs import SUCCESS, Link, Node
from qprotocol.message import Message, pack_fields
from qprotocol.options import QueueOptions
from qprotocol.states import State

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


def again(state: BrokerState) -> BrokerState:
    return decode(state.settings, dict(encode(state)))


# --- By name


def test_every_field_of_the_state_is_saved_or_volatile() -> None:
    saved = [name for section in SECTIONS.values() for name in section.fields]
    assert len(saved) == len(set(saved))
    mine = {each.name for each in fields(BrokerState)}
    assert mine - set(saved) - VOLATILE == set(), "in no section, and not named volatile"
    assert set(saved) & VOLATILE == set()
    assert (set(saved) | VOLATILE) - mine == set(), "no such field"


KNOWN: dict[type, tuple[set[str], set[str]]] = {
    # What is saved of each, and what is volatile or follows from the rest.
    Queue: (
        {"name", "number", "terms", "ready", "scheduled", "delayed", "leased", "counts", "shelves"},
        {
            *("options", "synced", "life", "retired", "held", "gates", "gated"),
            *("holds_letters", "nodes"),
            *("selections", "behind", "opened", "parked", "shares", "_dirty"),
        },
    ),
    Lane: (
        {"queue", "shelf", "keys", "_runs", "leased", "scheduled"},
        {"number", "kind", "life", "gates", "ordering", "parked", "weight", "fair"},
    ),
    Shelf: (
        {"task", "leased", "lane", "keyed"},
        {"queue", "_level", "_others", "life", "open", "gates", "parked"},
    ),
    Run: (
        {"priority", "chunk", "more", "head", "given", "skipped"},
        {"lane", "life", "size", "key"},
    ),
    Limit: ({"name", "operator", "code", "gates"}, set()),
    Limits: ({"by_name"}, {"clock", "_by_scope", "_fading"}),
    Bucket: ({"missing", "at_ms"}, {"used"}),
    Grant: ({"number", "member", "entries", "remaining", "started", "early"}, {"consumer"}),
    Member: ({"session", "number", "grants"}, {"connection", "untold", "adrift"}),
    Session: ({"id", "members"}, {"alive_until_ms", "over"}),
    Attempts: (
        {
            *("deliveries", "failures", "crashes", "error"),
            *("reason", "run", "waits", "claims_from"),
        },
        set(),
    ),
    Letter: ({"number", "died_ms", "home", "worker", "expires_ms", "due_ms"}, set()),
    Letters: ({"by_position", "count"}, {"_numbers", "_positions"}),
    Producer: ({"highest", "window", "seen_ms", "answers"}, set()),
    Keys: ({"held", "doomed"}, {"of", "starting", "redelayed", "windows", "met", "_lapses"}),
    Notices: ({"ids"}, set()),
    Holder: (
        {"position", "id", "until", "until_ms", "run", "due_ms", "redelayed"},
        set(),
    ),
    Upload: (
        {
            *("staged", "timers", "expiries", "delayed", "named", "continued", "weighed", "last"),
            *("count", "parts", "revoked", "graph", "held"),
        },
        {"scheduled"},
    ),
    Catalogue: (
        {"policies", "weights"},
        {
            "alarms",
            *("shaped", "single", "holders", "waiting", "owned", "unused", "left", "dying"),
            *(
                "crowded",
                "arrived",
                "gone_lanes",
                "next_look_ms",
                "began_ms",
                "reached",
                "elders",
                "told",
                "untold",
            ),
        },
    ),
    Terms: ({"declared", "changed", "owner", "deleted"}, set()),
    Policy: ({"name", "pattern", "priority", "operator", "options"}, set()),
    Weights: ({"_firsts", "_pieces", "bytes"}, set()),
    Graph: (set(Graph.__slots__), set()),
    Graphs: ({"firsts", "owners", "todo", "sweeps"}, {"nodes", "held", "lanes", "resting"}),
    Finished: ({each.name for each in fields(Finished)}, set()),
    Results: (
        {"finished", "names", "forgotten"},
        {"limit", "dropped", "waiters", "archived", "_deadlines", "_count", "_waiting"},
    ),
}


@pytest.mark.parametrize("cls", KNOWN, ids=lambda cls: cls.__name__)
def test_what_is_in_the_state_has_no_field_unheard_of(cls: type) -> None:
    saved, volatile = KNOWN[cls]
    mine = set(getattr(cls, "_fields", ())) or set(cls.__slots__)
    assert mine == saved | volatile, "save it, or name it volatile, here as well"


# --- In every scenario


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """The state comes back after any line, and at any batch the log behind it leads on."""
    harness = Harness()
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        for line in block.split("\n----", 1)[0].strip("\n").split("\n"):
            if not line.startswith("#"):
                harness.run(line)
                state = harness.machine.core.state
                assert exact(again(state)) == exact(state), line
    replayed_in_pieces(harness.machine.settings, Log.open(harness.machine.disk.copy()))


def replayed_in_pieces(settings: Settings, log: Log) -> None:
    """Each batch is applied to a state that was a snapshot a moment before."""
    whole, pieces = Broker(settings), Broker(settings)
    for _, stored in log.replay():
        pieces = Broker(settings, again(pieces.state))
        for each in stored:
            whole.replay(each.position, r.unpack(each.type, each.body))
            pieces.replay(each.position, r.unpack(each.type, each.body))
        assert exact(pieces.state) == exact(whole.state)


# --- What no scenario shows


def queue_of(count: int) -> tuple[BrokerState, Run]:
    """A queue in which ``count`` messages wait, from position 1 << 20 on."""
    state = BrokerState(Settings())
    run = closing.open_lane(state, 0, state.open_queue(0, "q", QueueOptions()), "t", b"").run(0)
    for batch in range(1, count // 1_000 + 1):
        state.ready(run, range(batch << 20, (batch << 20) + 1_000))
    return state, run


def test_a_run_in_disorder_comes_back_as_it_is() -> None:
    state, run = queue_of(10_000)
    run.take(1_500)
    run.remove((4 << 20) + 10, 5)
    run.remove(9 << 20, 1)
    run.give_back(1 << 20, 1)
    run.give_back((1 << 20) + 7, 2)
    found = again(state).run_numbered(run.number)
    assert list(found) == list(run)
    assert found.size == run.size
    assert [found.take(3) for _ in range(5)] == [run.take(3) for _ in range(5)]


def test_timers_come_back_in_order() -> None:
    timers = Timers()
    for nth in range(3_000):
        due = nth * 7_919 % 3_000 + 1
        timers.push(nth % 2, due << 20, due, due % 7)
    timers.pop(50)
    found = Timers.restored(*unpack_columns(pack_columns(*timers.saved())))
    assert found.size == timers.size
    assert found.pop(3_000) == timers.pop(3_000)


def test_time_makes_void_what_no_record_tells_of() -> None:
    state, run = queue_of(1_000)
    now = 10 * PRODUCER_IDLE_MS
    state.producers = {1: Producer(5, 1, now), 2: Producer(5, 1, now - PRODUCER_IDLE_MS - 1)}
    state.results.store(7, Finished(State.SUCCESS, 7, 0, now - 20, 1, now - 10))
    state.results.store(8, Finished(State.SUCCESS, 8, 0, now - 20, 1, now + 10))
    state.moved, state.origin = {3: 7, 4: 8}, {7: 3, 8: 4}
    waits, gone, later = 1 << 20, 99 << 20, (1 << 20) + 1
    for due, position in ((now - 1, waits), (now - 2, gone), (now + 1, later)):
        state.expiries.push(0, due, position, run.number)
    tidy(state, now)
    assert list(state.producers) == [1]
    assert list(state.results.finished) == [8]
    assert (state.moved, state.origin) == ({4: 8}, {8: 4})
    left = state.expiries.pop(2)
    assert [position for _, position, _ in left] == [waits, later]
    assert state.expiries.size == 0


def test_a_queue_follows_the_fsync_that_is_set_now() -> None:
    state, _ = queue_of(0)
    assert state.numbered[0].synced
    found = decode(Settings(fsync="never"), dict(encode(state)))
    assert not found.numbered[0].synced


# --- What is no snapshot


def test_a_section_that_is_missing_is_named() -> None:
    sections = dict(encode(BrokerState(Settings())))
    del sections["leases"]
    with pytest.raises(SnapshotError, match="section 'leases' is missing"):
        decode(Settings(), sections)


def test_a_newer_version_is_refused() -> None:
    sections = dict(encode(BrokerState(Settings())))
    sections["broker"] = pack_columns([7, 1, {}, {}, "news"])
    with pytest.raises(SnapshotError, match=r"'broker' cannot be read.*version 7.*reads 6"):
        decode(Settings(), sections)


def test_a_snapshot_without_graphs_is_one_for_brokers_that_know_none() -> None:
    """They look for no section that they do not know; and none is looked for in theirs."""
    machine = Machine()
    peer = machine.connect()
    machine.submit(peer, Hello(correlation=1, protocol=1, role="producer", client_id="t"))
    sections = dict(encode(machine.core.state))
    assert version_of(sections["broker"]) == 5
    del sections["graphs"]
    assert not decode(Settings(), sections).graphs
    links = (Link(SUCCESS, 1),), ()
    raws = [
        Message("q", b"x", fields=pack_fields({wire.NODE: Node(each).pack()})).pack()
        for each in links
    ]
    machine.submit(peer, Part(correlation=2, index=0, of=Publish.TYPE, raw=raws[0]))
    machine.settle()
    assert version_of(dict(encode(machine.core.state))["broker"]) == 6
    machine.submit(peer, Publish(producer=1, sequence=1, count=2, correlation=2, raw=raws[1]))
    machine.settle()
    sections = dict(encode(machine.core.state))
    assert version_of(sections["broker"]) == 6
    assert decode(Settings(), sections).numbered[0].nodes == 1
    del sections["graphs"]
    with pytest.raises(SnapshotError, match="section 'graphs' is missing"):
        decode(Settings(), sections)


def test_the_first_version_is_read_and_has_counted_nothing() -> None:
    state = BrokerState(Settings())
    queue = state.open_queue(0, "old", QueueOptions())
    queue.ready, queue.counts["published"] = 3, 7
    sections = dict(encode(state))
    (_, *values), (queues, lanes) = (unpack_columns(sections[n])[0] for n in ("broker", "queues"))
    sections["broker"] = pack_columns([1, *values])
    old = [row[:-1] for row in queues]
    sections["queues"] = pack_columns([old, lanes], [column([])])
    found = decode(Settings(), sections).numbered[0]
    assert (found.name, found.ready, dict(found.counts)) == ("old", 3, {})
    assert dict(again(state).numbered[0].counts) == {"published": 7}


def test_the_second_version_is_read_and_any_grant_can_be_claimed() -> None:
    state = BrokerState(Settings())
    closing.open_lane(state, 0, state.open_queue(0, "old", QueueOptions()), "", b"")
    run = state.run_numbered(128)
    endings.wait_in_front(state, run, 7, 2, 99)
    assert again(state).attempts[8].claims_from == 99
    sections = dict(encode(state))
    (_, *values), (reasons, columns) = (
        unpack_columns(sections["broker"])[0],
        unpack_columns(sections["attempts"]),
    )
    sections["broker"] = pack_columns([2, *values])
    sections["attempts"] = pack_columns(reasons, columns[:-1])
    found = decode(Settings(), sections).attempts
    assert [(p, a.deliveries, a.claims_from) for p, a in found.items()] == [(7, 1, 0), (8, 1, 0)]


def test_the_third_version_is_read_and_nothing_is_paused() -> None:
    state, _ = queue_of(0)
    state.pauses.set(0, "dispatch", Pause("broken", "ana", 1, 0))
    state.numbered[0].held = 1
    assert again(state).pauses.of(0) == {"dispatch": Pause("broken", "ana", 1, 0)}
    assert again(state).numbered[0].held == 1
    sections = dict(encode(state))
    del sections["pauses"]
    with pytest.raises(SnapshotError, match="section 'pauses' is missing"):
        decode(Settings(), sections)
    sections["broker"] = pack_columns([3, *unpack_columns(sections["broker"])[0][1:]])
    assert decode(Settings(), sections).pauses.of(0) == {}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_cut_short_is_refused(name: str) -> None:
    state, _ = queue_of(2_000)
    sections = dict(encode(state))
    sections[name] = sections[name][:-1]
    with pytest.raises(SnapshotError, match=f"section '{name}' cannot be read"):
        decode(Settings(), sections)


def test_columns_come_back_whole_or_not_at_all() -> None:
    packed = pack_columns({"a": 1}, [column([1, 2**64 - 1]), column([])])
    values, columns = unpack_columns(packed)
    assert values == {"a": 1}
    assert [list(each) for each in columns] == [[1, 2**64 - 1], []]
    with pytest.raises(ValueError, match="columns end at byte"):
        unpack_columns(packed + b"\0")
