"""What a task can be: every state, who moves it on, and Celery's name for it."""

from enum import IntEnum


class State(IntEnum):
    """Where a message is in its life. Numbers are on the wire and never reused."""

    UNKNOWN = 0
    """No message with that id is known: never published, or forgotten after its TTL."""
    QUEUED = 1
    """Ready; the dispatcher moves it on."""
    SCHEDULED = 2
    """Waits for its due time; the broker's clock moves it on."""
    HELD = 3
    """Waits for inputs of other tasks."""
    STARTED = 4
    """Leased to a worker; its settlement, or the end of the lease, moves it on."""
    RETRY = 5
    """Failed, and waits for its next run."""
    SUCCESS = 6
    """Done; its result is kept for its TTL if somebody may ask."""
    FAILURE = 7
    """Failed for good, or crashed its workers too often; kept as a dead letter."""
    REVOKED = 8
    """Cancelled or expired before it was done."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self >= State.SUCCESS
