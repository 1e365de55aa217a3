"""How the rules say no: raised inside ``decide``, and turned into an answer by the broker."""

from typing import TYPE_CHECKING

from qprotocol.errors import Refused

if TYPE_CHECKING:
    from qbroker.core.queues import Queue
    from qbroker.core.state import BrokerState


class RefusedError(Exception):
    """Raised inside the walk; ``decide`` turns it into an answer."""

    def __init__(
        self, code: str, message: str, *, retry_after_ms: int = 0, **details: object
    ) -> None:
        super().__init__(message)
        self.refused = Refused(code, message, retry_after_ms, details)


def queue_named(state: "BrokerState", name: str) -> "Queue":
    """The queue with that name. Raises RefusedError if there is none."""
    queue = state.queues.get(name)
    if queue is None:
        raise RefusedError("NO_QUEUE", f"there is no queue {name!r}")
    return queue
