"""What the engine promises: nothing leaves early, nothing waits for more than it must."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from typing import Any

import pytest

from engine.conftest import Peer, Place, ack_all, bodies
from qbroker.bodies import UNREADABLE_MS
from qbroker.config import Config
from qbroker.engine import Engine
from qbroker.log.errors import CorruptError, LogFailed, TrimmedError, UnreadableError
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.codec import Decoder, encode_in_parts
from qprotocol.failure import Failure
from qprotocol.ids import mint, pack_id, unpack_id
from qprotocol.message import Message, Outcome, unpack_message
from qprotocol.states import State

SESSION = b"a session of 16b"


def run(story: object) -> None:
    asyncio.run(story)  # type: ignore[arg-type]


def minted(number: int) -> str:
    return unpack_id(mint(time.time_ns() // 1_000_000, number), minted=True)


async def turns(count: int = 20) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def written(engine: Engine) -> None:
    """The engine knows that its batch is written, and the window has shrunk."""
    for _ in range(100_000):
        if not engine._committing:
            return
        await asyncio.sleep(0)
    raise AssertionError("the batch is still being written")


def test_nothing_is_answered_before_the_sync_returns(place: Place) -> None:
    """While a sync hangs no confirm, refusal, result or delivery leaves; after it all do."""

    async def story() -> None:
        async with place.engine() as engine:
            producer, consumer = place.peer(engine), place.peer(engine)
            await producer.hello()
            await consumer.hello("consumer")
            await consumer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            # When the disk hangs
            place.disk.gate.clear()
            first = asyncio.create_task(producer.publish(Message("q", b"1"), sequence=1))
            await turns()
            again = asyncio.create_task(producer.publish(Message("q", b"1"), sequence=1))
            peek = asyncio.create_task(producer.ask(f.Peek(queue="q")))
            wrong = asyncio.create_task(producer.ask(f.Purge(queue="nowhere")))
            await asyncio.sleep(0.1)
            # Then nobody hears a word that rests on what is not durable
            assert not any(task.done() for task in (first, again, peek, wrong))
            assert consumer.frames == []
            # And when it goes on, everybody does
            place.disk.gate.set()
            assert (await first).durability == "synced"
            assert (await again).duplicate
            assert (await wrong).code == "NO_QUEUE"
            assert bodies(await consumer.get(f.Deliver))

    run(story())


def test_work_leaves_before_the_news_that_it_is_confirmed(place: Place) -> None:
    """One sync lets both go; the worker has the longer way to go from there."""

    async def story() -> None:
        async with place.engine() as engine:
            producer, consumer = place.peer(engine), place.peer(engine)
            await producer.hello()
            await consumer.hello("consumer")
            await consumer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            seen_by_consumer: list[int] = []
            really_send = producer.send

            def send(data: bytes) -> None:
                seen_by_consumer.append(len(consumer.frames))
                really_send(data)

            producer.send = send
            await producer.publish(Message("q", b"1"), sequence=1)
            assert seen_by_consumer == [1]
            await consumer.get(f.Deliver)

    run(story())


def test_a_relaxed_queue_waits_for_the_kernel_only(place: Place) -> None:
    """fsync=never confirms, delivers and settles before a sync, and says so."""

    async def story() -> None:
        async with place.engine() as engine:
            producer, consumer = place.peer(engine), place.peer(engine)
            await producer.hello()
            await consumer.hello("consumer")
            await producer.ask(f.Declare(queue="q", options={"fsync": "never"}))
            await producer.publish(Message("q", b"0"), sequence=1)
            confirmed = await producer.publish(Message("q", b"1"), sequence=2)
            assert confirmed.durability == "written"
            assert producer.durable < wire.batch_of(confirmed.first)
            await consumer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            first = await consumer.get(f.Deliver)
            assert (await consumer.ask(ack_all(first))).durability == "written"

    run(story())


@pytest.mark.parametrize("mode", ["interval", "never"])
def test_a_relaxed_broker_still_answers_everything(place: Place, mode: str) -> None:
    """With --fsync interval or never, questions that belong to no queue are answered too."""

    async def story() -> None:
        async with place.engine(fsync=mode, fsync_interval_ms=20) as engine:
            peer = place.peer(engine)
            await peer.hello()
            assert (await peer.publish(Message("q", b"1"), sequence=1)).durability == "written"
            assert (await peer.ask(f.Purge(queue="nowhere"))).code == "NO_QUEUE"
            await peer.ask(f.Declare(queue="sure", options={"fsync": "always"}))
            assert (await peer.publish(Message("sure", b"1"), sequence=2)).durability == "synced"
            assert place.log.durable == place.log.written

    run(story())


def test_an_interval_syncs_by_itself(place: Place) -> None:
    """fsync=interval makes what was confirmed durable without anybody asking."""

    async def story() -> None:
        async with place.engine(fsync="interval", fsync_interval_ms=20) as engine:
            peer = place.peer(engine)
            await peer.hello()
            await peer.publish(Message("q", b"1"), sequence=1)
            written = place.log.written
            async with asyncio.timeout(20):
                while place.log.durable < written:
                    await peer.ask(f.Peek(queue="q"))
            assert place.log.durable >= written

    run(story())


def test_bodies_are_read_from_the_log_when_memory_has_dropped_them(place: Place) -> None:
    """A backlog many times the window is delivered whole and in order."""

    async def story() -> None:
        async with place.engine(window_bytes_max=64 << 10) as engine:
            peer = place.peer(engine)
            await peer.hello("consumer")
            for chunk in range(20):
                batch = [Message("q", b"%04d" % (chunk * 50 + i) + b"x" * 500) for i in range(50)]
                await peer.publish(*batch, sequence=chunk + 1)
            assert (await engine.statistics()).window_bytes < 200 << 10
            await peer.ask(f.Consume(subscription=1, queues=["q"], credit=100))
            got: list[bytes] = []
            while len(got) < 1000:
                delivery = await peer.get(f.Deliver)
                got += [unpack_message(raw).body[:4] for raw in bodies(delivery)]
                peer.say(ack_all(delivery))
            assert got == [b"%04d" % i for i in range(1000)]

    run(story())


def test_a_delivery_larger_than_the_window_is_read_at_most_twice(place: Place, monkeypatch) -> None:
    """What was in memory when the rest was asked for may be dropped before the rest is here."""
    monkeypatch.setattr("qbroker.bodies.READ_AHEAD_BYTES", 1)

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            kept, loads = engine._bodies, []

            def load(positions: list[int], real: Any = kept.load) -> Any:
                loads.append(positions)
                assert len(loads) < 5, "it is read again and again"
                found = real(positions)
                kept._batches.clear()  # as others do who need the room
                kept._sizes.clear()
                kept.bytes = 0
                return found

            monkeypatch.setattr(kept, "load", load)
            peer = place.peer(engine)
            await peer.hello("consumer")
            for number in range(1, 4):
                await peer.publish(Message("q", b"%d" % number), sequence=number)
            await peer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            delivery = await peer.get(f.Deliver)
            assert [unpack_message(raw).body for raw in bodies(delivery)] == [b"1", b"2", b"3"]
            assert len(loads) == 2

    run(story())


def test_large_messages_come_and_go_in_parts(place: Place) -> None:
    """Messages over a frame's size are published and delivered in parts, whole, cold or not."""

    async def story() -> None:
        sizes = [10, 200_000, 500, 131_000, 3, 400_000]
        wanted = [bytes([i]) * size for i, size in enumerate(sizes)]
        async with place.engine(window_bytes_max=1 << 10) as engine:
            peer = place.peer(engine)
            await peer.hello("consumer")
            raw = b"".join(Message("q", body).pack() for body in wanted)
            publish = f.Publish(producer=7, sequence=1, count=6, raw=raw, correlation=1000)
            for data in encode_in_parts(publish):
                for frame in Decoder().feed(data):
                    peer.say(frame)
            confirmed = await peer.get(f.Published)
            assert (confirmed.count, confirmed.duplicate) == (6, False)
            await peer.publish(Message("other", b"pushes the window" * 100), sequence=2)
            await written(engine)
            await peer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            got: list[bytes] = []
            while len(got) < len(wanted):
                got += [unpack_message(raw).body for raw in bodies(await peer.get(f.Deliver))]
            assert got == wanted

    run(story())


