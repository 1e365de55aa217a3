"""One handshaken TCP connection to a broker, blocking, with no policy of its own.

The client's blocking shell (connection.py) and the worker are built on it.

Rule 1. A link never reconnects, retries or waits beyond the time it was given.
Rule 2. ``send`` may be called from any thread; ``receive`` from one thread at a time.
Rule 3. After ConnectionLost or a signal's exception the link is closed: nobody can say what
        went over it.
Rule 4. A link belongs to the process that opened it; after a fork the child abandons it.
"""

import contextlib
import os
import socket
import threading
import time
from collections import deque
from struct import Struct
from typing import Self

from qclient.address import Address
from qclient.dialogue import Dialogue
from qclient.exceptions import ConnectError, ConnectionLost
from qprotocol.errors import ProtocolError
from qprotocol.frames import Frame, Greeting, Hello, Welcome

__all__ = ["Address", "Link"]

RECEIVE_BYTES = 64 * 1024
"""Asked of the socket at once. Half a frame: larger buffers come from mmap and cost more."""
SEND_TIMEOUT_S = 10.0


class Link:
    """An open conversation. Made by ``Link.open``."""

    def __init__(self, address: Address, sock: socket.socket, hello: Hello) -> None:
        self.address = address
        self.closed = False
        self._dialogue = Dialogue(hello)
        # Two Python sockets on one connection. Each is used and closed under its lock, so
        # that no thread reads from a descriptor that means another file by now.
        self._writer = sock
        self._reader = sock.dup()
        self._write_wait = Wait(self._writer, SO_SNDTIMEO)
        self._read_wait = Wait(self._reader, SO_RCVTIMEO)
        self._unsent: deque[bytes] = deque()
        """Encoded frames, in order; whoever holds ``_sending`` sends them all."""
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
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
        link = cls(address, sock, hello)
        try:
            link._handshake(deadline)
        except (ConnectionLost, ProtocolError) as error:
            link.close()
            raise ConnectError(f"no conversation with {address}: {error}") from error
        except BaseException:
            link.close()
            raise
        return link

    def _handshake(self, deadline: float) -> None:
        while not self._dialogue.open:
            if time.monotonic() >= deadline:
                raise ConnectionLost("the broker did not finish the handshake in time")
            frames = self._read(left_s(deadline))
            while frames and not self._dialogue.open:
                answer = self._dialogue.reply(frames.pop(0))
                if answer is not None:
                    self.send(answer, timeout_s=left_s(deadline))
            self._early = frames

    @property
    def greeting(self) -> Greeting:
        """Who the broker is; its limits are in ``greeting.limits``."""
        return self._dialogue.greeting

    @property
    def welcome(self) -> Welcome:
        """The broker's answer to Hello; raw holds those of Hello's tokens that are lost."""
        return self._dialogue.welcome

    def send(self, *frames: Frame, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """The frames are with the kernel, or with a thread that is sending right now.

        In order and unmixed with another thread's; those over the frame limit go in parts.
        Raises ProtocolError or ValueError for a frame that cannot be said, and nothing was
        sent; and as ``flush``.
        """
        self.put(*frames)
        self.flush(timeout_s)

    def put(self, *frames: Frame) -> None:
        """The frames go out with the next ``flush``, in order. Never waits.

        Raises ProtocolError or ValueError for a frame that cannot be said; none goes then.
        """
        self._unsent.append(self._dialogue.encode(*frames))

    def flush(self, timeout_s: float = SEND_TIMEOUT_S) -> None:
        """What was put is with the kernel, or with a thread that is sending right now.

        Threads that call at the same moment share one system call: who finds another one
        sending leaves its frames to it. Raises ConnectionLost, also if the broker reads
        nothing for ``timeout_s``; the thread that was left frames closes the link then.
        """
        # Asked again after each release: frames may have come that saw the lock still held.
        while self._unsent and self._sending.acquire(blocking=False):
            try:
                self._send_unsent(timeout_s)
            finally:
                self._sending.release()
        if self.closed:
            self._dispose()
            raise ConnectionLost(f"the connection to {self.address} is closed")

    def _send_unsent(self, timeout_s: float) -> None:
        """Under ``_sending``."""
        try:
            if timeout_s != self._write_wait.timeout_s:
                self._write_wait.set(timeout_s)
            while self._unsent:
                put = [self._unsent.popleft() for _ in range(len(self._unsent))]
                self._writer.sendall(b"".join(put))
        except (TimeoutError, BlockingIOError):
            self.close()
            raise ConnectionLost(f"{self.address} read nothing for {timeout_s:g} s") from None
        except OSError as error:
            self.close()
            raise ConnectionLost(f"{self.address} is gone: {reason_of(error)}") from error
        except BaseException:  # a signal's, in the middle of a frame
            self.close()
            raise

    def receive(self, timeout_s: float | None) -> list[Frame]:
        """The frames that have arrived, parts put together; none if nothing came in time.

        Waits for the first bytes at most ``timeout_s`` (None: for ever), and returns none
        earlier if those complete no frame. Raises ConnectionLost at the end of the
        connection, ProtocolError if the broker breaks the protocol.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        return self._read(timeout_s)

    def _read(self, timeout_s: float | None) -> list[Frame]:
        try:
            return self._read_alone(timeout_s)
        finally:
            if self.closed:
                self._dispose()

    def _read_alone(self, timeout_s: float | None) -> list[Frame]:
        with self._receiving:
            try:
                if timeout_s != self._read_wait.timeout_s:
                    self._read_wait.set(timeout_s)
                data = self._reader.recv(RECEIVE_BYTES, self._read_wait.flags)
                if data:
                    return self._dialogue.feed(data)
            except (TimeoutError, BlockingIOError):
                return []
            except OSError as error:
                self.close()
                raise ConnectionLost(f"{self.address} is gone: {reason_of(error)}") from error
            except BaseException:  # the protocol's, or a signal's between reading and feeding
                self.close()
                raise
            self.close()
            raise ConnectionLost(f"{self.address} closed the connection")

    def server_ms(self) -> int:
        """The broker's wall clock now, in milliseconds since 1970."""
        return self._dialogue.server_ms()

    def fileno(self) -> int:
        """The descriptor to wait on for reading; -1 once closed."""
        return self._reader.fileno()

    def close(self) -> None:
        """The connection is closed; threads that wait in it get ConnectionLost at once."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._writer.shutdown(socket.SHUT_RDWR)
        self._dispose()

    def _dispose(self) -> None:
        """Close the sockets that nobody uses now; who uses one does this when it is done.

        Nobody waits here: two that close could be waiting for each other.
        """
        for lock, sock in ((self._receiving, self._reader), (self._sending, self._writer)):
            if lock.acquire(blocking=False):
                sock.close()
                lock.release()

    def abandon(self) -> None:
        """Only our descriptors are closed: after a fork, the parent's connection goes on.

        Takes no lock: a thread that held it does not exist in the child.
        """
        self.closed = True
        self._writer.close()
        self._reader.close()


class Wait:
    """How long one direction of a socket may block.

    The kernel is told (SO_RCVTIMEO, SO_SNDTIMEO): a socket with a timeout of Python's
    polls before each call, and that is twice the system calls. Where the kernel does not
    take a timeval, or somebody has put other sockets in the place of Python's, it is
    Python's timeout after all.
    """

    __slots__ = ("_option", "_sock", "flags", "timeout_s")

    def __init__(self, sock: socket.socket, option: int) -> None:
        native = os.name == "posix" and socket.socket.__module__ == "socket"
        self._sock = sock
        self._option = option if native else 0
        self.flags = 0
        self.timeout_s: float | None = -1.0
        if native:
            sock.settimeout(None)

    def set(self, timeout_s: float | None) -> None:
        """Calls from now on wait so long: None is for ever, 0 not at all."""
        self.timeout_s = timeout_s
        if not self._option:
            self._sock.settimeout(timeout_s)
            return
        self.flags = 0 if timeout_s is None or timeout_s > 0 else socket.MSG_DONTWAIT
        if not self.flags:
            micros = 0 if timeout_s is None else max(1, int(timeout_s * 1e6))
            value = TIMEVAL.pack(*divmod(micros, 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, self._option, value)


TIMEVAL = Struct("@ll")
SO_RCVTIMEO = getattr(socket, "SO_RCVTIMEO", 0)
SO_SNDTIMEO = getattr(socket, "SO_SNDTIMEO", 0)


def left_s(deadline: float) -> float:
    """Seconds until a deadline on the monotonic clock, never below a millisecond."""
    return max(deadline - time.monotonic(), 0.001)


def reason_of(error: OSError) -> str:
    """What the operating system says, in its words."""
    return error.strerror or str(error) or type(error).__name__
