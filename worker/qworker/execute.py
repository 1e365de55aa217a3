"""One delivery -> one outcome, in named steps. Touches no network.

    unpack -> find the task -> read the request -> admit -> perform -> judge
       |           |                 |               |          `-- verdicts: table JUDGES
       `-----------+-----------------+---------------+--> an outcome without running anything

Rule 1. Whatever arrives and whatever user code does ends as an outcome; nothing but the end of
        the process gets out of ``execute``. This is one of two places with ``except
        BaseException``: SystemExit, KeyboardInterrupt and MemoryError in a task are failures of
        that task, and the child lives on.
Rule 2. A process that user code forked, and that comes back here, ends: it is not this runner.
Rule 3. None as an outcome means "done, nothing to keep": the cheapest settlement.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from types import CoroutineType
from typing import Any, Protocol

from qclient.context import Context, current_request
from qclient.serialization import DecodeError, encode_result
from qclient.verdicts import SoftCancelled, SoftTimeLimitExceeded
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.limits import BODY_BYTES_HARD_MAX
from qprotocol.message import Delivery, Message, Outcome, meta_fields, unpack_message
from qworker.hand import Parcel
from qworker.inputs import value_of
from qworker.judging import Run, fail, judge
from qworker.logs import TaskLog, note
from qworker.slots import CANCELLED, HARD_MS, SIGNALLED, SOFT_MS

Finished = tuple[Outcome | None, str]
"""An outcome, and task and id for the log where there is one."""


class Lease(Protocol):
    """What an executor needs of its member."""

    words: memoryview

    def start_early(self, outcome: Outcome, what: str) -> bool:
        """The broker has it that the task begins; False if the lease was lost."""
        ...

    def server_ms(self) -> int:
        """The broker's wall clock."""
        ...

    def inputs_of(self, parcel: Parcel) -> list[tuple[int, int, bytes]] | None:
        """What a node of a workflow is given; None if the lease was lost."""
        ...