def test_a_task_is_found_by_its_id_alone(place: Place) -> None:
    """Watch, Cancel and Forget find a minted id in the log, written or not, and after a start."""

    async def story() -> None:
        ids = [minted(i) for i in range(300)]
        async with place.engine(window_bytes_max=1 << 10) as engine:
            peer = place.peer(engine)
            await peer.hello()
            for at in range(0, 300, 50):
                batch = [Message("q", b"x" * 300, id=each, task="t") for each in ids[at : at + 50]]
                await peer.publish(*batch, sequence=at + 1)
            for each in ids[::37]:
                assert (await peer.ask(f.Watch(id=each))).state == State.QUEUED
            assert (await peer.ask(f.Cancel(id=ids[7]))).state == State.REVOKED
            assert (await peer.ask(f.Watch(id=minted(1)))).state == State.UNKNOWN
            # While the disk hangs a fresh one is found too, in what is not written yet
            place.disk.gate.clear()
            fresh = minted(5)
            message = Message("q", b"", id=fresh, task="t")
            confirmed = asyncio.create_task(peer.publish(message, sequence=999))
            await turns()
            state = asyncio.create_task(peer.ask(f.Watch(id=fresh)))
            await turns()
            assert not state.done()
            place.disk.gate.set()
            assert (await confirmed).count == 1
            assert (await state).state == State.QUEUED
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello()
            assert (await peer.ask(f.Watch(id=ids[299]))).state == State.QUEUED
            assert (await peer.ask(f.Watch(id=ids[7]))).state == State.REVOKED

    run(story())


