"""``app.events.subscribe_async``: events as they come, on the running loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from qclient.aconnection import Wire
from qclient.events import Event, Inbox
from qclient.exceptions import ConnectError, ConnectionLost, RefusedError
from qclient.link import reason_of
from qclient.pending import Attempts
from qprotocol import frames as f
from qprotocol.errors import QBrokerError

if TYPE_CHECKING:
    from qclient.app import App


class AsyncSubscription:
    """Events as they come. ``async with`` opens it; a connection of its own."""

    def __init__(self, app: "App", patterns: tuple[str, ...]) -> None:
        self._app = app
        self._patterns = patterns
        self._inbox = Inbox()
        self._attempts = Attempts()
        self._wire: Wire | None = None
        self._news = asyncio.Event()
        self._answered: asyncio.Future[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self._closed:
            event = await self.next()
            if event is not None:
                yield event

    async def next(self, timeout_s: float | None = None) -> Event | None:
        """The next event; None if there is none in time, or the subscription was closed.

        A lost connection is made anew for as long as there is time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._inbox.events and not self._closed:
                    if self._wire is None:
                        await self._reconnect()
                    else:
                        await self._news.wait()
                        self._news.clear()
        except TimeoutError:
            return None
        return self._inbox.events.popleft() if self._inbox.events else None

    def _took(self, frames: list[f.Frame]) -> None:
        answered = self._answered
        try:
            self._inbox.take(frames)
        except RefusedError as error:
            if answered is not None and not answered.done():
                answered.set_exception(error)
        except QBrokerError:  # Goaway, or what cannot be read
            self._lost()
        else:
            is_answer = any(isinstance(frame, f.Ok) for frame in frames)
            if is_answer and answered is not None and not answered.done():
                answered.set_result(None)
        self._news.set()

    async def _connect(self) -> None:
        """Raises ConnectError, or the refusal of the patterns."""
        loop, address = asyncio.get_running_loop(), self._app.address
        self._attempts.begin(time.monotonic())
        wire = Wire(self._app.hello(), self._took)
        self._answered = loop.create_future()
        try:
            async with asyncio.timeout(self._app.conf.broker_timeout_s):
                await loop.create_connection(lambda: wire, address.host, address.port)
                await wire.opened
                wire.send(f.Listen(listener=1, patterns=list(self._patterns), correlation=3))
                wire.gone.add_done_callback(lambda _: self._gone(wire))
                self._wire = wire
                await self._answered
        except OSError as error:  # TimeoutError is one
            self._lost(wire)
            raise ConnectError(f"no broker at {address}: {reason_of(error)}") from error
        except BaseException:
            self._lost(wire)
            raise
        self._attempts.succeed()

    async def _reconnect(self) -> None:
        pause_s = self._attempts.wait_s(time.monotonic(), self._app.conf.broker_timeout_s)
        await asyncio.sleep(pause_s)
        try:
            await self._connect()
        except (ConnectError, ConnectionLost):
            return

    def _gone(self, wire: Wire) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectError("the connection was lost"))
        if self._wire is wire:
            self._lost()
        self._news.set()

    def _lost(self, wire: Wire | None = None) -> None:
        self._inbox.reconnected = True
        wire, self._wire = wire or self._wire, None
        if wire is not None:
            wire.close()

    async def close(self) -> None:
        """No more events. Who waits for one is woken."""
        self._closed = True
        self._lost()
        self._news.set()
