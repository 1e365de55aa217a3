"""Every exception an application may see, and what each says of the request.

Rule 1. All of them are ``QBrokerError``, but for what the caller did wrong before anything
        was sent, which is a ``TypeError`` or ``ValueError``.
Rule 2. A failed request is ``NotDone`` (it was not done and never will be) or
        ``OutcomeUnknown`` (it may have been). Nothing else is left to guess.
Rule 3. A refusal of the broker has the class named for its code: see REFUSALS, which a test
        holds against the protocol's table.
Rule 4. A task's own failure arrives as data in ``TaskFailure``; see result.py.
"""
# ruff: noqa: N818 - the names are those of the protocol's codes, and say what happened

from typing import Any

from qprotocol.errors import ERRORS, QBrokerError

__all__ = ["ERRORS", "QBrokerError"]


class NotDone(QBrokerError):
    """The request was not done, and nothing of it will ever be done."""


class OutcomeUnknown(QBrokerError):
    """The request may or may not have been done: its answer was lost or came too late."""


class ConnectError(NotDone):
    """No connection to the broker: nobody listens, or it did not answer in time."""


class SyncSubtaskError(NotDone, RuntimeError):
    """A running task was about to wait for another one, which can end in a deadlock."""


class ConnectionLost(QBrokerError):
    """The connection ended. What was asked on it and not answered is not known."""


class RefusedError(QBrokerError):
    """The broker answered no. ``code`` is a row of the protocol's table of errors.

    ``retryable`` says that the same request may succeed later, ``retry_after_ms`` when.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after_ms: int = 0,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms
        self.details = details or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return refusal, (
            self.code,
            self.message,
            self.retryable,
            self.retry_after_ms,
            self.details,
        )


class BadFrame(RefusedError, NotDone):
    """The broker could not read a frame. A fault of the library, or of a proxy between."""


class FrameTooLarge(RefusedError, NotDone):
    """A frame is over the limit."""


class BadState(RefusedError, NotDone):
    """A frame is not allowed at this point of the conversation."""


class UnsupportedVersion(RefusedError, NotDone):
    """Client and broker have no protocol version in common."""


class AuthFailed(RefusedError, NotDone):
    """The credentials or the mechanism were not accepted."""


class TimedOut(RefusedError, NotDone):
    """The handshake took too long for the broker."""


class TooManyConnections(RefusedError, NotDone):
    """The broker is at its connection limit."""


class ShuttingDown(RefusedError, NotDone):
    """The broker is stopping."""


class DiskStalled(RefusedError, NotDone):
    """The broker's disk does not answer: nobody is let in until it does."""


class BadRequest(RefusedError, NotDone):
    """A field has a value that makes no sense."""


class BadMessage(RefusedError, NotDone):
    """A packed message breaks the envelope's format; its whole chunk was refused."""


class BodyTooLarge(RefusedError, NotDone):
    """A message or result is over its size limit."""


class BatchTooLarge(RefusedError, NotDone):
    """A batch in parts is over the limit of bytes or messages."""


class DuplicateId(RefusedError, NotDone):
    """A message with that chosen id is still alive."""


class NotUnique(RefusedError, NotDone):
    """Another task has the unique key; ``details`` have the key and the id of that task."""


class NoExchange(RefusedError, NotDone):
    """The exchange does not exist."""


class NoQueue(RefusedError, NotDone):
    """The queue does not exist."""


class NoRoute(RefusedError, NotDone):
    """The exchange has no queue for the message."""


class InUse(RefusedError, NotDone):
    """Something else needs what was to be deleted."""


class OptionsDiffer(RefusedError, NotDone):
    """The queue or exchange exists with other options."""


class NoPolicy(RefusedError, NotDone):
    """There is no policy with that name."""


class QueueLocked(RefusedError, NotDone):
    """The queue is exclusive, and of another connection or session."""