class Executor:
    """Runs the tasks of one application for one runner."""

    def __init__(self, app: Any, hostname: str, log: TaskLog, lease: Lease) -> None:
        self.tasks: Mapping[str, Any] = app.tasks
        self._known: dict[str, Any] = {}
        """Tasks by name, as they were when first run: a lookup in ``tasks`` costs a call."""
        self.hostname, self.log, self.lease = hostname, log, lease
        self._pid = os.getpid()
        self._words = lease.words
        self._limited = False
        self._index = -1
        """The number of the token whose user code runs now; -1 outside of user code."""

    def execute(self, parcel: Parcel, index: int) -> Finished:
        """How the delivery ended. ``index`` is its token's number in the slot."""
        if self._limited:
            self._words[SOFT_MS] = self._words[HARD_MS] = 0
            self._limited = False
        try:
            message = unpack_message(parcel.raw, parcel.start)
        except ValueError as error:
            return reject(parcel, f"its envelope cannot be read: {error}")
        task = self._known.get(message.task) or self._find(message.task)
        if task is None:
            return self._unknown(parcel, message)
        inputs: list[Any] = []
        try:
            if message.fields and wire.NODE in meta_fields(message.fields):
                rows = self.lease.inputs_of(parcel)
                if rows is None:
                    return self._lost(parcel, message)
                inputs = [value_of(*row) for row in rows]
            request = Context.from_delivery(delivery_of(parcel, message), self.hostname, inputs)
        except (DecodeError, ValueError, OverflowError) as error:
            return refuse(parcel, message, Failure("DecodeError", str(error)))
        run = Run(parcel, task, request)
        if self.log.debug:
            run.note(logging.DEBUG, "task received")
        if message.expires_ms or request.acks_early or message.headers or task.options:
            refusal = self._admit(run, message)
            if refusal is not None:
                return refusal
        return self._perform(run, index)

    def _find(self, name: str) -> Any:
        task = self.tasks.get(name)
        if task is not None:
            self._known[name] = task
        return task

    def _lost(self, parcel: Parcel, message: Message) -> Finished:
        """What it is given cannot be asked for: it is somebody else's now, or comes again."""
        outcome = Outcome(wire.RELEASE, parcel.position, parcel.grant, delay_ms=0)
        return outcome, f"{message.task}[{message.id}]"

    def _unknown(self, parcel: Parcel, message: Message) -> Finished:
        if not message.task:
            return reject(parcel, "it is a plain message, and this worker runs tasks")
        text = (
            f"no task is registered as {message.task!r} in this worker: import its module where "
            f"the application is defined, or send it to a queue whose workers know it"
        )
        return refuse(parcel, message, Failure("NotRegistered", text))

    def _admit(self, run: Run, message: Message) -> Finished | None:
        """The outcome of a task that may not run now; None if it may. Its limits are set."""
        if message.expires_ms and message.expires_ms <= self.lease.server_ms():
            run.note(logging.INFO, "task expired in hand, given back to expire")
            return run.outcome(wire.RELEASE, delay_ms=0), run.what
        request, options = run.request, run.task.options
        hard = request.time_limit or options.get("time_limit")
        soft = request.soft_time_limit or options.get("soft_time_limit")
        if hard or soft:
            self._words[SOFT_MS] = int((soft or 0) * 1000)
            self._words[HARD_MS] = int((hard or 0) * 1000)
            self._limited = True
        early = request.acks_early or options.get("acks") == "early"
        if early and not self.lease.start_early(run.outcome(wire.START), run.what):
            run.note(logging.WARNING, "lease lost before the task could begin")
            return run.outcome(wire.RELEASE, delay_ms=0), run.what
        return None

    def _perform(self, run: Run, index: int) -> Finished:
        """User code runs here, and nowhere else."""
        request, task = run.request, run.task
        token = current_request.set(request)
        started = time.monotonic_ns()
        try:
            try:
                self._index = index
                result = task(*request.args, **request.kwargs)
            finally:
                self._index = -1
        except BaseException as error:  # noqa: BLE001 - rule 1
            self._index = -1  # a soft limit may have come in the line above
            self._ended(run, started)
            return judge(run, error), run.what
        finally:
            current_request.reset(token)
        self._ended(run, started)
        if request.ignore_result and type(result) is not CoroutineType:
            if self.log.wanted:
                self._succeeded(run)
            return run.outcome(wire.ACK) if run.is_measured else None, ""
        return self._returned(run, result), run.what

    def _ended(self, run: Run, started: int) -> None:
        run.run_ns = time.monotonic_ns() - started
        if os.getpid() != self._pid:  # rule 2
            leave_fork()

    def _returned(self, run: Run, result: Any) -> Outcome | None:
        """The outcome of a task that returned ``result``."""
        request = run.request
        if type(result) is CoroutineType:
            result.close()
            text = f"{request.task} is an async function, and this pool calls plain ones"
            return fail(run, TypeError(text), final=True)
        try:
            raw = encode_result(request.task, result, request.content)
            if len(raw) > BODY_BYTES_HARD_MAX:
                text = f"the result of {request.task} has {len(raw)} bytes"
                raise ValueError(f"{text}: at most {BODY_BYTES_HARD_MAX}; return where it is")
        except Exception as error:  # noqa: BLE001 - the result's own methods may run
            return fail(run, error, final=True)
        if self.log.wanted:
            self._succeeded(run)
        return run.outcome(wire.ACK, result=raw, flags=wire.HAS_RESULT, content=request.content)

    def _succeeded(self, run: Run) -> None:
        request = run.request
        attempt = request.retries + request.crashes + 1
        self.log.succeeded(request.task, request.id, request.queue, run.run_ns, attempt)

    def soft_limit_passed(self) -> None:
        """Called by a signal: raises inside user code if it is still the one the parent meant."""
        index = self._index
        if index >= 0 and self._words[CANCELLED] == index + 1:
            self._words[CANCELLED] = 0
            raise SoftCancelled("the task was cancelled, and is killed soon")
        if index >= 0 and self._words[SIGNALLED] == index + 1:
            self._words[SIGNALLED] = 0
            raise SoftTimeLimitExceeded("the soft time limit of this task has passed")


def delivery_of(parcel: Parcel, message: Message) -> Delivery:
    return Delivery(
        message,
        parcel.position,
        parcel.grant,
        parcel.deliveries,
        parcel.failures,
        parcel.crashes,
    )


def leave_fork() -> None:
    """This process is a copy that a task made of its runner: it ends without a word."""
    sys.stdout.flush()
    os._exit(0)


# Outcomes of what never ran.


def reject(parcel: Parcel, reason: str) -> Finished:
    """To the dead letters: it can be read by no worker of this kind."""
    note(logging.ERROR, "message rejected", position=parcel.position, reason=reason)
    outcome = Outcome(wire.REJECT, parcel.position, parcel.grant, result=reason.encode())
    return outcome, f"position {parcel.position}"


def refuse(parcel: Parcel, message: Message, failure: Failure) -> Finished:
    """Failed for good, without running."""
    note(
        logging.ERROR,
        "task refused",
        name=message.task,
        id=message.id,
        queue=message.queue,
        kind=failure.kind,
        reason=failure.message,
    )
    outcome = Outcome(
        wire.FAIL,
        parcel.position,
        parcel.grant,
        result=failure.pack(),
        flags=wire.NO_RETRY,
    )
    return outcome, f"{message.task}[{message.id}]"
