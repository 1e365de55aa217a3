"""A disk that forgets, tears and fails: the `Disk` of the log room, in memory.

What is written is *cached* until a sync makes it *durable*. `crash` is a power cut:
every unsynced 512-byte sector is kept, dropped or torn (garbage) independently of all
others, every unsynced change of size, mode or directory kept or lost. `kill` is the
end of the process alone: the cache survives. After either the disk is used again as
it is; files opened before are dead.

Choices come from a callable, `choose(n)` -> 0 .. n-1, so that both a random.Random
(`random_choice`) and Hypothesis can drive it: 0 is always the kindest, which is what
Hypothesis shrinks to.

Every call of a file or of the directory counts, and is of a kind (`Call`). `fail(nth, how)`
spoils the nth call from now on. A sync that fails marks its sectors clean but leaves them
in the cache: the disk does not have them, reads still do, until `forget_cache` or a crash.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache

from qbroker.log.errors import LockedError

SECTOR = 512
Choose = Callable[[int], int]
Call = tuple[str, str]
"""What is asked, and of which kind of file: a star stands for a number, nothing for the directory.

A rename is of the new name's kind.
"""

KEEP, DROP, TEAR = range(3)


def random_choice(seed: int) -> Choose:
    return random.Random(seed).randrange


def keep_all(n: int) -> int:
    return KEEP


def lose_all(n: int) -> int:
    return min(DROP, n - 1)


@cache
def kind_of(name: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|(?<=\.)\d+(?=[.-])", "*", name)


class Inode:
    """One file's content: what the disk has, what the cache has, which sectors differ."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cached = bytearray()
        self.durable = bytearray()
        self.dirty: set[int] = set()
        self.dead: set[int] = set()
        """Sectors that nobody can read any more."""
        self.mode = 0o600
        self.durable_mode = 0o600

    def touch(self, start: int, stop: int) -> None:
        self.dirty.update(range(start // SECTOR, -(-stop // SECTOR)))

    def resize(self, size: int) -> None:
        if size < len(self.cached):
            # What is cut off reads as zeros should the file grow again, once that is synced.
            self.touch(size, len(self.cached))
            del self.cached[size:]
        else:
            self.cached.extend(bytes(size - len(self.cached)))

    def flush(self) -> None:
        old = len(self.durable)
        del self.durable[len(self.cached) :]
        self.durable.extend(bytes(len(self.cached) - len(self.durable)))
        if old != len(self.cached):
            # Bytes between the old end and the new were never old content of this file.
            self.touch(min(old, len(self.cached)), len(self.cached))
        for sector in self.dirty:
            span = slice(sector * SECTOR, (sector + 1) * SECTOR)
            self.durable[span] = self.cached[span]
        self.dirty.clear()

    def mark_clean(self) -> None:
        """What a failed sync leaves behind: nobody will ever write these sectors."""
        self.dirty.clear()

    def forget(self) -> None:
        fresh = self.durable[: len(self.cached)]
        fresh.extend(bytes(len(self.cached) - len(fresh)))
        for sector in self.dirty:
            span = slice(sector * SECTOR, (sector + 1) * SECTOR)
            fresh[span] = self.cached[span]
        self.cached = fresh

    def crash(self, choose: Choose) -> None:
        if self.mode != self.durable_mode:
            self.mode = self.durable_mode = (self.mode, self.durable_mode)[choose(2)]
        sizes = [len(self.cached), len(self.durable)]
        size = sizes[choose(2)] if sizes[0] != sizes[1] else sizes[0]
        content = self.durable[:size]
        content.extend(bytes(size - len(content)))
        for sector in sorted(self.dirty):
            span = slice(sector * SECTOR, min((sector + 1) * SECTOR, size))
            fate = choose(3) if span.start < span.stop else DROP
            if fate == KEEP:
                content[span] = self.cached[span].ljust(span.stop - span.start, b"\0")
            elif fate == TEAR:
                content[span] = bytes(
                    (sector * 131 + at * 29 + 7) % 255 + 1 for at in range(span.stop - span.start)
                )
        self.durable = content
        self.cached = bytearray(content)
        self.dirty.clear()


class SimFile:
    """An open file of a SimDisk; dead after a crash."""

    def __init__(self, disk: SimDisk, inode: Inode, *, write: bool) -> None:
        self.disk = disk
        self.inode = inode
        self.life = disk.life
        self.write = write

    def call(self, what: str) -> str | None:
        assert self.life == self.disk.life, "a file opened before the crash was used after it"
        return self.disk.call(what, self.inode.name)

    def read_at(self, offset: int, length: int) -> bytes:
        self.call("read")
        if any(
            offset // SECTOR <= sector < (offset + length) / SECTOR for sector in self.inode.dead
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), "read")
        return bytes(self.inode.cached[max(offset, 0) : offset + length])

    def write_at(self, offset: int, data: bytes | bytearray) -> int:
        assert self.write, "written through a file opened for reading"
        taken = len(data)
        if self.call("write") == "short":
            taken //= 2
        stop = offset + taken
        self.disk.reserve(self.inode, stop)
        self.inode.resize(max(stop, len(self.inode.cached)))
        self.inode.cached[offset:stop] = data[:taken]
        self.inode.touch(offset, stop)
        return taken

    def allocate(self, size: int) -> None:
        self.call("allocate")
        self.disk.reserve(self.inode, size)
        self.inode.resize(max(size, len(self.inode.cached)))

    def truncate(self, size: int) -> None:
        self.call("truncate")
        self.inode.resize(size)

    def sync_data(self) -> None:
        try:
            self.call("sync")
        except OSError:
            self.inode.mark_clean()
            raise
        self.inode.flush()

    def sync(self) -> None:
        self.sync_data()
        self.inode.durable_mode = self.inode.mode

    def forget_cache(self) -> None:
        self.call("forget_cache")
        self.inode.forget()

    def size(self) -> int:
        self.call("size")
        return len(self.inode.cached)

    def mode(self) -> int:
        self.call("mode")
        return self.inode.mode

    def close(self) -> None:
        self.life = -1


class SimDisk:
    """One directory. `capacity` bounds the bytes of all files; None is no bound."""

    def __init__(self, *, capacity: int | None = None, seed: int = 0) -> None:
        self.capacity = capacity
        self.calls = 0
        self.trace: list[str] = []
        self.made: Counter[Call] = Counter()
        self.spoiled: Counter[Call] = Counter()
        """Those of ``made`` that failed."""
        self.on_failure: Callable[[str], None] = lambda what: None
        self.life = 0
        self.locked = False
        self.files: dict[str, Inode] = {}
        self.durable_files: dict[str, Inode] = {}
        self.unsynced: list[tuple[str, str | None, Inode | None]] = []
        self.random = random.Random(seed)
        self.heal()

    # --- Faults

    def fail(self, nth: int, how: int | str = errno.EIO, *, sticky: bool = False) -> None:
        """The nth call from now fails: with an errno, or "short" for a write cut in half.

        "short" waits for the first write from the nth call on. With `sticky` all later
        calls fail as well.
        """
        self.fault_at, self.fault, self.sticky, self.failed = self.calls + nth, how, sticky, 0

    def heal(self) -> None:
        """No further call fails."""
        self.fault_at, self.fault, self.sticky, self.failed = 0, errno.EIO, False, 0

    def call(self, what: str, name: str = "") -> str | None:
        """Count a call; fail it if it is its turn."""
        self.calls += 1
        self.trace.append(what)
        kind = what, kind_of(name)
        self.made[kind] += 1
        due = self.fault_at and self.calls >= self.fault_at and (self.sticky or not self.failed)
        if not due or (self.fault == "short" and what != "write"):
            return None
        self.failed += 1
        self.spoiled[kind] += 1
        self.on_failure(what)
        if isinstance(self.fault, str):
            return self.fault
        raise OSError(self.fault, os.strerror(self.fault), what)

    def reserve(self, inode: Inode, size: int) -> None:
        """ENOSPC unless the file may have this size."""
        more = size - len(inode.cached)
        if self.capacity is not None and more > 0 and more > self.free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def free(self) -> int:
        assert self.capacity is not None
        return self.capacity - self.used()

    def used(self) -> int:
        return sum(len(inode.cached) for inode in self.files.values())

    def fill_up(self, left: int = 0) -> None:
        """Somebody else takes all room but this."""
        self.capacity = self.used() + left

    # --- What happens to machines

    def kill(self) -> None:
        """The process is gone, the kernel is not: all that was written can be read."""
        self.life += 1
        self.locked = False
        self.heal()

    def crash(self, choose: Choose = lose_all) -> None:
        """Power is cut. See the module's docstring for what may be lost."""
        self.kill()
        names = dict(self.durable_files)
        for name, gone, inode in self.unsynced:
            if choose(2) == KEEP:
                if gone is not None:
                    names.pop(gone, None)
                if inode is not None:
                    names[name] = inode
        inodes = {id(inode): inode for inode in [*names.values(), *self.files.values()]}
        for inode in inodes.values():
            inode.crash(choose)
        self.files = names
        for name, inode in names.items():
            inode.name = name
        self.durable_files = dict(names)
        self.unsynced.clear()

    def copy(self) -> SimDisk:
        """The same disk once more, as a dead process left it: for trying two futures."""
        twin = SimDisk(capacity=self.capacity)
        twins: dict[int, Inode] = {}

        def inode_twin(inode: Inode) -> Inode:
            if id(inode) not in twins:
                other = twins[id(inode)] = Inode(inode.name)
                other.cached, other.durable = inode.cached[:], inode.durable[:]
                other.dirty, other.mode = set(inode.dirty), inode.mode
                other.dead = set(inode.dead)
                other.durable_mode = inode.durable_mode
            return twins[id(inode)]

        twin.files = {name: inode_twin(inode) for name, inode in self.files.items()}
        twin.durable_files = {n: inode_twin(inode) for n, inode in self.durable_files.items()}
        twin.unsynced = [
            (name, gone, inode and inode_twin(inode)) for name, gone, inode in self.unsynced
        ]
        twin.random.setstate(self.random.getstate())
        return twin

    # --- The directory, as log.disk.Disk describes it

    def create(self, name: str) -> SimFile:
        self.call("create", name)
        if name in self.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        inode = self.files[name] = Inode(name)
        self.unsynced.append((name, None, inode))
        return SimFile(self, inode, write=True)

    def open(self, name: str, *, write: bool = False) -> SimFile:
        self.call("open", name)
        inode = self._inode(name)
        if write and not inode.mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return SimFile(self, inode, write=write)

    def names(self) -> list[str]:
        self.call("names")
        return sorted(self.files)

    def rename(self, old: str, new: str) -> None:
        self.call("rename", new)
        inode = self._inode(old)
        inode.name = new
        del self.files[old]
        self.files[new] = inode
        self.unsynced.append((new, old, inode))

    def remove(self, name: str) -> None:
        self.call("remove", name)
        self._inode(name)
        del self.files[name]
        self.unsynced.append((name, name, None))

    def protect(self, name: str, mode: int) -> None:
        self.call("protect", name)
        self._inode(name).mode = mode

    def sync_directory(self) -> None:
        try:
            self.call("sync_directory")
        except OSError:
            self.unsynced.clear()
            raise
        self.durable_files = dict(self.files)
        self.unsynced.clear()

    def free_bytes(self) -> int:
        self.call("free_bytes")
        return 1 << 40 if self.capacity is None else self.free()

    def entropy(self, size: int) -> bytes:
        return self.random.randbytes(size)

    def lock(self) -> None:
        self.call("lock")
        if self.locked:
            raise LockedError("the simulated disk", "pid 1")
        self.locked = True

    def unlock(self) -> None:
        self.locked = False

    def _inode(self, name: str) -> Inode:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.files[name]
