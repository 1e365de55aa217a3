"""Exchanges that an application declares, and what is broadcast to every worker."""

from __future__ import annotations

import pytest

from qclient import Broadcast, Queue
from qclient.topology import Exchange
from qprotocol import frames as f
from qworker.topology import declared, frames, own_queue
from worker.workshop import Workshop, until

SESSION = "0123456789abcdef" * 2


def test_declarations_come_from_the_import_process_as_they_were() -> None:
    """Packed as text and read again, with the worker's own queues behind them."""

    class Conf:
        task_queues = (
            Queue("audit", Exchange("events", "headers"), arguments={"raw": b"\xff"}),
            Broadcast("news"),
        )

    class Application:
        conf = Conf

    found = declared(Application)
    assert found["broadcasts"] == ["news"]
    said = frames(found["declared"], found["broadcasts"], SESSION)
    kinds = [type(frame) for frame in said]
    assert kinds == [f.DeclareExchange, f.Bind, f.DeclareExchange, f.Declare, f.Bind]
    assert said[1].arguments == {"raw": b"\xff"}
    assert said[3].queue == said[4].destination == own_queue("news", SESSION)
    assert len(own_queue("n" * 200, SESSION)) <= 200


@pytest.mark.e2e
def test_every_worker_gets_what_is_broadcast_once(shop: Workshop) -> None:
    news = f"{shop.queue}-news"
    for _ in range(2):
        shop.worker("-Q", f"{shop.queue},{news}", app="news")
    shop.app.conf.task_queues = [Broadcast(news)]
    shop.app.send_task("news.heard", ("all",), queue=news)
    shop.app.send_task(
        "news.heard", ("one",), exchange=f"{shop.queue}-events", routing_key="order.x"
    )

    def told() -> bool:
        return len(shop.marks("heard")) >= 3

    until(told, f"three were heard: {shop.marks()}; {shop.logs()}")
    heard = shop.marks("heard")
    everybody = [mark for mark in heard if mark[0] == "all"]
    assert len(everybody) == 2
    assert all(mark[2] == news for mark in everybody)
    (single,) = [mark for mark in heard if mark[0] == "one"]
    assert single[2:] == [f"{shop.queue}-events", "order.x"]


@pytest.mark.e2e
def test_queues_take_turns_as_the_worker_says(shop: Workshop) -> None:
    high = f"{shop.queue}-high"
    for queue, name in ((shop.queue, "low"), (high, "high")):
        for number in range(3):
            shop.app.send_task("news.heard", (f"{name}{number}",), queue=queue)
    flags = "--queue-order", "strict", "-c", "1"
    shop.worker("-Q", f"{high},{shop.queue}", *flags, app="news")
    until(lambda: len(shop.marks("heard")) == 6, f"six were heard: {shop.marks()}; {shop.logs()}")
    heard = [mark[0] for mark in shop.marks("heard")]
    assert heard == [f"{name}{number}" for name in ("high", "low") for number in range(3)]
