"""Files as readers see them: through a buffer, and kept open for a while."""

from __future__ import annotations

import threading
from contextlib import suppress

from qbroker.log.disk import Disk, File
from qbroker.log.format import BATCH_HEADER_BYTES, BatchInfo, Malformed, unpack_batch_header

HANDLES_MAX = 64
"""Files kept open for reading."""


class Window:
    """A file seen through one buffer: the disk is asked once a chunk, however small the steps."""

    __slots__ = ("chunk_bytes", "data", "file", "start")

    def __init__(self, file: File, chunk_bytes: int) -> None:
        self.file = file
        self.chunk_bytes = chunk_bytes
        self.data = b""
        self.start = 0

    def at(self, offset: int, length: int) -> int:
        """Where in `data` the `length` bytes from `offset` begin; fewer if the file ends."""
        at = offset - self.start
        if at < 0 or at + length > len(self.data):
            self.data = self._read(offset, length)
            self.start = offset
            return 0
        return at

    def _read(self, offset: int, length: int) -> bytes:
        """A chunk from `offset` on. Only the `length` bytes, if the disk refuses what is behind."""
        if length < self.chunk_bytes:
            with suppress(OSError):
                return self.file.read_at(offset, self.chunk_bytes)
        return self.file.read_at(offset, length)

    def batch_header(self, offset: int, seed: int) -> BatchInfo:
        """The batch header at `offset`, or Malformed."""
        at = self.at(offset, BATCH_HEADER_BYTES)
        return unpack_batch_header(self.data, at, seed)

    def batch(self, offset: int, info: BatchInfo, end: int) -> int:
        """Where in `data` this whole batch begins, or Malformed if it reaches beyond `end`.

        The length is held against the file before anything is read or allocated.
        """
        if offset + info.length > end:
            raise Malformed(f"batch of {info.length} bytes reaches beyond the file's end")
        at = self.at(offset, info.length)
        if len(self.data) - at < info.length:
            raise Malformed("the file ends inside a batch")
        return at


class Handles:
    """Files open for reading, the least recently opened closed first.

    The only lock in this room: readers come from any thread. A handle dropped here
    stays open until its last reader is done with it.
    """

    __slots__ = ("disk", "files", "files_max", "lock")

    def __init__(self, disk: Disk, files_max: int = HANDLES_MAX) -> None:
        self.disk = disk
        self.files_max = files_max
        self.files: dict[str, File] = {}
        self.lock = threading.Lock()

    def of(self, name: str) -> File:
        """The file, opened if it is not. OSError."""
        with self.lock:
            file = self.files.get(name)
            if file is None:
                file = self.files[name] = self.disk.open(name)
                if len(self.files) > self.files_max:
                    del self.files[next(iter(self.files))]
            return file

    def forget(self, name: str) -> None:
        """The file is not kept open any more."""
        with self.lock:
            self.files.pop(name, None)
