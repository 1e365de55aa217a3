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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType, TracebackType
from typing import Any, Protocol

import qclient
from qclient.context import Context, current_request
from qclient.failures import failure_of
from qclient.serialization import DecodeError, encode_result
from qclient.verdicts import Ignore, Reject, Replaced, Retry, SoftCancelled, SoftTimeLimitExceeded
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.limits import BODY_BYTES_HARD_MAX
from qprotocol.message import Delivery, Message, Outcome, meta_fields, unpack_message
from qprotocol.options import RetryPolicy
from qworker.hand import Parcel
from qworker.inputs import value_of
from qworker.logs import TaskLog, note
from qworker.slots import CANCELLED, HARD_MS, SIGNALLED, SOFT_MS

OURS = tuple(str(Path(place).parent) + os.sep for place in (__file__, qclient.__file__ or __file__))
"""Frames of these folders at the top of a traceback are not the user's."""
LEAST_TOLD_NS = 2_000_000
"""Run time from which tenants are charged more than the millisecond that an ack says."""
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


@dataclass(slots=True)
class Run:
    """One run of a task."""

    parcel: Parcel
    task: Any
    request: Context
    run_ns: int = 0

    @property
    def what(self) -> str:
        return f"{self.request.task}[{self.request.id}]"

    @property
    def is_measured(self) -> bool:
        """Whether the broker is to be told how long it took: tenants share by run time, and an
        ack says that it was a millisecond at most.
        """
        return bool(self.request.keys.fair) and self.run_ns >= LEAST_TOLD_NS

    def outcome(self, kind: int, **fields: Any) -> Outcome:
        """An outcome of this delivery."""
        parcel = self.parcel
        return Outcome(
            kind, parcel.position, parcel.grant, run_ms=self.run_ns // 1_000_000, **fields
        )

    def note(self, level: int, event: str, *, trace: str = "", **fields: object) -> None:
        """A line on this run is in the log."""
        request = self.request
        note(
            level,
            event,
            trace=trace,
            name=request.task,
            id=request.id,
            queue=request.queue,
            run_ms=self.run_ns / 1e6,
            attempt=request.retries + request.crashes + 1,
            **fields,
        )


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


# Outcomes of what raised.


def judge(run: Run, error: BaseException) -> Outcome | None:
    """The outcome that ``error`` stands for."""
    for kind, verdict in JUDGES:
        if isinstance(error, kind):
            return verdict(run, error)
    policy = policy_of(run, error)
    if policy is not None:
        return fail(run, error, policy=policy)
    # A task that says which errors are retried means that others are not; where nobody says
    # anything, the queue's own policy decides.
    return fail(run, error, final="autoretry_for" in run.task.options)


def policy_of(run: Run, error: BaseException) -> RetryPolicy | None:
    """When to run again without having been asked to; None leaves it to the queue."""
    own: RetryPolicy | None = run.request.retry_policy
    if run.task.retries_on(error):
        declared: RetryPolicy = run.task.retry_policy
        return own or declared
    return own if "autoretry_for" not in run.task.options else None


def fail(
    run: Run,
    error: BaseException,
    *,
    policy: RetryPolicy | None = None,
    final: bool = False,
) -> Outcome:
    """The task failed with ``error``."""
    failure = failure_of(error.with_traceback(user_frames(error.__traceback__)))
    again = policy is not None and policy.allows(run.request.retries + 1)
    if again:
        run.note(logging.WARNING, "task failed, to be retried", error=shown(failure))
    else:
        run.note(logging.ERROR, "task failed", error=shown(failure), trace=failure.traceback)
    return run.outcome(
        wire.FAIL,
        result=failure.pack(),
        flags=wire.NO_RETRY if final else 0,
        policy=policy.pack() if policy else b"",
    )


def retry(run: Run, error: Retry) -> Outcome:
    """The task asked to run again."""
    cause = error.exc if error.exc is not None else error
    failure = failure_of(cause.with_traceback(user_frames(cause.__traceback__)))
    delay = wire.DELAY_BY_POLICY if error.delay_ms is None else error.delay_ms
    if delay > wire.DELAY_BY_POLICY:
        text = f"self.retry() asks for a delay of {delay} ms: at most {wire.DELAY_BY_POLICY - 1}"
        return fail(run, ValueError(f"{text}, 49 days"), final=True)
    told = "by policy" if error.delay_ms is None else error.delay_ms
    run.note(logging.INFO, "task to be retried", error=shown(failure), delay_ms=told)
    replacement = error.replacement
    return run.outcome(
        wire.FAIL,
        result=failure.pack(),
        delay_ms=delay,
        policy=error.policy.pack() if error.policy else b"",
        flags=wire.HAS_REPLACEMENT if replacement else 0,
        follow_on=(replacement,) if replacement else (),
    )


def replace(run: Run, error: Replaced) -> Outcome:
    """Other steps go on in its place."""
    run.note(logging.INFO, "task replaced", messages=len(error.messages))
    return run.outcome(
        wire.RELEASE, delay_ms=0, flags=wire.HAS_REPLACEMENT, follow_on=error.messages
    )


def ignore(run: Run, _error: Ignore) -> Outcome | None:
    """Done, and no result is kept."""
    run.note(logging.INFO, "task ignored")
    return None


def set_aside(run: Run, error: Reject) -> Outcome:
    """Given back, or to the dead letters."""
    if error.requeue:
        run.note(logging.INFO, "task given back", reason=error.reason)
        return run.outcome(wire.RELEASE, delay_ms=0)
    run.note(logging.WARNING, "task rejected", reason=error.reason)
    reason = error.reason.encode("utf-8", "backslashreplace")
    return run.outcome(wire.REJECT, result=reason)


def shown(failure: Failure) -> str:
    """A failure in a few words."""
    text = f"{failure.kind}: {failure.message}" if failure.message else failure.kind
    return text if len(text) <= 200 else text[:200] + "..."


def user_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is not ours; all of it if every one is."""
    at = trace
    while at is not None and at.tb_frame.f_code.co_filename.startswith(OURS):
        at = at.tb_next
    return at or trace


JUDGES: tuple[tuple[type[BaseException], Callable[[Run, Any], Outcome | None]], ...] = (
    (Retry, retry),
    (Replaced, replace),
    (Ignore, ignore),
    (Reject, set_aside),
)
"""Exceptions by which a task says how its run ends."""
