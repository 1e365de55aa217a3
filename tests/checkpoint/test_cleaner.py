"""The log shrinks to what is alive, and everything that is alive is still there."""

from __future__ import annotations

import pytest

from qbroker.checkpoint import cleaner
from qbroker.core import records as r
from qbroker.log.cleaning import Rewritten
from qprotocol import frames as f
from qprotocol.message import unpack_message

SIZE = 300


def name(number: int) -> str:
    return f"{number:04d}" + "." * SIZE


def fill(room, first: int, count: int) -> None:
    """Some to a batch, so that many files are filled."""
    for number in range(first, first + count, 4):
        room.publish(*(name(each) for each in range(number, number + 4)))


def check_alive(room, *numbers: int) -> None:
    """The bodies of all that is leased or waits, from the disk alone, after a kill."""
    room.machine.snapshot = None
    found = room.restore()
    state = found.core.state
    bodies = room.machine.bodies
    positions = sorted([*state.leases, *(p for q in state.numbered for _, p in q.waiting())])
    bodies._batches.clear()
    got = []
    for position in positions:
        if bodies.missing([position]):
            bodies.keep(bodies.load([position]))
        got.append(unpack_message(bodies.message(position)).body.decode()[:4])
    assert got == [f"{number:04d}" for number in numbers]


def test_what_is_dead_is_dropped_and_what_lives_is_kept(room) -> None:
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 200)
    before = room.machine.log.statistics()
    assert before.segments > 4
    room.take(*(name(each) for each in range(200) if each not in (100, 101)))
    room.keep(50)
    assert room.cleaned == [], "nothing is below two checkpoints yet"
    fill(room, 200, 40)
    room.keep(50)
    assert any(isinstance(each, list) for each in room.cleaned), "files without life go"
    after = room.machine.log.statistics()
    assert after.bytes < before.bytes // 2
    check_alive(room, 100, 101, *range(200, 240))


def test_of_files_with_little_life_that_is_left_together(room) -> None:
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 200)
    lives = set(range(0, 200, 10))
    room.take(*(name(each) for each in range(200) if each not in lives))
    room.keep(50)
    fill(room, 200, 4)
    room.keep(50)
    files = [each for each in room.cleaned if isinstance(each, Rewritten)]
    assert files
    assert any(len(each.sources) > 1 for each in files), "neighbours become one"
    live_bytes = (len(lives) + 4) * (SIZE + 60)
    tail = 3 * 24_576
    assert room.machine.log.statistics().bytes < 2.5 * live_bytes + tail
    check_alive(room, *sorted(lives), *range(200, 204))
    room.keep(50)
    assert room.cleaned == [], "what was cleaned is not cleaned again"


def test_results_are_read_and_ids_found_in_what_is_left(room) -> None:
    """A cleaned file still tells what became of a task, and which it was."""
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 100)
    room.take(name(7), result=b"seven")
    room.take(*(name(each) for each in range(100) if each != 7))
    state = room.machine.core.state
    ((position, entry),) = state.results.entries()
    for _ in range(2):
        fill(room, 200, 4)
        room.keep(50)
    bodies = room.machine.bodies
    bodies._batches.clear()
    bodies.keep(bodies.load([entry.record, position]))
    assert bodies.head(entry.record) == b"seven"
    left = bodies.message(position)
    assert 0 < len(left) < SIZE, "of the message only what names it"
    assert bodies.message(position - 1) == b"", "its neighbour is over and forgotten"


def test_a_pure_backlog_is_looked_at_once_and_never_copied(room) -> None:
    fill(room, 0, 200)
    room.keep(50)
    fill(room, 200, 4)
    first = room.keep(50)
    assert room.cleaned == []
    assert len(first.looked) > 2
    fill(room, 204, 4)
    room.machine.disk.trace.clear()
    second = room.keep(50)
    assert set(first.looked) <= set(second.looked)
    assert room.cleaned == []
    assert room.machine.disk.trace.count("read") < 60


def test_small_files_become_one(room) -> None:
    """A broker that starts often makes many: all of them alive, and yet too many."""
    for number in range(0, 48, 4):
        fill(room, number, 4)
        room.machine.log.close()
        room.machine.start()
        room.connect()
    before = len(room.machine.log.segments())
    for number in (48, 52):
        fill(room, number, 4)
        room.keep(50, file_bytes=64 << 10)
    assert any(len(each.sources) >= 4 for each in room.cleaned)
    assert len(room.machine.log.segments()) < before // 2
    check_alive(room, *range(56))


def test_a_run_reads_no_more_than_it_may(room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaner, "READ_MAX_BYTES", 80_000)
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 200)
    lives = set(range(0, 200, 10))
    room.take(*(name(each) for each in range(200) if each not in lives))
    room.keep(50)
    runs = 0
    for number in range(200, 260, 4):
        fill(room, number, 4)
        room.keep(50)
        runs += bool(room.cleaned)
    assert runs > 1, "what was left waits for the next"
    check_alive(room, *sorted(lives), *range(200, 260))


def test_a_segment_with_damage_is_let_alone(room) -> None:
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 100)
    lives = set(range(0, 100, 10))
    room.take(*(name(each) for each in range(100) if each not in lives))
    room.keep(50)
    names = sorted(each for each in room.machine.disk.files if each.endswith(".qlog"))
    inode = room.machine.disk.files[names[1]]
    inode.cached[5_000] ^= 1
    fill(room, 200, 4)
    room.keep(50)
    assert names[1] in room.machine.disk.files
    assert all(names[1] not in each.sources for each in room.cleaned if isinstance(each, Rewritten))


def test_with_nothing_wanted_nothing_is_cleaned(room) -> None:
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    fill(room, 0, 100)
    room.take(*(name(each) for each in range(100)))
    for _ in range(3):
        fill(room, 200, 4)
        room.keep(0)
        assert room.cleaned == []
    assert r.Kept.TYPE == 17
