"""The only file that opens files: a directory, its files, and what they can be asked.

`Disk` is the seam at which tests put a disk that tears, forgets and fails. It is one
directory; names have no slashes. All methods raise OSError as the system gives it,
never retry, and promise no more than POSIX does: content is durable after `sync` or
`sync_data` of the file, a name after `sync_directory`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Protocol

from qbroker.log.errors import LockedError, OwnerError

LOCK_NAME = "LOCK"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room, or none for us."""
READ_ONLY = 0o400
READ_WRITE = 0o600


class File(Protocol):
    """An open file. Offsets and lengths in bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes there; fewer only where the file ends."""

    def write_at(self, offset: int, data: bytes | bytearray) -> int:
        """One write; returns how many bytes were taken, which may be too few."""

    def allocate(self, size: int) -> None:
        """The file has at least this size and its blocks are reserved; new bytes are zero."""

    def truncate(self, size: int) -> None:
        """The file has exactly this size."""

    def sync_data(self) -> None:
        """Content is on stable storage, and its size."""

    def sync(self) -> None:
        """Content and all that is known about the file is on stable storage."""

    def forget_cache(self) -> None:
        """Later reads ask the disk, not the memory, wherever nothing unsynced is held."""

    def size(self) -> int:
        """Bytes, holes and reserved blocks included."""

    def mode(self) -> int:
        """Permission bits."""

    def close(self) -> None:
        """No further call. Says nothing about what is durable."""


class Disk(Protocol):
    """One directory."""

    def create(self, name: str) -> File:
        """A new, empty file, mode 0600; FileExistsError if the name is taken."""

    def open(self, name: str, *, write: bool = False) -> File:
        """An existing file."""

    def names(self) -> list[str]:
        """What is in the directory, sorted."""

    def rename(self, old: str, new: str) -> None:
        """`new` is what `old` was, at one stroke; a former `new` is gone."""

    def remove(self, name: str) -> None:
        """The name is gone. Whoever has the file open can still read it."""

    def protect(self, name: str, mode: int) -> None:
        """The file has these permission bits."""

    def sync_directory(self) -> None:
        """All creations, renames and removals so far are on stable storage."""

    def free_bytes(self) -> int:
        """Room left for an unprivileged writer."""

    def entropy(self, size: int) -> bytes:
        """Random bytes: for ids and salts, not for secrets."""

    def lock(self) -> None:
        """This process alone has the directory, until unlock or its end; else LockedError."""

    def unlock(self) -> None:
        """Another process may have it."""


class OsFile:
    """A file of the operating system.

    Closed when the last reference goes: a reader thread that still holds one while the
    cache of handles drops it must not find its number given to another file.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        data = os.pread(self.fd, length, offset)
        while data and len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def write_at(self, offset: int, data: bytes | bytearray) -> int:
        return os.pwrite(self.fd, data, offset)

    def allocate(self, size: int) -> None:
        if sys.platform == "darwin":  # pragma: no cover  # macOS cannot reserve blocks
            if self.size() < size:
                os.ftruncate(self.fd, size)
        else:
            os.posix_fallocate(self.fd, 0, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def sync_data(self) -> None:
        if sys.platform == "darwin":  # pragma: no cover  # fsync there does not reach the platter
            fcntl.fcntl(self.fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(self.fd)

    def sync(self) -> None:
        if sys.platform == "darwin":  # pragma: no cover
            fcntl.fcntl(self.fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(self.fd)

    def forget_cache(self) -> None:
        if sys.platform != "darwin":  # pragma: no branch
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def mode(self) -> int:
        return os.fstat(self.fd).st_mode & 0o777

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileDisk:
    """A real directory, made with mode 0700 if it is missing, tightened to it if it is not.

    OwnerError if it belongs to another user. The parent of a new directory is synced,
    so that the directory itself survives.
    """

    __slots__ = ("directory", "directory_fd", "lock_fd")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.lock_fd = -1
        self.directory_fd = -1
        place = Path(directory)
        try:
            place.mkdir(0o700)
        except FileExistsError:
            pass
        else:
            parent = os.open(place.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        about = os.fstat(self.directory_fd)
        if about.st_uid != os.geteuid():
            raise OwnerError(directory, about.st_uid, os.geteuid())
        if about.st_mode & 0o777 != 0o700:
            os.fchmod(self.directory_fd, 0o700)

    def __del__(self) -> None:
        self.unlock()
        if self.directory_fd >= 0:
            os.close(self.directory_fd)
            self.directory_fd = -1

    def create(self, name: str) -> File:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        return OsFile(os.open(name, flags, READ_WRITE, dir_fd=self.directory_fd))

    def open(self, name: str, *, write: bool = False) -> File:
        flags = os.O_RDWR if write else os.O_RDONLY
        return OsFile(os.open(name, flags, dir_fd=self.directory_fd))

    def names(self) -> list[str]:
        return sorted(os.listdir(self.directory_fd))  # noqa: PTH208  # a Path has no descriptor

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self.directory_fd)

    def protect(self, name: str, mode: int) -> None:
        os.chmod(name, mode, dir_fd=self.directory_fd)

    def sync_directory(self) -> None:
        os.fsync(self.directory_fd)

    def free_bytes(self) -> int:
        about = os.fstatvfs(self.directory_fd)
        return about.f_bavail * about.f_frsize

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)

    def lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT
        fd = os.open(LOCK_NAME, flags, READ_WRITE, dir_fd=self.directory_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 256, 0).decode("utf-8", "replace").strip()
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise LockedError(self.directory, holder) from None
        self.lock_fd = fd
        os.ftruncate(fd, 0)
        try:
            os.pwrite(fd, _this_process().encode(), 0)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # The lock is held; its text is for people, and a full disk must not stop a start.

    def unlock(self) -> None:
        # The file stays: removing it would let a third process lock a name nobody else sees.
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def _this_process() -> str:
    """Who holds the lock, for the person who finds it held."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # pragma: no cover  # not Linux
        boot = "unknown"
    return f"pid {os.getpid()} host {os.uname().nodename} boot {boot}\n"


def write_whole(file: File, offset: int, data: bytes | bytearray) -> None:
    """All of it is with the kernel. A short write is an error: never retried, never continued."""
    taken = file.write_at(offset, data)
    if taken != len(data):
        raise OSError(errno.EIO, f"short write, {taken} of {len(data)} bytes at {offset}")
