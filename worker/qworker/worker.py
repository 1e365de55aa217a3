"""The parent of a worker: it starts everything, decides everything, and runs no user code.

    STARTING --loaded, session open--> RUNNING --SIGTERM, SIGINT, drain--> DRAINING --> STOPPED
        |                                 |                                   |
        |                         quiet / resume                 deadline, second signal:
        `--cannot load--> STOPPED                                children are killed, their
                                                                 tasks go back uncounted

Rule 1. One loop. Signals, the session's thread and the import process only leave events; they
        are handled here, one after the other.
Rule 2. A child's death is settled before anything takes its place (children.py, rule 1).
Rule 3. The worker ends when every child has; then it says goodbye, which returns what is left.
"""

import logging
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from qworker import logs
from qworker.agreement import Description, agree
from qworker.backoff import Backoff
from qworker.children import (
    Child,
    Verdict,
    autopsy,
    what_ended,
)
from qworker.declaring import Declared
from qworker.importing import ImportProcess
from qworker.logs import note
from qworker.options import OptionError, WorkerOptions
from qworker.pools import POOLS
from qworker.session import Event, Session
from qworker.slots import Slots, Token
from qworker.terms import Terms
from qworker.topology import frames
from qworker.watch import TICK_S, Watch

EXIT_DRAINED, EXIT_NOT_STARTED, EXIT_UNFINISHED = 0, 1, 3
"""Every begun task ended; the application could not be loaded; tasks were cut short."""


class State(Enum):
    """Where a worker is in its life."""

    STARTING = auto()
    RUNNING = auto()
    DRAINING = auto()
    STOPPED = auto()


