"""The broker's side of the archive: an archivist that runs, is told, and is listened to.

    log durable ---- batch (and: shed) ---> archivist (a process; see archive/process.py)
    engine <-------- archived up to ------- its reports, one after each transaction

Rule 1. The broker never waits for it: it may lag, fail, or not come up at all. What is not
        archived stays in the log, and, as far as results_max goes, in memory.
Rule 2. Lag is bounded by shedding: over archive_lag_bytes successes without a result get no
        row. Over archive_lag_bytes_max publishes are refused until it has caught up.
Rule 3. One that ends is started again, after a wait that doubles; but not where another try
        must end the same way: a damaged archive is a person's business.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from qbroker.archive.questions import Questions
from qbroker.archive.schema import FILE_NAME
from qbroker.config import Config
from qbroker.core.statistics import ArchiveStatistics
from qbroker.log.format import SLOT_BITS
from qbroker.log.log import Log
from qbroker.searching import Searches

TELL_S = 0.05
END_S = 2.0
"""How long an archivist that was told to end may take before it is killed, which harms nothing."""
RETRY_S, RETRY_MAX_S = 0.5, 60.0
SAMPLE_BYTES = 256 * 1024
"""Bytes of log between two marks by which the lag is measured."""

_log = logging.getLogger("qbroker.archive")


class Lag:
    """How many bytes of log the archive is behind, from marks of (durable batch, bytes)."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        self._passed = 0
        self._bytes = 0
        self.is_known = False
        """Whether the archivist has said where it is."""
        self.inherited = 0
        """What is left of the lag that the start found: nobody who publishes now is to blame."""

    def begin(self, durable: int, archived: int, log_bytes: int, batches: int) -> None:
        """At a start: so many of the log's batches, and their share of its bytes, are behind."""
        behind = max(0, durable - archived)
        self._bytes = log_bytes * behind // max(1, batches)
        self._passed = 0
        self._marks = deque(((durable, self._bytes),))
        self.is_known, self.inherited = True, self._bytes

    def note(self, durable: int, appended: int) -> None:
        """The log is durable up to there, and so many bytes longer than before."""
        self._bytes += appended
        if not self._marks or self._bytes - self._marks[-1][1] >= SAMPLE_BYTES:
            self._marks.append((durable, self._bytes))
        else:
            self._marks[-1] = durable, self._bytes

    def reached(self, batch: int) -> None:
        """The archive holds everything up to there."""
        while self._marks and self._marks[0][0] <= batch:
            self._passed = self._marks.popleft()[1]
        self.inherited = min(self.inherited, self.bytes)

    @property
    def bytes(self) -> int:
        """Of the log, not archived; up to SAMPLE_BYTES more than there are."""
        return self._bytes - self._passed if self._marks else 0


class Archived(Protocol):
    """What the engine is to this."""

    appended_bytes: int

    def archived(self, upto: int) -> None: ...


