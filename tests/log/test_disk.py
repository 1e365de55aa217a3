"""The real directory: modes, locks, and a log in it that survives a killed process."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qbroker.log import disk as disk_module
from qbroker.log.disk import READ_ONLY, FileDisk
from qbroker.log.errors import LockedError, LogFailed, OwnerError
from qbroker.log.log import Log, LogSettings

SMALL = LogSettings(segment_bytes=16 << 10)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "log"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_are_the_owners_alone(place) -> None:
    """The directory is 0700, files 0600, sealed ones 0400, whatever the umask."""
    old = os.umask(0)
    try:
        log = Log.open(FileDisk(str(place)), SMALL)
        for _ in range(40):
            log.commit(log.begin(), sync=True, wall_ms=0, epoch=1)
    finally:
        os.umask(old)
    assert mode(place) == 0o700
    first, second = sorted(place.glob("*.qlog"))
    assert (mode(first), mode(second)) == (0o400, 0o600)
    assert {mode(place / name) for name in ("META", "LOCK")} == {0o600}
    log.close()
    assert mode(second) == 0o400


def test_a_directory_that_was_open_to_others_is_closed(place) -> None:
    """An existing directory of ours is tightened."""
    place.mkdir(0o755)
    FileDisk(str(place))
    assert mode(place) == 0o700


def test_a_directory_of_another_user_is_refused(place, monkeypatch) -> None:
    """Others could change it while it is trusted."""
    place.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OwnerError, match="belongs to user id"):
        FileDisk(str(place))


def test_a_directory_that_is_not_there_cannot_be_made_anywhere(tmp_path) -> None:
    """Only the last part of the path is made."""
    with pytest.raises(FileNotFoundError):
        FileDisk(str(tmp_path / "a" / "b"))


def test_a_file_does_what_it_is_asked(place) -> None:
    """Create, write, read, grow, cut, rename, protect, remove."""
    disk = FileDisk(str(place))
    file = disk.create("a")
    with pytest.raises(FileExistsError):
        disk.create("a")
    assert file.write_at(3, b"abc") == 3
    file.allocate(100)
    file.sync_data()
    file.sync()
    file.forget_cache()
    assert (file.size(), file.read_at(3, 3), file.read_at(99, 10)) == (100, b"abc", b"\0")
    file.truncate(5)
    assert file.read_at(0, 100) == b"\0\0\0ab"
    disk.rename("a", "b")
    disk.protect("b", READ_ONLY)
    disk.sync_directory()
    reader = disk.open("b")
    assert (disk.names(), reader.mode()) == (["b"], READ_ONLY)
    disk.remove("b")
    assert reader.read_at(3, 2) == b"ab"
    reader.close()
    reader.close()
    assert disk.names() == []
    assert disk.free_bytes() > 0
    assert disk.entropy(16) != disk.entropy(16)


def test_a_read_in_pieces_is_put_together(place, monkeypatch) -> None:
    """The kernel may give less than was asked for; only the file's end is an end."""
    disk = FileDisk(str(place))
    file = disk.create("a")
    file.write_at(0, b"0123456789")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 3), at))
    assert file.read_at(1, 8) == b"12345678"
    assert file.read_at(1, 100) == b"123456789"


def test_a_file_is_closed_with_its_last_user(place) -> None:
    """Readers keep a file open; nobody else does."""
    disk = FileDisk(str(place))
    fd = disk.create("a").fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_two_disks_of_one_directory_exclude_each_other(place) -> None:
    """The second is told who has it; the first can give it back."""
    first, second = FileDisk(str(place)), FileDisk(str(place))
    first.lock()
    with pytest.raises(LockedError, match=f"pid {os.getpid()} host "):
        second.lock()
    first.unlock()
    second.lock()


def test_a_lock_that_is_not_supported_is_not_called_held(place, monkeypatch) -> None:
    """A file system without locks gives its own error."""

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LogFailed, match="No locks available"):
        Log.open(FileDisk(str(place)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_has_no_room_for_the_holder_s_name(place, monkeypatch, number) -> None:
    """The lock is held nevertheless; any other error is one."""

    def refuse(fd: int, data: bytes, at: int) -> int:
        raise OSError(number, os.strerror(number))

    disk = FileDisk(str(place))
    monkeypatch.setattr(os, "pwrite", refuse)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            disk.lock()
        return
    disk.lock()
    with pytest.raises(LockedError):
        FileDisk(str(place)).lock()


WRITER = """
import sys, os, signal
from qbroker.log.disk import FileDisk
from qbroker.log.log import Log, LogSettings
log = Log.open(FileDisk(sys.argv[1]), LogSettings(segment_bytes=16 << 10))
for number in range(60):
    batch = log.begin()
    batch.add(1, b"%d" % number * 50)
    log.commit(batch, sync=number % 2 == 0, wall_ms=0, epoch=1)
    log.prepare_next()
print(log.durable, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_everything_and_no_lock(place) -> None:
    """kill -9: another process was refused before, starts after, and finds all that was written."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert int(writer.stdout.readline()) == 59
    with pytest.raises(LockedError, match=f"pid {writer.pid} "):
        Log.open(FileDisk(str(place)), SMALL)
    writer.kill()
    writer.communicate()
    log = Log.open(FileDisk(str(place)), SMALL)
    bodies = [records[0].body for _, records in log.replay()]
    assert bodies == [b"%d" % number * 50 for number in range(60)]
    assert log.durable == 60
    log.close()


def test_many_files_are_read_with_few_open(place) -> None:
    """Files opened for reading are closed again, the longest open first."""
    log = Log.open(FileDisk(str(place)), LogSettings(segment_bytes=6 << 10))
    for number in range(200):
        batch = log.begin()
        batch.add(1, b"%d" % number)
        log.commit(batch, sync=False, wall_ms=0, epoch=1)
    for number in range(200):
        assert log.read((number + 1) << 20).body == b"%d" % number
    assert len(log._handles.files) == 64
    log.close()


def test_the_holder_is_named_for_people() -> None:
    """Process, machine and boot: enough to tell a leftover file from a live holder."""
    assert disk_module._this_process().startswith(f"pid {os.getpid()} host {os.uname().nodename}")
