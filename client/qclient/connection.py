"""The blocking shell: one connection a process, shared by its threads, found again when lost.

A call adds its request, sends it, and waits. Whoever waits first *leads*: it reads the socket
in its own thread and hands the others theirs; when it has its own answer it passes the lead
on. So a lone caller makes its round trip without another thread, many callers share one
read, and an idle client has no thread at all.

    call: add -> send -> wait -+- nobody leads -> lead: connect, read, hand out ... -> pass on
                               `- somebody leads -> sleep until answered, or asked to lead

Rule 1. ``_lock`` guards ``_pending``, ``_link`` and ``_leader``; nobody waits for the network
        under it.
Rule 2. Only the leader connects and reads. Anybody sends.
Rule 3. Every wait ends at its request's deadline.
Rule 4. After a fork the child has a new producer, no requests and no connection.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from qclient.address import Address
from qclient.exceptions import ConnectError, ConnectionLost, QBrokerError, RefusedError
from qclient.link import Link, left_s
from qclient.pending import Pending, Request
from qprotocol.errors import ProtocolError
from qprotocol.frames import Frame, Hello

F = TypeVar("F", bound=Frame)

IDLE_S = 1.0
"""A connection unused for so long is looked at before it is used: the broker may have left."""

NEARLY = 0.99
"""A wait that has just begun is as good as a whole one."""


class Connection:
    """The blocking connection of one App in one process."""

    def __init__(self, address: Address, hello: Callable[[], Hello]) -> None:
        self.address = address
        self._hello = hello
        self._reset()
        _connections.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pending = Pending()
        self._link: Link | None = None
        self._leader: Request | None = None
        self._used_at = 0.0

    def call(self, frame: Frame, kind: type[F], timeout_s: float) -> F:
        """The broker's answer to ``frame``, a ``kind``.

        Raises NotDone, OutcomeUnknown, or the refusal named for the broker's code.
        One round trip in the caller's thread.
        """
        answer = self.wait(self.submit(frame, timeout_s))
        if type(answer) is not kind:
            raise ProtocolError("BAD_FRAME", f"{answer!r:.80} where {kind.__name__} was due")
        return answer

    def submit(self, frame: Frame | None, timeout_s: float) -> Request:
        """``frame`` is on its way; ``wait`` for it. Blocks only if the socket is full."""
        now = time.monotonic()
        with self._lock:
            request = self._pending.add(frame, timeout_s, now)
            if now - self._used_at > IDLE_S:
                self._look()
            self._used_at = now
            link = self._link
            if frame is None and link is not None and not link.closed:
                self._pending.opened()
            if frame is None or link is None or not self._pending.may_send(request, now):
                return request
            try:
                link.put(frame)
            except BaseException:  # a frame that cannot be said
                self._pending.abandon(request)
                raise
            self._pending.mark_sent(request)
        try:
            link.flush(timeout_s)
        except ConnectionLost as error:
            self._lost(link, error)  # whoever leads connects and sends again
        except BaseException:  # a signal's
            if link.closed:
                self._lost(link, ConnectionLost("interrupted by a signal"))
            with self._lock:
                self._pending.abandon(request)
            raise
        return request

    def wait(self, request: Request) -> Frame | None:
        """The answer to a request, or its error raised. Ends at its deadline."""
        try:
            while not request.done:
                waker = None
                with self._lock:
                    if request.done:
                        break
                    if self._leader is None:
                        self._leader = request
                    else:
                        waker = threading.Lock()
                        waker.acquire()
                        request.on_done = waker.release
                if waker is None:
                    self._lead(request)
                else:
                    waker.acquire(timeout=left_s(request.deadline))
                if time.monotonic() >= request.deadline:
                    with self._lock:
                        self._pending.expire(request)
        finally:
            if not request.done or self._leader is request:
                self._step_down(request)
        if request.error is not None:
            raise request.error
        return request.answer

    def _step_down(self, request: Request) -> None:
        """Pass the lead on; forget a request whose caller was interrupted."""
        with self._lock:
            request.on_done = None
            self._pending.abandon(request)
            if self._leader is request:
                self._leader = None
                for other in self._pending.requests.values():
                    if other.on_done is not None:
                        wake, other.on_done = other.on_done, None
                        wake()
                        break

    def _lead(self, request: Request) -> None:
        """Read for everybody until ``request`` is done or late. Connects if need be."""
        while not request.done:
            now = time.monotonic()
            if now >= request.deadline:
                return
            link = self._link
            if link is None:
                self._connect(request)
                continue
            if link.closed:
                self._lost(link, ConnectionLost("the connection was closed"))
                continue
            with self._lock:
                due = self._pending.next_due(now)
            timeout_s = (request.deadline if due is None else min(due, request.deadline)) - now
            if timeout_s > request.timeout_s * NEARLY:
                timeout_s = request.timeout_s  # a new one would cost a system call
            self._read(link, timeout_s)

    def _read(self, link: Link, timeout_s: float) -> None:
        """Take what arrives within ``timeout_s``; send what may be sent after it."""
        try:
            frames = link.receive(timeout_s)
        except (ConnectionLost, ProtocolError) as error:
            self._lost(link, error)
            return
        except BaseException:  # a signal's: the link has closed itself
            if link.closed:
                self._lost(link, ConnectionLost("interrupted by a signal"))
            raise
        now = time.monotonic()
        with self._lock:
            if frames:
                self._pending.take(frames, now)
            if self._pending.leaving and self._pending.idle:
                link.close()
                self._forget(link, self._pending.why)
                return
            again = self._pending.sendable(now)
        if again:
            self._send(link, again, timeout_s)

    def _connect(self, request: Request) -> None:
        """One attempt, when its time has come, within the leader's deadline."""
        attempts = self._pending.attempts
        pause_s = attempts.wait_s(time.monotonic(), request.timeout_s)
        if pause_s:
            time.sleep(pause_s)
        attempts.begin(time.monotonic())
        timeout_s = left_s(request.deadline)
        try:
            link = Link.open(self.address, self._hello(), timeout_s=timeout_s)
        except ConnectError as error:
            late = time.monotonic() >= request.deadline
            if not (late and attempts.refused_since(request.deadline - request.timeout_s)):
                self._pending.why = str(error)
        except RefusedError as error:
            attempts.refused(time.monotonic())
            with self._lock:
                self._pending.why = str(error)
                if not error.retryable:
                    self._pending.refuse(request, error)
        else:
            with self._lock:
                self._link = link
                self._pending.opened()
                frames = self._pending.sendable(time.monotonic())
            self._send(link, frames, timeout_s)

    def _send(self, link: Link, frames: list[Frame], timeout_s: float) -> None:
        try:
            link.send(*frames, timeout_s=timeout_s)
        except (ConnectionLost, ProtocolError) as error:
            self._lost(link, error)

    def _look(self) -> None:
        """Note, without waiting, what an idle connection has said. Under the lock."""
        link = self._link
        if link is None or self._leader is not None:
            return
        try:
            frames = link.receive(0)
            if frames:
                self._pending.take(frames, time.monotonic())
        except (ConnectionLost, ProtocolError) as error:
            self._forget(link, str(error))
        else:
            if self._pending.leaving:
                link.close()
                self._forget(link, self._pending.why)

    def _lost(self, link: Link, error: QBrokerError) -> None:
        link.close()
        with self._lock:
            self._forget(link, str(error))

    def _forget(self, link: Link, why: str) -> None:
        if self._link is link:
            self._link = None
            self._pending.lost(why)

    def server_ms(self, timeout_s: float) -> int:
        """The broker's wall clock now. Connects if there is no connection. Raises NotDone."""
        link = self._link
        while link is None:
            self.wait(self.submit(None, timeout_s))
            link = self._link
        return link.server_ms()

    def close(self) -> None:
        """No connection is left; calls under way fail. The next call opens a new one."""
        with self._lock:
            link, self._link = self._link, None
            for request in list(self._pending.requests.values()):
                request.deadline = 0.0
                self._pending.expire(request)
        if link is not None:
            link.close()

    def _after_fork(self) -> None:
        link = self._link
        self._reset()
        if link is not None:
            link.abandon()


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def _forked() -> None:
    for connection in list(_connections):
        connection._after_fork()  # noqa: SLF001  # this file's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
