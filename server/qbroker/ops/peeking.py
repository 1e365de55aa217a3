"""What Peek found, as rows for people and programs. Bodies stay closed."""

from dataclasses import asdict, dataclass

from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import Peeked
from qprotocol.message import unpack_message
from qprotocol.states import State


@dataclass(frozen=True, slots=True)
class PeekedMessage:
    """One waiting message. Times are milliseconds since 1970, 0 for none."""

    position: int
    id: str
    task: str
    state: str
    priority: int
    due_ms: int
    deliveries: int
    failures: int
    crashes: int
    body_bytes: int
    reason: str
    error: str
    """The last failure in one line: its type and message."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def peeked_messages(frame: Peeked) -> list[PeekedMessage]:
    """The messages in ``frame``, in order. Raises ValueError if its bytes are not what they say."""
    found, at = [], 0
    for _ in range(frame.count):
        if len(frame.raw) - at < wire.PEEKED.size:
            raise ValueError("the peeked messages end inside one")
        position, due_ms, deliveries, failures, crashes, state, n_reason, n_error = (
            wire.PEEKED.unpack_from(frame.raw, at)
        )
        start = at + wire.PEEKED.size
        middle, end = start + n_reason, start + n_reason + n_error
        message = unpack_message(frame.raw, end)
        at = end + 4 + int.from_bytes(frame.raw[end : end + 4], "little")
        row = PeekedMessage(
            position,
            message.id,
            message.task,
            State(state).name,
            message.priority,
            due_ms,
            deliveries,
            failures,
            crashes,
            len(message.body),
            frame.raw[start:middle].decode("utf-8", "replace"),
            one_line(frame.raw[middle:end]),
        )
        found.append(row)
    return found


def one_line(error: bytes) -> str:
    """A packed failure's type and message; text that is not one, as it is."""
    if not error:
        return ""
    try:
        failure = Failure.unpack(error)
    except ValueError:
        return error.decode("utf-8", "replace")
    return f"{failure.kind}: {failure.message}".splitlines()[0]
