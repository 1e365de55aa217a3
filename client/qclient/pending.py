"""Requests and what became of them: the part of a connection that needs no socket.

    add -> WAITING --sendable--> SENT --take(answer)--> DONE
              ^                   |
              `---- lost ---------'         (the connection ended: sent again, unchanged)
    expire, fail: DONE with an error that says "not done" or "unknown"

Both shells (connection.py, aconnection.py) keep one of these a connection and do what it says.

Rule 1. Requests go out, and out again, in the order they were added; a publish keeps its
        producer and sequence, so that the broker recognises it.
Rule 2. A request that was ever handed to a socket is "unknown" until answered. One that was
        not, and one that only reads, is "not done".
Rule 3. While the broker is blocked, publishes wait here, unsent.
Rule 4. Not thread-safe: a shell that has threads holds its lock.
"""

import os
import random
from collections.abc import Callable, Iterable

from qclient.dialogue import HANDSHAKE_REQUESTS, refused
from qclient.exceptions import NotDone, OutcomeUnknown, QBrokerError, RefusedError, refusal
from qprotocol.errors import ERRORS
from qprotocol.frames import (
    Blocked,
    DeleteExchange,
    Error,
    Frame,
    Goaway,
    Inspect,
    Notify,
    Peek,
    Publish,
    Purge,
    Unblocked,
    Watch,
)

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0
RETRY_AFTER_S = 0.1
"""Before a publish that was refused for the moment is tried again, if the broker does not say."""

READING = frozenset({Watch, Peek, Inspect})
"""Requests that change nothing: without an answer, nothing was done."""
ONCE = frozenset({Purge, DeleteExchange, Notify})
"""Requests that may not be sent twice: a second one takes what came since, or is heard twice."""


class Request:
    """One frame on its way, and its answer or error once ``done``."""

    __slots__ = (
        "answer",
        "correlation",
        "deadline",
        "done",
        "error",
        "frame",
        "not_before",
        "on_done",
        "refusal",
        "sent",
        "timeout_s",
        "wired",
    )

    def __init__(self, correlation: int, frame: Frame | None, timeout_s: float, now: float) -> None:
        self.correlation = correlation
        self.frame = frame
        """None asks for a connection and nothing else."""
        self.timeout_s = timeout_s
        self.deadline = now + timeout_s
        self.not_before = 0.0
        self.refusal: RefusedError | None = None
        """What the broker said the last time, if that was "not now"."""
        self.sent = False
        """Ever handed to a socket."""
        self.wired = False
        """Handed to the present one."""
        self.done = False
        self.answer: Frame | None = None
        self.error: QBrokerError | None = None
        self.on_done: Callable[[], object] | None = None

    def finish(self, answer: Frame | None, error: QBrokerError | None) -> None:
        self.answer, self.error, self.done = answer, error, True
        wake, self.on_done = self.on_done, None
        if wake is not None:
            wake()