def test_a_task_in_a_large_batch_is_found(place: Place) -> None:
    """Of each frame the log knows which times its ids are from: nothing else is looked at."""

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello()
            now_ms = time.time_ns() // 1_000_000
            ids = [unpack_id(mint(now_ms - n // 2, n), minted=True) for n in range(20)]
            place.disk.gate.clear()
            waiting = [asyncio.create_task(peer.publish(Message("q", b"first"), sequence=1))]
            await turns()
            for sequence, each in enumerate(ids, 2):  # they wait for the disk together
                message = Message("q", b"x" * 20_000, id=each, task="t")
                waiting.append(asyncio.create_task(peer.publish(message, sequence=sequence)))
            await turns()
            place.disk.gate.set()
            for each in waiting:
                await each
            await peer.publish(Message("q", b"pushes the window"), sequence=99)
            await written(engine)
            index = place.log._manifest.segments[-1].index
            assert index is not None
            assert len(index.marks.offsets) == len(ids) + 1
            for each in ids:
                assert (await peer.ask(f.Watch(id=each))).state == State.QUEUED
            assert (await peer.ask(f.Cancel(id=ids[7]))).state == State.REVOKED
            never = unpack_id(mint(now_ms - 3, 99), minted=True)
            assert (await peer.ask(f.Watch(id=never))).state == State.UNKNOWN

    run(story())


def test_what_cannot_be_read_is_not_called_unknown(place: Place, monkeypatch) -> None:
    """The client is told to ask again, until the disk has refused for a minute: then not again."""
    now_ms = 0

    async def story() -> None:
        nonlocal now_ms
        async with place.engine(window_bytes_max=0) as engine:
            engine._bodies._mono_ms = lambda: now_ms
            peer = place.peer(engine)
            await peer.hello()
            task = minted(1)
            await peer.publish(Message("q", b"", id=task, task="t"), sequence=1)
            await peer.publish(Message("q", b"pushes the window"), sequence=2)
            await written(engine)
            with monkeypatch.context() as broken:
                for verb in ("holding", "read_block"):
                    broken.setattr(type(place.log), verb, unreadable)
                for _ in range(7):
                    error = await peer.ask(f.Watch(id=task))
                    assert isinstance(error, f.Error)
                    assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", True)
                    assert "Input/output error" in error.message
                    now_ms += UNREADABLE_MS // 6 - 1
                error = await peer.ask(f.Watch(id=task))
                assert (error.code, error.retryable, error.definite) == (
                    "DATA_DAMAGED",
                    False,
                    True,
                )
                assert "Input/output error" in error.message
            assert (await peer.ask(f.Watch(id=task))).state == State.QUEUED

    run(story())


def test_what_is_damaged_is_not_called_unknown(place: Place, monkeypatch) -> None:
    """Nobody can tell, and the client is told that asking again is no use. Others are found."""

    def corrupt(*_arguments: Any, **_options: Any) -> Any:
        raise CorruptError("1.qlog", 0, 1, 1, "no batch begins here")

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello()
            now_ms = time.time_ns() // 1_000_000
            bad, good = (unpack_id(mint(now_ms, n), minted=True) for n in range(2))
            for sequence, task in enumerate((bad, good), 1):
                await peer.publish(Message("q", b"x", id=task, task="t"), sequence=sequence)
            await peer.publish(Message("q", b"pushes the window"), sequence=3)
            await written(engine)
            (path,) = (path for path in place.folder.glob("*.qlog"))
            content = path.read_bytes()
            at = content.index(pack_id(bad)[0])
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([content[at] ^ 1]), at)
            for frame in (f.Watch(id=bad), f.Cancel(id=bad), f.Forget(id=bad)):
                error = await peer.ask(frame)
                assert (error.code, error.retryable) == ("DATA_DAMAGED", False)
                assert "checksum of the record" in error.message
            assert (await peer.ask(f.Watch(id=good))).state == State.QUEUED
            assert (await peer.ask(f.Watch(id=minted(1)))).state == State.UNKNOWN
            for verb in ("holding", "read_block", "candidates"):
                with monkeypatch.context() as broken:
                    broken.setattr(type(place.log), verb, corrupt)
                    error = await peer.ask(f.Watch(id=bad))
                assert error.code == "DATA_DAMAGED"
            assert engine.failure is None

    run(story())


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_neighbour_hides_no_task(place: Place, which: int) -> None:
    """A bad record in the batch before the task's, or in the one behind it."""

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello()
            now_ms = time.time_ns() // 1_000_000
            tasks = [unpack_id(mint(now_ms, n), minted=True) for n in range(2)]
            for sequence, task in enumerate(tasks, 1):
                await peer.publish(Message("q", b"x", id=task, task="t"), sequence=sequence)
            await peer.publish(Message("q", b"pushes the window"), sequence=3)
            await written(engine)
            (path,) = (path for path in place.folder.glob("*.qlog"))
            content = path.read_bytes()
            at = content.index(pack_id(tasks[which])[0])
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([content[at] ^ 1]), at)
            good, bad = tasks[1 - which], tasks[which]
            assert (await peer.ask(f.Watch(id=good))).state == State.QUEUED
            assert (await peer.ask(f.Watch(id=bad))).code == "DATA_DAMAGED"
            assert engine.failure is None

    run(story())


def test_a_place_where_no_batch_can_be_found_hides_no_later_task(place: Place) -> None:
    """A header is bad: the search goes on where the index says that a batch begins."""

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello()
            now_ms = time.time_ns() // 1_000_000
            tasks = [unpack_id(mint(now_ms, n), minted=True) for n in range(8)]
            for sequence, task in enumerate(tasks, 1):
                message = Message("q", b"x" * 20_000, id=task, task="t")
                await peer.publish(message, sequence=sequence)
            await peer.publish(Message("q", b"pushes the window"), sequence=9)
            await written(engine)
            (path,) = (path for path in place.folder.glob("*.qlog"))
            at = path.read_bytes().index(pack_id(tasks[2])[0])
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), bytes(400), at - 300)
            assert (await peer.ask(f.Watch(id=tasks[2]))).code == "DATA_DAMAGED"
            assert (await peer.ask(f.Watch(id=tasks[0]))).state == State.QUEUED
            assert (await peer.ask(f.Watch(id=tasks[7]))).state == State.QUEUED
            assert engine.failure is None

    run(story())


