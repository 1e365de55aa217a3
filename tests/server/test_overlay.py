"""A directory that can be written to and stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbroker.log.disk import FileDisk
from qbroker.log.errors import LockedError
from qbroker.log.log import Log, LogSettings
from qbroker.ops.overlay import OverlayDisk

SETTINGS = LogSettings(segment_bytes=1 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of ten batches, cut off by a crash: its last segment is not sealed."""
    place = tmp_path / "log"
    log = Log.open(FileDisk(str(place)), SETTINGS)
    for number in range(10):
        batch = log.begin()
        batch.add(7, (f"record {number}".encode(),), 1)
        log.commit(batch, sync=True, wall_ms=1000 + number, epoch=1)
    log._disk.unlock()
    return place


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "LOCK"}


def records(log: Log) -> list[bytes]:
    return [record.body for _, stored in log.replay() for record in stored]


def test_a_log_is_recovered_and_read_and_its_folder_is_as_before(folder: Path) -> None:
    before = content(folder)
    log = Log.open(OverlayDisk(FileDisk(str(folder))), SETTINGS)
    assert records(log) == [f"record {number}".encode() for number in range(10)]
    batch = log.begin()
    batch.add(7, (b"only in memory",), 1)
    log.commit(batch, sync=True, wall_ms=2000, epoch=1)
    assert records(log)[-1] == b"only in memory"
    log.close()
    assert content(folder) == before


def test_what_the_overlay_shows_is_what_the_next_start_finds(folder: Path) -> None:
    with_overlay = Log.open(OverlayDisk(FileDisk(str(folder))), SETTINGS)
    shown = records(with_overlay), with_overlay.statistics().torn_bytes
    with_overlay.close()
    real = Log.open(FileDisk(str(folder)), SETTINGS)
    assert (records(real), real.statistics().torn_bytes) == shown
    real.close()


def test_a_running_brokers_folder_is_not_opened(folder: Path) -> None:
    disk = FileDisk(str(folder))
    disk.lock()
    with pytest.raises(LockedError):
        Log.open(OverlayDisk(FileDisk(str(folder))), SETTINGS)
    disk.unlock()


def test_files_behave_as_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"0123456789")
    disk = OverlayDisk(FileDisk(str(tmp_path)))
    file = disk.open("old", write=True)
    file.write_at(8, b"abcd")
    file.write_at(2, b"XY")
    assert file.read_at(0, 100) == b"01XY4567abcd"
    file.truncate(9)
    assert file.read_at(3, 100) == b"Y4567a"
    file.allocate(12)
    assert file.read_at(0, 12) == b"01XY4567a\0\0\0"
    assert file.read_at(20, 5) == b""
    assert (file.size(), disk.open("old").size()) == (12, 12)
    assert (tmp_path / "old").read_bytes() == b"0123456789"


def test_names_behave_as_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    disk = OverlayDisk(FileDisk(str(tmp_path)))
    with pytest.raises(FileExistsError):
        disk.create("old")
    disk.create("new").write_at(0, b"y")
    disk.rename("new", "old")
    disk.protect("old", 0o400)
    assert disk.names() == ["old"]
    assert (disk.open("old").read_at(0, 9), disk.open("old").mode()) == (b"y", 0o400)
    disk.remove("old")
    with pytest.raises(FileNotFoundError):
        disk.open("old")
    assert disk.free_bytes() > 0
    assert len(disk.entropy(4)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
