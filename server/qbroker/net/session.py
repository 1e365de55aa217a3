"""One peer's conversation with the broker, from the greeting on; no socket, no bytes.

    accepted -- greet() --> GREETED -- Auth --> NAMED -- Hello --> HELLO (the engine decides)
    HELLO -- welcomed() --> OPEN -- leaving() --> DRAINING
    HELLO -- refused() --> CLOSED

Rule 1. Until OPEN, nothing is taken but the next word of the handshake: strangers reach
        no decoder but the header's and no code but this file's.
Rule 2. What is legal is decided by qprotocol.conversation; this file adds who may say it.
Rule 3. A refusal here ends the connection: it is raised as ProtocolError.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from qprotocol.conversation import OPEN_FRAMES, PROTOCOL_VERSION, Conversation, Phase
from qprotocol.errors import ProtocolError
from qprotocol.frames import (
    BOTH,
    CLIENT,
    SERVER,
    Auth,
    Consume,
    Credit,
    Error,
    Frame,
    Goaway,
    Greeting,
    Hello,
    Ok,
    Part,
    Publish,
    Settle,
    Welcome,
)
from qprotocol.limits import PARTED_MAX

NONCE_BYTES = 16

CROSSED = (Consume, Credit)

NOTHING: frozenset[type[Frame]] = frozenset()
PARTED = {kind.TYPE: kind for kind in (Publish, Settle)}
"""Frames that a client may send in parts."""
FROM_CLIENTS = frozenset(
    kind for kind in OPEN_FRAMES[Phase.OPEN] if kind.SENDER in (CLIENT, BOTH) and kind is not Part
)


@dataclass(frozen=True, slots=True)
class Role:
    """What a peer's part in the work means for its socket."""

    name: str
    paused_first: bool
    """Not read while the inbox is over its limit; others only at twice the limit."""
    must_speak: bool
    """Closed after session_timeout_ms of silence, whatever its Hello says."""
    held_to_promise: bool = True
    """Closed after such silence if its Hello promised heartbeats."""
    may_stall: bool = False
    """Not closed for leaving its data unread."""
    may_hold: bool = True
    """May hold leases: at the broker's end it is waited for."""


ROLES = {
    role.name: role
    for role in (
        Role("producer", paused_first=True, must_speak=False, may_hold=False),
        Role("worker", paused_first=False, must_speak=True),
        Role("member", paused_first=False, must_speak=False, held_to_promise=False, may_stall=True),
        Role("consumer", paused_first=False, must_speak=True),
        Role("admin", paused_first=False, must_speak=False, may_hold=False),
    )
}
"""Who may say Hello.

Workers and consumers hold leases, so they must be heard. Producers and admins may be
silent if they promise no heartbeats (Hello.heartbeat_ms 0), and then get none; TCP
keepalive finds the dead ones. Members may be silent and deaf, promise or not: C code may
hold a child's GIL for minutes, and its parent speaks for it.
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the broker tells everybody who connects. Never changes while it runs."""

    product: str
    version: str
    cluster: str
    node: str
    epoch: int
    limits: dict[str, int]
    mechanisms: tuple[str, ...]
    """Ways to say who one is; empty: nobody gets in."""
    wall_ms: Callable[[], int]
    features: tuple[str, ...] = ()
    """Abilities that came after protocol version 1 began."""


def _unheard(_frame: Frame) -> None:
    """Nobody is there."""


