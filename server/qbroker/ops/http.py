"""The HTTP port: metrics for Prometheus, health for whoever restarts us.

Rule 1. Read only. There is no verb here that changes anything.
Rule 2. A listener on loopback answers only to names of this machine: a web page that
        points its own name at 127.0.0.1 (DNS rebinding) is refused.
Rule 3. It runs on the engine's loop, so every answer is short and bounded.
Rule 4. Connections are counted: one above the limit is told so and hung up on, and one that
        asks nothing for KEEPALIVE_S gives up its place.
"""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

INDEX = "qbroker: /metrics for Prometheus, /health for whoever restarts it\n"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
BACKLOG = 64
KEEPALIVE_S = 15.0
LINGER_S = 1.0
"""How long one that was refused may take to read why."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Http:
    """The HTTP listener of one broker."""

    def __init__(
        self,
        metrics: Callable[[], Awaitable[bytes]],
        health: Callable[[], dict[str, object]],
        connections_max: int,
    ) -> None:
        """``metrics`` gives the text.

        ``health`` gives the report, whose status is "ok" or the reason for a 503.
        """
        self._metrics = metrics
        self._health = health
        self._connections_max = connections_max
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._silent: set[asyncio.BaseProtocol] = set()
        """Connections that have asked nothing yet."""
        self._guarded = True

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Requests are answered at the address returned. Raises OSError if it cannot be had."""
        self._guarded = is_loopback(host)
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.router.add_get("/", self._index)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/health", self._get_health)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    def _accept(self) -> asyncio.Protocol:
        """Who deals with one more connection."""
        assert self._runner is not None
        answering = self._runner.server
        assert answering is not None
        if len(answering.connections) >= self._connections_max:
            return Refusal(self._connections_max)
        handler = answering()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(KEEPALIVE_S, self._hang_up, handler)
        return handler

    def _hang_up(self, handler: web.RequestHandler) -> None:
        """Unless it has asked something by now."""
        if handler in self._silent:
            self._silent.discard(handler)
            handler.force_close()

    async def close(self) -> None:
        """No more answers."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        if self._guarded and not is_loopback(host_of(request.headers.get("Host", ""))):
            return web.Response(
                status=403,
                text="the Host header does not name this machine: ask for localhost or 127.0.0.1\n",
            )
        response = await handler(request)
        response.headers.update(HEADERS)
        return response

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=await self._metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _get_health(self, _: web.Request) -> web.Response:
        report = self._health()
        return web.Response(
            status=200 if report["status"] == "ok" else 503,
            text=json.dumps(report) + "\n",
            content_type="application/json",
        )


class Refusal(asyncio.Protocol):
    """Answers one connection that there is no room for it, and ends it.

    What it sends is read and thrown away: closing over unread bytes would send a reset, and
    the peer might never see why.
    """

    def __init__(self, limit: int) -> None:
        text = (
            f"{limit} connections are open, the limit: try again, or raise http_connections_max\n"
        )
        self._answer = (
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n\r\n{text}"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.write(self._answer.encode())
        stream.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, stream.abort)


def host_of(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, whoever resolves it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") in ("localhost", "localhost.localdomain")
