"""The broker's side of checkpoints: when one is due, who writes it, what became of it.

Rule 1. While the broker serves, only a keeper writes them, one at a time; at a clean stop
        the broker does, after its last turn.
Rule 2. A keeper that fails costs a line in the journal, a count and a wait that doubles;
        the broker goes on. What it loses is a short start, and room on the disk.
Rule 3. A checkpoint is as of what the archive holds, so that nothing is cleaned away that it
        has yet to read; if the archive does not move, it is as of now, and nothing is cleaned.
Rule 4. On a disk with little room one is due as soon as the log has grown, and another behind
        it: what is dead is dropped below the older of two.
Rule 5. Two are kept: the newest, and the one it was made from, which was read for it.
"""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qbroker.ages import Ages
from qbroker.checkpoint.cleaner import Looked
from qbroker.checkpoint.errors import DamagedError
from qbroker.checkpoint.file import Checkpoint
from qbroker.checkpoint.keeper import Kept, Order, unpack_line
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.broker import Broker
from qbroker.core.settings import Settings
from qbroker.log.cleaning import Rewritten
from qbroker.log.errors import CorruptError, ForeignError, LogError, LogFailed, StaleError
from qbroker.log.log import Log
from qprotocol import __version__

TICK_S = 1.0
END_S = 5.0
"""How long a keeper that was told to end may take before it is killed."""
RETRY_S, RETRY_MAX_S = 30.0, 3_600.0
REWRITE = 6
"""A checkpoint is due once the log has grown by so many times its size: beside a deep queue's log
it takes a seventh of what is written."""
BATCHES_MAX = 200_000
"""Or by so many batches: replaying small ones takes time, not bytes."""

PRESSED_S = 2.0
"""Between two checkpoints on a disk that has little room; at least four times what one took."""
IDLE_BYTES = 8_192
"""A log that grew by no more has nothing new that could be dropped."""

_log = logging.getLogger("qbroker.keeper")


@dataclass(slots=True)
class Last:
    """The newest checkpoint, and what it took; and how often one failed since the start."""

    batch: int = 0
    wall_ms: int = 0
    bytes: int = 0
    seconds: float = 0.0
    failures: int = 0


