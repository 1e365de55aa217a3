"""One run of a task, and what the exception that it ended with comes to.

judge --> verdicts: table JUDGES      what a task may raise to say how its run ends
`--> a failure                   retried or not, as call, task and queue say
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import qclient
from qclient.context import Context
from qclient.failures import failure_of
from qclient.verdicts import Ignore, Reject, Replaced, Retry
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Outcome
from qprotocol.options import RetryPolicy
from qworker.hand import Parcel
from qworker.logs import note

OURS = tuple(str(Path(place).parent) + os.sep for place in (__file__, qclient.__file__ or __file__))
"""Frames of these folders at the top of a traceback are not the user's."""
LEAST_TOLD_NS = 2_000_000
"""Run time from which tenants are charged more than the millisecond that an ack says."""


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
