"""How many may ask over HTTP at once, and for how long one may say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import Callable
from typing import Any

import pytest

from qbroker.ops import http as ours


@pytest.mark.e2e
def test_one_connection_too_many_is_told_so(
    start: Callable[..., Any], until: Callable[[Callable[[], Any]], Any]
) -> None:
    """503 with a reason; those who are in are served, and who leaves makes room."""
    daemon = start("--http-connections-max", "3")
    url = daemon.metrics_url.split("/")[2]
    with contextlib.ExitStack() as stack:
        held = [http.client.HTTPConnection(url, timeout=10) for _ in range(3)]
        for connection in held:
            stack.callback(connection.close)
            assert ask(connection, "/health") == 200
        status, text = daemon.get("/health")
        assert status == 503
        assert text == (
            "3 connections are open, the limit: try again, or raise http_connections_max\n"
        )
        assert ask(held[0], "/metrics") == 200
        held[1].close()
        until(lambda: daemon.get("/health")[0] == 200)


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    """The status of the answer, which is read to its end: the connection stays open."""
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status


async def nothing() -> bytes:
    return b""


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
def test_a_connection_that_asks_nothing_gives_up_its_place(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, or a request that does not end, is hung up on after KEEPALIVE_S."""
    monkeypatch.setattr(ours, "KEEPALIVE_S", 0.1)

    async def story() -> None:
        served = ours.Http(nothing, dict, 2)
        host, port = await served.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await served.close()

    asyncio.run(story())