class Archiving:
    """Sees to it that there is an archivist. Belongs to the broker's loop."""

    def __init__(self, config: Config, log: Log, *, may_move_aside: bool) -> None:
        path = config.data / "archive" / FILE_NAME
        self.questions = Questions(path) if config.archive else None
        self.searches = Searches(Questions(path) if config.archive else None)
        self._config = config
        self._log = log
        self._may_move_aside = may_move_aside
        self._engine: Archived
        self._seen_bytes = 0
        self._begun = (0, 0)
        self._lag = Lag()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._retry_s = RETRY_S
        self._lasting = False
        self._figures = ArchiveStatistics()
        self.has_room: Callable[[], bool] = lambda: True
        """Whether the disk has room for more than the log: else the archivist is told no news."""
        self.on_refusal: Callable[[], None] | None = None
        """Called when ``refusal`` is another one."""
        self.refusal = ""
        """Why publishes are refused; empty while they are taken."""

    def start(self, engine: Archived) -> None:
        """An archivist runs from now on, unless the broker is to have none."""
        if self.questions is None:
            return
        self._engine, self._seen_bytes = engine, engine.appended_bytes
        log = self._log.statistics()
        self._begun = log.bytes, log.durable - log.oldest + 1
        self._task = asyncio.get_running_loop().create_task(self._keep_up(), name="archiving")

    async def stop(self) -> None:
        """The archivist has ended. Twice is once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.searches.close()

    @property
    def pid(self) -> int:
        """The archivist's process; 0 if none runs."""
        process = self._process
        return process.pid if process and process.returncode is None else 0

    def statistics(self) -> ArchiveStatistics:
        """What may be looked at."""
        lag = max(0, self._log.durable - self._figures.batch)
        return replace(self._figures, lag_batches=lag, lag_bytes=self._lag.bytes if lag else 0)

    def report(self) -> dict[str, object]:
        """For /health: how far it is, and what keeps it from its work."""
        if self.questions is None:
            return {"status": "off"}
        found = self.statistics()
        status = "failed" if found.trouble else "shedding" if self._is_behind else "ok"
        report = {"status": status, "batch": found.batch, "lag_bytes": found.lag_bytes}
        return report | ({"trouble": found.trouble} if found.trouble else {})

    # The archivist's lives.

    async def _keep_up(self) -> None:
        while not self._lasting:
            try:
                await self._one_life()
            except (OSError, ValueError) as error:
                self._fail(f"the archivist could not be run: {error}")
            if not self._lasting:
                await asyncio.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    async def _one_life(self) -> None:
        """An archivist from its start to its end."""
        config, pipe = self._config, asyncio.subprocess.PIPE
        command = [sys.executable, "-P", "-m", "qbroker.archive", str(config.data)]
        command.append(f"--ttl-ms={config.archive_ttl_ms}")
        command.append(f"--bytes-max={config.archive_bytes_max}")
        command.append(f"--preview-bytes-max={config.archive_preview_bytes_max}")
        command += ["--move-aside"] if self._may_move_aside else []
        # For a minute it did not get on: a row without its names is better than none.
        command += ["--impatient"] if self._retry_s >= RETRY_MAX_S else []
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, start_new_session=True
        )
        telling = asyncio.get_running_loop().create_task(self._tell(process))
        try:
            assert process.stdout
            while line := await process.stdout.readline():
                self._hear(json.loads(line))
            code = await process.wait()
            if not self._figures.trouble:
                self._fail(f"the archivist ended with code {code}")
        finally:
            telling.cancel()
            await ended(process)

    async def _tell(self, process: asyncio.subprocess.Process) -> None:
        """Say how far the log is durable, when that has changed."""
        said = ""
        assert process.stdin
        with contextlib.suppress(ConnectionError):
            while True:
                appended, durable = self._engine.appended_bytes, self._log.durable
                self._lag.note(durable, appended - self._seen_bytes)
                self._seen_bytes = appended
                self._judge()
                words = f"{durable} shed\n" if self._is_behind else f"{durable}\n"
                if words != said and self.has_room():
                    process.stdin.write(words.encode())
                    await process.stdin.drain()
                    said = words
                await asyncio.sleep(TELL_S)

    @property
    def upto(self) -> int:
        """The log up to this batch needs nobody to archive it; 0 before the first report."""
        return self._figures.batch if self._config.archive else self._log.durable

    def _hear(self, words: dict[str, Any]) -> None:
        """A line of the archivist's."""
        if "archived" in words:
            self._reached(words)
        elif "error" in words:
            self._lasting = bool(words.get("lasting"))
            self._fail(words["error"])
        elif "aside" in words:
            _log.warning("%s; it is kept as %s", words["why"], words["aside"])
        elif "missed" in words:
            _log.error(
                "%d batches of the log were gone before they were archived: what was settled in "
                "them is not in the archive",
                words["missed"],
            )

    def _reached(self, words: dict[str, Any]) -> None:
        batch = words["archived"]
        if not self._lag.is_known:
            self._lag.begin(self._log.durable, batch, *self._begun)
        self._lag.reached(batch)
        if batch > self._figures.batch:
            self._retry_s = RETRY_S
        self._figures = ArchiveStatistics(
            *(batch, words["rows"], words["shed"], words["bytes"], words["seconds"])
        )
        self._judge()
        self._engine.archived((batch + 1 << SLOT_BITS) - 1)

    def _fail(self, why: str) -> None:
        again = "" if self._lasting else f"; it is tried again in {self._retry_s:g} s"
        _log.error("%s%s", why, again)
        self._figures = replace(self._figures, trouble=why)

    # Too far behind.

    @property
    def _is_behind(self) -> bool:
        return self._lag.bytes > self._config.archive_lag_bytes

    def _judge(self) -> None:
        """Refuse publishes while it is hopelessly behind, until it is halfway back.

        Not where it has failed: the log keeps what it lacks, and the disk has its own limits.
        """
        most, behind = self._config.archive_lag_bytes_max, self._lag.bytes - self._lag.inherited
        is_over = behind > (most // 2 if self.refusal else most) and not self._figures.trouble
        if is_over != bool(self.refusal):
            self.refusal = (
                f"the archive of settled tasks is {behind} bytes of log behind, over "
                f"archive_lag_bytes_max ({most}): publishes are refused until it has caught up; "
                "give the broker's machine more CPU, or raise the limit"
                if is_over
                else ""
            )
            _log.warning("%s", self.refusal or "the archive has caught up: publishes are taken")
            if self.on_refusal:
                self.on_refusal()


async def ended(process: asyncio.subprocess.Process) -> None:
    """The process is gone: it was told to end, and is killed if it does not."""
    if process.stdin:
        process.stdin.close()
    try:
        async with asyncio.timeout(END_S):  # wait_for may lose a cancellation: bpo-37658
            await asyncio.shield(process.wait())
    except TimeoutError:
        process.kill()
        await process.wait()
