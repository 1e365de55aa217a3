"""What a running task knows of its call: ``self.request``, and the headers it travelled with.

The worker fills a Context for each delivery and holds it in ``current_request`` while user
code runs; without one, a task was called directly.

Headers of a message are the client's own, opaque to the broker: a msgpack map with

    preview      of its arguments, for those who look through tasks; first, see qprotocol.preview
    hard, soft   time limits of this call, seconds
    retry        the retry policy of this call, packed
    user         what the caller passed as headers=
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Self

from qclient.canvas.inputs import arguments
from qclient.serialization import DecodeError, decode, decode_shaped, encode_call, pack
from qprotocol import wire
from qprotocol.lanekeys import NO_KEYS, LaneKeys
from qprotocol.message import Delivery
from qprotocol.options import RetryPolicy
from qprotocol.preview import ENTRY

HEADERS_BYTES_MAX = 0xFFFF
NOWHERE = "", ""
"""The exchange and routing key of a message that was sent to its queue."""
KEYS_KNOWN_MAX = 1_000
"""Keys of messages that are remembered: tenants come again."""
unpack_keys = lru_cache(KEYS_KNOWN_MAX)(LaneKeys.unpack)


@dataclass(slots=True)
class Context:
    """One call of a task, as the task sees it."""

    id: str = ""
    task: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    """Times this task failed before and was run again."""
    deliveries: int = 1
    """Times it was handed to a worker, this one included."""
    crashes: int = 0
    """Workers that died while running it."""
    queue: str = ""
    exchange: str = ""
    """By which exchange the message came into its queue; empty if it was sent to the queue."""
    routing_key: str = ""
    """With which routing key; its queue's name if it was sent to the queue."""
    priority: int = 0
    keys: LaneKeys = NO_KEYS
    """What it is limited, ordered and shared out by."""
    eta: datetime | None = None
    expires: datetime | None = None
    root_id: str = ""
    """The first task of the tree this one was sent from; its own id at the top."""
    parent_id: str = ""
    """The task that sent this one; empty at the top."""
    headers: dict[str, Any] = field(default_factory=dict)
    """What the caller passed as ``headers=``."""
    preview: str = ""
    """What is shown of its arguments to those who look through tasks; see preview.py."""
    time_limit: float | None = None
    """Of this call; None leaves it to the task. Seconds."""
    soft_time_limit: float | None = None
    retry_policy: RetryPolicy | None = None
    """Of this call; None leaves it to the task."""
    ignore_result: bool = False
    acks_early: bool = False
    content: int = 0
    """How the arguments were encoded; results are encoded the same way."""
    hostname: str = ""
    """The worker's name."""
    called_directly: bool = False
    is_given: bool = False
    """Its first arguments are what became of the tasks before it in its workflow."""

    @classmethod
    def from_delivery(
        cls, delivery: Delivery, hostname: str = "", inputs: Sequence[Any] = ()
    ) -> Self:
        """The request in a delivery, with what it is given by those before it.

        Raises DecodeError if its body or headers are not ours, or what it is given does not fit.
        """
        message = delivery.message
        args, kwargs, shape = decode_shaped(message.content, message.body)
        if inputs:
            args = (*arguments(shape, inputs), *args)
        try:
            keys = unpack_keys(message.keys) if message.keys else NO_KEYS
            exchange, routing_key = message.origin if message.fields else NOWHERE
        except ValueError as error:
            raise DecodeError(str(error)) from error
        context = cls(
            id=message.id,
            task=message.task,
            args=args,
            kwargs=kwargs,
            retries=delivery.failures,
            deliveries=delivery.deliveries,
            crashes=delivery.crashes,
            queue=message.queue,
            exchange=exchange,
            routing_key=routing_key if exchange else message.queue,
            priority=message.priority,
            keys=keys,
            eta=moment(message.due_ms),
            expires=moment(message.expires_ms),
            root_id=message.root or message.id,
            parent_id=message.parent,
            ignore_result=bool(message.flags & wire.IGNORE_RESULT),
            acks_early=bool(message.flags & wire.ACK_EARLY),
            content=message.content,
            hostname=hostname,
            is_given=bool(inputs),
        )
        if message.headers:
            context._read_headers(message.headers)
        return context

    def _read_headers(self, raw: bytes) -> None:
        headers = decode(1, raw)
        if type(headers) is not dict:
            raise DecodeError("the headers are not a map")
        self.headers = headers.get("user") or {}
        self.preview = headers.get(ENTRY, "")
        self.time_limit = headers.get("hard")
        self.soft_time_limit = headers.get("soft")
        policy = headers.get("retry")
        if policy:
            self.retry_policy = RetryPolicy.unpack(policy)

    @property
    def timelimit(self) -> tuple[float | None, float | None]:
        """Hard and soft limit of this call, as Celery names them."""
        return self.time_limit, self.soft_time_limit

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Celery's view of where the message came from."""
        return {
            "exchange": self.exchange,
            "routing_key": self.routing_key if self.exchange else self.queue,
            "priority": self.priority,
            "redelivered": self.deliveries > 1,
        }


current_request: ContextVar[Context | None] = ContextVar("current_request", default=None)
"""The call that runs in this thread or coroutine; None outside of tasks."""


@contextmanager
def running(context: Context) -> Iterator[Context]:
    """Within it, ``context`` is what tasks see as their request."""
    token = current_request.set(context)
    try:
        yield context
    finally:
        current_request.reset(token)


def moment(wall_ms: int) -> datetime | None:
    return datetime.fromtimestamp(wall_ms / 1000, UTC) if wall_ms else None


def pack_headers(
    options: Mapping[str, Any], policy: RetryPolicy | None, preview: str = ""
) -> bytes:
    """A call's headers; empty if it says nothing. Raises TypeError or ValueError by name."""
    found: dict[str, Any] = {ENTRY: preview} if preview else {}
    for key, name in (("hard", "time_limit"), ("soft", "soft_time_limit")):
        if options.get(name) is not None:
            found[key] = options[name]
    if policy is not None:
        found["retry"] = policy.pack()
    if options.get("headers"):
        user = dict(options["headers"])
        encode_call("headers=", (), user)  # for its complaint, which names the header
        found["user"] = user
    raw = pack(found) if found else b""
    if len(raw) > HEADERS_BYTES_MAX:
        raise ValueError(
            f"headers of {len(raw)} bytes: at most {HEADERS_BYTES_MAX}; send them as an argument"
        )
    return raw
