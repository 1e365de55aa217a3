"""A message as a value, packed and unpacked; and the walk over many packed ones.

Clients and workers build and read ``Message``. The broker only walks: see ``walk``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from struct import error as struct_error
from typing import Self

from qprotocol import wire
from qprotocol.ids import pack_id, unpack_id
from qprotocol.limits import BODY_BYTES_HARD_MAX, PRIORITY_MAX, PRIORITY_MIN, TASK_BYTES_MAX
from qprotocol.names import encoded

_FIXED = wire.MESSAGE.size
_U16 = 0xFFFF
_U32 = 0xFFFF_FFFF
_MESSAGE_BITS = {"flags": 8, "due_ms": 64, "expires_ms": 64, "content": 8}
_OUTCOME_BITS = {"outcome": 8, "flags": 8, "content": 8, "position": 64, "grant": 64}
_OUTCOME_BITS |= {"run_ms": 32, "delay_ms": 32}


@dataclass(slots=True)
class Message:
    """What a queue holds. ``kind`` is a task unless ``task`` is empty."""

    queue: str
    """The routing key; with the empty exchange, the name of the queue."""
    body: bytes
    id: str = ""
    """Needed by tasks; a plain message may have none."""
    task: str = ""
    exchange: str = ""
    priority: int = 0
    due_ms: int = 0
    expires_ms: int = 0
    keys: bytes = b""
    """Lane keys, packed: see lanekeys.py. Checked by the broker."""
    flags: int = 0
    content: int = 0
    """How the body is encoded; the client's business."""
    root: str = ""
    parent: str = ""
    principal: str = ""
    """Set by the broker; empty when published."""
    trace: str = ""
    headers: bytes = b""
    fields: bytes = b""
    """Meta fields, packed: see ``meta_fields``. If there are any, the message is MARKED."""

    @property
    def origin(self) -> tuple[str, str]:
        """Exchange and routing key by which the message came into its queue.

        Both are empty if no exchange brought it. Raises ValueError if they cannot be read.
        """
        packed = meta_fields(self.fields).get(wire.ORIGIN)
        return unpack_origin(packed) if packed else NO_ORIGIN

    def pack(self) -> bytes:
        """The message's bytes. Raises ValueError naming the field that is out of bounds."""
        route = pack_route(self.exchange, self.queue, self.task, self.keys)
        return pack_message(route, self)


@dataclass(slots=True)
class Delivery:
    """A message as a consumer gets it: with its token and its three counters."""

    message: Message
    position: int
    grant: int
    deliveries: int = 1
    failures: int = 0
    crashes: int = 0
    raw: bytes = field(default=b"", repr=False)


def counted(name: str, text: str, limit: int = 255) -> bytes:
    """``text`` as UTF-8 behind its length in one byte."""
    raw = encoded(name, text, limit)
    return bytes((len(raw),)) + raw


def pack_route(exchange: str, key: str, task: str, keys: bytes = b"") -> bytes:
    """The route section: where a message goes and which lane it takes there."""
    return (
        counted("exchange", exchange)
        + counted("routing key", key)
        + counted("task", task, TASK_BYTES_MAX)
        + keys
    )


def unpack_route(route: bytes) -> tuple[str, str, str, bytes]:
    """Exchange, routing key, task name and lane keys. Raises ValueError if they overlap the end."""
    parts, at = [], 0
    for _ in range(3):
        end = at + 1 + route[at] if at < len(route) else len(route) + 1
        if end > len(route):
            raise ValueError("the route section ends inside a name")
        parts.append(route[at + 1 : end].decode())
        at = end
    return parts[0], parts[1], parts[2], route[at:]


def pack_message(route: bytes, message: Message) -> bytes:
    """Like ``Message.pack``, with the route packed before: many messages share one."""
    if type(message.priority) is not int or not (PRIORITY_MIN <= message.priority <= PRIORITY_MAX):
        raise ValueError(f"priority is {message.priority}: from {PRIORITY_MIN} to {PRIORITY_MAX}")
    flags, raw_id = message.flags & ~(wire.ID_MINTED | wire.MARKED), b""
    if message.id:
        raw_id, minted = pack_id(message.id)
        flags |= wire.ID_MINTED if minted else 0
    meta = b""
    if message.root or message.parent or message.principal or message.trace or message.fields:
        meta = (
            counted("root", message.root)
            + counted("parent", message.parent)
            + counted("principal", message.principal)
            + counted("trace context", message.trace)
            + message.fields
        )
        flags |= wire.MARKED if message.fields else 0
    for name, part in (("the route", route), ("meta", meta), ("headers", message.headers)):
        if len(part) > _U16:
            raise ValueError(f"{name} has {len(part)} bytes: at most {_U16}")
    variable = route + raw_id + meta + message.headers
    size = _FIXED - 4 + len(variable) + len(message.body)
    if size > BODY_BYTES_HARD_MAX:
        raise ValueError(
            f"the message has {size} bytes: no broker takes over {BODY_BYTES_HARD_MAX}"
        )
    try:
        fixed = wire.MESSAGE.pack(
            size,
            wire.ENVELOPE_VERSION,
            wire.KIND_TASK if message.task else wire.KIND_PLAIN,
            message.priority,
            flags,
            message.due_ms,
            message.expires_ms,
            len(route),
            len(raw_id),
            message.content,
            len(meta),
            len(message.headers),
        )
    except struct_error as error:
        raise wire.too_wide(message, _MESSAGE_BITS) from error
    return b"".join((fixed, variable, message.body))


