"""The asyncio shell: one connection a loop, shared by its coroutines, found again when lost.

The same four steps as any shell: feed bytes, take frames, act, write bytes. What is to be
done about requests is decided in pending.py, exactly as for the blocking shell.

Rule 1. Everything happens on the loop that made it; no thread, no lock.
Rule 2. At most one task runs here, and only while there is no connection and somebody waits.
Rule 3. Every wait ends at its request's deadline.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TypeVar, cast

from qclient.address import Address
from qclient.dialogue import Dialogue
from qclient.exceptions import ConnectError, RefusedError
from qclient.link import left_s, reason_of
from qclient.pending import Pending, Request
from qprotocol.errors import ProtocolError, QBrokerError
from qprotocol.frames import Frame, Hello

F = TypeVar("F", bound=Frame)


class Wire(asyncio.Protocol):
    """One socket on the loop: bytes to frames for its owner."""

    def __init__(self, hello: Hello, on_frames: Callable[[list[Frame]], None]) -> None:
        self.dialogue = Dialogue(hello)
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The reason, once the connection has ended."""
        self._on_frames = on_frames
        self._transport: asyncio.Transport | None = None
        self._why = "the broker closed the connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self.dialogue.feed(data)
            while frames and not self.dialogue.open:
                answer = self.dialogue.reply(frames.pop(0))
                if answer is not None:
                    self.send(answer)
            if self.dialogue.open and not self.opened.done():
                self.opened.set_result(None)
        except QBrokerError as error:
            self._why = str(error)
            if not self.opened.done():
                self.opened.set_exception(error)
            self.close()
            return
        if frames:
            self._on_frames(frames)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError):
            self._why = reason_of(exc)
        if not self.opened.done():
            self.opened.set_exception(ConnectError(self._why))
        self.gone.set_result(self._why)

    def send(self, *frames: Frame) -> None:
        """Queue the frames. Raises ValueError for one that cannot be said."""
        assert self._transport is not None
        self._transport.write(self.dialogue.encode(*frames))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class AsyncConnection:
    """The connection of one App on one loop. Make it, and use it, on that loop."""

    def __init__(self, address: Address, hello: Callable[[], Hello]) -> None:
        self.address = address
        self._hello = hello
        self._pending = Pending()
        self._wire: Wire | None = None
        self._clock: Dialogue | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def call(self, frame: Frame, kind: type[F], timeout_s: float) -> F:
        """The broker's answer to ``frame``, a ``kind``.

        Raises NotDone, OutcomeUnknown, or the refusal named for the broker's code.
        """
        answer = await self.wait(self.submit(frame, timeout_s))
        if type(answer) is not kind:
            raise ProtocolError("BAD_FRAME", f"{answer!r:.80} where {kind.__name__} was due")
        return answer

    def submit(self, frame: Frame | None, timeout_s: float) -> Request:
        """``frame`` is on its way; ``wait`` for it."""
        now = time.monotonic()
        request = self._pending.add(frame, timeout_s, now)
        if self._wire is None:
            self._connect_soon()
        elif frame is None:
            self._pending.opened()
        elif self._pending.may_send(request, now):
            self._pending.mark_sent(request)
            try:
                self._wire.send(frame)
            except ValueError:
                self._pending.abandon(request)
                raise
        return request

    async def wait(self, request: Request) -> Frame | None:
        """The answer to a request, or its error raised. Ends at its deadline."""
        if not request.done:
            done = asyncio.get_running_loop().create_future()
            request.on_done = lambda: None if done.done() else done.set_result(None)
            try:
                async with asyncio.timeout(left_s(request.deadline)):
                    await done
            except TimeoutError:
                self._pending.expire(request)
            finally:
                request.on_done = None
                self._pending.abandon(request)
        if request.error is not None:
            raise request.error
        return request.answer

    def _took(self, frames: list[Frame]) -> None:
        self._pending.take(frames, time.monotonic())
        if self._pending.leaving and self._pending.idle and self._wire is not None:
            self._wire.close()
        else:
            self._flush()

    def _flush(self) -> None:
        """Send what may be sent, and come back when more may be."""
        if self._wire is None:
            return
        now = time.monotonic()
        frames = self._pending.sendable(now)
        if frames:
            self._wire.send(*frames)
        due = self._pending.next_due(now)
        if due is not None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(due - now, self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._flush()

    def _connect_soon(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        """Attempts with backoff, for as long as somebody waits."""
        attempts = self._pending.attempts
        try:
            while self._pending.requests and self._wire is None:
                longest_s = max(r.timeout_s for r in self._pending.requests.values())
                await asyncio.sleep(attempts.wait_s(time.monotonic(), longest_s))
                attempts.begin(time.monotonic())
                await self._attempt()
        finally:
            self._connecting = None

    async def _attempt(self) -> None:
        attempts, requests = self._pending.attempts, self._pending.requests.values()
        began = min((r.deadline - r.timeout_s for r in requests), default=0.0)
        timeout_s = left_s(max((r.deadline for r in requests), default=0.0))
        wire = Wire(self._hello(), self._took)
        try:
            async with asyncio.timeout(timeout_s):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: wire, self.address.host, self.address.port)
                await wire.opened
        except RefusedError as error:
            wire.close()
            attempts.refused(time.monotonic())
            self._pending.why = str(error)
            if not error.retryable:
                for request in list(self._pending.requests.values()):
                    self._pending.refuse(request, error)
        except (OSError, QBrokerError) as error:  # TimeoutError is an OSError
            wire.close()
            if isinstance(error, TimeoutError) and attempts.refused_since(began):
                return
            why = reason_of(error) if isinstance(error, OSError) else str(error)
            self._pending.why = (
                f"no broker at {self.address}: {why}; is `qbroker serve` running there?"
            )
        except BaseException:
            wire.close()
            raise
        else:
            self._wire, self._clock = wire, wire.dialogue
            wire.gone.add_done_callback(self._lost)
            self._pending.opened()
            self._flush()

    def _lost(self, why: "asyncio.Future[str]") -> None:
        self._wire = None
        self._pending.lost(why.result())
        if self._pending.requests:
            self._connect_soon()

    async def server_ms(self, timeout_s: float) -> int:
        """The broker's wall clock now. Connects if there is no connection. Raises NotDone."""
        while self._wire is None:
            await self.wait(self.submit(None, timeout_s))
        return self.now_ms()

    def now_ms(self) -> int:
        """The broker's wall clock, by the latest connection; there has been one."""
        assert self._clock is not None
        return self._clock.server_ms()

    async def close(self) -> None:
        """No connection is left; calls under way fail. The next call opens a new one."""
        for request in list(self._pending.requests.values()):
            self._pending.expire(request)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        if self._wire is not None:
            self._wire.close()
            await self._wire.gone
