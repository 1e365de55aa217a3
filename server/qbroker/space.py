"""Room on the disk: how much is left, what that means, and what is kept for the worst hour.

    ok ---- free < low ----> low ---- free < critical ----> critical
     ^--- free > low + 1/8 ---'  ^--- free > critical + 1/8 ---'

    low         publishes are refused; deliveries, settlements, cancels and purges go on
    critical    also little is written but the log: checkpoints and the archive, which let it
                shrink, only while they leave a quarter of that

Rule 1. The file system is asked in threads: a disk that hangs must not hold up the loop.
        Once a second in one of our own, and more often in the writer's while it writes.
        What is appended is counted: at the latest when that may have used up what was free
        above the next mark, the writer looks before the next batch is begun. So no speed of
        publishers takes the log far below a mark: two batches, and two segments made ahead.
Rule 2. The reserve is a file of allocated blocks. It is given up when the log finds no room
        for a segment, and made again once the level is ok.
"""

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from qbroker.kinds import Amount
from qbroker.log.disk import FULL
from qbroker.log.errors import NoRoom

logger = logging.getLogger("qbroker.space")

CHECK_S = 1.0
WRITING_CHECK_S = 0.05
"""While much is written, for what others write there; our own bytes are counted."""
RESERVE_NAME = "reserve"
RESERVE_SEGMENTS = 2
CRITICAL_SHARE = 4
"""Below critical, this part of it is for the log alone: one quarter."""
RESERVE_SHARE_MAX = 32
"""The reserve takes at most this part of the file system: one thirty-second."""


NO_ROOM = (
    "the broker's disk is nearly full: nothing new is taken in until there is room; "
    "what is there can be consumed and settled"
)


class Level(IntEnum):
    """How much room there is."""

    OK = 0
    LOW = 1
    CRITICAL = 2


