"""Whose an exclusive queue is: a session's, or that of a connection without one."""

from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError
from qbroker.core.state import BrokerState

_SESSION_BYTES = 16


def owner_of(state: BrokerState, connection: int) -> bytes:
    """The name of whoever declares an exclusive queue. No other connection ever has it."""
    member = state.members.get(connection)
    if member is None:
        raise RefusedError("NO_SESSION", "the connection has not said Hello")
    if member.session:
        return member.session.id
    return state.epoch.to_bytes(4, "big") + connection.to_bytes(8, "big")


def check_owner(state: BrokerState, connection: int, queue: Queue) -> None:
    """Raise RefusedError if the queue is somebody else's. Admins may do what they want."""
    owner = queue.terms.owner
    if not owner or state.roles.get(connection) == "admin":
        return
    if connection not in state.members or owner_of(state, connection) != owner:
        raise RefusedError(
            "QUEUE_LOCKED",
            f"queue {queue.name!r} is exclusive, and of another connection or session: "
            "messages may be published to it, and no more",
            queue=queue.name,
        )


def is_here(state: BrokerState, owner: bytes, *, coming: bool) -> bool:
    """Whether the owner is there. ``coming``: sessions of before the start may still come."""
    if len(owner) == _SESSION_BYTES:
        session = state.sessions.get(owner)
        return coming if session is None else not session.over
    epoch, connection = int.from_bytes(owner[:4], "big"), int.from_bytes(owner[4:], "big")
    return epoch == state.epoch and connection in state.roles