@pytest.mark.parametrize("must_look", [False, True])
def test_the_thread_writes_a_small_batch_too_when_the_disk_must_be_looked_at(
    place: Place, monkeypatch, must_look: bool
) -> None:
    """All that the log takes is told before; the thread is where one may look."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello()
            told, threads, start = [], set(), engine._log.commit

            def commit(*arguments: Any, **options: Any) -> None:
                threads.add(threading.current_thread().name)
                start(*arguments, **options)

            def on_append(size: int) -> bool:
                told.append(size)
                return must_look

            monkeypatch.setattr(type(engine._log), "commit", staticmethod(commit))
            engine.on_append, before = on_append, engine.appended_bytes
            for sequence in range(1, 4):
                await peer.publish(Message("q", b"x" * 1000), sequence=sequence)
            assert sum(told) == engine.appended_bytes - before > 3000
            assert threads == {"qbroker-write" if must_look else "MainThread"}

    run(story())


def test_a_connection_whose_deliveries_cannot_be_read_ends_and_its_leases_go_back(
    place: Place, monkeypatch
) -> None:
    """It is told why. Nobody else is disturbed, and the next one gets the messages."""

    def gone(*_arguments: Any, **_options: Any) -> Any:
        raise TrimmedError(1 << 20, "its segment was dropped")

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer, other = place.peer(engine), place.peer(engine)
            await other.hello("consumer")
            await peer.hello("consumer")
            await peer.publish(Message("q", b"cold"), sequence=1)
            await peer.publish(Message("other", b"pushes the window"), sequence=2)
            await written(engine)
            with monkeypatch.context() as broken:
                broken.setattr(type(place.log), "read_block", gone)
                await peer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
                error = await peer.get(f.Error)
            assert (error.code, error.retryable, error.correlation) == ("DISK_STALLED", True, 0)
            assert "reconnect" in error.message
            assert peer.closed
            engine.disconnected(peer)
            await other.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            (raw,) = bodies(await other.get(f.Deliver))
            assert unpack_message(raw).body == b"cold"
            assert engine.failure is None

    run(story())


def unreadable(*_arguments: Any, **_options: Any) -> Any:
    raise UnreadableError("1.qlog", 0, 1, 1, "Input/output error")


def test_a_disk_that_refuses_for_a_while_sets_nothing_aside(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends, its leases go back. What is refused for a minute is damaged."""
    now_ms = 0

    async def tried(engine: Engine) -> Peer:
        peer = place.peer(engine)
        await peer.hello("consumer")
        await peer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
        return peer

    async def refused(engine: Engine) -> None:
        peer = await tried(engine)
        error = await peer.get(f.Error)
        assert (error.code, error.retryable) == ("DISK_STALLED", True)
        engine.disconnected(peer)
        assert place.core.state.quarantined == {}

    async def story() -> None:
        nonlocal now_ms
        async with place.engine(window_bytes_max=0) as engine:
            engine._bodies._mono_ms = lambda: now_ms
            publisher = place.peer(engine)
            await publisher.hello()
            confirmed = await publisher.publish(Message("q", b"cold"), sequence=1)
            await publisher.publish(Message("other", b"pushes the window"), sequence=2)
            await written(engine)
            aside: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
            with monkeypatch.context() as broken:
                broken.setattr(type(place.log), "read_block", unreadable)
                await refused(engine)
                now_ms += UNREADABLE_MS  # nobody looked meanwhile: it need not be the same trouble
                for _ in range(6):
                    await refused(engine)
                    now_ms += UNREADABLE_MS // 6
            peer = await tried(engine)
            (raw,) = bodies(await peer.get(f.Deliver))
            assert unpack_message(raw).body == b"cold"
            engine.disconnected(peer)
            await publisher.publish(Message("other", b"pushes it again"), sequence=3)
            with monkeypatch.context() as broken:
                broken.setattr(type(place.log), "read_block", unreadable)
                for _ in range(6):
                    await refused(engine)
                    now_ms += UNREADABLE_MS // 6
                engine._delivery.on_damaged = lambda lost, *_why: aside.set_result(lost)
                await tried(engine)
                assert await asyncio.wait_for(aside, timeout=20) == [confirmed.first]
            assert engine.failure is None

    run(story())