class QueueFull(RefusedError, NotDone):
    """A queue has no room for what was published; ``details`` name it and its limit."""


class NoLimit(RefusedError, NotDone):
    """There is no limit rule of that name."""


class NeverAdmitted(RefusedError, NotDone):
    """The message weighs more than a limit rule has room for: it would wait for ever."""


class LimitReached(RefusedError, NotDone):
    """A limit of the broker is reached."""


class ResourceExhausted(RefusedError, NotDone):
    """The broker has no room now."""


class QueuePaused(RefusedError, NotDone):
    """The queue takes nothing in for now: ``details`` has queue, reason, author and until_ms."""


class Blocked(RefusedError, NotDone):
    """The broker accepts no publishes for the moment."""


class SequenceTooOld(RefusedError, OutcomeUnknown):
    """A chunk sent again is older than what the broker remembers of its producer."""


class LeaseLost(RefusedError, NotDone):
    """The message was settled already, or handed to somebody else."""


class NoSubscription(RefusedError, NotDone):
    """The connection has no such subscription."""


class NoSession(RefusedError, NotDone):
    """The session is not known, or has ended."""


class UnknownId(RefusedError, NotDone):
    """No message or result with that id is known."""


class DataDamaged(RefusedError, NotDone):
    """The log is damaged where the task would be: nobody can tell what became of it."""


REFUSALS: dict[str, type[RefusedError]] = {
    "BAD_FRAME": BadFrame,
    "FRAME_TOO_LARGE": FrameTooLarge,
    "BAD_STATE": BadState,
    "UNSUPPORTED_VERSION": UnsupportedVersion,
    "AUTH_FAILED": AuthFailed,
    "TIMED_OUT": TimedOut,
    "TOO_MANY_CONNECTIONS": TooManyConnections,
    "SHUTTING_DOWN": ShuttingDown,
    "DISK_STALLED": DiskStalled,
    "BAD_REQUEST": BadRequest,
    "BAD_MESSAGE": BadMessage,
    "BODY_TOO_LARGE": BodyTooLarge,
    "BATCH_TOO_LARGE": BatchTooLarge,
    "DUPLICATE_ID": DuplicateId,
    "NOT_UNIQUE": NotUnique,
    "NO_EXCHANGE": NoExchange,
    "NO_QUEUE": NoQueue,
    "NO_ROUTE": NoRoute,
    "IN_USE": InUse,
    "OPTIONS_DIFFER": OptionsDiffer,
    "NO_POLICY": NoPolicy,
    "QUEUE_LOCKED": QueueLocked,
    "QUEUE_FULL": QueueFull,
    "NO_LIMIT": NoLimit,
    "NEVER_ADMITTED": NeverAdmitted,
    "LIMIT_REACHED": LimitReached,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "QUEUE_PAUSED": QueuePaused,
    "BLOCKED": Blocked,
    "SEQUENCE_TOO_OLD": SequenceTooOld,
    "LEASE_LOST": LeaseLost,
    "NO_SUBSCRIPTION": NoSubscription,
    "NO_SESSION": NoSession,
    "UNKNOWN_ID": UnknownId,
    "DATA_DAMAGED": DataDamaged,
}
"""Every code on the wire and the exception named for it."""


def refusal(
    code: str,
    message: str,
    retryable: bool = False,
    retry_after_ms: int = 0,
    details: dict[str, Any] | None = None,
    *,
    definite: bool = True,
) -> RefusedError:
    """The exception for a code; one unknown here (a newer broker's) keeps its ``definite``."""
    fallback = RefusedNotDone if definite else RefusedUnknown
    cls = REFUSALS.get(code, fallback)
    return cls(code, message, retryable=retryable, retry_after_ms=retry_after_ms, details=details)


class RefusedNotDone(RefusedError, NotDone):
    """A refusal with a code this version does not know."""


class RefusedUnknown(RefusedError, OutcomeUnknown):
    """An uncertain refusal with a code this version does not know."""