def unpack_message(raw: bytes, at: int = 0) -> Message:
    """The message packed at offset ``at``. Raises ValueError for anything malformed."""
    if len(raw) - at < _FIXED:
        raise ValueError(f"a packed message has {_FIXED} bytes or more, {len(raw) - at} are left")
    fixed = wire.MESSAGE.unpack_from(raw, at)
    size, version, kind, priority, flags, due, expires, n_route, n_id, content, n_meta, n_head = (
        fixed
    )
    end = at + 4 + size
    if version != wire.ENVELOPE_VERSION:
        raise ValueError(f"envelope version {version}: this side reads {wire.ENVELOPE_VERSION}")
    if end > len(raw) or size < _FIXED - 4 + n_route + n_id + n_meta + n_head:
        raise ValueError("a packed message's lengths disagree")
    at += _FIXED
    exchange, key, task, keys = unpack_route(raw[at : at + n_route])
    if kind != (wire.KIND_TASK if task else wire.KIND_PLAIN):
        raise ValueError(f"a message of kind {kind} with the task name {task!r}")
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise ValueError(f"priority is {priority}: from {PRIORITY_MIN} to {PRIORITY_MAX}")
    at += n_route
    minted = bool(flags & wire.ID_MINTED)
    text_id = unpack_id(raw[at : at + n_id], minted=minted) if n_id or minted else ""
    at += n_id
    root, parent, principal, trace, fields = unpack_meta(raw[at : at + n_meta])
    at += n_meta
    return Message(
        key,
        raw[at + n_head : end],
        text_id,
        task,
        exchange,
        priority,
        due,
        expires,
        keys,
        flags,
        content,
        root,
        parent,
        principal,
        trace,
        raw[at : at + n_head],
        fields if flags & wire.MARKED else b"",
    )


NO_ORIGIN = "", ""
"""Of a message that was sent to its queue by name."""
NO_NAMES = bytes(4)
"""A meta section, or how it begins, without root, parent, principal and trace context."""


def unpack_meta(meta: bytes) -> tuple[str, str, str, str, bytes]:
    """Root, parent, principal, trace context and what stands behind; empty if there is no meta.

    What stands behind are packed fields if the message is MARKED, else nothing to be read.
    """
    if meta[:4] in (b"", NO_NAMES):
        return "", "", "", "", meta[4:]
    parts, at = [], 0
    for _ in range(4):
        end = at + 1 + meta[at] if at < len(meta) else len(meta) + 1
        if end > len(meta):
            raise ValueError("the meta section ends inside a name")
        parts.append(meta[at + 1 : end].decode())
        at = end
    return parts[0], parts[1], parts[2], parts[3], meta[at:]


def names_end(meta: bytes) -> int:
    """Where the four names of a meta section, which ``unpack_meta`` takes, end."""
    at = 0
    for _ in range(4):
        at += 1 + meta[at]
    return at


def renewed(message: Message, *, queue: str, priority: int) -> Message:
    """The message as who sends it anew says it: to a queue by its name, at once, for ever.

    Without what the broker says of it: who sent it, and which exchange it came by.
    """
    fields = meta_fields(message.fields)
    fields.pop(wire.ORIGIN, None)
    return replace(
        message,
        queue=queue,
        priority=priority,
        exchange="",
        due_ms=0,
        expires_ms=0,
        principal="",
        fields=pack_fields(fields) if fields else b"",
    )


def meta_fields(packed: bytes) -> dict[int, bytes]:
    """The meta fields by tag, those of unknown tags too. Raises ValueError if malformed."""
    found: dict[int, bytes] = {}
    at, size = 0, wire.META_FIELD.size
    if len(packed) > size:
        tag, length = wire.META_FIELD.unpack_from(packed)
        if size + length == len(packed):  # as most have one
            return {tag: packed[size:]}
    while at < len(packed):
        start = at + size
        whole = start <= len(packed)
        tag, length = wire.META_FIELD.unpack_from(packed, at) if whole else (packed[at], _U16)
        at = start + length
        if at > len(packed):
            raise ValueError(f"the meta section ends inside the field {tag}")
        if tag in found:
            raise ValueError(f"the meta field {tag} comes twice")
        found[tag] = packed[start:at]
    return found


def pack_fields(fields: Mapping[int, bytes]) -> bytes:
    """What ``meta_fields`` reads. Raises ValueError for a field over 64 KiB."""
    for tag, value in fields.items():
        if len(value) > _U16:
            raise ValueError(f"the meta field {tag} has {len(value)} bytes: at most {_U16}")
    return b"".join(
        wire.META_FIELD.pack(tag, len(value)) + value for tag, value in sorted(fields.items())
    )


