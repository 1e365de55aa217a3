"""Events of an App, blocking and from asyncio, with a real broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.daemon import Daemon
from qclient import App
from qclient.exceptions import ConnectError
from qprotocol.limits import EVENT_BYTES_MAX

pytestmark = pytest.mark.e2e
WAIT_S = 30.0


@pytest.fixture
def live(broker: Daemon) -> Iterator[App]:
    with App("shop", broker=broker.url, set_as_current=False) as app:
        yield app


def test_who_listens_hears_what_fits(live: App) -> None:
    assert live.events.publish("early.bird") == 0
    with live.events.subscribe("order.#", "news") as events:
        assert live.events.publish("order.eu.paid", {"id": 17}) == 1
        assert live.events.publish("invoice", 1) == 0
        assert live.events.publish("news", [1, "ä", None]) == 1
        first, second = events.next(WAIT_S), events.next(WAIT_S)
        assert first is not None
        assert second is not None
        assert (first.topic, first.payload) == ("order.eu.paid", {"id": 17})
        assert (second.topic, second.payload, second.missed) == ("news", [1, "ä", None], 0)
        assert events.next(0.05) is None


def test_what_cannot_be_is_refused_here(live: App) -> None:
    with pytest.raises(ValueError, match="at least one pattern"):
        live.events.subscribe()
    with pytest.raises(ValueError, match="within the word"):
        live.events.subscribe("or*")
    with pytest.raises(ValueError, match="65541 bytes: at most 65536"):
        live.events.publish("t", bytes(EVENT_BYTES_MAX))
    with pytest.raises(TypeError, match="the event t cannot be sent"):
        live.events.publish("t", object())


def test_another_thread_ends_the_wait(live: App) -> None:
    events = live.events.subscribe("#")
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(events))
    thread.start()
    live.events.publish("a")
    live.events.publish("b")
    live.events.publish("end")
    for _ in range(1000):
        if len(seen) == 3:
            break
        thread.join(0.01)
    events.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [event.topic for event in seen] == ["a", "b", "end"]


def test_the_same_from_asyncio(live: App) -> None:
    async def story() -> None:
        async with live.events.subscribe_async("order.*") as events:
            assert await live.events.publish_async("order.paid", 1) == 1
            assert await live.events.publish_async("order.eu.paid", 2) == 0
            assert await live.events.publish_async("order.sent", 3) == 1
            seen = []
            async for event in events:
                seen.append((event.topic, event.payload))
                if len(seen) == 2:
                    break
            assert seen == [("order.paid", 1), ("order.sent", 3)]
            assert await events.next(0.05) is None
            waiting = asyncio.create_task(events.next())
            await asyncio.sleep(0)
            await events.close()
            assert await waiting is None
        await live.close_async()

    asyncio.run(story())


def test_a_subscription_outlives_the_broker(tmp_path: Path) -> None:
    """It connects again, and says that something may have been missed."""
    daemon = Daemon(tmp_path).start()
    try:
        with App("shop", broker=daemon.url, set_as_current=False) as app:
            with app.events.subscribe("#") as events:
                app.events.publish("one")
                first = events.next(WAIT_S)
                assert first is not None
                assert not first.reconnected
                daemon.kill()
                daemon.start()
                assert events.next(0.5) is None
                for _ in range(100):
                    app.events.publish("two")
                    second = events.next(0.3)
                    if second is not None:
                        break
                assert second is not None
                assert second.reconnected
                third = events.next(0.1)
                assert third is None or not third.reconnected

            async def story() -> None:
                async with app.events.subscribe_async("#") as events:
                    daemon.kill()
                    daemon.start()
                    for _ in range(100):
                        await app.events.publish_async("three")
                        event = await events.next(0.3)
                        if event is not None:
                            break
                    assert event is not None
                    assert event.reconnected
                await app.close_async()

            asyncio.run(story())
    finally:
        daemon.close()


def test_without_a_broker_there_is_nothing_to_listen_to() -> None:
    app = App("shop", broker="qbroker://127.0.0.1:1", set_as_current=False)
    app.conf.broker_timeout_s = 0.3
    with pytest.raises(ConnectError):
        app.events.subscribe("#")

    async def story() -> None:
        with pytest.raises(ConnectError):
            async with app.events.subscribe_async("#"):
                pass

    asyncio.run(story())