class Keeping:
    """Sees to it that there are checkpoints. Belongs to the broker's loop."""

    def __init__(
        self,
        data: Path,
        log: Log,
        shelf: Shelf,
        settings: Settings,
        *,
        log_bytes: int,
        appended: Callable[[], int],
        cleaning: tuple[int, int],
        archived: Callable[[], int],
        has_room: Callable[[int], bool],
        is_pressed: Callable[[], bool],
        add_batch: Callable[[], None],
        on_failed: Callable[[LogFailed], None],
        wall_ms: Callable[[], int],
        journal: tuple[str, str],
    ) -> None:
        """``appended`` says how many bytes went into the log so far, ``archived`` up to which
        batch it is archived; ``cleaning`` is the percentage and the file size of Order.
        ``has_room`` says whether so many bytes may be written, ``is_pressed`` whether there
        is little room; ``add_batch`` makes the log longer by a batch. ``on_failed`` hears, in
        a thread, that the disk refused a change of the log: the broker must end.
        """
        self._data = data
        self._log = log
        self._shelf = shelf
        self._settings = settings
        self._log_bytes = log_bytes
        self._appended = appended
        self._cleaning = cleaning
        self._archived = archived
        self._has_room = has_room
        self._is_pressed = is_pressed
        self._add_batch = add_batch
        self._on_failed = on_failed
        self._wall_ms = wall_ms
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "qbroker-keep")
        self._process: subprocess.Popen[str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._mark = 0
        """What ``appended`` said when the newest checkpoint was ordered."""
        self._retry_s = RETRY_S
        self._not_before_s = 0.0
        self._pressed_not_before_s = 0.0
        self._was_all = False
        """The newest checkpoint has all that was durable then, and lets it be cleaned."""
        self._is_settled = False
        """So had the one before it: all that is dead was dropped."""
        self._looked: Looked = {}
        self.last = Last()

    def resume(self, found: Restored, behind: int) -> None:
        """The start found this checkpoint, and so many bytes of log behind it."""
        self.last = Last(found.batch, found.wall_ms, found.bytes)
        self._looked = found.looked
        self._mark = self._appended() - behind

    # While the broker serves.

    def start(self) -> None:
        """From now on checkpoints are written when they are due."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="keeping")

    @property
    def due(self) -> bool:
        """Whether the log has grown so much that a start would feel it."""
        grown = self._appended() - self._mark
        batches = self._log.durable - self.last.batch
        least = REWRITE * self.last.bytes
        return grown >= max(self._log_bytes, least) or (grown >= least and batches >= BATCHES_MAX)

    def _is_urgent(self) -> bool:
        """Whether one would make room on a disk that has little (rule 4)."""
        if not self._is_pressed() or not self._cleaning[0]:
            return False
        if time.monotonic() < self._pressed_not_before_s:
            return False
        is_new = self._appended() - self._mark > IDLE_BYTES
        if min(self._archived(), self._log.durable) > self.last.batch:
            return is_new or not self._is_settled
        if self._log.durable == self.last.batch and not self._is_settled:
            self._add_batch()
        return False

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self._has_room(2 * self.last.bytes) or time.monotonic() < self._not_before_s:
                continue
            if self.due or self._is_urgent():
                await self.order()

    async def order(self) -> None:
        """A keeper has run to its end, well or not."""
        mark, wall_ms = self._appended(), self._wall_ms()
        live_percent, file_bytes = self._cleaning
        durable = self._log.durable
        upto = min(self._archived(), durable)
        if upto <= self.last.batch:
            upto, live_percent = durable, 0
        order = Order(upto, wall_ms, self._settings, live_percent, file_bytes, *self._journal)
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._thread, self._run, order)
        except (OSError, ValueError, TypeError, LogError) as error:
            self._failed(f"{error}")
            return
        self.last.batch, self.last.wall_ms = done.batch, wall_ms
        self.last.bytes, self.last.seconds = done.bytes, done.seconds
        self._looked = done.looked
        is_all = live_percent > 0 and upto == durable
        self._is_settled = is_all and self._was_all and mark - self._mark <= IDLE_BYTES
        self._was_all = is_all
        self._mark, self._retry_s = mark, RETRY_S
        self._pressed_not_before_s = time.monotonic() + max(PRESSED_S, 4 * done.seconds)
        _log.info(
            "checkpoint of batch %d: %d bytes in %.1f s", done.batch, done.bytes, done.seconds
        )

    def _run(self, order: Order) -> Kept:
        """The keeper's answer. In a thread. Raises OSError, ValueError."""
        command = [sys.executable, "-P", "-m", "qbroker.checkpoint", str(self._data)]
        pipe = subprocess.PIPE
        with subprocess.Popen(  # noqa: S603  # our own module, no shell
            command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        ) as process:
            self._process = process
            assert process.stdin
            assert process.stdout
            done: Kept | None = None
            try:
                if self._stopping:
                    raise ValueError("the broker is stopping")
                process.stdin.write(order.pack() + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    told = unpack_line(line)
                    if isinstance(told, Kept):
                        done = told
                        self._shelf.keep(done.batch, done.before)
                    else:
                        self._cleaned(told)
                code = process.wait()
            finally:
                self._process = None
                process.kill()
        if done is None:
            raise ValueError(f"the keeper ended with code {code}")
        return done

    def _cleaned(self, told: list[int] | Rewritten) -> None:
        """The log is without what the keeper found dead. In its thread."""
        try:
            if isinstance(told, Rewritten):
                self._log.adopt(told)
            else:
                self._log.drop(told)
        except (CorruptError, ForeignError, StaleError) as error:
            _log.warning("a cleaned segment is not used: %s", error)
        except LogFailed as failure:
            self._on_failed(failure)
            raise

    def _failed(self, why: str) -> None:
        self.last.failures += 1
        _log.warning(
            "no checkpoint was written: %s; the broker goes on, a start would read %d MB of log; "
            "it is tried again in %.0f s",
            *(why, (self._appended() - self._mark) // 10**6, self._retry_s),
        )
        self._not_before_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    # The end.

    async def stop(self) -> None:
        """No keeper runs any more. What it had not finished is as if it had not begun."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, end, process)

    async def write_last(self, core: Broker, ages: Ages, timeout_s: float) -> None:
        """After the last turn: the next start need read no log at all. Never raises."""
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(None, self._write, core, ages)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(writing)
        except TimeoutError:
            _log.warning(
                "the last checkpoint took over %.0f s and was given up; the next start reads the "
                "log instead",
                timeout_s,
            )
        except (OSError, LogError, DamagedError) as error:
            _log.warning(
                "the last checkpoint was not written: %s; the next start reads the log instead",
                error,
            )

    def _write(self, core: Broker, ages: Ages) -> None:
        self._log.sync()
        batch = self._log.durable
        digest = self._log.digest(batch)
        about = Checkpoint(self._log.log_id, batch, digest, self._wall_ms(), __version__)
        self._shelf.add(about, core, ages, self._looked)
        self._shelf.keep(batch, self.last.batch)


def end(process: subprocess.Popen[str]) -> None:
    """The process is gone."""
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
