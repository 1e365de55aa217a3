"""Every way the broker says no: one table, and the exceptions both ends raise.

Rule 1. A refusal is a value: the connection goes on. A violation closes it.
Rule 2. ``definite`` says what is known of the request: true, it was not done and
        nothing of it will ever be done; false, nobody can tell (a reply was lost).
Rule 3. A code is never reused for another meaning.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One code: what it means, whether to try again, whether the connection ends."""

    code: str
    meaning: str
    retryable: bool = False
    closes: bool = False
    definite: bool = True


ERRORS: dict[str, ErrorRow] = {
    row.code: row
    for row in (
        ErrorRow("BAD_FRAME", "The bytes are not a frame of this protocol.", closes=True),
        ErrorRow("FRAME_TOO_LARGE", "A frame or its header is over the limit.", closes=True),
        ErrorRow(
            "BAD_STATE", "The frame is not allowed at this point of the conversation.", closes=True
        ),
        ErrorRow(
            "UNSUPPORTED_VERSION",
            "The broker does not speak the protocol version asked for.",
            closes=True,
        ),
        ErrorRow("AUTH_FAILED", "The credentials or the mechanism were not accepted.", closes=True),
        ErrorRow(
            "TIMED_OUT",
            "The handshake or the heartbeats took too long.",
            retryable=True,
            closes=True,
        ),
        ErrorRow(
            "TOO_MANY_CONNECTIONS",
            "The broker is at its connection limit.",
            retryable=True,
            closes=True,
        ),
        ErrorRow(
            "SHUTTING_DOWN", "The broker is stopping; reconnect.", retryable=True, closes=True
        ),
        ErrorRow(
            "DISK_STALLED",
            "The broker's disk does not answer, or not as it should; reconnect later.",
            retryable=True,
            closes=True,
        ),
        ErrorRow("BAD_REQUEST", "A field has a value that makes no sense; nothing was done."),
        ErrorRow(
            "BAD_MESSAGE",
            "A packed message breaks the envelope's format; the whole batch was refused.",
        ),
        ErrorRow("BODY_TOO_LARGE", "A message or result is over its size limit."),
        ErrorRow("BATCH_TOO_LARGE", "A batch in parts is over the limit of bytes or messages."),
        ErrorRow("DUPLICATE_ID", "A message with that chosen id is still alive."),
        ErrorRow(
            "NOT_UNIQUE",
            "Another message holds the unique key; details name it and its holder.",
        ),
        ErrorRow("NO_EXCHANGE", "The exchange does not exist; the empty one routes by queue name."),
        ErrorRow("NO_QUEUE", "The queue does not exist."),
        ErrorRow("NO_LIMIT", "There is no limit rule of that name."),
        ErrorRow(
            "NEVER_ADMITTED",
            "A limit rule has less room than the weight of one message: it would wait for ever.",
        ),
        ErrorRow(
            "NO_ROUTE", "The exchange has no queue for the message; details name it and the key."
        ),
        ErrorRow("IN_USE", "Something else needs what was to be deleted; nothing was done."),
        ErrorRow(
            "OPTIONS_DIFFER",
            "The queue or exchange exists with other options; details name each.",
        ),
        ErrorRow("NO_POLICY", "The policy does not exist."),
        ErrorRow("QUEUE_LOCKED", "The queue is exclusive, and somebody else's."),
        ErrorRow(
            "QUEUE_FULL",
            "A queue is at its limit of messages or bytes; details name both. Try again later.",
            retryable=True,
        ),
        ErrorRow("LIMIT_REACHED", "A limit of the broker is reached; details name it."),
        ErrorRow(
            "RESOURCE_EXHAUSTED", "The broker has no room now; try again later.", retryable=True
        ),
        ErrorRow(
            "QUEUE_PAUSED",
            "The queue takes nothing in for now; details say who paused it, why and until when.",
            retryable=True,
        ),
        ErrorRow("BLOCKED", "The broker accepts no publishes for the moment.", retryable=True),
        ErrorRow(
            "SEQUENCE_TOO_OLD",
            "The chunk is older than the window kept for its producer.",
            definite=False,
        ),
        ErrorRow("LEASE_LOST", "The message was settled already or handed to somebody else."),
        ErrorRow("NO_SUBSCRIPTION", "The connection has no such subscription."),
        ErrorRow("NO_SESSION", "The session is not known, or has ended."),
        ErrorRow("UNKNOWN_ID", "No message or result with that id is known."),
        ErrorRow(
            "DATA_DAMAGED", "The log is damaged where what was asked for would be; it stays so."
        ),
    )
}
"""Every code on the wire, in the order of a conversation."""


class QBrokerError(Exception):
    """Anything that qbroker's client, worker or protocol raises on purpose."""


class ProtocolError(QBrokerError):
    """The peer broke the protocol: answer with ``code`` and close. Never the user's fault."""

    def __init__(self, code: str, message: str) -> None:
        assert code in ERRORS, code
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(slots=True)
class Refused:
    """The broker's answer to a request it did not do. Goes out as an Error frame."""

    code: str
    message: str
    retry_after_ms: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.code in ERRORS, self.code
