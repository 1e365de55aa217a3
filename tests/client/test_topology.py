"""Exchanges and queues as values, where calls go by them, and what a real broker makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from e2e.daemon import Daemon
from qclient import (
    App,
    Binding,
    Broadcast,
    Context,
    Exchange,
    NoExchange,
    NoRoute,
    OptionsDiffer,
    Queue,
)
from qclient.exceptions import InUse, NoQueue, QueueFull
from qclient.mint import mint_one
from qclient.topology import declarations
from qprotocol import wire
from qprotocol.frames import Bind, Declare, DeclareExchange, Peek, Peeked
from qprotocol.message import (
    Delivery,
    Message,
    pack_fields,
    pack_origin,
    unpack_message,
)

EVENTS = Exchange("events", "topic", unroutable="drop")


@pytest.fixture
def shop() -> App:
    """An App that is never connected."""
    return App("shop", set_as_current=False)


def packed(app: App, signature) -> Message:
    recipe, body, key = signature.callee.prepare(signature)
    return unpack_message(recipe.finish(body, key, signature.options, 1, mint_one(1))[0])


CASES = [
    ({}, {}, {}, ("", "default")),
    ({"queue": "q"}, {}, {}, ("", "q")),
    ({"exchange": "e"}, {}, {}, ("e", "shop.t")),
    ({"exchange": "e", "routing_key": "a.b"}, {}, {}, ("e", "a.b")),
    ({"exchange": "e", "routing_key": ""}, {}, {}, ("e", "")),
    ({}, {"exchange": "e", "routing_key": "k"}, {}, ("e", "k")),
    ({"routing_key": "mine"}, {"exchange": "e", "routing_key": "k"}, {}, ("e", "mine")),
    ({"queue": "q"}, {"exchange": "e", "routing_key": "k"}, {}, ("", "q")),
    ({}, {"queue": "q"}, {"exchange": "e"}, ("", "q")),
    ({}, {}, {"exchange": "e", "routing_key": "k"}, ("e", "k")),
    ({"exchange": "", "routing_key": "q"}, {}, {"exchange": "e"}, ("", "q")),
    ({"queue": "news"}, {}, {}, ("news", "shop.t")),
]


@pytest.mark.parametrize(("call", "route", "task", "wanted"), CASES)
def test_the_nearest_that_says_where_to_is_heard(shop, call, route, task, wanted) -> None:
    shop.conf.task_queues = [Broadcast("news")]
    shop.conf.task_routes = {"shop.t": route} if route else {}
    shop.task(name="shop.t", **task)(lambda: None)
    message = packed(shop, shop.signature("shop.t", **call))
    assert (message.exchange, message.queue) == wanted


def test_a_queue_and_an_exchange_in_one_breath_are_refused(shop) -> None:
    with pytest.raises(ValueError, match="queue='q' and exchange='e' for shop.t: say one of them"):
        packed(shop, shop.signature("shop.t", queue="q", exchange="e"))


def test_a_call_that_need_not_arrive_says_so(shop) -> None:
    message = packed(shop, shop.signature("shop.t", exchange="e", mandatory=False))
    assert message.flags & wire.MAY_DROP
    assert not packed(shop, shop.signature("shop.t", exchange="e")).flags & wire.MAY_DROP


def test_a_task_sees_by_what_it_came(shop) -> None:
    message = packed(shop, shop.signature("shop.t", queue="q"))
    request = Context.from_delivery(Delivery(message, 1, 1), "here")
    assert (request.exchange, request.routing_key) == ("", "q")
    unique = packed(shop, shop.signature("shop.t", queue="q", unique_key="k"))
    request = Context.from_delivery(Delivery(unique, 1, 1), "here")
    assert (request.exchange, request.routing_key) == ("", "q")
    message.fields = pack_fields({wire.ORIGIN: pack_origin("events", "a.b")})
    request = Context.from_delivery(Delivery(message, 1, 1), "here")
    assert (request.exchange, request.routing_key, request.queue) == ("events", "a.b", "q")
    assert request.delivery_info["exchange"] == "events"
    assert request.delivery_info["routing_key"] == "a.b"


def test_declarations_are_made_once_and_in_order() -> None:
    things = [
        Queue("audit", EVENTS, "order.#"),
        Queue("mail", EVENTS, bindings=[Binding(EVENTS, "order.*.paid")]),
        Queue("plain"),
        Broadcast("news"),
        EVENTS,
    ]
    frames = declarations(things)
    assert [type(frame) for frame in frames] == [DeclareExchange, Bind, Bind, Bind, DeclareExchange]
    assert [frame.key for frame in frames if isinstance(frame, Bind)] == [
        "order.#",
        "mail",
        "order.*.paid",
    ]
    assert frames[0].options == {"alternate": "", "unroutable": "drop"}
    assert frames[-1].kind == "fanout"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Exchange("a/b"), "holds '/'"),
        (lambda: Exchange("e", unroutable="loose"), "unroutable is 'loose'"),
        (lambda: Queue("a b"), "holds ' '"),
        (lambda: Queue("a", EVENTS, "ord*"), "within the word 'ord\\*'"),
        (lambda: Queue("a", EVENTS, arguments={"x": 1}), "only headers has use"),
        (lambda: Broadcast(""), "is empty"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_setting_takes_queues_and_nothing_else(shop) -> None:
    with pytest.raises(ValueError, match="a list of Queue, Exchange and Broadcast"):
        shop.conf.task_queues = ["audit"]


# --- A real broker


@pytest.fixture
def live(broker: Daemon) -> Iterator[App]:
    with App("shop", broker=broker.url, set_as_current=False) as app:
        yield app


def count(app: App, queue: str) -> int:
    return app.connection.call(Peek(queue=queue, count=100), Peeked, 10.0).count


@pytest.mark.e2e
def test_copies_arrive_where_they_are_bound_for(live) -> None:
    kind = Exchange("live-events", "topic")
    live.conf.task_queues = [
        Queue("live-audit", kind, "order.#"),
        Queue("live-mail", kind, "order.*.paid"),
    ]
    live.declare()
    live.declare()
    options = {"exchange": "live-events", "routing_key": "order.eu.paid"}
    live.send_task("t", (1,), **options)
    live.send_many([live.signature("t", (n,), **options) for n in range(3)])
    live.send_task("t", (1,), exchange="live-events", routing_key="order")
    assert (count(live, "live-audit"), count(live, "live-mail")) == (5, 4)
    with pytest.raises(NoRoute) as caught:
        live.send_task("t", (1,), exchange="live-events", routing_key="invoice")
    assert caught.value.details["key"] == "invoice"
    live.send_task("t", (1,), exchange="live-events", routing_key="invoice", mandatory=False)
    with pytest.raises(NoExchange):
        live.send_task("t", (1,), exchange="live-nowhere")


@pytest.mark.e2e
def test_an_exchange_by_hand(live) -> None:
    events = live.exchange("hand", "headers")
    assert events.declare()
    assert not events.declare()
    assert events.bind("hand-paid", kind="paid")
    assert not events.bind("hand-paid", kind="paid")
    live.send_task("t", exchange="hand", headers={"kind": "paid"})
    assert count(live, "hand-paid") == 1
    with pytest.raises(OptionsDiffer) as caught:
        live.exchange("hand", "topic").declare()
    assert caught.value.details == {"kind": ["headers", "topic"]}
    with pytest.raises(InUse):
        events.delete(if_unused=True)
    assert events.unbind("hand-paid", kind="paid")
    assert not events.unbind("hand-paid", kind="paid")
    assert events.delete() == 0
    assert repr(events).startswith("<headers exchange hand at ")


@pytest.mark.e2e
def test_the_same_from_asyncio(live) -> None:
    async def story() -> None:
        events = live.exchange("loop", "fanout")
        assert await events.declare_async()
        assert await events.bind_async("loop-a")
        await live.declare_async(Queue("loop-b", events.exchange))
        await live.send_task_async("t", exchange="loop")
        assert await events.unbind_async("loop-a")
        assert await events.delete_async() == 1
        await live.close_async()

    asyncio.run(story())
    assert (count(live, "loop-a"), count(live, "loop-b")) == (1, 1)


# Options of queues.


def test_a_queue_with_options_is_declared_first() -> None:
    queue = Queue("mail", EVENTS, "order.#", options={"max_length": 5})
    first, *rest = declarations([queue])
    assert first == Declare(queue="mail", options={"max_length": 5})
    assert [type(frame) for frame in rest] == [DeclareExchange, Bind]
    assert declarations([Queue("plain")]) == []


def test_options_that_no_queue_has_are_refused_in_code() -> None:
    with pytest.raises(ValueError, match="did you mean 'max_length'"):
        Queue("mail", options={"max_lenght": 5})
    with pytest.raises(ValueError, match="overflow is 'explode'"):
        Queue("mail", options={"overflow": "explode"})


@pytest.mark.e2e
def test_a_queue_is_declared_changed_and_deleted(broker: Daemon) -> None:
    app = App("options", broker.url, set_as_current=False)
    with app:
        mail = app.queue("options.mail", max_length=2)
        assert mail.declare()
        assert not mail.declare()
        assert "options.mail" in repr(mail)
        with pytest.raises(OptionsDiffer) as caught:
            app.queue("options.mail", max_length=3, history="none").declare()
        assert caught.value.details["conflicts"] == [
            {"option": "max_length", "declared": 3, "existing": 2, "source": "declaration"},
            {"option": "history", "declared": "none", "existing": "", "source": "default"},
        ]
        app.conf.broker_timeout_s = 0.5
        calls = [app.signature("options.t", queue="options.mail") for _ in range(3)]
        with pytest.raises(QueueFull) as full:
            app.send_many(calls, atomic=True)
        assert full.value.details["limit"] == "max_length"
        app.conf.broker_timeout_s = 10.0
        assert mail.change(max_length=3)
        assert len(app.send_many(calls, atomic=True)) == 3
        assert mail.purge() == 3
        with pytest.raises(NoQueue):
            app.queue("options.nothing").purge()
        assert mail.delete(if_empty=True, if_unused=True) == 0


@pytest.mark.e2e
def test_queues_are_declared_from_asyncio(broker: Daemon) -> None:
    app = App("options", broker.url, set_as_current=False)

    async def story() -> None:
        mail = app.queue("options.async", max_length=2)
        assert await mail.declare_async()
        assert await mail.change_async(max_length=0)
        assert await mail.purge_async() == 0
        assert await mail.delete_async() == 0
        app.conf.task_queues = [Queue("options.async", options={"auto_delete": True})]
        await app.declare_async()
        with pytest.raises(OptionsDiffer):
            await app.declare_async(Queue("options.async", options={"auto_delete": False}))
        await app.close_async()

    asyncio.run(story())