class Pending:
    """All requests of one client process (or loop), under one producer."""

    def __init__(self) -> None:
        self.producer = int.from_bytes(os.urandom(8), "little")
        self.requests: dict[int, Request] = {}
        self.unsent = 0
        """How many requests wait to be sent: zero saves looking for them."""
        self.why = ""
        """The latest trouble with the connection, in words."""
        self.blocked: Blocked | None = None
        """What the broker said when it stopped taking publishes; None if it takes them."""
        self.leaving = False
        """The broker said goodbye on this connection: ask nothing more of it."""
        self.attempts = Attempts()
        self._correlation = HANDSHAKE_REQUESTS
        self._sequence = 0

    def add(self, frame: Frame | None, timeout_s: float, now: float) -> Request:
        """A new request, last in order."""
        self._correlation += 1
        request = Request(self._correlation, frame, timeout_s, now)
        if frame is not None:
            frame.correlation = self._correlation
            if type(frame) is Publish:
                self._sequence += 1
                frame.producer, frame.sequence = self.producer, self._sequence
        self.requests[self._correlation] = request
        self.unsent += 1
        return request

    def may_send(self, request: Request, now: float) -> bool:
        """Whether it may go out on an open connection."""
        return not (
            request.wired
            or request.done
            or self.leaving
            or (self.blocked and type(request.frame) is Publish)
            or request.not_before > now
        )

    def mark_sent(self, request: Request) -> None:
        """It is handed to the present connection now, or nearly."""
        request.sent = request.wired = True
        self.unsent -= 1

    def sendable(self, now: float) -> list[Frame]:
        """Frames to hand to the connection now, in order; they count as sent."""
        if not self.unsent:
            return []
        found: list[Frame] = []
        for request in self.requests.values():
            if request.frame is not None and self.may_send(request, now):
                self.mark_sent(request)
                found.append(request.frame)
        return found

    def next_due(self, now: float) -> float | None:
        """When the next refused publish is to be tried again; None if none is waiting."""
        if not self.unsent:
            return None
        due = [r.not_before for r in self.requests.values() if not r.wired and r.not_before > now]
        return min(due, default=None)

    def opened(self) -> None:
        """A connection is open: those who asked for no more have it."""
        for correlation in [c for c, r in self.requests.items() if r.frame is None]:
            self._pop(correlation).finish(None, None)

    def lost(self, why: str) -> None:
        """The connection ended. What was sent on it will be sent again, but for ONCE."""
        self.why, self.blocked, self.leaving = why, None, False
        for correlation, request in list(self.requests.items()):
            if request.wired:
                request.wired = False
                self.unsent += 1
                if type(request.frame) in ONCE:
                    self._pop(correlation).finish(
                        None, OutcomeUnknown(f"{name_of(request)}: {why}; it may have been done")
                    )

    def take(self, frames: Iterable[Frame], now: float) -> None:
        """Act on what the broker said. Answers to nothing we wait for are dropped."""
        self.attempts.succeed()
        for frame in frames:
            if frame.correlation:
                self._answer(frame, now)
            elif type(frame) is Blocked:
                self.blocked = frame
            elif type(frame) is Unblocked:
                self.blocked = None
            elif type(frame) is Goaway:
                self.leaving, self.why = True, f"the broker is going away: {frame.reason}"
            elif type(frame) is Error:
                self._ended(frame)

    def _answer(self, frame: Frame, now: float) -> None:
        request = self.requests.get(frame.correlation)
        if request is None:
            return
        if type(frame) is not Error:
            self._pop(frame.correlation).finish(frame, None)
        elif frame.retryable and frame.definite and now < request.deadline:
            wait_s = frame.retry_after_ms / 1000 or RETRY_AFTER_S
            request.not_before = now + wait_s * random.uniform(0.75, 1.25)  # noqa: S311
            request.wired = request.sent = False  # definitely not done
            request.refusal = refused(frame)
            self.unsent += 1
        else:
            self._pop(frame.correlation).finish(None, refused(frame))

    def _ended(self, error: Error) -> None:
        """The broker ends the connection: for good if one of our frames was at fault."""
        self.leaving, self.why = True, f"{error.code}: {error.message}"
        row = ERRORS.get(error.code)
        if error.retryable or (row is not None and row.retryable):
            return
        for correlation, request in list(self.requests.items()):
            if request.wired:
                self._pop(correlation).finish(
                    None, OutcomeUnknown(f"{name_of(request)}: the broker hung up: {self.why}")
                )

    @property
    def idle(self) -> bool:
        """Nothing is unanswered on the present connection."""
        return self.unsent == len(self.requests)

    def abandon(self, request: Request) -> None:
        """Nobody waits for it any more. It is not sent again."""
        if not request.done:
            self._pop(request.correlation)
            request.finish(None, NotDone("given up"))

    def expire(self, request: Request) -> None:
        """Its deadline has passed: it is done, with an error that says what is known."""
        if request.done:
            return
        self._pop(request.correlation)
        after = f"{name_of(request)} within {request.timeout_s:g} s"
        why = self.why or "the broker does not answer"
        if not request.sent and request.refusal is not None:
            request.finish(None, request.refusal)
        elif not request.sent and self.blocked and type(request.frame) is Publish:
            reason = self.blocked.reason or "no reason given"
            what = f"{after}: the broker takes no publishes: {reason}; nothing was sent"
            request.finish(None, refusal(self.blocked.code, what, retryable=True))
        elif not request.sent:
            request.finish(None, NotDone(f"{after}: {why}; nothing was sent"))
        elif type(request.frame) in READING:
            request.finish(None, NotDone(f"{after}: {why}"))
        else:
            request.finish(None, OutcomeUnknown(f"{after}: {why}; it was sent and may be done"))

    def refuse(self, request: Request, error: RefusedError) -> None:
        """The broker will not have this client: there is no point in waiting."""
        if request.done:
            return
        self._pop(request.correlation)
        if request.sent and type(request.frame) not in READING:
            unknown = OutcomeUnknown(f"{name_of(request)}: it was sent, and then: {error}")
            unknown.__cause__ = error
            request.finish(None, unknown)
        else:
            request.finish(None, error)

    def _pop(self, correlation: int) -> Request:
        request = self.requests.pop(correlation)
        if not request.wired:
            self.unsent -= 1
        return request


class Attempts:
    """When the next connection may be tried: at once, and later and later until one is of use."""

    def __init__(self) -> None:
        self._count = 0
        self._latest = 0.0
        self._refused = 0.0

    def wait_s(self, now: float, timeout_s: float) -> float:
        """Seconds to wait before another attempt: each call gets four at least."""
        if self._count == 0:
            return 0.0
        longest = min(BACKOFF_FIRST_S * 2 ** min(self._count - 1, 10), BACKOFF_MAX_S)
        pause = random.uniform(longest / 2, longest)  # noqa: S311  # spreads load, hides nothing
        return max(0.0, self._latest + min(pause, timeout_s / 4) - now)

    def begin(self, now: float) -> None:
        """An attempt begins."""
        self._count += 1
        self._latest = now

    def refused(self, now: float) -> None:
        """The broker said why it takes nobody in."""
        self._refused = now

    def refused_since(self, began: float) -> bool:
        """Whether it did so since then: that tells more than the silence of a later attempt."""
        return self._refused >= began

    def succeed(self) -> None:
        """A connection was of use: the broker said something on it."""
        self._count = 0


def name_of(request: Request) -> str:
    """What was asked, for people."""
    kind = type(request.frame).__name__ if request.frame is not None else "Connect"
    return f"{kind} was not answered"
