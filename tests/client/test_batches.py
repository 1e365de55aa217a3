"""send_many: streamed, all or nothing a chunk, and honest about what became of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from qclient import App, DuplicateId, NotDone, OutcomeUnknown, PartialPublish, Signature
from qclient.batches import ATOMIC_MESSAGES_MAX, IN_FLIGHT
from qprotocol import frames as f
from qprotocol.message import unpack_message, walk
from scriptedpeer import Line, Peer, confirm


def calls(app: App, count: int, size: int = 0) -> list[Signature]:
    return [app.signature("t", (i, "x" * size)) for i in range(count)]


def numbered(line: Line, frame: f.Frame) -> None:
    """Positions as a broker gives them: a new batch for each chunk."""
    line.confirm(frame, first=frame.sequence << 20)


def test_every_call_gets_a_handle_in_order_with_its_position(app: App, peer: Peer) -> None:
    peer.act = numbered
    results = app.send_many(calls(app, 2500))
    assert [p.count for p in peer.heard] == [1000, 1000, 500]
    sent = [unpack_message(p.raw, a).id for p in peer.heard for a, _ in walk(p.raw)]
    assert [r.id for r in results] == sent
    assert results[0]._position == 1 << 20
    assert results[-1]._position == (3 << 20) + 499


def test_nothing_is_sent_for_nothing(app: App, peer: Peer) -> None:
    assert app.send_many([]) == []
    assert app.send_many([], atomic=True) == []
    assert not peer.heard


def test_the_iterable_is_consumed_as_the_broker_confirms(app: App, peer: Peer) -> None:
    """Memory is bounded: no more than the window is ever taken ahead of the answers."""
    taken = confirmed = ahead = 0

    def stream() -> Iterator[Signature]:
        nonlocal taken, ahead
        for signature in calls(app, 30, size=100_000):
            taken += 1
            ahead = max(ahead, taken - confirmed)
            yield signature

    def count(line: Line, frame: f.Frame) -> None:
        nonlocal confirmed
        confirmed += frame.count
        line.confirm(frame)

    peer.act = count
    assert len(app.send_many(stream())) == 30
    assert ahead <= IN_FLIGHT + 3


def test_a_failed_chunk_says_what_became_of_each(app: App, peer: Peer) -> None:
    def refuse_the_second_and_forget_the_third(line: Line, frame: f.Frame) -> None:
        if frame.sequence == 2:
            line.refuse(frame, "DUPLICATE_ID")
        elif frame.sequence == 3:
            line.refuse(frame, "SEQUENCE_TOO_OLD", definite=False)
        else:
            line.confirm(frame)

    peer.act = refuse_the_second_and_forget_the_third
    signatures = calls(app, 3500)
    with pytest.raises(PartialPublish, match="1500 messages were published, 1000 were not") as hit:
        app.send_many(signatures)
    told = hit.value
    ids = [[r.id for r in group] for group in (told.confirmed, told.refused, told.unknown)]
    sent = {p.sequence: [unpack_message(p.raw, a).id for a, _ in walk(p.raw)] for p in peer.heard}
    assert ids == [sent[1] + sent[4], sent[2], sent[3]]
    assert isinstance(told.__cause__, DuplicateId)


def test_after_a_failure_nothing_more_is_taken(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: line.refuse(frame, "BODY_TOO_LARGE")
    taken = 0

    def stream() -> Iterator[Signature]:
        nonlocal taken
        for signature in calls(app, 100, size=100_000):
            taken += 1
            yield signature

    with pytest.raises(PartialPublish) as hit:
        app.send_many(stream())
    assert not hit.value.confirmed
    assert taken <= IN_FLIGHT + 3
    assert len(hit.value.refused) + len(hit.value.unknown) <= taken


def test_a_bad_call_is_its_own_error_if_nothing_was_sent(app: App, peer: Peer) -> None:
    with pytest.raises(TypeError, match="argument 1 of t: an object of class object"):
        app.send_many([*calls(app, 3), app.signature("t", (object(),))])
    assert not peer.heard


def test_a_bad_call_after_good_chunks_is_a_partial_publish(app: App, peer: Peer) -> None:
    with pytest.raises(PartialPublish) as hit:
        app.send_many([*calls(app, 1500), app.signature("t", (object(),))])
    assert (len(hit.value.confirmed), hit.value.refused, hit.value.unknown) == (1000, [], [])
    assert isinstance(hit.value.__cause__, TypeError)


def test_an_atomic_batch_is_one_publish_in_parts(app: App, peer: Peer) -> None:
    results = app.send_many(calls(app, 5000, size=100), atomic=True)
    (publish,) = peer.heard
    assert publish.count == len(results) == 5000
    assert len(list(walk(publish.raw))) == 5000


def test_an_atomic_batch_over_its_limit_sends_nothing(app: App, peer: Peer, monkeypatch) -> None:
    with pytest.raises(ValueError, match="takes at most 50,000 messages"):
        app.send_many((app.signature("t") for _ in range(ATOMIC_MESSAGES_MAX + 1)), atomic=True)
    monkeypatch.setattr("qclient.batches.ATOMIC_BYTES_MAX", 10_000)
    for many, size in ((20, 1000), (1, 20_000)):
        with pytest.raises(ValueError, match="nothing was sent"):
            app.send_many(calls(app, many, size), atomic=True)
    assert not peer.heard


def test_an_atomic_batch_fails_as_a_single_call_does(app: App, peer: Peer) -> None:
    peer.act = lambda line, frame: line.refuse(frame, "BATCH_TOO_LARGE")
    with pytest.raises(NotDone, match="BATCH_TOO_LARGE"):
        app.send_many(calls(app, 10), atomic=True)


def test_chunks_lost_with_a_connection_are_sent_again(app: App, peer: Peer) -> None:
    def hang_up_at_the_third(line: Line, frame: f.Frame) -> None:
        if line.number == 0 and frame.sequence >= 3:
            line.hang_up()
        else:
            line.confirm(frame, duplicate=line.number == 1, first=0)

    peer.act = hang_up_at_the_third
    assert len(app.send_many(calls(app, 5000))) == 5000
    assert {p.sequence for p in peer.heard} == {1, 2, 3, 4, 5}


# The same from asyncio.


def run(app: App, story) -> None:
    async def main() -> None:
        try:
            await story()
        finally:
            await app.close_async()

    asyncio.run(main())


def test_asyncio_sends_one_and_many(app: App, peer: Peer) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    async def stream() -> AsyncIterator[Signature[int]]:
        for i in range(1500):
            yield add.s(i, i)

    async def story() -> None:
        peer.act = numbered
        assert (await add.delay_async(1, 2))._position == 1 << 20
        assert (await add.apply_async_async((1, 2), priority=5)).id
        assert (await add.s(1, 2).delay_async()).id
        assert (await add.s(2).apply_async_async((1,), queue="q")).id
        assert (await app.send_task_async("t", (1,))).id
        assert len(await app.send_many_async(calls(app, 2500))) == 2500
        assert len(await app.send_many_async(stream())) == 1500
        assert len(await app.send_many_async(stream(), atomic=True)) == 1500
        assert await app.send_many_async([], atomic=True) == []
        many = await asyncio.gather(*(add.delay_async(i, i) for i in range(50)))
        assert len({r.id for r in many}) == 50

    run(app, story)
    assert len(peer.lines) == 1


def test_asyncio_finds_a_lost_connection_again(app: App, peer: Peer) -> None:
    def lose_the_first(line: Line, frame: f.Frame) -> None:
        if line.number == 0:
            line.hang_up()
        else:
            line.confirm(frame)

    async def story() -> None:
        peer.act = lose_the_first
        await app.send_task_async("t")
        first, again = peer.heard
        assert first == again
        peer.lines[1].say(f.Goaway(reason="stopping"))
        peer.act = confirm
        await app.send_task_async("t")
        await app.send_task_async("t")

    run(app, story)
    assert len(peer.lines) == 3


def test_asyncio_does_not_hammer_a_broker_that_hangs_up(app: App, peer: Peer) -> None:
    async def story() -> None:
        peer.act = lambda line, frame: line.hang_up()
        app.conf.broker_timeout_s = 0.6
        with pytest.raises(OutcomeUnknown):
            await app.send_task_async("t")
        assert 2 <= len(peer.lines) <= 8
        peer.act = confirm
        await app.send_task_async("t")

    run(app, story)


def test_asyncio_keeps_deadlines_and_says_what_is_known(app: App, peer: Peer) -> None:
    async def story() -> None:
        app.conf.broker_timeout_s = 0.2
        peer.act = lambda line, frame: None
        with pytest.raises(OutcomeUnknown, match="it was sent and may be done"):
            await app.send_task_async("t")
        with pytest.raises(PartialPublish) as hit:
            await app.send_many_async(calls(app, 10))
        assert len(hit.value.unknown) == 10
        with pytest.raises(NotDone):
            await app.AsyncResult("x").state_async()
        await app.close_async()
        peer.stop_listening()
        with pytest.raises(NotDone, match="is `qbroker serve` running there"):
            await app.send_task_async("t")

    run(app, story)


def test_asyncio_waits_while_blocked_and_retries_what_is_refused_for_now(
    app: App, peer: Peer
) -> None:
    def refuse_once(line: Line, frame: f.Frame) -> None:
        if len(peer.heard) == 1:
            line.refuse(frame, "RESOURCE_EXHAUSTED", retryable=True, retry_after_ms=10)
        else:
            line.say(f.Blocked(reason="the disk hangs"))
            line.confirm(frame)

    async def story() -> None:
        peer.act = refuse_once
        await app.send_task_async("t")
        assert [p.sequence for p in peer.heard] == [1, 1]
        app.conf.broker_timeout_s = 0.2
        with pytest.raises(NotDone, match="takes no publishes: the disk hangs; nothing was sent"):
            await app.send_task_async("t")
        app.conf.broker_timeout_s = 5
        peer.act = confirm
        waiting = asyncio.create_task(app.send_task_async("t"))
        await asyncio.sleep(0)
        peer.lines[0].say(f.Unblocked())
        await waiting

    run(app, story)


def test_asyncio_asks_for_results(app: App, peer: Peer) -> None:
    def success(line: Line, frame: f.Frame) -> None:
        if type(frame) is f.Forget:
            line.say(f.Ok(count=1, correlation=frame.correlation))
        else:
            line.say(
                f.Result(
                    id=frame.id, state=6, raw=b"\x07", content=1, correlation=frame.correlation
                )
            )

    async def story() -> None:
        peer.act = success
        result = app.AsyncResult("x")
        assert await result.get_async(timeout=5) == 7
        assert await result.state_async() == "SUCCESS"
        assert await result.revoke_async() == "SUCCESS"
        await result.forget_async()

    run(app, story)


def test_asyncio_is_refused_by_name_too(app: App, peer: Peer) -> None:
    async def story() -> None:
        peer.act = lambda line, frame: line.refuse(frame, "DUPLICATE_ID")
        with pytest.raises(DuplicateId):
            await app.send_task_async("t")

    run(app, story)


def test_a_cancelled_coroutine_leaves_the_connection_usable(app: App, peer: Peer) -> None:
    async def story() -> None:
        peer.act = lambda line, frame: None
        waiting = asyncio.create_task(app.send_task_async("t"))
        await asyncio.get_running_loop().run_in_executor(None, peer.next)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        peer.act = confirm
        await app.send_task_async("t")

    run(app, story)