class Session:
    """Where one peer's conversation is, and who it said it was."""

    __slots__ = ("_say", "_terms", "conversation", "hello", "legal", "parts", "role")

    def __init__(self, terms: Terms, say: Callable[[Frame], None]) -> None:
        self._terms = terms
        self._say = say
        self.conversation = Conversation()
        self.hello: Hello | None = None
        self.role: Role | None = None
        self.legal = NOTHING
        """Frames that go to the engine as they are: the hot path's whole check."""
        self.parts: dict[int, tuple[int, int]] = {}
        """Frames begun in parts: for each correlation id, its type and the part that is due."""

    def ended(self) -> None:
        """The peer is gone: nothing is said to it, and nothing here holds its connection."""
        self._say = _unheard

    def greet(self) -> None:
        """Say the broker's first word. Call once."""
        terms = self._terms
        greeting = Greeting(
            product=terms.product,
            version=terms.version,
            protocol_min=PROTOCOL_VERSION,
            protocol_max=PROTOCOL_VERSION,
            limits=dict(terms.limits),
            features=list(terms.features),
            mechanisms=list(terms.mechanisms),
            nonce=secrets.token_bytes(NONCE_BYTES),
            cluster=terms.cluster,
            node=terms.node,
            epoch=terms.epoch,
            server_ms=terms.wall_ms(),
        )
        self.conversation.advance(greeting, SERVER)
        self._say(greeting)

    def hear(self, frame: Frame) -> bool:
        """Whether the engine is to have ``frame``; if not, it was answered here if need be.

        Raises ProtocolError if the peer may not say it: tell it, and hang up.
        """
        if self.conversation.phase is Phase.DRAINING and type(frame) in CROSSED:
            # It crossed the Goaway on the wire: no violation, but too late.
            if type(frame) is Consume:
                self._say(too_late(frame))
            return False
        self.conversation.advance(frame, CLIENT)
        if type(frame) is Auth:
            self._authenticate(frame)
            return False
        if type(frame) is Hello:
            self._meet(frame)
        elif type(frame) is Part:
            self._begin_or_continue(frame)
        elif frame.correlation in self.parts:
            self.complete(frame)
        return True

    def complete(self, frame: Frame) -> None:
        """``frame`` is the one that its parts went before. Raises ProtocolError if it is not."""
        of, _ = self.parts.pop(frame.correlation)
        if of != frame.TYPE:
            name, due = type(frame).__name__, PARTED[of].__name__
            raise ProtocolError("BAD_FRAME", f"{name} {frame.correlation} after parts of a {due}")

    def welcomed(self) -> None:
        """The engine is about to send Welcome."""
        hello = self.hello
        assert hello is not None
        # The engine encodes the real one; only its kind matters to the conversation.
        welcome = Welcome(protocol=0, heartbeat_ms=0, session_timeout_ms=0, server_ms=0)
        self.conversation.advance(welcome, SERVER)
        self.legal = FROM_CLIENTS

    def refused(self) -> None:
        """Nothing the peer says is heard any more."""
        self.conversation.phase = Phase.CLOSED
        self.legal = NOTHING

    def leaving(self, goaway: Goaway) -> None:
        """The broker says goodbye; from now on ``hear`` sees every frame."""
        self.conversation.advance(goaway, SERVER)
        self.legal = NOTHING

    @property
    def is_open(self) -> bool:
        """Whether pushes may be sent."""
        return self.conversation.phase in (Phase.OPEN, Phase.DRAINING)

    def _authenticate(self, auth: Auth) -> None:
        if auth.mechanism not in self._terms.mechanisms:
            known = ", ".join(self._terms.mechanisms) or "there are none"
            raise ProtocolError(
                "AUTH_FAILED",
                f"the mechanism {auth.mechanism[:40]!r} is not accepted; accepted here: {known}",
            )
        ok = Ok(correlation=auth.correlation)
        self.conversation.advance(ok, SERVER)
        self._say(ok)

    def _begin_or_continue(self, part: Part) -> None:
        """Parts come in order and are not empty; their bytes are the core's to limit."""
        of, due = self.parts.get(part.correlation, (part.of, 0))
        if of not in PARTED or part.of != of or part.index != due or not part.raw:
            raise ProtocolError(
                "BAD_FRAME",
                f"part {part.index} of frame {part.correlation} (type {part.of}) with "
                f"{len(part.raw)} bytes, where part {due} with at least one was due",
            )
        self.parts[part.correlation] = of, due + 1
        if len(self.parts) > PARTED_MAX:
            raise ProtocolError("FRAME_TOO_LARGE", f"parts of over {PARTED_MAX} frames at once")

    def _meet(self, hello: Hello) -> None:
        """Note who the peer is. The engine decides whether its session may be joined."""
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                "UNSUPPORTED_VERSION",
                f"the client speaks protocol {hello.protocol}, this broker {PROTOCOL_VERSION}: "
                "upgrade the older one",
            )
        role = ROLES.get(hello.role)
        if role is None:
            raise ProtocolError("BAD_REQUEST", f"unknown role {hello.role[:40]!r}: {meant(hello)}")
        self.hello, self.role = hello, role


def meant(hello: Hello) -> str:
    near = get_close_matches(hello.role, ROLES, n=1)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(ROLES)}"


def too_late(frame: Frame) -> Error:
    return Error(
        correlation=frame.correlation,
        code="SHUTTING_DOWN",
        message="the broker is stopping and hands out nothing more: reconnect",
        retryable=True,
    )
