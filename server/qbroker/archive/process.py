"""The archivist as a process: told how far the log is durable on stdin, it reports on stdout.

    in     4711            the log is durable up to batch 4711
           4711 shed       and the archive is too far behind: leave out what may be left out
           (end)           the broker is gone: save, and end
    out    {"archived": 4700, "rows": ..., "shed": ..., "bytes": ..., "seconds": ...}
           {"error": "...", "kind": "damaged", "lasting": true}, and it ends

It is niced, and takes no signals from a terminal: its broker tells it when to end.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from qbroker.archive.archivist import Archivist, Keeping
from qbroker.archive.errors import ArchiveError, BusyError, DamagedError, ForeignError
from qbroker.archive.schema import FILE_NAME, judged, move_aside
from qbroker.archive.store import Figures, Store, open_store
from qbroker.log.disk import FileDisk
from qbroker.log.errors import LogError
from qbroker.log.reader import LogReader
from qbroker.ops.niceness import give_way

NICENESS = 10
LOCK_NAME = "LOCK"
LOCK_WAIT_S = 30.0
"""How long one waits for the archivist of a broker that was killed: it ends by itself."""
READ_BYTES = 65_536


class Orders:
    """What the broker says, the latest alone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.upto = 0
        self.is_shedding = False
        self.is_over = False

    def wait(self, timeout_s: float) -> None:
        """Something was said, or the time is over."""
        if self.is_over or not select.select([self._fd], [], [], timeout_s)[0]:
            return
        data = os.read(self._fd, READ_BYTES)
        self.is_over = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            batch, _, word = lines[-1].partition(b" ")
            self.upto, self.is_shedding = int(batch), word == b"shed"


class Process:
    """The loop between orders and reports."""

    def __init__(self, orders: Orders, out: IO[str]) -> None:
        self._orders = orders
        self._out = out
        self._may_move_aside = False
        self._is_patient = True

    def run(
        self, data: Path, keeping: Keeping, *, may_move_aside: bool, is_patient: bool = True
    ) -> int:
        """Until the broker is gone; the exit code. See Archivist for ``is_patient``."""
        self._may_move_aside, self._is_patient = may_move_aside, is_patient
        folder = data / "archive"
        try:
            with judged(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            with locked(folder):
                reader = LogReader.open(FileDisk(str(data / "log")))
                self._serve(reader, folder / FILE_NAME, keeping)
        except ArchiveError as error:
            self._say({"error": str(error), "kind": error.kind, "lasting": error.lasting})
            return 1
        except (LogError, OSError) as error:
            self._say({"error": f"the log cannot be followed: {error}", "kind": "log"})
            return 1
        return 0

    def _serve(self, reader: LogReader, path: Path, keeping: Keeping) -> None:
        while not self._orders.upto and not self._orders.is_over:
            self._orders.wait(60)
        # While this waited for the lock its broker may have died, and another one gone on.
        self._orders.wait(0)
        if self._orders.is_over:
            return
        store = self._opened(path, reader)
        clocks = wall_ms, mono_ms
        archivist = Archivist(reader, store, keeping, *clocks, is_patient=self._is_patient)
        if archivist.missed:
            self._say({"missed": archivist.missed})
        self._report(archivist, archivist.figures())
        while not self._orders.is_over:
            upto, shed = self._orders.upto, self._orders.is_shedding
            for figures in archivist.advance(upto, is_shedding=shed):
                self._report(archivist, figures)
                self._orders.wait(0)
                if self._orders.is_over:
                    break
            if archivist.is_due:
                self._report(archivist, archivist.save())
            else:
                archivist.sweep()
            self._orders.wait(archivist.wait_ms() / 1000)
        archivist.close()

    def _opened(self, path: Path, reader: LogReader) -> Store:
        """The archive; one that is damaged or foreign moved aside, if that was allowed."""
        try:
            store = open_store(path, reader.log_id)
            if store.batch > self._orders.upto:
                store.close()
                said = f"it tells of batch {store.batch}, the log ends at {self._orders.upto}"
                raise ForeignError(str(path), said)
        except (DamagedError, ForeignError) as error:
            if not self._may_move_aside:
                raise
            aside = move_aside(path, wall_ms())
            self._say({"aside": str(aside), "why": str(error)})
            store = open_store(path, reader.log_id)
        return store

    def _report(self, archivist: Archivist, figures: Figures) -> None:
        shown = asdict(figures)
        batch = shown.pop("batch")
        self._say({"archived": batch, **shown, "seconds": archivist.seconds})

    def _say(self, words: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the end of stdin says the same
            self._out.write(json.dumps(words, separators=(",", ":")) + "\n")
            self._out.flush()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process alone writes the archive. Raises BusyError."""
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise BusyError(str(folder), "another archivist writes it") from error
                select.select([], [], [], 0.05)
        yield
    finally:
        os.close(fd)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def mono_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def be_humble() -> None:
    """Others go first, and a terminal's signals are the broker's business."""
    give_way(NICENESS)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
