"""One handshaken TCP connection to a broker, blocking, with no policy of its own.

The socket side of the conversation: bytes in, frames out, and back. The client's blocking
shell (connection.py) and the worker are built on it.

Rule 1. A link never reconnects, retries or waits beyond the time it was given.
Rule 2. ``send`` may be called from any thread; ``receive`` from one thread at a time.
Rule 3. After any exception but a refusal the link is closed: nobody can say what was sent.
Rule 4. A link belongs to the process that opened it; after a fork the child only closes it.
"""

import contextlib
import socket
import threading
import time
from typing import NamedTuple, Self, TypeVar

from qclient.exceptions import ConnectError, ConnectionLost, RefusedError, refusal
from qprotocol.codec import Assembler, Decoder, encode_in_parts
from qprotocol.conversation import PROTOCOL_VERSION, Conversation
from qprotocol.errors import ProtocolError
from qprotocol.frames import Auth, Error, Frame, Greeting, Hello, Ok, Part, Welcome
from qprotocol.limits import BODY_BYTES_HARD_MAX

F = TypeVar("F", bound=Frame)

SCHEME = "qbroker://"
PORT = 7717
RECEIVE_BYTES = 64 * 1024
"""Asked of the socket at once. Half a frame: larger buffers come from mmap and cost more."""
SEND_TIMEOUT_S = 10.0
ASSEMBLED_BYTES_MAX = 2 * BODY_BYTES_HARD_MAX
"""Parts that may be waiting for their frame: the largest result, and as much of another."""


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int = PORT

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address in ``qbroker://host[:port]``. Raises ValueError saying what is wrong."""
        if not url.startswith(SCHEME):
            raise ValueError(
                f"the broker's address is {url!r}: it is written {SCHEME}host[:port], "
                f"for example {SCHEME}localhost:{PORT}"
            )
        rest = url[len(SCHEME) :].rstrip("/")
        if any(c in rest for c in "/?#@"):
            raise ValueError(
                f"the broker's address {url!r} has more than a host and a port: "
                f"paths, options and users are not part of it"
            )
        if rest.startswith("["):
            host, bracket, tail = rest[1:].partition("]")
            valid = bool(bracket) and tail[:1] in ("", ":")
            port = tail[1:]
        else:
            host, colon, port = rest.partition(":")
            valid = bool(port) or not colon
        if not valid or not host or any(c.isspace() for c in host):
            raise ValueError(f"the broker's address {url!r} has no host: write {SCHEME}localhost")
        if not port:
            return cls(host)
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(
                f"the broker's address {url!r} has the port {port!r}: a number from 1 to 65535"
                + (" (IPv6 addresses are written in [brackets])" if ":" in port else "")
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{host}:{self.port}"


class ServerClock:
    """The broker's wall clock, told once and advanced by the local monotonic one."""

    __slots__ = ("_offset_ms",)

    def __init__(self, server_ms: int) -> None:
        self._offset_ms = server_ms - time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Milliseconds since 1970 by the broker's clock, half a round trip late at most."""
        return time.monotonic_ns() // 1_000_000 + self._offset_ms


class Link:
    """An open conversation. Made by ``Link.open``."""

    greeting: Greeting
    """Who the broker is; its limits are in ``greeting.limits``."""
    welcome: Welcome
    """The broker's answer to Hello; raw holds those of Hello's tokens that are lost."""

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.address = address
        self.closed = False
        # Two Python sockets on one connection: each has a timeout of its own, so that a
        # sender's does not cut a reader's short.
        self._writer = sock
        self._reader = sock.dup()
        self._read_timeout_s: float | None = sock.gettimeout()
        self._write_timeout_s: float | None = self._read_timeout_s
        self._reader.settimeout(self._read_timeout_s)
        self._sending = threading.Lock()
        self._conversation = Conversation()
        self._decoder = Decoder(self._conversation.frame_bytes_max)
        self._assembler = Assembler(ASSEMBLED_BYTES_MAX)
        self._clock = ServerClock(0)
        self._early: list[Frame] = []  # pushes that came in one read with the handshake

    @classmethod
    def open(cls, address: Address, hello: Hello, *, timeout_s: float) -> Self:
        """A connection on which ``hello`` was welcomed, within ``timeout_s``.

        Raises ConnectError if there is no connection or no answer, RefusedError (by its
        code) if the broker will not have us. Three round trips.
        """
        deadline = time.monotonic() + timeout_s
        try:
            sock = socket.create_connection((address.host, address.port), timeout=timeout_s)
        except OSError as error:
            raise ConnectError(
                f"no broker at {address}: {reason_of(error)}; is `qbroker serve` running there?"
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = cls(address, sock)
        try:
            link._handshake(hello, deadline)
        except (ConnectionLost, ProtocolError) as error:
            link.close()
            raise ConnectError(f"no conversation with {address}: {error}") from error
        except BaseException:
            link.close()
            raise
        return link

    def _handshake(self, hello: Hello, deadline: float) -> None:
        self.greeting = self._expect(Greeting, deadline)
        if not self.greeting.protocol_min <= PROTOCOL_VERSION <= self.greeting.protocol_max:
            raise refusal(
                "UNSUPPORTED_VERSION",
                f"the broker {self.greeting.product} {self.greeting.version} speaks protocol "
                f"{self.greeting.protocol_min} to {self.greeting.protocol_max}, this client "
                f"{PROTOCOL_VERSION}: upgrade the older one",
            )
        self.send(Auth(mechanism="none", correlation=1), timeout_s=left_s(deadline))
        self._expect(Ok, deadline)
        hello.correlation = 2
        self.send(hello, timeout_s=left_s(deadline))
        self.welcome = self._expect(Welcome, deadline)
        self._clock = ServerClock(self.welcome.server_ms)

    def _expect(self, kind: type[F], deadline: float) -> F:
        while not self._early:
            if time.monotonic() >= deadline:
                raise ConnectionLost(f"the broker sent no {kind.__name__} in time")
            self._early = self._read(left_s(deadline))
        frame = self._early.pop(0)
        if isinstance(frame, Error):
            raise refused(frame)
        if not isinstance(frame, kind):
            raise ProtocolError("BAD_STATE", f"{frame!r:.80} where {kind.__name__} was due")
        return frame

    def send(self, *frames: Frame, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """The frames are with the kernel, in order and unmixed with another thread's.

        Those over the frame limit go in parts. One ``sendall``. Raises ConnectionLost, also
        if the broker reads nothing for ``timeout_s``; ProtocolError if a frame is not
        allowed at this point, in which case nothing was sent.
        """
        limit = self._conversation.frame_bytes_max
        pieces: list[bytes] = []
        with self._sending:
            for frame in frames:
                self._conversation.advance(frame, "client")
                raw = frame.raw
                pieces += encode_in_parts(frame, limit)
                frame.raw = raw  # encoding in parts leaves only the last one in it
            self._send_bytes(b"".join(pieces), timeout_s)

    def _send_bytes(self, data: bytes, timeout_s: float) -> None:
        try:
            if timeout_s != self._write_timeout_s:
                self._writer.settimeout(max(timeout_s, 0.001))
                self._write_timeout_s = timeout_s
            self._writer.sendall(data)
        except TimeoutError:
            self.close()
            raise ConnectionLost(f"{self.address} read nothing for {timeout_s:g} s") from None
        except OSError as error:
            self.close()
            raise ConnectionLost(f"{self.address} is gone: {reason_of(error)}") from error

    def receive(self, timeout_s: float | None) -> list[Frame]:
        """The frames that have arrived, parts put together; none if nothing came in time.

        Waits for the first bytes at most ``timeout_s`` (None: for ever), and may return
        nothing earlier if they complete no frame. Raises ConnectionLost at the end of the
        connection, ProtocolError if the broker breaks the protocol.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        return self._read(timeout_s)

    def _read(self, timeout_s: float | None) -> list[Frame]:
        if timeout_s != self._read_timeout_s:
            try:
                self._reader.settimeout(timeout_s)
            except OSError as error:
                raise ConnectionLost(f"{self.address} is gone: {reason_of(error)}") from error
            self._read_timeout_s = timeout_s
        try:
            data = self._reader.recv(RECEIVE_BYTES)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError as error:
            self.close()
            raise ConnectionLost(f"{self.address} is gone: {reason_of(error)}") from error
        if not data:
            self.close()
            raise ConnectionLost(f"{self.address} closed the connection")
        try:
            return self._frames(data)
        except ProtocolError:
            self.close()
            raise

    def _frames(self, data: bytes) -> list[Frame]:
        found: list[Frame] = []
        for frame in self._decoder.feed(data):
            self._conversation.advance(frame, "server")
            self._decoder.frame_bytes_max = self._conversation.frame_bytes_max
            if type(frame) is Part:
                self._assembler.add(frame)
            else:
                found.append(self._assembler.complete(frame))
        return found

    def server_ms(self) -> int:
        """The broker's wall clock now, in milliseconds since 1970."""
        return self._clock.now_ms()

    def fileno(self) -> int:
        """The descriptor to wait on for reading; -1 once closed."""
        return self._reader.fileno()

    def close(self) -> None:
        """The connection is closed, also under a thread that waits in ``receive``."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._writer.shutdown(socket.SHUT_RDWR)
        self.abandon()

    def abandon(self) -> None:
        """Only our descriptors are closed: after a fork, the parent's connection goes on."""
        self.closed = True
        self._writer.close()
        self._reader.close()


def left_s(deadline: float) -> float:
    """Seconds until a deadline on the monotonic clock, never below a millisecond."""
    return max(deadline - time.monotonic(), 0.001)


def refused(error: Error) -> RefusedError:
    """The exception for an Error frame."""
    return refusal(
        error.code,
        error.message,
        error.retryable,
        error.retry_after_ms,
        error.details,
        definite=error.definite,
    )


def reason_of(error: OSError) -> str:
    """What the operating system says, in its words."""
    return error.strerror or str(error) or type(error).__name__