def test_a_claim_is_not_lost_because_the_disk_refuses(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told to come again, and then keeps what it runs."""

    async def story() -> None:
        async with place.engine(killed=True) as engine:
            worker = place.peer(engine)
            await worker.hello("worker", SESSION)
            confirmed = await worker.publish(Message("q", b"x"), sequence=1)
        grant = (place.core.state.epoch << wire.EPOCH_SHIFT) + 1
        async with place.engine(claims_ms=60_000) as engine:
            token = wire.TOKEN.pack(confirmed.first, grant)
            with monkeypatch.context() as broken:
                broken.setattr(type(place.log), "read_block", unreadable)
                peer = place.peer(engine)
                peer.say(
                    f.Hello(protocol=1, role="worker", client_id="t", session=SESSION, raw=token)
                )
                error = await peer.get(f.Error)
            assert (error.code, error.retryable) == ("DISK_STALLED", True)
            assert "none is lost" in error.message
            again = place.peer(engine)
            assert (await again.hello("worker", SESSION, raw=token)).raw == b""
            assert confirmed.first in place.core.state.leases

    run(story())


def test_who_is_gone_before_a_read_fails_needs_no_word(place: Place, monkeypatch) -> None:
    async def story() -> None:
        begun, go_on = threading.Event(), threading.Event()

        def gone(*_arguments: Any, **_options: Any) -> Any:
            begun.set()
            go_on.wait(20)
            raise TrimmedError(1 << 20, "its segment was dropped")

        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello("consumer")
            await peer.publish(Message("q", b"cold"), sequence=1)
            await peer.publish(Message("other", b"pushes the window"), sequence=2)
            await written(engine)
            with monkeypatch.context() as broken:
                broken.setattr(type(place.log), "read_block", gone)
                await peer.ask(f.Consume(subscription=1, queues=["q"], credit=10))
                await asyncio.to_thread(begun.wait, 20)
                engine.disconnected(peer)
                go_on.set()
                other = place.peer(engine)
                await other.hello("consumer")
            assert peer.frames == []
            assert engine.failure is None

    run(story())


def test_a_log_that_fails_while_a_delivery_is_read_ends_the_broker(place: Place) -> None:
    """The disk does not even open the file: that is fenced, and nothing is answered any more."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello()
            await peer.publish(Message("q", b"cold"), sequence=1)
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello("consumer")
            for name in place.disk.names():
                place.log._handles.forget(name)
            place.disk.refusing = OSError(errno.EIO, "Input/output error")
            peer.say(f.Consume(subscription=1, queues=["q"], credit=10, correlation=9))
            over = engine._over
            assert over is not None
            await asyncio.wait([over], timeout=20)
            assert isinstance(engine.failure, LogFailed)
            assert "for reading" in str(engine.failure)
            assert not any(isinstance(frame, f.Deliver | f.Error) for frame in peer.frames)

    run(story())


def test_a_log_that_fails_beside_the_engine_ends_the_broker(place: Place) -> None:
    """The disk refuses the keeper's change of the log: a task that is there is not UNKNOWN."""

    async def story() -> None:
        async with place.engine(window_bytes_max=0) as engine:
            peer = place.peer(engine)
            await peer.hello()
            await peer.publish(Message("q", b"", id="order-1", task="t"), sequence=1)
            await peer.publish(Message("q", b"pushes the window"), sequence=2)
            await written(engine)
            failure = place.log._fence("a drop", OSError(errno.EIO, "Input/output error"))
            over = engine._over
            assert over is not None
            peer.say(f.Watch(id="order-1", correlation=9))
            await asyncio.wait([over], timeout=20)
            assert engine.failure is failure
            assert not any(isinstance(frame, f.Result | f.Error) for frame in peer.frames)
        async with place.engine() as engine:
            await asyncio.to_thread(engine.failed, failure)
            over = engine._over
            assert over is not None
            await asyncio.wait([over], timeout=20)
            assert engine.failure is failure

    run(story())


def test_a_worker_is_heard_of_when_its_welcome_leaves(place: Place) -> None:
    """While it waits for the disk it cannot say a word: that time is not its own."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello("worker", SESSION)
            [session] = engine._core.state.sessions.values()
            granted = session.alive_until_ms
            session.alive_until_ms = 1
            engine.welcomed(peer)
            assert session.alive_until_ms >= granted

    run(story())


def test_a_result_is_pushed_to_who_waits_and_kept_for_who_asks_later(place: Place) -> None:
    """The waiter hears of the end at once; the bytes survive a start."""

    async def story() -> None:
        task, result = minted(1), b"r" * 300_000
        async with place.engine() as engine:
            producer, worker = place.peer(engine), place.peer(engine)
            await producer.hello()
            await worker.hello("worker", SESSION)
            await worker.ask(f.Consume(subscription=1, queues=["q"], credit=1))
            confirmed = await producer.publish(Message("q", b"", id=task, task="t"), sequence=1)
            delivery = await worker.get(f.Deliver)
            waiting = f.Watch(id=task, position=confirmed.first, wait_ms=60_000)
            answer = asyncio.create_task(producer.ask(waiting))
            outcome = Outcome(
                wire.ACK, confirmed.first, delivery.grant, result=result, flags=wire.HAS_RESULT
            )
            settle = f.Settle(count=1, raw=outcome.pack(), correlation=1000)
            for data in encode_in_parts(settle):
                for frame in Decoder().feed(data):
                    worker.say(frame)
            assert (await worker.get(f.Settled)).lost == 0
            assert ((await answer).state, (await producer.ask(f.Watch(id=task))).raw) == (
                State.SUCCESS,
                result,
            )
        async with place.engine() as engine:
            producer = place.peer(engine)
            await producer.hello()
            assert (await producer.ask(f.Watch(id=task))).raw == result
            assert (await producer.ask(f.Forget(id=task))).count == 1
            assert (await producer.ask(f.Watch(id=task))).state == State.UNKNOWN

    run(story())


def test_a_grant_that_was_never_logged_can_still_be_claimed(place: Place) -> None:
    """After a start a worker keeps what it runs, also if the log does not know it had it."""

    async def story() -> None:
        async with place.engine() as engine:
            worker = place.peer(engine)
            await worker.hello("worker", SESSION)
            confirmed = await worker.publish(Message("q", b"x"), sequence=1)
        grant = (place.core.state.epoch << wire.EPOCH_SHIFT) + 1
        async with place.engine() as engine:
            worker, other = place.peer(engine), place.peer(engine)
            token = wire.TOKEN.pack(confirmed.first, grant)
            gone = wire.TOKEN.pack(confirmed.first + 5, grant)
            welcome = await worker.hello("worker", SESSION, raw=token + gone)
            assert welcome.raw == gone
            await other.hello("consumer")
            await other.ask(f.Consume(subscription=1, queues=["q"], credit=1))
            ack = f.Ack(raw=wire.ACK_RUN.pack(grant, confirmed.first, 1))
            assert (await worker.ask(ack)).lost == 0
            assert not other.frames

    run(story())


def test_after_a_crash_claims_come_before_the_hand_out(place: Place) -> None:
    """Who runs a message keeps it, though others asked first and the log has no grant of it."""

    async def story() -> None:
        async with place.engine(killed=True) as engine:
            worker = place.peer(engine)
            confirmed = await worker.publish(Message("q", b"x"), Message("q", b"y"), sequence=1)
        grant = (place.core.state.epoch << wire.EPOCH_SHIFT) + 1
        async with place.engine(claims_ms=300) as engine:
            sibling, worker = place.peer(engine), place.peer(engine)
            await sibling.hello("member", SESSION, member=2)
            await sibling.ask(f.Consume(subscription=1, queues=["q"], credit=10))
            await turns()
            assert not sibling.frames
            token = wire.TOKEN.pack(confirmed.first, grant)
            assert (await worker.hello("member", SESSION, member=1, raw=token)).raw == b""
            # Once the time for claims is over the sibling gets the other one, and only that
            delivery = await sibling.get(f.Deliver)
            assert [unpack_message(raw).body for raw in bodies(delivery)] == [b"y"]
            ack = f.Ack(raw=wire.ACK_RUN.pack(grant, confirmed.first, 1))
            assert (await worker.ask(ack)).lost == 0

    run(story())


def test_after_a_clean_stop_nobody_waits_for_claims(place: Place) -> None:
    """The log of a clean stop knows every grant."""

    async def story() -> None:
        async with place.engine() as engine:
            await place.peer(engine).publish(Message("q", b"x"), sequence=1)
        async with place.engine(claims_ms=60_000) as engine:
            consumer = place.peer(engine)
            await consumer.hello("consumer")
            await consumer.ask(f.Consume(subscription=1, queues=["q"], credit=1))
            assert (await consumer.get(f.Deliver)).count == 1

    run(story())


def test_when_the_disk_fails_nobody_is_answered_any_more(place: Place) -> None:
    """A failed sync ends the engine with LogFailed; the confirm never leaves."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello()

            place.disk.gate.failure = OSError(errno.EIO, "the disk said no")
            confirm = asyncio.create_task(peer.publish(Message("q", b"1"), sequence=1))
            assert engine._over is not None
            with pytest.raises(LogFailed, match="the disk said no"):
                await asyncio.wait_for(asyncio.shield(engine._over), 20)
            peer.say(f.Peek(queue="q", correlation=77))
            await turns()
            assert not confirm.done()
            assert peer.frames == []
            confirm.cancel()

    run(story())


def test_the_inbox_drains_and_says_so(place: Place) -> None:
    """While the disk hangs frames pile up in the inbox, bounded by who reads its size."""

    async def story() -> None:
        settings = {"inbox_bytes_max": 100_000, "batch_bytes_max": 300_000}
        async with place.engine(**settings) as engine:
            peer, drained = place.peer(engine), asyncio.Event()
            await peer.hello()
            place.disk.gate.clear()
            raw = Message("q", b"x" * 100_000).pack()
            for sequence in range(1, 9):
                frame = f.Publish(producer=7, sequence=sequence, count=1, raw=raw)
                frame.correlation = 100 + sequence
                peer.say(frame)
                await turns()
            engine.on_drained = drained.set
            assert engine.inbox_bytes > 100_000
            place.disk.gate.set()
            async with asyncio.timeout(20):
                await drained.wait()
            for _ in range(8):
                await peer.get(f.Published)
            assert engine.inbox_bytes == 0

    run(story())


def test_a_refused_hello_ends_its_connection(place: Place) -> None:
    """Who may not come in is told why, and hung up on."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            refused = await peer.ask(f.Hello(protocol=1, role="worker", client_id="x"))
            assert (refused.code, peer.closed) == ("BAD_REQUEST", True)

    run(story())


def test_a_broker_that_stood_still_blames_no_worker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process itself was stopped, sessions get that time back."""

    async def story() -> None:
        async with place.engine(session_timeout_ms=30_000) as engine:
            worker = place.peer(engine)
            await worker.hello("worker", SESSION)
            await worker.ask(f.Consume(subscription=1, queues=["q"], credit=1))
            await worker.publish(Message("q", b"1"), sequence=1)
            await worker.get(f.Deliver)
            # When an hour passes in which the process did not run
            real = time.monotonic_ns
            monkeypatch.setattr(time, "monotonic_ns", lambda: real() + 3_600_000_000_000)
            engine._schedule()
            await turns()
            # Then the lease is still the worker's
            assert len(place.core.state.leases) == 1
            assert not worker.closed

    run(story())


def test_what_is_looked_for_once_a_second_is_found_on_a_busy_broker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that come more often than that do not put it off for ever."""

    async def story() -> None:
        async with place.engine() as engine:
            peer, gone = place.peer(engine), place.peer(engine)
            await peer.hello("admin")
            await gone.hello("consumer")
            await gone.ask(f.Consume(subscription=1, queues=["q"], credit=1))
            await gone.publish(Message("q", b"1"), sequence=1)
            await gone.get(f.Deliver)
            # When a message comes back to a queue that was deleted meanwhile
            await peer.ask(f.DeleteQueue(queue="q"))
            engine.disconnected(gone)
            engine._schedule()
            await turns()
            (queue,) = place.core.state.numbered
            real, passed_ms = time.monotonic_ns, 0
            monkeypatch.setattr(time, "monotonic_ns", lambda: real() + passed_ms * 1_000_000)
            # And somebody says something every 300 ms
            for _ in range(5):
                passed_ms += 300
                await peer.publish(Message("other", b""), sequence=0, producer=0)
            # Then it is dropped all the same
            assert (queue.ready, queue.leased) == (0, 0)
            assert queue.counts["purged"] == 1

    run(story())


def test_tables_and_ages(place: Place) -> None:
    """Inspect answers with what is there, and refuses tables that are not."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello("admin")
            await peer.publish(Message("q", b"1"), Message("q", b"2"), sequence=1)
            (row,) = json.loads((await peer.ask(f.Inspect(what="queues"))).raw)
            assert (row["name"], row["ready"], row["counts"]) == ("q", 2, {"published": 2})
            assert 0 <= row["oldest_ready_ms"] < 60_000
            stats = json.loads((await peer.ask(f.Inspect(what="stats"))).raw)
            assert (stats["queues"], stats["log"]["segments"]) == (1, 1)
            assert (await peer.ask(f.Inspect(what="weather"))).code == "BAD_REQUEST"

    run(story())


def test_many_callers_share_one_sync(place: Place) -> None:
    """What arrives while a sync runs is written in one batch by the next."""

    async def story() -> None:
        async with place.engine() as engine:
            peers = [place.peer(engine) for _ in range(20)]
            for peer in peers:
                await peer.hello()
            place.disk.gate.clear()
            first = asyncio.create_task(peers[0].publish(Message("q", b"x"), sequence=1))
            await turns()
            before = place.log.written
            rest = [
                asyncio.create_task(peer.publish(Message("q", b"x"), sequence=1, producer=100 + i))
                for i, peer in enumerate(peers[1:])
            ]
            await turns()
            place.disk.gate.set()
            await asyncio.gather(first, *rest)
            assert place.log.written - before <= 3

    run(story())


def test_a_turn_is_bounded(place: Place) -> None:
    """However much arrived, the loop gets its turn after turn_ms and a frame."""

    async def story() -> None:
        async with place.engine(turn_ms=1) as engine:
            peer = place.peer(engine)
            await peer.hello()
            raw = b"".join(Message("q", b"x").pack() for _ in range(1000))
            for sequence in range(1, 101):
                frame = f.Publish(producer=7, sequence=sequence, count=1000, raw=raw)
                frame.correlation = 100 + sequence
                peer.say(frame)
            turned = len(place.observed.amounts)
            for _ in range(100):
                await peer.get(f.Published)
            assert len(place.observed.amounts) - turned >= 20
            assert isinstance(engine, Engine)
            assert Config().turn_ms == 5

    run(story())


def test_an_error_without_a_word_is_an_empty_one(place: Place) -> None:
    """Whose failure brought no bytes has no error: nobody waits for it, or is shown another's."""

    async def story() -> None:
        async with place.engine() as engine:
            peer = place.peer(engine)
            await peer.hello("consumer", heartbeat_ms=0)
            names = ("a", "b", "c")
            await peer.publish(*(Message("q", b"1", id=n, task="t") for n in names), sequence=1)
            peer.say(f.Consume(subscription=1, queues=["q"], credit=10, correlation=900))
            delivery = await peer.get(f.Deliver)
            ((first, _),) = wire.RUN.iter_unpack(delivery.raw[: wire.RUN.size])
            errors = [Failure("Boom", "of a").pack(), b"", b""]
            outcomes = [
                Outcome(wire.FAIL, first + n, delivery.grant, result=error, flags=wire.NO_RETRY)
                for n, error in enumerate(errors)
            ]
            two, alone = outcomes[:2], outcomes[2:]
            for each in two, alone:
                raw = b"".join(outcome.pack() for outcome in each)
                assert (await peer.ask(f.Settle(count=len(each), raw=raw))).lost == 0
            told = [(await peer.ask(f.Watch(id=name))).raw for name in names]
            assert told == [errors[0], *[Failure("Failed", "failed").pack()] * 2]
            rows = json.loads((await peer.ask(f.DeadLetters(detail=1, limit=10))).raw)["letters"]
            assert [row["message"] for row in rows] == ["of a", "", ""]

    run(story())
