"""What cleaning leaves can do all that may be asked of it; what it takes nobody can ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from digest import check_places
from harness import Harness
from qbroker.bodies import Body, body_of
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.cleaning import Live, Wanted, left_of
from qbroker.core.settings import Settings
from qbroker.core.state import BrokerState
from qbroker.core.survey import id_of
from qbroker.log.format import StoredRecord
from qbroker.log.log import Log
from qbroker.minted import search
from qprotocol.message import Message

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))
END = 1 << 63


def stored_in(harness: Harness) -> Iterator[StoredRecord]:
    twin = harness.machine.disk.copy()
    twin.kill()
    for _, stored in Log.open(twin, harness.machine.log_settings).replay():
        yield from stored


def body(each: StoredRecord) -> Body | None:
    return body_of(each.position, r.unpack(each.type, each.body))


def expected(state: BrokerState) -> set[int]:
    """Everything that an answer or a delivery may show, found without any index."""
    errors = {each.error for each in state.attempts.values()}
    results = {each.record for _, each in state.results.entries()}
    parts = {at for parts in state.continued.values() for at in parts}
    staged = {
        at for upload in state.uploads.values() for run in upload.staged.values() for at in run
    }
    staged |= {row[1] for upload in state.uploads.values() for row in upload.timers.entries()}
    staged |= {at for u in state.uploads.values() for parts in u.continued.values() for at in parts}
    graphs = [*state.graphs.all(), *(u.graph for u in state.uploads.values() if u.graph)]
    inputs = {record for graph in graphs for record in graph.records}
    inputs |= {position for graph in graphs for position in graph.kept()}
    places = set(check_places(state)) | set(state.quarantined)
    return (places | errors | results | inputs | parts | staged) - {0}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """In the end all that is alive can be read from what is left, and only that."""
    harness = Harness()
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        if block.startswith("#"):
            continue
        for line in block.split("\n----", 1)[0].strip("\n").split("\n"):
            harness.run(line)
        state = harness.machine.core.state
        live = Live(state)
        wanted = live.between(0, END)
        assert wanted.whole == expected(state)
        assert live.count(0, END) >= len(wanted.whole | wanted.names)
        assert live.count(END, 2 * END) == 0
    wanted = Live(harness.machine.core.state).between(0, END)
    for each in stored_in(harness):
        check_left(wanted, each)


def check_left(wanted: Wanted, each: StoredRecord) -> None:
    left = left_of(wanted, each.position, each.count, each.type, each.body)
    slots = set(range(each.position, each.position + each.count))
    if left is None:
        assert not r.HAS_RAW[each.type] or not slots & (wanted.whole | wanted.names)
        return
    number, parts = left
    record = r.unpack(number, b"".join(parts))
    assert record.slots == each.count
    before, after = body(each), body_of(each.position, record)
    if before is None:
        return
    assert after is not None
    assert (after.first, after.count) == (before.first, before.count)
    if each.position in wanted.whole:
        assert after.raw[: after.head] == before.raw[: before.head]
    for position in range(before.first, before.first + before.count):
        whole, kept = before.message(position), after.message(position)
        name = id_of(whole, 0)
        if position in wanted.whole:
            assert kept == whole
        elif position in wanted.names:
            assert id_of(kept, 0) == name
        elif number == r.Kept.TYPE:
            assert kept == b""
        if name and number == r.Kept.TYPE:
            hits = search(after, name)
            assert (position in hits) == bool(kept)
    again = left_of(wanted, each.position, each.count, number, b"".join(parts))
    assert again is not None
    assert (again[0], b"".join(again[1])) == (number, b"".join(parts)), "twice is once"


def published(*bodies: str) -> r.Published:
    raws = [Message("q", each.encode(), id=f"id-{each[:3]}").pack() for each in bodies]
    batch = r.MessageBatch([[0, 0, len(bodies), 0]], [], [], b"".join(raws), len(bodies))
    return r.Published(0, 0, 0, batch)


def left(record: r.Record, *, whole: set[int] = frozenset(), names: set[int] = frozenset()):
    wanted = Wanted(set(whole), set(names))
    found = left_of(wanted, 8, record.slots, record.TYPE, b"".join(record.parts()))
    return r.unpack(found[0], b"".join(found[1])) if found else None


def test_of_a_thousand_messages_one_is_left() -> None:
    record = published(*(str(number) * 50 for number in range(1000)))
    kept = left(record, whole={8 + 500})
    assert isinstance(kept, r.Kept)
    assert len(kept.raw) < 400
    found = body_of(8, kept)
    assert found is not None
    assert found.message(508) == body_of(8, record).message(508)
    assert [len(found.message(8 + at)) for at in (0, 499, 501, 999)] == [0, 0, 0, 0]
    assert left(kept, whole={8}).runs == []
    assert left(record, whole=set(range(8, 1008))) == record


def test_of_a_finished_task_its_id_is_left() -> None:
    record = published("a" * 5_000, "b" * 5_000)
    kept = left(record, names={9})
    assert isinstance(kept, r.Kept)
    assert len(kept.raw) < 100
    found = body_of(8, kept)
    assert found is not None
    assert list(search(found, b"id-bbb")) == [9]
    assert search(found, b"id-aaa") == {}
    assert found.message(8) == b""


def test_records_without_bytes_are_dead() -> None:
    assert left(r.Acked([[1, 8, 1]]), whole={8}) is None


def test_what_was_cleaned_is_never_replayed() -> None:
    with pytest.raises(AssertionError, match="the record at 8 was cleaned"):
        Broker(Settings()).replay(8, r.Kept(0, 1, [], b"", b""))


def test_an_upload_under_way_keeps_its_pieces_and_one_half_delivered_its_lead() -> None:
    """Of a part only a later message lives: what was the end of one before it goes."""
    harness = Harness()
    long = "x" * 300
    for line in (
        "consume credit=9",
        f"part as=9 index=0 cut=0:200 a {long} b c",
        f"part as=9 index=1 cut=200: a {long} b c",
    ):
        harness.run(line)
    state = harness.machine.core.state
    (upload,) = state.uploads.values()
    assert upload.continued, "a message goes on in the second part"
    wanted = Live(state).between(0, END)
    assert wanted.whole == expected(state)
    (part,) = [each for each in stored_in(harness) if each.type == r.PartStored.TYPE][1:]
    check_left(wanted, part)
    wanted.whole.discard(part.position)
    check_left(wanted, part)


@pytest.mark.parametrize("end", ["disconnect", "part as=9 index=7 b", "end as=9 count=7 b"])
def test_an_upload_that_is_given_up_is_dead_for_who_follows_the_log(end: str) -> None:
    """Its connection is lost, a part is refused, the whole is refused."""
    harness = Harness()
    for line in ("part as=9 index=0 a", "stats"):
        harness.run(line)
    assert len(Live(harness.machine.core.state).between(0, END).whole) == 1
    for line in (end, "wait 20ms"):
        harness.run(line)
    state = BrokerState(Settings())
    core = Broker(Settings(), state)
    for stored in stored_in(harness):
        core.replay(stored.position, r.unpack(stored.type, stored.body))
    assert Live(state).between(0, END).whole == set()
    assert state.uploads == harness.machine.core.state.uploads == {}
