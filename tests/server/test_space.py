"""How much room there is and what that means: amounts, watermarks, the reserve, patience."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

import pytest

from qbroker import space as space_module
from qbroker.kinds import GIB, MIB, Amount
from qbroker.log.errors import LogFailed, NoRoom
from qbroker.space import Level, Reserve, Space, Watermarks, measure, show_bytes

TIB = 1024 * GIB


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("5%", 100 * GIB, 5 * GIB),
        ("2GiB", 100 * GIB, 2 * GIB),
        ("2GiB", GIB, 2 * GIB),
        ("5%,2GiB", TIB, TIB * 5 // 100),
        ("5%,2GiB", 10 * GIB, 2 * GIB),
        ("5%, 2GiB", 4 * GIB, 4 * GIB * 5 // 100 * 5),
        ("0", TIB, 0),
        ("0%", TIB, 0),
    ],
)
def test_an_amount_is_a_share_a_size_or_the_larger(text, total, expected) -> None:
    assert Amount.parse(text).of(total) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "100%", "5%,", ",2GiB", "5%2GiB", "2GiB,5%", "-1%", "2GB"]
)
def test_what_is_no_amount_is_refused(text) -> None:
    with pytest.raises((ValueError, KeyError)):
        Amount.parse(text)


def test_levels_come_at_once_and_go_an_eighth_later() -> None:
    marks = Watermarks(low_bytes=800, critical_bytes=400)
    seen = []
    for free in (1000, 800, 799, 800, 899, 900, 500, 399, 400, 449, 450, 899, 100, 1000):
        marks.judge(free)
        seen.append(marks.level.name[0])
    assert "".join(seen) == "OOLLLOLCCCLLCO"


def test_critical_is_never_above_low() -> None:
    marks = Watermarks(low_bytes=100, critical_bytes=400)
    assert not marks.judge(300)
    assert marks.judge(99)
    assert marks.level is Level.CRITICAL


def test_without_watermarks_there_is_always_room() -> None:
    marks = Watermarks(0, 0)
    assert not marks.judge(0)
    assert marks.level is Level.OK


def test_the_reserve_takes_room_and_gives_it_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 8 * MIB)
    assert not reserve.held
    assert not reserve.release()
    assert reserve.keep()
    taken = (tmp_path / "reserve").stat()
    assert taken.st_size == 8 * MIB
    assert taken.st_blocks * 512 >= 8 * MIB
    assert reserve.held
    assert reserve.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_reserve_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch, number) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    reserve = Reserve(tmp_path, MIB)
    if number == errno.ENOSPC:
        assert not reserve.keep()
    else:
        with pytest.raises(OSError, match="no"):
            reserve.keep()
    assert list(tmp_path.iterdir()) == []


def space_of(folder: Path, low: str = "0", critical: str = "0") -> Space:
    return Space(folder, Amount.parse(low), Amount.parse(critical), 64 * 1024)


def test_a_look_makes_the_reserve_and_tells_of_changes(tmp_path: Path, caplog) -> None:
    _, total = measure(tmp_path)
    space = space_of(tmp_path, "8MiB", "4MiB")
    told = []
    space.on_change = told.append
    asyncio.run(space.look())
    assert space.reserve.held
    assert (space.room.level, told) == (Level.OK, [])
    with caplog.at_level(logging.INFO):
        for left in (8 * MIB - 1, 3 * MIB, 3 * MIB, 10 * MIB):
            space.see(left, total, 0)
    assert [room.level for room in told] == [Level.LOW, Level.CRITICAL, Level.OK]
    assert "less than disk_low_bytes (8.0 MiB)" in caplog.messages[0]
    assert "disk_critical_bytes (4.0 MiB)" in caplog.messages[1]
    assert "there is room again" in caplog.messages[2]
    space.close()


def full() -> NoRoom:
    return NoRoom("a segment", OSError(errno.ENOSPC, "No space left"))


def test_a_batch_without_room_gets_the_reserve_first_then_waits(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(space_module, "CHECK_S", 0.001)
    space = space_of(tmp_path)
    space.reserve.keep()
    held = []

    def job() -> float:
        held.append(space.reserve.held)
        if len(held) < 4:
            raise full()
        return 1.5

    assert space.patiently(job) == 1.5
    assert held == [True, False, False, False]
    assert [
        word in text
        for word, text in zip(("reserve", "finds no room", "again"), caplog.messages, strict=True)
    ] == [True] * 3
    assert not space.is_waiting


def test_what_is_appended_is_counted_and_looked_at_before_a_mark_is_far(
    tmp_path: Path, monkeypatch
) -> None:
    """However fast: the writer looks as soon as what was free above the mark may be gone."""
    free, looks = 20 * MIB, 0

    def measured(_folder: Path) -> tuple[int, int]:
        nonlocal looks
        looks += 1
        return free, 64 * MIB

    monkeypatch.setattr(space_module, "measure", measured)
    monkeypatch.setattr(space_module, "WRITING_CHECK_S", 3600)
    space = space_of(tmp_path, "16MiB", "8MiB")

    async def story() -> None:
        nonlocal free
        await space.look()
        space.patiently(lambda: 0.0)  # the look that time makes due; the next is in an hour
        await asyncio.sleep(0)
        before = looks
        for _ in range(4):
            assert not space.appended(MIB)
            space.patiently(lambda: 0.0)
        assert looks == before
        free = 16 * MIB - 1
        assert space.appended(1)
        space.patiently(lambda: 0.0)
        await asyncio.sleep(0)
        assert (looks, space.room.level) == (before + 1, Level.LOW)
        assert not space.appended(8 * MIB - 1)  # as much as lies above the next mark
        free = 8 * MIB - 1
        assert space.appended(1)
        space.patiently(lambda: 0.0)
        await asyncio.sleep(0)
        assert space.room.level is Level.CRITICAL
        assert not space.appended(64 * MIB)  # there is no mark below

    asyncio.run(story())
    space.close()


def test_a_look_that_comes_late_says_nothing(tmp_path: Path) -> None:
    """It was at a shorter log than the look of the writer, which was told before."""
    space = space_of(tmp_path, "16MiB", "8MiB")
    space.see(15 * MIB, 64 * MIB, 10)
    space.see(40 * MIB, 64 * MIB, 9)
    assert space.room.level is Level.LOW
    space.see(40 * MIB, 64 * MIB, 10)
    assert space.room.level is Level.OK
    space.close()


def test_only_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    def job() -> float:
        raise LogFailed("a sync", OSError(errno.EIO, "no"))

    with pytest.raises(LogFailed):
        space_of(tmp_path).patiently(job)


def test_bytes_for_people() -> None:
    assert [show_bytes(n) for n in (5, 2048, 3 * MIB, 5 * GIB // 2)] == [
        "5 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "2.5 GiB",
    ]
