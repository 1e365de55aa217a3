"""The client and a real broker: what only both together can show."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from e2e.daemon import Daemon
from qclient import App, DuplicateId, ResultTimeout, Signature, TaskRevoked, UnknownId
from qclient.link import Link
from qclient.serialization import decode_call, encode_result
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.failure import Failure
from qprotocol.message import Outcome, unpack_message, walk

pytestmark = pytest.mark.e2e


@pytest.fixture
def live(broker: Daemon) -> Iterator[App]:
    """An App that talks to the real broker."""
    with App("shop", broker=broker.url) as app:
        yield app


def consumer(app: App) -> closing[Link]:
    """A plain consumer, as a link."""
    hello = f.Hello(protocol=PROTOCOL_VERSION, role="consumer", client_id="test")
    return closing(Link.open(app.address, hello, timeout_s=10))


def deliveries(link: Link, queue: str, count: int) -> Iterator[tuple[int, int, bytes]]:
    """Position, grant and packed message of ``count`` messages of a queue; none is settled."""
    link.send(f.Consume(subscription=1, queues=[queue], credit=count, correlation=10))
    seen, deadline = 0, time.monotonic() + 30
    while seen < count:
        assert time.monotonic() < deadline, f"{seen} of {count} came"
        for frame in link.receive(1.0):
            assert type(frame) is not f.Error, frame.message
            if type(frame) is not f.Deliver:
                continue
            positions: list[int] = []
            at = 0
            for _ in range(frame.runs):
                first, length = wire.RUN.unpack_from(frame.raw, at)
                positions += range(first, first + length)
                at += wire.RUN.size
            at += frame.touched * wire.TOUCHED.size
            spans = walk(frame.raw, at)
            for position, (start, end) in zip(positions, spans, strict=True):
                seen += 1
                yield position, frame.grant, frame.raw[start:end]


def test_a_task_goes_through_its_states_to_a_result(live: App) -> None:
    result = live.send_task("t", ((1, 2), {3}), queue="states")
    by_id = live.AsyncResult(result.id)
    assert by_id.state == "QUEUED"
    with consumer(live) as link:
        ((position, grant, raw),) = deliveries(link, "states", 1)
        message = unpack_message(raw)
        assert decode_call(message.content, message.body) == (((1, 2), {3}), {})
        assert message.id == result.id
        assert by_id.state == "STARTED"
        with pytest.raises(ResultTimeout, match="is STARTED after"):
            by_id.get(timeout=0.05)
        value = encode_result("t", ("ok", {1}))
        outcome = Outcome(
            wire.ACK, position, grant, result=value, flags=wire.HAS_RESULT, content=message.content
        )
        link.send(f.Settle(count=1, raw=outcome.pack(), correlation=11))
        assert by_id.get(timeout=10) == ("ok", {1})
    assert result.successful()
    by_id.forget()
    assert live.AsyncResult(result.id).state == "UNKNOWN"


def test_later_and_never(live: App) -> None:
    later = live.send_task("t", queue="later", countdown=600)
    assert later.state == "SCHEDULED"
    assert later.revoke() == "REVOKED"
    with pytest.raises(TaskRevoked):
        live.AsyncResult(later.id).get(timeout=10)
    with pytest.raises(UnknownId):
        live.AsyncResult("never sent").get(timeout=10)


def test_a_grace_that_nothing_ends_is_refused(live: App) -> None:
    later = live.send_task("t", queue="later", countdown=600)
    for order in (
        lambda: later.revoke(grace=5),
        lambda: live.control.revoke([later.id], grace=5),
        lambda: live.control.revoke_by(queue="later", grace=5),
    ):
        with pytest.raises(ValueError, match="^grace=5 without terminate: it is how long"):
            order()
    assert later.state == "SCHEDULED"
    assert later.revoke(terminate=True, grace=5) == "REVOKED"


def test_a_chosen_id_is_taken_while_its_task_lives(live: App) -> None:
    first = live.send_task("t", queue="chosen", task_id="order-1")
    with pytest.raises(DuplicateId):
        live.send_task("t", queue="chosen", task_id="order-1")
    assert first.state == "QUEUED"
    assert first.revoke() == "REVOKED"


def test_a_task_is_found_by_its_chosen_id_alone(live: App) -> None:
    sent = live.send_task("t", queue="chosen", task_id="order-2")
    found = live.AsyncResult("order-2")
    assert found == sent
    assert found.state == "QUEUED"
    assert found.revoke() == "REVOKED"
    assert live.AsyncResult("order-2").state == "REVOKED"


def test_nothing_is_lost_or_doubled_when_the_broker_dies_under_send_many(tmp_path: Path) -> None:
    """Unconfirmed chunks are sent again after a kill -9, and recognised if they had arrived."""
    daemon = Daemon(tmp_path / "own").start()
    app = App("shop", broker=daemon.url, set_as_current=False)
    app.conf.broker_timeout_s = 30
    count = 10_000  # the most credit that one subscription may have

    def stream() -> Iterator[Signature]:
        for i in range(count):
            if i in (3_000, 7_000):
                daemon.kill()
                daemon.start()
            yield app.signature("t", (i,), queue="many")

    try:
        results = app.send_many(stream())
        assert len(results) == count
        with consumer(app) as link:
            ids = Counter(unpack_message(raw).id for _, _, raw in deliveries(link, "many", count))
        assert ids == Counter(result.id for result in results)
    finally:
        app.close()
        daemon.close()


def test_asyncio_survives_a_restart_of_the_broker(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "own").start()
    app = App("shop", broker=daemon.url, set_as_current=False)

    async def main() -> None:
        one = await app.send_task_async("t", (1,))
        daemon.kill()
        waiting = asyncio.create_task(app.send_task_async("t", (2,)))
        await asyncio.to_thread(daemon.start)
        two = await waiting
        assert await one.state_async() == await two.state_async() == "QUEUED"
        with pytest.raises(ResultTimeout):
            await two.get_async(timeout=0.05)
        await app.close_async()

    try:
        asyncio.run(main())
    finally:
        daemon.close()


def test_an_idle_producer_may_be_silent(live: App, broker: Daemon) -> None:
    """It promised no heartbeats: the broker lets it be, and it is the same connection after."""
    live.send_task("t", queue="idle")
    link = live.connection._link
    live.connection._used_at = 0.0  # as after a long time
    live.send_task("t", queue="idle")
    assert live.connection._link is link


# --- Dead letters


def die(link: Link, app: App, count: int) -> None:
    """So many messages of the queue fail for good."""
    for number, (position, grant, raw) in enumerate(deliveries(link, "q", count)):
        result = Failure("Boom", f"of {unpack_message(raw).id}").pack()
        outcome = Outcome(wire.FAIL, position, grant, result=result, flags=wire.NO_RETRY)
        link.send(f.Settle(count=1, raw=outcome.pack(), correlation=20 + number))
        while not any(type(frame) is f.Settled for frame in link.receive(10.0)):
            pass
    assert app.dead.count() == count


def test_dead_letters_are_found_edited_replayed_and_dropped(live: App) -> None:
    live.dead.drop(live.dead.find())  # those of other stories
    ids = [live.send_task("shop.mail", (n,), {"to": "ana"}, queue="q").id for n in range(4)]
    with consumer(live) as link:
        die(link, live, 4)
    first, *_ = live.dead.find(limit=1)
    assert (first.id, first.task, first.cause, first.error) == (
        ids[0],
        "shop.mail",
        "failed",
        "Boom",
    )
    assert live.dead.get(ids[1]) is not None
    assert live.dead.get("nobody") is None
    assert live.dead.edit("nobody", queue="slow") is None
    edited = live.dead.edit(ids[1], kwargs={"to": "bob"}, queue="slow", max_retries=7)
    assert edited is not None
    assert (edited.queue, edited.number) == ("slow", first.number + 1)
    assert live.dead.replay(error=f"of {ids[1]}") == 1
    assert live.dead.replay([edited]) == 0, "replayed already"
    assert live.dead.drop([first]) == 1
    assert asyncio.run(worked_on(live, ids[2:])) == (2, 1, 1)
    assert live.dead.count() == 0
    with consumer(live) as link:
        ((_, _, raw),) = deliveries(link, "slow", 1)
    message = unpack_message(raw)
    assert decode_call(message.content, message.body) == ((1,), {"to": "bob"})
    assert message.id == ids[1]
    with pytest.raises(ValueError, match="not both"):
        live.dead.drop([first], queue="q")


async def worked_on(app: App, ids: list[str]) -> tuple[int, int, int]:
    try:
        letters = await app.dead.find_async(queue="q")
        assert [each.id for each in letters] == ids
        assert await app.dead.count_async() == 2
        assert await app.dead.get_async(ids[0]) == letters[0]
        assert await app.dead.edit_async(ids[0], priority=5) is not None
        replayed = await app.dead.replay_async(queue="q", cause="failed", countdown=60)
        return len(letters), replayed - 1, replayed - 1 + await app.dead.drop_async(letters)
    finally:
        await app.close_async()