def pack_origin(exchange: str, key: str) -> bytes:
    """The value of the field ORIGIN."""
    return counted("exchange", exchange) + counted("routing key", key)


def unpack_origin(value: bytes) -> tuple[str, str]:
    """Exchange and routing key of a field ORIGIN. Raises ValueError if malformed."""
    end = 1 + value[0] if value else 1
    if len(value) <= end or len(value) != end + 1 + value[end]:
        raise ValueError("the meta field ORIGIN is not an exchange and a routing key")
    return value[1:end].decode(), value[end + 1 :].decode()


def walk(raw: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of each packed message in ``raw``, by their sizes alone.

    Raises ValueError where a size does not fit. Checks nothing else.
    """
    total, size_at = len(raw), wire.SIZE.unpack_from
    while at < total:
        if total - at < _FIXED:
            raise ValueError(f"{total - at} bytes are left over after the last message")
        end = at + 4 + size_at(raw, at)[0]
        if end > total or end - at < _FIXED:
            raise ValueError(f"a message of {end - at} bytes where {total - at} are left")
        yield at, end
        at = end


@dataclass(slots=True)
class Outcome:
    """How one delivery ended (or goes on: extend, progress, start)."""

    outcome: int
    position: int
    grant: int
    run_ms: int = 0
    """How long it ran. Over 49 days it is kept as 49 days."""
    delay_ms: int = wire.DELAY_BY_POLICY
    result: bytes = b""
    """The result of an ack, the packed Failure of a fail or crash, the reason of a reject."""
    flags: int = 0
    content: int = 0
    policy: bytes = b""
    """A packed RetryPolicy, or nothing; HAS_POLICY is set from it."""
    follow_on: tuple[bytes, ...] = ()
    """Packed messages that become true together with this outcome."""

    def pack(self) -> bytes:
        """The outcome's bytes. Raises ValueError naming the field that is out of bounds."""
        if len(self.policy) not in (0, wire.POLICY.size):
            raise ValueError(f"policy has {len(self.policy)} bytes: none or {wire.POLICY.size}")
        if self.flags & wire.HAS_REPLACEMENT and not self.follow_on:
            raise ValueError("HAS_REPLACEMENT is set without a message that replaces")
        rest = self.policy + self.result + b"".join(self.follow_on)
        if len(self.follow_on) > _U16 or len(rest) > BODY_BYTES_HARD_MAX:
            raise ValueError(
                f"{len(self.follow_on)} follow-on messages and {len(rest)} bytes with one outcome: "
                f"at most {_U16} and {BODY_BYTES_HARD_MAX}; publish some of them by themselves"
            )
        try:
            fixed = wire.OUTCOME.pack(
                wire.OUTCOME.size - 4 + len(rest),
                self.outcome,
                self.flags & ~wire.HAS_POLICY | (wire.HAS_POLICY if self.policy else 0),
                self.content,
                0,
                len(self.follow_on),
                self.position,
                self.grant,
                min(self.run_ms, _U32),
                self.delay_ms,
                len(self.result),
            )
        except struct_error as error:
            raise wire.too_wide(self, _OUTCOME_BITS) from error
        return fixed + rest

    @classmethod
    def unpack(cls, raw: bytes, at: int = 0) -> tuple[Self, int]:
        """The outcome at ``at`` and where the next one begins. Raises ValueError if malformed."""
        if len(raw) - at < wire.OUTCOME.size:
            raise ValueError(f"the outcomes end inside one, {len(raw) - at} bytes are left")
        fixed = wire.OUTCOME.unpack_from(raw, at)
        size, kind, flags, content, zero, follows, position, grant, run_ms, delay, n_result = fixed
        end, start = at + 4 + size, at + wire.OUTCOME.size
        if end > len(raw) or kind not in wire.OUTCOMES or zero or flags & ~wire.OUTCOME_FLAGS:
            raise ValueError(f"an outcome of kind {kind}, flags {flags:#x} and {size} bytes")
        middle = start + (wire.POLICY.size if flags & wire.HAS_POLICY else 0)
        rest = middle + n_result
        if rest > end:
            raise ValueError("an outcome's lengths disagree")
        follow_on: tuple[bytes, ...] = ()
        if rest < end:
            tail = raw[rest:end]
            follow_on = tuple(tail[a:b] for a, b in walk(tail))
        if len(follow_on) != follows:
            raise ValueError(f"{len(follow_on)} follow-on messages where {follows} were announced")
        if flags & wire.HAS_REPLACEMENT and not follow_on:
            raise ValueError("an outcome with HAS_REPLACEMENT and no message that replaces")
        policy, result = raw[start:middle], raw[middle:rest]
        return (
            cls(kind, position, grant, run_ms, delay, result, flags, content, policy, follow_on),
            end,
        )
