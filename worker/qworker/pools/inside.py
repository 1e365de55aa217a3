"""What a pool does inside its process: builds its runners, minds signals, runs, ends.

    signal      prefork, solo                            threads
    SIGTERM     finish the running task, give the        the same for all of them
                rest back, say goodbye, end
    SIGUSR1     SoftTimeLimitExceeded in the task        -
                that the slot names

A runner's slot number is its place in shared memory; its member number is one more (0 is the
parent's).
"""

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from traceback import format_exc
from typing import Any

from qprotocol.names import pack_task_names
from qworker import logs
from qworker.execute import Executor
from qworker.hand import Hand
from qworker.lineage import die_with_parent
from qworker.logs import TaskLog, note
from qworker.member import Member
from qworker.pools import prefork, solo, threads
from qworker.runner import Runner
from qworker.slots import Slots
from qworker.terms import Terms
from qworker.watchman import Watchman

RUN: dict[str, Callable[[list[Runner]], None]] = {
    "prefork": prefork.run,
    "threads": threads.run,
    "solo": solo.run,
}


def known_tasks(app: Any) -> bytes:
    """The names of the application's tasks, for the broker: it sends no others.

    And plain messages, which no task will ever take: they are set aside with a reason. None,
    and so everything, if they are more than a Consume can list.
    """
    try:
        return pack_task_names(["", *app.tasks])
    except ValueError as error:
        note(logging.WARNING, "the broker does not hear which tasks are known", reason=error)
        return b""


class Inside:
    """The inside of a process that runs tasks."""

    def __init__(self, app: Any, terms: Terms, slots: Slots) -> None:
        self.app, self.terms, self.slots = app, terms, slots
        self._own_pid = 0
        self._stop_rope = -1
        self._runners: list[Runner] = []
        self._log: TaskLog | None = None

    def become(self, number: int, slots: list[int], parent_pid: int) -> None:
        """This process runs tasks with those slots, until it is told to stop."""
        terms = self.terms
        die_with_parent(parent_pid)
        self._own_pid = os.getpid()
        process = f"child-{number + 1}"
        logs.set_up(terms.level, terms.log_format, process)
        faulthandler.enable()
        self._log = log = TaskLog(terms.log_format, process)
        stop_fd, self._stop_rope = os.pipe()
        known = known_tasks(self.app)
        members = [
            Member(terms, slot + 1, Hand(self.slots[slot]), stop_fd, known=known) for slot in slots
        ]
        watchman = Watchman(members, stop_fd)
        for member in members:
            executor = Executor(self.app, terms.name, log, member)
            runner = Runner(member, executor, watchman, log, terms.max_tasks_per_child)
            self._runners.append(runner)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_soft_limit)
        watchman.start()
        RUN[terms.pool](self._runners)

    def _on_stop(self, signum: int, _frame: object) -> None:
        if os.getpid() != self._own_pid:
            # A process forked by a task inherited this handler: it dies as it would have.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        for runner in self._runners:
            runner.stopping = True
        os.write(self._stop_rope, b"!")

    def _on_soft_limit(self, _signum: int, _frame: object) -> None:
        if os.getpid() == self._own_pid:
            self._runners[0].executor.soft_limit_passed()

    def end(self, code: int) -> None:
        """The forked child is gone, without running what belongs to the import process."""
        if code:
            note(logging.CRITICAL, "child failed", trace=format_exc())
        if self._log is not None:
            self._log.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
