"""The HTTP port: metrics for Prometheus, health for whoever restarts us.

Rule 1. Read only. There is no verb here that changes anything.
Rule 2. A listener on loopback answers only to names of this machine: a web page that
        points its own name at 127.0.0.1 (DNS rebinding) is refused.
Rule 3. It runs on the engine's loop, so every answer is short and bounded.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from qbroker.ops.metrics import Metrics

INDEX = "qbroker: /metrics for Prometheus, /health for whoever restarts it\n"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
BACKLOG = 64
KEEPALIVE_S = 15.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Http:
    """The HTTP listener of one broker."""

    def __init__(self, metrics: Metrics, health: Callable[[], dict[str, object]]) -> None:
        """``health`` gives the report, whose status is "ok" or the reason for a 503."""
        self._metrics = metrics
        self._health = health
        self._runner: web.AppRunner | None = None
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
        await web.TCPSite(self._runner, host, port, backlog=BACKLOG).start()
        address = self._runner.addresses[0]
        return address[0], address[1]

    async def close(self) -> None:
        """No more answers."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
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
            body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _get_health(self, _: web.Request) -> web.Response:
        report = self._health()
        return web.Response(
            status=200 if report["status"] == "ok" else 503,
            text=json.dumps(report) + "\n",
            content_type="application/json",
        )


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
