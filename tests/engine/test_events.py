"""Events: who gets them, what a slow listener loses, and that no log has heard of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.conftest import Place
from qbroker import events as hub
from qbroker.events import Events
from qprotocol import frames as f
from qprotocol.codec import Decoder
from qprotocol.limits import EVENT_BYTES_MAX, LISTENERS_MAX
from qprotocol.message import Message


def looped(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, on a loop of its own."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


class Ear:
    """A connection that reads when it is told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.unsent_bytes = 0
        self.frames: list[f.Frame] = []
        self.news = asyncio.Event()

    def send(self, data: bytes) -> None:
        self.frames += Decoder().feed(data)
        self.news.set()

    def heard(self) -> list[tuple[int, str, bytes, int]]:
        found = [(e.listener, e.topic, e.raw, e.dropped) for e in self.frames]
        self.frames.clear()
        return found


def listen(events: Events, ear: Ear, *patterns: str, number: int = 1) -> f.Frame:
    return events.listen(ear, f.Listen(listener=number, patterns=list(patterns), correlation=9))


def notify(events: Events, topic: str, raw: bytes = b"") -> f.Frame:
    return events.notify(f.Notify(topic=topic, raw=raw, correlation=8), in_parts=False)


def test_who_listens_hears_what_fits_once() -> None:
    events, one, two = Events(1000), Ear(1), Ear(2)
    assert listen(events, one, "a.#", "a.*") == f.Ok(count=2, correlation=9)
    listen(events, one, "#", number=2)
    listen(events, two, "b")
    assert notify(events, "a.x", b"1") == f.Ok(count=2, correlation=8)
    assert sorted(one.heard()) == [(1, "a.x", b"1", 0), (2, "a.x", b"1", 0)]
    assert notify(events, "b", b"2").count == 2
    assert two.heard() == [(1, "b", b"2", 0)]
    assert events.counts == {"published": 2, "delivered": 4}


def test_a_listener_that_says_it_again_has_the_new_patterns_alone() -> None:
    events, ear = Events(1000), Ear(1)
    listen(events, ear, "a")
    listen(events, ear, "b", "b")
    assert (notify(events, "a").count, notify(events, "b").count) == (0, 1)
    assert listen(events, ear) == f.Ok(count=0, correlation=9)
    assert notify(events, "b").count == 0
    assert events.listeners == 0


def test_who_is_gone_hears_nothing() -> None:
    events, ear, other = Events(1000), Ear(1), Ear(2)
    for number in range(3):
        listen(events, ear, "#", number=number)
    listen(events, other, "#")
    events.disconnected(1)
    assert notify(events, "a").count == events.listeners == 1
    assert ear.heard() == []


def test_what_is_wrong_is_said() -> None:
    events, ear = Events(1000), Ear(1)
    assert listen(events, ear, "a*").code == "BAD_REQUEST"
    assert notify(events, "t" * 256).code == "BAD_REQUEST"
    assert notify(events, "t", bytes(EVENT_BYTES_MAX + 1)).code == "BODY_TOO_LARGE"
    parted = events.notify(f.Notify(topic="t", correlation=1), in_parts=True)
    assert parted.code == "BODY_TOO_LARGE"
    for number in range(LISTENERS_MAX):
        assert isinstance(listen(events, ear, "a", number=number), f.Ok)
    assert listen(events, ear, "a", number=99).code == "LIMIT_REACHED"


@looped
async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    events, slow, quick = Events(3 * 210), Ear(1), Ear(2)
    listen(events, slow, "#")
    listen(events, quick, "#")
    slow.unsent_bytes = hub.UNSENT_BYTES + 1
    for number in range(10):
        assert notify(events, f"t.{number}", bytes(10)).count == 2
    assert len(quick.heard()) == 10
    assert slow.heard() == []
    events.flush()
    assert slow.heard() == []
    slow.unsent_bytes = 0
    notify(events, "t.10", bytes(10))  # behind those that wait, one of which goes for it
    events.flush()
    got = slow.heard()
    assert [topic for _, topic, _, _ in got] == ["t.8", "t.9", "t.10"]
    assert [dropped for *_, dropped in got] == [8, 0, 0]
    notify(events, "t.11")
    assert slow.heard() == [(1, "t.11", b"", 0)]
    assert events.counts["dropped"] == 8
    events.close()


@looped
async def test_it_is_looked_again_by_itself(monkeypatch) -> None:
    monkeypatch.setattr(hub, "AGAIN_S", 0.001)
    events, ear = Events(1000), Ear(1)
    listen(events, ear, "#")
    ear.unsent_bytes = hub.UNSENT_BYTES + 1
    notify(events, "t")
    await asyncio.sleep(0.005)
    ear.unsent_bytes = 0
    async with asyncio.timeout(10):
        await ear.news.wait()
    assert ear.heard() == [(1, "t", b"", 0)]


@looped
async def test_a_slow_listener_that_leaves_is_forgotten() -> None:
    events, ear = Events(1000), Ear(1)
    listen(events, ear, "#")
    ear.unsent_bytes = hub.UNSENT_BYTES + 1
    notify(events, "t")
    events.disconnected(1)
    ear.unsent_bytes = 0
    events.flush()
    assert ear.heard() == []
    events.close()


@pytest.mark.parametrize("size", [10, 10_000])
@looped
async def test_one_event_larger_than_the_buffer_is_dropped(size) -> None:
    events, ear = Events(1000), Ear(1)
    listen(events, ear, "#")
    ear.unsent_bytes = hub.UNSENT_BYTES + 1
    notify(events, "t", bytes(size))
    assert events.counts["dropped"] == (size > 1000)
    events.close()


@looped
async def test_events_wait_for_no_disk_and_are_in_no_log(place: Place) -> None:
    """While a sync hangs, confirms wait and events do not."""
    async with place.engine() as engine:
        producer, ear = place.peer(engine), place.peer(engine)
        await producer.hello()
        await ear.hello("consumer")
        assert (await ear.ask(f.Listen(listener=5, patterns=["order.#"]))).count == 1
        place.disk.gate.clear()
        publish = asyncio.create_task(producer.publish(Message("q", b"1"), sequence=1))
        before = engine.appended_bytes
        answer = await producer.ask(f.Notify(topic="order.paid", raw=b"x"))
        assert isinstance(answer, f.Ok)
        event = await ear.get(f.Event)
        assert (event.listener, event.topic, event.raw) == (5, "order.paid", b"x")
        assert not publish.done()
        place.disk.gate.set()
        assert isinstance(await publish, f.Published)
        assert (await engine.statistics()).events == {"published": 1, "delivered": 1}
        assert (await engine.statistics()).listeners == 1
        for _ in range(100):
            await producer.ask(f.Notify(topic="order.paid", raw=b"x"))
        assert engine.appended_bytes - before < 4096
        engine.disconnected(ear)
        assert (await producer.ask(f.Notify(topic="order.paid"))).count == 0


@looped
async def test_an_event_in_parts_is_refused(place: Place) -> None:
    async with place.engine() as engine:
        peer = place.peer(engine)
        await peer.hello()
        peer.say(f.Part(index=0, of=f.Notify.TYPE, correlation=2, raw=b"half"))
        answer = await peer.ask(f.Notify(topic="t", raw=b"half"))
        assert answer.code == "BODY_TOO_LARGE"
        assert (await peer.ask(f.Notify(topic="t", raw=b"whole"))).count == 0
