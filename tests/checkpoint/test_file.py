"""A checkpoint's file: every bit counts, and no crash leaves half of one under its name."""

from __future__ import annotations

import errno

import pytest

from qbroker.checkpoint import file
from qbroker.checkpoint.errors import DamagedError
from qbroker.checkpoint.file import Checkpoint
from simdisk import SimDisk, random_choice

SECTIONS = {"a": b"one", "empty": b"", "large": bytes(range(256)) * 20}


def about(batch: int = 7) -> Checkpoint:
    return Checkpoint(b"l" * 16, batch, b"c" * 16, 1_700_000_000_000, "0.1")


def written(batch: int = 7) -> SimDisk:
    disk = SimDisk()
    file.write(disk, about(batch), SECTIONS.items())
    return disk


def test_what_is_written_is_read() -> None:
    disk = written()
    found = file.read(disk, file.name_of(7))
    assert {name: bytes(body) for name, body in found.sections.items()} == SECTIONS
    assert file.read_header(disk, found.name) == about()
    assert disk.names() == [found.name]


def test_large_sections_are_synced_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "PIECE_BYTES", 1_000)
    disk = written()
    assert disk.trace.count("sync") >= 5
    found = file.read(disk, file.name_of(7))
    assert bytes(found.sections["large"]) == SECTIONS["large"]


def test_every_bit_counts() -> None:
    disk = written()
    (inode,) = disk.files.values()
    for at in range(len(inode.cached)):
        inode.cached[at] ^= 1 << at % 8
        with pytest.raises(DamagedError, match=r"checkpoint 0+7\.qckp cannot be used: "):
            file.read(disk, file.name_of(7))
        with pytest.raises(DamagedError):
            file.prove(file.name_of(7), disk.open(file.name_of(7)))
        inode.cached[at] ^= 1 << at % 8
    file.read(disk, file.name_of(7))


@pytest.mark.parametrize("left", [0, 1, 127, 128, 140, 200, -1])
def test_one_that_is_cut_short_is_not_read(left: int) -> None:
    disk = written()
    (inode,) = disk.files.values()
    del inode.cached[left:]
    with pytest.raises(DamagedError):
        file.read(disk, file.name_of(7))


def test_one_under_anothers_name_is_not_read() -> None:
    disk = written()
    disk.rename(file.name_of(7), file.name_of(8))
    with pytest.raises(DamagedError, match=r"its header says it is 0+7\.qckp"):
        file.read(disk, file.name_of(8))


def test_another_format_is_said() -> None:
    disk = written()
    (inode,) = disk.files.values()
    inode.cached[8] = 2
    with pytest.raises(DamagedError, match="it has format 2, this version reads format 1"):
        file.read_header(disk, file.name_of(7))


def test_a_disk_that_fails_anywhere_leaves_nothing_under_the_name() -> None:
    """The nth call fails, for every n; once it does not, the checkpoint stands."""
    for nth in range(1, 100):
        disk = SimDisk()
        disk.fail(nth)
        try:
            file.write(disk, about(), SECTIONS.items())
        except OSError:
            assert disk.failed
            disk.heal()
            file.write(disk, about(), SECTIONS.items())
            file.read(disk, file.name_of(7))
            continue
        assert not disk.failed
        return
    raise AssertionError("it never came to an end")


def test_a_power_cut_at_any_call_leaves_a_whole_one_or_none() -> None:
    for nth in range(1, 40):
        disk = SimDisk()
        disk.fail(nth, sticky=True)
        with_it = True
        try:
            file.write(disk, about(), SECTIONS.items())
        except OSError:
            with_it = False
        disk.crash(random_choice(nth))
        if file.name_of(7) in disk.names():
            file.read(disk, file.name_of(7))
        else:
            assert not with_it


def test_a_full_disk_gets_its_room_back() -> None:
    disk = SimDisk(capacity=3_000)
    with pytest.raises(OSError, match="No space") as raised:
        file.write(disk, about(), SECTIONS.items())
    assert raised.value.errno == errno.ENOSPC
    assert disk.names() == []


def test_what_a_dead_process_left_is_replaced() -> None:
    disk = SimDisk()
    disk.create(f"{file.name_of(7)}.tmp")
    file.write(disk, about(), SECTIONS.items())
    assert disk.names() == [file.name_of(7)]


def test_a_disk_that_gives_back_something_else_is_found_out() -> None:
    """Bytes change between the write and the read: the name never appears."""

    class Forgetful(SimDisk):
        def call(self, what: str, name: str = "") -> str | None:
            if what == "forget_cache":
                (inode,) = self.files.values()
                inode.durable[200] ^= 1
            return super().call(what, name)

    disk = Forgetful()
    with pytest.raises(DamagedError, match="its digest disagrees"):
        file.write(disk, about(), SECTIONS.items())
    assert disk.names() == [f"{file.name_of(7)}.tmp"]


def test_a_disk_that_does_not_read_is_said() -> None:
    disk = written()
    disk.fail(1, sticky=True)
    with pytest.raises(DamagedError, match="the disk says: "):
        file.read(disk, file.name_of(7))
    with pytest.raises(DamagedError, match="the disk says: "):
        file.read_header(disk, file.name_of(7))
