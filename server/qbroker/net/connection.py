"""One peer's socket: bytes in, frames out, and back. The shell around a Session.

    data_received: decode -> legal? -> engine.submit      (all there is on the hot path)
                             else     -> session.hear -> answered here, submitted, or hung up

Rule 1. The hot path reads no clock and writes no log: the watch compares byte counters.
Rule 2. Whatever a peer does, it ends its own connection at most. A bug that gets out of
        data_received ends it too: the loop closes the transport and reports.
Rule 3. Hanging up is polite and bounded: what was sent is flushed, our side is shut, what
        still comes is thrown away, and the watch ends it LINGER_S later. A bare close
        with unread bytes would send a reset, and the peer might never see why.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from qbroker.net.complaints import Complaints
from qbroker.net.session import Session, Terms
from qprotocol.codec import Decoder, encode
from qprotocol.conversation import NUMBERED
from qprotocol.errors import ERRORS, ProtocolError
from qprotocol.frames import Blocked, Error, Frame, Goaway, Heartbeat, Hello, Unblocked
from qprotocol.limits import FRAME_BYTES_MAX_BEFORE_AUTH

LINGER_S = 1.0
DISCARDED_BYTES_MAX = 1024 * 1024
"""Thrown away while hanging up; a peer that sends more is cut off."""
STALL_S = 10.0
"""A peer that takes none of what waits for it, for so long, is gone or stuck."""

BLOCKED_REASON = "more is waiting for the disk than the inbox holds: publishes are not read"

KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds, seconds, tries: finds peers that are silent by right (see ROLES) and dead."""


