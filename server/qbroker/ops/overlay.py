"""A log's directory that can be opened, recovered and read, and stays as it was.

Opening a log mends it: a torn tail is set aside, a new segment is made. An overlay lets
the very same code run while all it writes stays in memory, so ``qbroker log verify`` says
what the next start would do, and does none of it.

Rule 1. The real directory is read, and locked: a broker that writes meanwhile would look
        like corruption.
Rule 2. Has the shape of qbroker.log.disk.Disk, whose rules it keeps; knows nothing of logs.
"""

from typing import Protocol


class RealFile(Protocol):
    """A file below: read only."""

    def read_at(self, offset: int, length: int) -> bytes: ...
    def forget_cache(self) -> None: ...
    def size(self) -> int: ...
    def mode(self) -> int: ...
    def close(self) -> None: ...


class RealDisk(Protocol):
    """The directory below: read and locked only."""

    def open(self, name: str, *, write: bool = False) -> RealFile: ...
    def names(self) -> list[str]: ...
    def free_bytes(self) -> int: ...
    def entropy(self, size: int) -> bytes: ...
    def lock(self) -> None: ...
    def unlock(self) -> None: ...


class OverlayFile:
    """A file whose changed stretches are in memory. New, if there is no real one below."""

    def __init__(self, below: RealFile | None) -> None:
        self._below = below
        self._size = below.size() if below else 0
        self._mode = below.mode() if below else 0o600
        self._kept = self._size  # what lies below counts up to here
        self._changes: list[tuple[int, bytes]] = []  # in the order of writing

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size - offset))
        found = b""
        if self._below and offset < self._kept:
            found = self._below.read_at(offset, min(length, self._kept - offset))
        out = bytearray(found.ljust(length, b"\0"))
        for at, data in self._changes:
            start, end = max(at, offset), min(at + len(data), offset + length)
            if start < end:
                out[start - offset : end - offset] = data[start - at : end - at]
        return bytes(out)

    def write_at(self, offset: int, data: bytes | bytearray) -> int:
        self._changes.append((offset, bytes(data)))
        self._size = max(self._size, offset + len(data))
        return len(data)

    def allocate(self, size: int) -> None:
        self._size = max(self._size, size)

    def truncate(self, size: int) -> None:
        self._kept = min(self._kept, size)
        self._changes = [(at, data[: size - at]) for at, data in self._changes if at < size]
        self._size = size

    def sync_data(self) -> None:
        """Nothing to do: it is gone with this process."""

    sync = sync_data

    def forget_cache(self) -> None:
        if self._below:
            self._below.forget_cache()

    def size(self) -> int:
        return self._size

    def mode(self) -> int:
        return self._mode

    def protect(self, mode: int) -> None:
        self._mode = mode

    def close(self) -> None:
        """Kept open: another ``open`` of the name gives the same file."""


class OverlayDisk:
    """The directory ``below`` as it would be, had everything been written to it."""

    def __init__(self, below: RealDisk) -> None:
        self._below = below
        self._files: dict[str, OverlayFile | None] = dict.fromkeys(below.names())

    def create(self, name: str) -> OverlayFile:
        if name in self._files:
            raise FileExistsError(name)
        made = self._files[name] = OverlayFile(None)
        return made

    def open(self, name: str, *, write: bool = False) -> OverlayFile:  # noqa: ARG002  # Disk's
        if name not in self._files:
            raise FileNotFoundError(name)
        file = self._files[name]
        if file is None:
            file = self._files[name] = OverlayFile(self._below.open(name))
        return file

    def names(self) -> list[str]:
        return sorted(self._files)

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self.open(old)
        del self._files[old]

    def remove(self, name: str) -> None:
        del self._files[name]

    def protect(self, name: str, mode: int) -> None:
        self.open(name).protect(mode)

    def sync_directory(self) -> None:
        """Nothing to do."""

    def free_bytes(self) -> int:
        return self._below.free_bytes()

    def entropy(self, size: int) -> bytes:
        return self._below.entropy(size)

    def lock(self) -> None:
        self._below.lock()

    def unlock(self) -> None:
        self._below.unlock()
