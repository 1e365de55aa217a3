"""How the rules say no: raised inside ``decide``, and turned into an answer by the broker."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from qbroker.core.effects import Send
from qprotocol.errors import ERRORS, Refused
from qprotocol.frames import Error, Frame, Part

if TYPE_CHECKING:
    from qbroker.core.queues import Queue
    from qbroker.core.state import BrokerState


T = TypeVar("T")


class RefusedError(Exception):
    """Raised inside the walk; ``decide`` turns it into an answer."""

    def __init__(
        self, code: str, message: str, *, retry_after_ms: int = 0, **details: object
    ) -> None:
        super().__init__(message)
        self.refused = Refused(code, message, retry_after_ms, details)


def bad(index: int, why: str) -> RefusedError:
    """A message breaks the envelope's format."""
    return RefusedError("BAD_MESSAGE", f"message {index}: {why}", index=index)


def checked(check: Callable[..., T], *given: object) -> T:
    """What the check gives. Raises RefusedError for what it raises ValueError for."""
    try:
        return check(*given)
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", str(error)) from error


def check_text(what: str, text: str, bytes_max: int) -> None:
    """Raise RefusedError for a text that is too long; ``what`` it is: "an author"."""
    size = len(text.encode())
    if size > bytes_max:
        raise RefusedError("BAD_REQUEST", f"{what} of {size} bytes: at most {bytes_max}")


def queue_named(state: "BrokerState", name: str) -> "Queue":
    """The queue with that name. Raises RefusedError if there is none."""
    queue = state.queues.get(name)
    if queue is None:
        raise RefusedError("NO_QUEUE", no_queue(name))
    return queue


def no_queue(name: str) -> str:
    """The sentence for a queue that is not there."""
    return f"there is no queue {name!r}: declare it, or publish to it first"


def refusal(connection: int, frame: Frame, refused: Refused) -> Send:
    """The answer to a frame that was not done.

    One that has no answer gets it with correlation 0, which ends the connection.
    """
    row = ERRORS[refused.code]
    error = Error(
        code=refused.code,
        message=refused.message,
        retryable=row.retryable,
        definite=row.definite,
        retry_after_ms=refused.retry_after_ms,
        details=refused.details,
        correlation=0 if type(frame) is Part else frame.correlation,
    )
    return Send(connection, error)


def too_large(index: int, size: int, most: int) -> RefusedError:
    """A message is over body_bytes_max."""
    return RefusedError(
        "BODY_TOO_LARGE",
        f"message {index} has {size} bytes: body_bytes_max is {most}; "
        "store the data elsewhere and send its address, or raise the limit",
        index=index,
    )