class Worker:
    """One worker, from its options to its exit code."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.pool = POOLS[options.pool]
        self.state = State.STARTING
        self.slots = Slots.make(options.concurrency)
        self.children = [
            Child(number, slots)
            for number, slots in enumerate(self.pool.children(options.concurrency))
        ]
        self.importer: ImportProcess | None = None
        self.session: Session | None = None
        self.watch: Watch | None = None
        self.quiet = False
        self.exit_code = EXIT_DRAINED
        self._terms: Terms | None = None
        self._events: deque[Event] = deque()
        self._bell, self._rope = os.pipe()
        self._deadline = 0.0
        self._import_backoff = Backoff(0.5, 30.0)
        self._import_at = 0.0

    # Events.

    def tell(self, event: Event) -> None:
        """The loop will handle ``event``. From any thread, and from signal handlers."""
        self._events.append(event)
        os.write(self._rope, b"!")

    def run(self) -> int:
        """The whole life. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda got, _frame: self.tell(("signal", got)))
        self._import()
        while self.state is not State.STOPPED:
            self._turn()
        return self._goodbye()

    def _turn(self) -> None:
        timeout_s = TICK_S
        if self.watch is not None:
            timeout_s = self.watch.look(self.children, self.slots)
        importer = self.importer
        sources: list[Any] = [self._bell, *([importer.control] if importer else [])]
        ready = select.select(sources, [], [], timeout_s)[0]
        if self._bell in ready:
            os.read(self._bell, 4096)
        if importer is not None and importer.control in ready:
            received = importer.control.receive()
            self._events.extend([("import ended", None)] if received is None else received)
        while self._events:
            kind, value = self._events.popleft()
            ON[kind](self, value)
        self._start_due()
        self._drain_on()

    # Loading, and the import process.

    def _import(self) -> None:
        self.importer = ImportProcess(self.options, self.slots)
        self._import_at = 0.0

    def _on_opened(self, _value: object) -> None:
        self.slots.seal()

    def _on_failed(self, failure: dict[str, str]) -> None:
        """The application cannot be loaded: at the start that is the end, later it is tried on."""
        message = f"cannot load the application {self.options.app!r}: {failure['message']}"
        logs.write(f"{failure['traceback']}qworker: {message}\n")
        if self._terms is None:
            self.exit_code = EXIT_NOT_STARTED
            self.state = State.STOPPED

    def _on_loaded(self, description: dict[str, Any]) -> None:
        assert self.importer is not None
        self.importer.loaded = True
        if self._terms is None:
            app = Description(**description)
            try:
                self._terms = agree(self.options, self.pool, app)
            except (OptionError, ValueError) as error:
                logs.write(f"qworker: {error}\n")
                self.exit_code = EXIT_NOT_STARTED
                self.state = State.STOPPED
                return
            self._open_session(app, self._terms)
        self.importer.give_terms(self._terms.as_dict())
        if self.session is not None and self.session.open:
            self._start_all()

    def _open_session(self, app: Description, terms: Terms) -> None:
        options = self.options
        wanted = options.queues or [app.queue]
        broadcasts = [name for name in app.broadcasts if name in wanted]
        topology = frames(app.declared, broadcasts, terms.session)
        limits = Declared(app.tasks, app.rules)
        self.session = Session(terms, self.running_tokens, self.tell, topology, limits)
        self.watch = Watch(
            self.pool,
            self.session,
            hard_ms=int((options.time_limit_s or app.time_limit_s) * 1000),
            soft_ms=int((options.soft_time_limit_s or app.soft_time_limit_s) * 1000),
            memory_max_kib=options.max_memory_per_child_kib,
        )
        self.session.start()
        note(
            logging.INFO,
            "starting",
            name=terms.name,
            app=terms.app,
            tasks=len(app.tasks),
            pool=terms.pool,
            concurrency=options.concurrency,
            queues=",".join(terms.queues),
            broker=terms.broker,
        )
        note(logging.DEBUG, "tasks", names=" ".join(app.tasks))

    def running_tokens(self) -> list[Token]:
        """What runs now. Called by the session's thread."""
        found = (slot.running() for slot in self.slots)
        return [running.token for running in found if running is not None]

    def _on_import_ended(self, _value: object) -> None:
        importer = self.importer
        if importer is None:
            return
        for child in self.children if self.pool.forks else []:
            child.signal(signal.SIGKILL)
        code = importer.end()
        self.importer = None
        status = -code if code < 0 else code << 8
        if self.state is State.STOPPED:
            return
        for child in self.children:
            if child.pid:
                self._bury(child, signal.SIGKILL if self.pool.forks else status)
        if self.state is State.STARTING and self._terms is None:
            logs.write(f"qworker: the process that loads the application {what_ended(status)}\n")
            self.exit_code = EXIT_NOT_STARTED
            self.state = State.STOPPED
        elif self.state is not State.DRAINING and not self.quiet:
            delay_s = 0.0
            if self.pool.forks or not importer.loaded:
                delay_s = self._import_backoff.next_s()
                note(
                    logging.ERROR,
                    f"the import process {what_ended(status)}; it is started again",
                    in_s=round(delay_s, 1),
                )
            self._import_at = time.monotonic() + delay_s

    # Children.

    def _on_open(self, _value: object) -> None:
        if self.importer is not None and self.importer.loaded:
            self._start_all()

    def _start_all(self) -> None:
        if self.state is State.STARTING:
            self.state = State.RUNNING
            note(logging.INFO, "ready", name=self.options.name)
        for child in self.children:
            if not child.pid and not child.start_at and child.started_at == 0.0:
                child.start_at = time.monotonic()

    def _start_due(self) -> None:
        now = time.monotonic()
        if self._import_at and now >= self._import_at and not self.importer:
            # The names of the old ones are gone: a new process could not open them.
            self.slots = Slots.make(self.options.concurrency)
            self._import()
        if self.state is not State.RUNNING or self.quiet:
            return
        if self.importer is None or not self.importer.loaded:
            return
        for child in self.children:
            if child.start_at and now >= child.start_at:
                child.start_at = 0.0
                self._start(child)
            else:
                child.alarm_if_late(self.slots)

    def _start(self, child: Child) -> None:
        for number in child.slots:
            self.slots[number].renew()
        assert self.watch is not None
        self.watch.forget(child)
        child.verdicts.clear()
        child.leaving = child.alarmed = False
        child.started_at = time.monotonic()
        assert self.importer is not None
        self.importer.start_child(child.number, child.slots)
        if not self.pool.forks:
            child.pid = self.importer.pid

    def _on_started(self, report: dict[str, int]) -> None:
        child = self.children[report["child"]]
        child.pid = report["pid"]
        if self.state is State.DRAINING or self.quiet:
            child.leave()

    def _on_ended(self, report: dict[str, Any]) -> None:
        child = self.children[report["child"]]
        if report.get("why"):
            note(logging.ERROR, "cannot fork", reason=report["why"])
        self._bury(child, report["status"])

    def _bury(self, child: Child, status: int) -> None:
        """The child is dead: what it held is settled, and then another takes its place."""
        assert self.session is not None
        acks, outcomes = autopsy(child, self.slots, status)
        ready = child.is_ready(self.slots)
        child.pid = 0
        if ready:
            child.backoff.reset()
        self.session.settle(acks, outcomes, lambda: self._replace(child, ready))

    def _replace(self, child: Child, was_ready: bool) -> None:
        delay_s = 0.0
        if not was_ready:
            delay_s = child.backoff.next_s()
            note(
                logging.ERROR,
                f"child {child.number + 1} ended before it was ready",
                times=child.backoff.failures,
                next_try_s=round(delay_s, 1),
            )
        child.start_at = time.monotonic() + delay_s

    # Orders from the broker.

    def _on_recall(self, tokens: list[Token]) -> None:
        if self.watch is not None:
            self.watch.recall_tokens(self.slots, tokens)

    def _on_revoke(self, order: tuple[list[Token], bool, int]) -> None:
        if self.watch is not None:
            self.watch.revoke(*order)

    def _on_control(self, order: tuple[str, dict[str, Any]]) -> None:
        verb, _arguments = order
        if verb == "drain":
            self._drain("the broker's order")
        elif verb == "terminate":
            self._cut_short("the broker's order")
        elif verb == "quiet" and self.state is State.RUNNING:
            note(logging.INFO, "quiet: running tasks end, nothing new is begun")
            self.quiet = True
            self._all_leave()
        elif verb == "resume" and self.quiet:
            note(logging.INFO, "resumed")
            self.quiet = False
            for child in self.children:
                if not child.pid:
                    child.start_at = time.monotonic()
            if self.importer is None:
                self._import_at = time.monotonic()
        else:
            note(logging.WARNING, "an order that is not known here", verb=verb)

    # The end.

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.state is State.STARTING:
            self.state = State.STOPPED
        elif self.state is State.RUNNING and number != signal.SIGQUIT:
            self._drain(name)
        else:
            self._cut_short(name)

    def _drain(self, why: str) -> None:
        """Nothing new is begun; what runs may finish until the deadline."""
        if self.state is not State.RUNNING:
            return
        self.state = State.DRAINING
        timeout_s = self.options.shutdown_timeout_s
        self._deadline = time.monotonic() + timeout_s
        note(logging.INFO, f"draining ({why}): running tasks may finish", within_s=timeout_s)
        self._all_leave()

    def _all_leave(self) -> None:
        for child in self.children:
            child.start_at = 0.0
            if child.pid:
                child.leave()

    def _drain_on(self) -> None:
        if self.state is not State.DRAINING:
            return
        if not any(child.pid for child in self.children):
            self.state = State.STOPPED
        elif time.monotonic() >= self._deadline:
            self._cut_short("the shutdown timeout")

    def _cut_short(self, why: str) -> None:
        """Children are killed; what they ran goes back uncounted."""
        self.state = State.DRAINING
        self._deadline = time.monotonic() + 3600.0
        for child in self.children:
            for number in child.slots:
                running = self.slots[number].running() if child.pid else None
                if running is not None:
                    child.verdicts[running.index] = Verdict.STOPPING
                    self.exit_code = EXIT_UNFINISHED
            child.leaving = True
            child.signal(signal.SIGKILL)
        note(logging.WARNING, f"stopping at once ({why}): unfinished tasks go back to the queue")

    def _goodbye(self) -> int:
        if self.session is not None and self.session.open and not self.session.say_goodbye():
            note(logging.WARNING, "the broker did not answer the goodbye; leases will time out")
        if self.importer is not None:
            self.importer.end()
        note(logging.INFO, "stopped", exit_code=self.exit_code)
        return self.exit_code


ON: dict[str, Callable[[Worker, Any], None]] = {
    "signal": Worker._on_signal,  # noqa: SLF001 - a table of this file's own methods
    "opened": Worker._on_opened,  # noqa: SLF001
    "failed": Worker._on_failed,  # noqa: SLF001
    "loaded": Worker._on_loaded,  # noqa: SLF001
    "started": Worker._on_started,  # noqa: SLF001
    "ended": Worker._on_ended,  # noqa: SLF001
    "import ended": Worker._on_import_ended,  # noqa: SLF001
    "open": Worker._on_open,  # noqa: SLF001
    "recall": Worker._on_recall,  # noqa: SLF001
    "revoke": Worker._on_revoke,  # noqa: SLF001
    "control": Worker._on_control,  # noqa: SLF001
    "done": lambda _worker, done: done(),
}
"""What the loop does with each kind of event."""
