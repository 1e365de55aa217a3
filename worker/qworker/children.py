"""A worker's children as the parent knows them: who runs, who died, and what became of it.

    started by order -> STARTING --(slot says ready)--> READY --(signal, own limit)--> ended
                            `-- ended before ready: backoff, and an alarm

Rule 1. A child that died is settled before its slots are used again: the broker would take the
        next member's Hello for the news that nothing is held, and count no crash.
Rule 2. What a dead child had not begun goes back uncounted. What it was running is a crash,
        unless the parent killed it for a reason (``Verdict``).
"""

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Outcome
from qworker.backoff import Backoff
from qworker.logs import note
from qworker.slots import LOCK_WAIT_S, READY, Remains, Running, Slot, Slots, Token, describe

READY_ALARM_S = 30.0
"""A child that is not ready by then is reported, not killed: killing helps nobody to start."""


class Verdict(Enum):
    """Why the parent killed a child: what becomes of the task that ran."""

    TIME_LIMIT = auto()
    """Failed, by its hard limit."""
    REVOKED = auto()
    """Nothing: the broker has settled it."""
    STOPPING = auto()
    """Back to the queue, uncounted."""


@dataclass(slots=True)
class Child:
    """One process that runs tasks."""

    number: int
    slots: list[int]
    pid: int = 0
    started_at: float = 0.0
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """By number of the token that ran."""
    leaving: bool = False
    """Was told to finish and end."""
    alarmed: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(0.1, 30.0))
    start_at: float = 0.0
    """When to start it again; 0 if it runs, or waits for a settlement."""

    @property
    def label(self) -> str:
        return f"worker child {self.number + 1} (pid {self.pid})"

    def signal(self, number: int) -> None:
        """The process got that signal, if it still is."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def is_ready(self, slots: Slots) -> bool:
        """Whether the child once had its connection and could take work."""
        return any(slots[number].words[READY] for number in self.slots)

    def alarm_if_late(self, slots: Slots) -> None:
        """A child that lives and is not ready is told of, once."""
        late = self.pid and time.monotonic() - self.started_at > READY_ALARM_S
        if late and not self.alarmed:
            self.alarmed = True
            if not self.is_ready(slots):
                note(logging.ERROR, f"{self.label} is not ready yet", after_s=READY_ALARM_S)

    def leave(self) -> None:
        """The child finishes the task it runs, gives back the rest and ends."""
        self.leaving = True
        self.signal(signal.SIGTERM)


def kill_running(child: Child, slot: Slot, seen: Running, verdict: Verdict) -> bool:
    """Whether the child was killed while it ran exactly what was ``seen``."""
    if not slot.lock.acquire(True, LOCK_WAIT_S):
        return False
    try:
        now = slot.running_unlocked()
        if now is None or now.index != seen.index:
            return False
        child.verdicts[seen.index] = verdict
        child.signal(signal.SIGKILL)
        return True
    finally:
        slot.lock.release()


def what_ended(status: int) -> str:
    """How a process ended, in words, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by {name_of(number)} ({number})"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


def name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a signal"


def call_of(running: Running) -> str:
    """Task and id of what ran, as ``shop.add[0196…]``."""
    task, task_id, queue = describe(running.head)
    return f"{task or 'a message of ' + queue}[{task_id}]"


def autopsy(child: Child, slots: Slots, status: int) -> tuple[list[Token], list[Outcome]]:
    """What to acknowledge and how to settle the rest of what a dead child held. Logs it."""
    acks: list[Token] = []
    outcomes: list[Outcome] = []
    how = what_ended(status)
    for number in child.slots:
        remains = slots[number].remains()
        acks += remains.finished
        outcomes += [released(token) for token in remains.unbegun]
        if remains.running is not None:
            outcome = judge(child, remains.running, how)
            if outcome is not None:
                outcomes.append(outcome)
        report(child, remains, how, status)
    return acks, outcomes


def released(token: Token) -> Outcome:
    return Outcome(wire.RELEASE, *token, delay_ms=0)


def judge(child: Child, running: Running, how: str) -> Outcome | None:
    """The outcome of the task that a child died of, or with."""
    verdict = child.verdicts.get(running.index)
    ran_ms = (time.monotonic_ns() - running.started_ns) // 1_000_000
    if verdict is Verdict.REVOKED:
        return None
    if verdict is Verdict.STOPPING:
        return released(running.token)
    if verdict is Verdict.TIME_LIMIT:
        text = f"{call_of(running)} ran for {ran_ms / 1000:.1f} s, over its hard time limit"
        failure = Failure("TimeLimitExceeded", text)
        return Outcome(wire.FAIL, *running.token, run_ms=ran_ms, result=failure.pack())
    failure = Failure("WorkerLost", f"{child.label} {how} while running {call_of(running)}")
    return Outcome(wire.CRASH, *running.token, run_ms=ran_ms, result=failure.pack())


def report(child: Child, remains: Remains, how: str, status: int) -> None:
    """The log tells of the death what a person needs to know."""
    if remains.unsent:
        note(
            logging.WARNING,
            f"{child.label} {how} with outcomes not confirmed; their tasks may run again",
            count=len(remains.unsent),
        )
    running = remains.running
    if running is None:
        if status and not child.leaving:
            note(logging.ERROR, f"{child.label} {how} while idle")
        return
    call = call_of(running)
    verdict = child.verdicts.get(running.index)
    if verdict is Verdict.TIME_LIMIT:
        note(logging.ERROR, f"{child.label} was killed: hard time limit of {call}")
    elif verdict is Verdict.REVOKED:
        note(logging.WARNING, f"{child.label} was killed: {call} was revoked")
    elif verdict is Verdict.STOPPING:
        note(logging.WARNING, f"{child.label} was stopped while running {call}; it goes back")
    else:
        note(logging.ERROR, f"{child.label} {how} while running {call}; counted as a crash")
