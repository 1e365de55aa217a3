"""What a task may raise to say how this run of it ends. The worker acts on them.

Retry                     run again later: raised by self.retry(...)
Replaced                  other steps go on in its place: raised by self.replace(...)
Ignore                    done, and no result is kept
Reject                    set aside as a dead letter, or (requeue=True) given back
SoftTimeLimitExceeded     raised inside the task when its soft limit passes
SoftCancelled             raised inside the task when it is cancelled, before it is killed
MaxRetriesExceededError   self.retry(...) was called once too often
"""

from typing import Any

from qclient.exceptions import QBrokerError
from qprotocol.options import RetryPolicy


class Retry(QBrokerError):  # noqa: N818  # Celery's name
    """This run failed and the task is to run again.

    ``delay_ms`` None leaves the delay to ``policy``. ``exc`` is the reason, kept as the last
    error. With ``replacement``, a packed message, the next run has that envelope and body
    under the same id.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exc: BaseException | None = None,
        delay_ms: int | None = None,
        policy: RetryPolicy | None = None,
        replacement: bytes | None = None,
    ) -> None:
        super().__init__(message)
        self.exc = exc
        self.delay_ms = delay_ms
        self.policy = policy
        self.replacement = replacement


class Replaced(QBrokerError):  # noqa: N818  # what is true
    """Other steps are published, and the last of them is this task from now on.

    ``messages`` are packed. It has the id, and whoever waits for the task waits for that.
    """

    def __init__(self, messages: tuple[bytes, ...]) -> None:
        super().__init__(f"{len(messages)} messages take its place")
        self.messages = messages


class Ignore(QBrokerError):  # noqa: N818  # Celery's name
    """Done: the message is acknowledged and no result is kept."""


class Reject(QBrokerError):  # noqa: N818  # Celery's name
    """Not done: with ``requeue`` the message goes back uncounted, else to the dead letters."""

    def __init__(self, reason: Any = "", requeue: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = str(reason)
        self.requeue = requeue


class SoftTimeLimitExceeded(QBrokerError):  # noqa: N818  # Celery's name
    """The soft time limit has passed: finish or clean up before the hard one."""


class SoftCancelled(QBrokerError):  # noqa: N818  # what is true, as above
    """The task was cancelled and is killed soon: clean up. Its outcome is void."""


class MaxRetriesExceededError(QBrokerError):
    """The task asked for a retry and has had all of them."""