class Watermarks:
    """The level, judged anew from time to time. Going down is at once, going up takes an eighth."""

    def __init__(self, low_bytes: int, critical_bytes: int) -> None:
        self.low_bytes = low_bytes
        self.critical_bytes = min(critical_bytes, low_bytes)
        self.level = Level.OK

    def allowance(self, free_bytes: int) -> float:
        """How much may be taken before a lower level can be true; without end at the lowest."""
        below = {Level.OK: self.low_bytes, Level.LOW: self.critical_bytes}
        return free_bytes - below[self.level] if self.level in below else math.inf

    def judge(self, free_bytes: int) -> bool:
        """Whether the level is another one now."""
        before = self.level
        bounds = {Level.CRITICAL: self.critical_bytes, Level.LOW: self.low_bytes}
        self.level = Level.OK
        for level, bound in bounds.items():
            if free_bytes < bound + (bound // 8 if before >= level else 0):
                self.level = level
                break
        return self.level != before


class Reserve:
    """A file of blocks that nobody else can have. OSError as the system gives it."""

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / RESERVE_NAME
        self.size = size

    @property
    def held(self) -> bool:
        return self._path.exists()

    def keep(self) -> bool:
        """It is there; False on a disk that has no room for it."""
        fresh = self._path.with_suffix(".tmp")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.size)
        except OSError as error:
            fresh.unlink()
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(fd)
        fresh.rename(self._path)
        return True

    def release(self) -> bool:
        """Its room is free; False if it was not there."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Room:
    """What was found the last time."""

    level: Level
    free_bytes: int
    total_bytes: int

    @property
    def refusal(self) -> str:
        """What a publisher is told; empty if publishes are taken."""
        return "" if self.level is Level.OK else NO_ROOM


class Space:
    """Watches the file system of a folder. Belongs to one loop once ``watch`` runs."""

    def __init__(self, folder: Path, low: Amount, critical: Amount, segment_bytes: int) -> None:
        self._folder = folder
        free, total = measure(folder)
        self._marks = Watermarks(low.of(total), critical.of(total))
        size = min(RESERVE_SEGMENTS * segment_bytes, total // RESERVE_SHARE_MAX)
        self.reserve = Reserve(folder, size)
        self.room = Room(Level.OK, free, total)
        self.on_change: Callable[[Room], None] | None = None
        """Called in the loop when the level is another one."""
        self._thread = ThreadPoolExecutor(1, "qbroker-space")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_look_s = 0.0
        self._appended_bytes = self._looked_at_bytes = 0
        """Ever, and of these before the look that ``room`` is from."""
        self.is_waiting = False
        """A batch waits for room: nobody is answered."""

    async def watch(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(CHECK_S)

    async def look(self) -> None:
        """The level is as the disk is now; the reserve is there if it should be."""
        self._loop = loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._measured)
        except OSError as error:
            logger.warning("cannot ask how much room %s has: %s", self._folder, error)
            return
        self.see(*found)
        wanted = self._marks.low_bytes + self._marks.low_bytes // 8 + self.reserve.size
        if self.room.level is Level.OK and self.room.free_bytes > wanted:
            await loop.run_in_executor(self._thread, self._keep_reserve)

    def appended(self, size: int) -> bool:
        """The log is about to take so many bytes; whether it is time to look at the disk.

        If so, the batch must be written by ``patiently``, and it is looked at once it is.
        """
        self._appended_bytes += size
        return self._is_used_up()

    def _is_used_up(self) -> bool:
        """What was appended since the last look may have crossed a mark."""
        since = self._appended_bytes - self._looked_at_bytes
        return since > self._marks.allowance(self.room.free_bytes)

    def _measured(self) -> tuple[int, int, int]:
        """For ``see``. What is appended while the disk is asked counts as not seen."""
        appended = self._appended_bytes
        return *measure(self._folder), appended

    def see(self, free_bytes: int, total_bytes: int, appended_bytes: int) -> None:
        """Judge; tell the journal and whoever listens if that changed something.

        Nothing is done if another thread's look, at a longer log, was faster.
        """
        if appended_bytes < self._looked_at_bytes:
            return
        self._looked_at_bytes = appended_bytes
        changed = self._marks.judge(free_bytes)
        self.room = Room(self._marks.level, free_bytes, total_bytes)
        if changed:
            say = logger.info if self.room.level is Level.OK else logger.warning
            say("%s", self.sentence())
            if self.on_change is not None:
                self.on_change(self.room)

    def has_room(self, size: int = 0) -> bool:
        """Whether so many bytes may be written beside the log: a checkpoint, the archive."""
        left = self.room.free_bytes - size
        is_critical = self.room.level is Level.CRITICAL
        return not is_critical or left > self._marks.critical_bytes // CRITICAL_SHARE

    def sentence(self) -> str:
        """The level in words: what is true, what it means, what to do."""
        free = f"{self._folder} has {show_bytes(self.room.free_bytes)} left"
        marks = self._marks
        if self.room.level is Level.OK:
            return f"{free}: there is room again, publishes are taken"
        if self.room.level is Level.LOW:
            low = show_bytes(marks.low_bytes)
            return (
                f"{free}, less than disk_low_bytes ({low}): publishes are refused, everything else "
                f"goes on; free some room, more than {show_bytes(marks.low_bytes * 9 // 8)} in all"
            )
        critical = show_bytes(marks.critical_bytes)
        return (
            f"{free}, less than disk_critical_bytes ({critical}): publishes are refused, "
            "checkpoints and the archive may have to wait; free some room soon"
        )

    def patiently(self, job: Callable[[], float]) -> float:
        """What ``job`` returns, once the log finds room for it. For the writer's thread.

        Gives up the reserve first, then waits until somebody frees some.
        """
        while True:
            try:
                took = job()
            except NoRoom as full:
                self._wait_for_room(full)
            else:
                self._look_while_writing()
                if self.is_waiting:
                    self.is_waiting = False
                    logger.warning("there is room on the disk again: what waited is written")
                return took

    def _look_while_writing(self) -> None:
        """Between two looks a fast publisher could fill a small disk."""
        now = time.monotonic()
        is_due = now >= self._next_look_s or self._is_used_up()
        if is_due and self._loop is not None:
            self._next_look_s = now + WRITING_CHECK_S
            with contextlib.suppress(OSError):  # the next look of our own says it
                found = self._measured()
                self._loop.call_soon_threadsafe(self.see, *found)

    def _wait_for_room(self, full: NoRoom) -> None:
        if self.give_up_reserve():
            return
        if not self.is_waiting:
            self.is_waiting = True
            logger.error("%s", full)
        time.sleep(CHECK_S)  # the writer's own thread, which has nothing else to do

    def give_up_reserve(self) -> bool:
        """The reserve's room is free for the log. For any thread; False if there was none."""
        if not self.reserve.release():
            return False
        logger.warning(
            "the disk is full: the reserve of %s is given up, so that settlements can still be "
            "logged; free some room in %s now",
            *(show_bytes(self.reserve.size), self._folder),
        )
        return True

    def _keep_reserve(self) -> None:
        try:
            if not self.reserve.held and self.reserve.size:
                self.reserve.keep()
        except OSError as error:
            logger.warning("the reserve cannot be made: %s", error)

    def close(self) -> None:
        """No look is waited for: the disk may hang."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def measure(folder: Path) -> tuple[int, int]:
    """Bytes free for us, and in all, on the folder's file system."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize


def show_bytes(size: int) -> str:
    """For people: 1.9 GiB, 512 KiB."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