class Engine(Protocol):
    """What the net needs of the engine."""

    inbox_bytes: int
    on_drained: Callable[[], None] | None

    def connected(self, connection: "Connection") -> None: ...
    def welcomed(self, connection: "Connection") -> None: ...
    def submit(self, connection: "Connection", frame: Frame) -> None: ...
    def arrived(self) -> None: ...
    def disconnected(self, connection: "Connection") -> None: ...
    def writable(self, connection: "Connection", is_writable: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The net's share of the settings, by their names there."""

    connections_max: int
    handshakes_max: int
    handshake_timeout_ms: int
    heartbeat_ms: int
    session_timeout_ms: int
    inbox_bytes_max: int
    output_bytes_max: int


class Owner(Protocol):
    """The listener, as its connections see it."""

    engine: Engine
    terms: Terms
    limits: Limits
    complaints: Complaints
    closed: str

    def came(self, connection: "Connection") -> None: ...
    def known(self, connection: "Connection") -> None: ...
    def crowded(self, connection: "Connection") -> None: ...
    def left(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One socket, its session, and the counters by which it is watched."""

    __slots__ = (
        "_decoder",
        "_discarded",
        "_engine",
        "_inbox_bytes_max",
        "_owner",
        "_submitted",
        "_transport",
        "_write",
        "blocked",
        "came_at",
        "fed_up",
        "flushed_at",
        "flushed_bytes",
        "hanging_up_at",
        "heard_at",
        "heard_bytes",
        "may_stall",
        "must_speak",
        "number",
        "peer",
        "received_bytes",
        "sent_bytes",
        "session",
        "silenced",
        "spoke_at",
        "spoken_bytes",
        "wants_heartbeats",
    )

    def __init__(self, owner: Owner, number: int, now: float) -> None:
        self.number = number
        self.peer = "?"
        self.session = Session(owner.terms, self.say)
        self.received_bytes = self.sent_bytes = 0
        # The watch's notes: counters as it saw them, and when they last moved.
        self.heard_bytes = self.spoken_bytes = self.flushed_bytes = 0
        self.came_at = self.heard_at = self.spoke_at = self.flushed_at = now
        self.must_speak = self.wants_heartbeats = self.may_stall = False
        self.hanging_up_at = 0.0
        """When the watch first saw that we are hanging up."""
        self.blocked = False
        """Not read for the moment: the inbox is over its limit."""
        self.silenced = False
        """The last the peer heard is that its publishes are not taken."""
        self.fed_up = False
        """Gets no more deliveries: the broker is about to go away."""
        self._owner = owner
        self._engine = owner.engine
        self._inbox_bytes_max = owner.limits.inbox_bytes_max
        self._decoder: Decoder | None = Decoder(FRAME_BYTES_MAX_BEFORE_AUTH)
        self._discarded = 0
        self._submitted = False
        self._transport: asyncio.Transport | None = None
        self._write: Callable[[bytes], None] = discard

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._owner.limits.output_bytes_max)
        self._write = self._transport.write
        self.peer = show_peer(transport.get_extra_info("peername"))
        prepare(transport.get_extra_info("socket"))
        self._owner.came(self)
        if not self.hanging_up:
            self.session.greet()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        decoder, session = self._decoder, self.session
        if decoder is None:
            self._discard(len(data))
            return
        submit, parts = self._engine.submit, session.parts
        try:
            for frame in decoder.feed(data):
                kind = type(frame)
                if kind in session.legal and (frame.correlation or kind not in NUMBERED):
                    if parts and frame.correlation in parts:
                        session.complete(frame)
                    submit(self, frame)
                elif session.hear(frame):
                    self._introduce(frame)
                    submit(self, frame)
                else:
                    decoder.frame_bytes_max = session.conversation.frame_bytes_max
        except ProtocolError as error:
            self.fail(error.code, error.message)
        self._engine.arrived()
        if self._engine.inbox_bytes > self._inbox_bytes_max:
            self._owner.crowded(self)

    def eof_received(self) -> None:
        """The peer will say no more; by returning None, neither do we once it is flushed."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        self._write = discard
        self._decoder = self._transport = None
        self._part()
        self._owner.left(self)
        self.session.ended()  # no circle: see garbage.py

    def pause_writing(self) -> None:
        self._engine.writable(self, False)

    def resume_writing(self) -> None:
        if not self.fed_up:
            self._engine.writable(self, True)

    # What the engine calls.

    def send(self, data: bytes) -> None:
        """Queue encoded frames; lost without a word if the peer is gone."""
        self.sent_bytes += len(data)
        self._write(data)

    def welcomed(self) -> None:
        """The engine is about to send Welcome; to one that was hung up on meanwhile, in vain."""
        if self._decoder is None:
            return
        self.session.welcomed()
        self._engine.welcomed(self)
        hello, role = self.session.hello, self.session.role
        assert hello is not None
        assert role is not None
        promised = hello.heartbeat_ms > 0
        self.must_speak = role.must_speak or (promised and role.held_to_promise)
        self.wants_heartbeats = role.must_speak or promised
        self.may_stall = role.may_stall
        if self.blocked or self._owner.closed:
            asyncio.get_running_loop().call_soon(self.tell)  # after the Welcome

    def refused(self) -> None:
        """The engine is about to refuse the Hello; it closes after that."""
        self.session.refused()
        self._decoder = None

    def close(self) -> None:
        """Hang up after what was sent."""
        self.hang_up()

    # What the listener and the watch call.

    def say(self, frame: Frame) -> None:
        """Send one frame of the net's own."""
        self.send(encode(frame))

    def fail(self, code: str, message: str) -> None:
        """Tell the peer what it did wrong, and hang up. Counted."""
        if self._decoder is None:
            return
        self._owner.complaints.add(code, self.peer, message)
        self._dismiss(code, message)
        self._part()

    def turn_away(self, code: str, message: str) -> None:
        """Tell the peer why it is not served now, and hang up. It did nothing wrong."""
        self._dismiss(code, message)
        self._part()

    def hang_up(self) -> None:
        """Flush, shut our side, throw away what still comes (rule 3)."""
        transport, self._decoder = self._transport, None
        self.session.refused()
        if transport is None or self._write is discard:
            return
        self._write = discard
        if self.blocked:
            self.blocked = False
            transport.resume_reading()  # or its end would never be seen
        if transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def abort(self) -> None:
        """End it now; what was not flushed is lost."""
        if self._transport is not None:
            self._transport.abort()

    def feed_up(self) -> None:
        """No more deliveries are begun for it."""
        if self._submitted and not self.fed_up:
            self.fed_up = True
            self._engine.writable(self, False)

    def leave(self, goaway: Goaway) -> None:
        """Say that the broker goes away; strangers are told so and hung up on."""
        if self.session.is_open:
            self.session.leaving(goaway)
            self.say(goaway)
        else:
            self._dismiss("SHUTTING_DOWN", "the broker is stopping: reconnect later")

    def block(self) -> None:
        """Stop reading. A peer that publishes is told."""
        if self._transport is None or self.blocked:
            return
        self.blocked = True
        self._transport.pause_reading()
        self.tell()

    def unblock(self) -> None:
        """Read again."""
        if self._transport is None or not self.blocked:
            return
        self.blocked = False
        self._transport.resume_reading()
        self.tell()

    def tell(self) -> None:
        """A peer that publishes knows whether that is taken now, and if not, why."""
        role = self.session.role
        if role is None or not role.paused_first or not self.session.is_open:
            return
        if self.blocked:
            self.say(Blocked(reason=BLOCKED_REASON))
        elif self._owner.closed:
            self.say(Blocked(reason=self._owner.closed, code="RESOURCE_EXHAUSTED"))
        elif self.silenced:
            self.say(Unblocked())
        self.silenced = self.blocked or bool(self._owner.closed)

    def heartbeat(self, wall_ms: int) -> None:
        self.say(Heartbeat(sent_ms=wall_ms))

    def stalled(self) -> None:
        """Give up on a peer that takes nothing."""
        message = f"took none of {self.unsent_bytes} bytes for {STALL_S:.0f} s"
        self._owner.complaints.add("TIMED_OUT", self.peer, message)
        self.abort()

    @property
    def hanging_up(self) -> bool:
        return self._decoder is None

    @property
    def unanswered(self) -> bool:
        """It said Hello, and has no Welcome yet."""
        return self._submitted and not self.session.is_open

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    @property
    def untaken_bytes(self) -> int:
        """``unsent_bytes``, and what the kernel holds of it. A system call; not for the hot path.

        A slow peer empties the kernel's megabytes for many seconds before ours move.
        """
        sock = self._transport.get_extra_info("socket") if self._transport else None
        if sock is None or sys.platform != "linux":
            return self.unsent_bytes
        held = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.unsent_bytes + int.from_bytes(held, sys.byteorder)

    def _introduce(self, frame: Frame) -> None:
        """The engine learns of a connection with its Hello, not before."""
        if type(frame) is Hello:
            self._submitted = True
            self.must_speak = True  # until the Welcome says more
            self._owner.known(self)
            self._engine.connected(self)

    def _part(self) -> None:
        """The engine learns that a connection it knew is of no more use, once."""
        if self._submitted:
            self._submitted = False
            self._engine.disconnected(self)

    def _dismiss(self, code: str, message: str) -> None:
        self.say(Error(code=code, message=message, retryable=ERRORS[code].retryable))
        self.hang_up()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > DISCARDED_BYTES_MAX:
            self.abort()


def discard(data: bytes) -> None:
    """Where bytes for a peer that is gone are written."""


def show_peer(name: object) -> str:
    """``host:port``, IPv6 hosts in brackets."""
    if not isinstance(name, tuple) or len(name) < 2:
        return "?"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def prepare(sock: socket.socket | None) -> None:
    """Small frames leave at once, and a peer that died silently is noticed."""
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS calls some of them otherwise
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
