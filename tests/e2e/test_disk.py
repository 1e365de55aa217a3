"""A disk that hangs, and one that fails, under the real process."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Self

import pytest

from e2e.daemon import PATIENCE_S, Daemon, until
from e2e.fleet import load_tasks
from e2e.talker import Refused, Talker
from qclient import NotDone, OutcomeUnknown
from qclient.exceptions import ConnectionLost
from qprotocol import wire
from qprotocol.frames import Blocked, Heartbeat, Published, Settle, Settled, Unblocked
from qprotocol.message import Delivery, Message, Outcome

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
TIMEOUT_S = 1.0
SMALL = {"inbox_bytes_max": MIB, "heartbeat_ms": 200, "session_timeout_ms": 2_000}
"""Limits that are reached soon."""
HANG_S = 4.5
"""Longer than a session may be silent, by far."""


def strace(call: str, error: str, when: str) -> tuple[str, ...]:
    """A command under which this system call fails, from the n-th on if ``when`` ends in +."""
    inject = f"inject={call}:error={error}:when={when}"
    return ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)


class Worker:
    """A worker's parent, whose heart beats in a thread, and one child, which holds a delivery."""

    def __init__(self, broker: Daemon) -> None:
        session = secrets.token_bytes(16)
        self.parent = broker.connect("worker", session=session)
        self.child = broker.connect("member", session=session, member=1)
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat)
        self._heart.start()

    def _beat(self) -> None:
        while not self._over.wait(0.1):
            self.parent.link.send(Heartbeat())

    def take(self, queue: str) -> Delivery:
        self.child.consume(queue)
        return self.child.receive()

    def outlive(self, begin: float, seconds: float) -> None:
        """It is ``seconds`` after ``begin``: longer than silence would be forgiven."""
        until(lambda: time.monotonic() > begin + seconds, "the end of patience")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join()


def flood(talker: Talker, most_bytes: int) -> int:
    """Publishes without waiting for answers until the broker says Blocked; the bytes it took."""
    sent = 0
    while not any(isinstance(frame, Blocked) for frame in talker.pushed):
        assert sent < most_bytes, "the broker reads on and on"
        talker.say(talker.chunk([Message("flood", b"x" * 100_000)]))
        sent += 100_000
        talker.listen(0.001)
    return sent


def test_while_a_sync_hangs(make_broker: Callable[..., Daemon]) -> None:
    """Publishers are told, deadlines hold, memory is bounded, settlements pass, leases stay."""
    # Given a broker, some publishers, and a worker that holds a message
    broker = make_broker(**SMALL).start(is_faulty=True)
    producer, another = broker.connect("producer"), broker.connect("producer")
    producer.publish("emails", b"held", b"waits")
    tasks = load_tasks(broker)
    tasks.note.delay("in time")
    tasks.app.conf.broker_timeout_s = TIMEOUT_S
    with tasks.app, Worker(broker) as worker:
        held = worker.take("emails")
        memory_kib = broker.rss_kib()
        # When a sync hangs
        broker.fault("hang", is_on=True)
        began = time.monotonic()
        producer.say(producer.chunk([Message("flood", b"the first")]))
        until((broker.faults / "hangs").exists, "the hang")
        # Then each publisher is told, after a bounded number of bytes
        for publisher in (producer, another):
            flood(publisher, most_bytes=16 * MIB)
        assert broker.rss_kib() - memory_kib < 24 * 1024
        # And a call fails when its time is over, saying what is known
        called = time.monotonic()
        with pytest.raises((NotDone, OutcomeUnknown)):
            tasks.note.delay("too late")
        assert time.monotonic() - called < TIMEOUT_S + 10.0, "not its own time limit"
        # And a settlement is taken meanwhile, to be confirmed when the disk is back
        packed = Outcome(wire.ACK, held.position, held.grant).pack()
        asked = worker.child.say(Settle(count=1, raw=packed))
        worker.outlive(began, HANG_S)
        broker.fault("hang", is_on=False)
        settled = worker.child.answer(asked)
        assert isinstance(settled, Settled)
        assert settled.lost == 0, "the lease was lost while the disk hung"
        # And publishes go on
        until(lambda: told(producer, Unblocked), "Unblocked")
        producer.publish("emails", b"again")
        next_one = worker.child.receive()
        assert (next_one.message.body, next_one.deliveries) == (b"waits", 1)


def told(talker: Talker, kind: type) -> bool:
    talker.listen(0.05)
    return any(isinstance(frame, kind) for frame in talker.pushed)


def test_a_hang_of_a_lone_caller_s_sync_loses_no_lease(make_broker: Callable[..., Daemon]) -> None:
    """Where a sync may be done with nobody else waiting, nobody is blamed for the stall either."""
    broker = make_broker(**SMALL).start(is_faulty=True)
    producer = broker.connect("producer")
    producer.publish("emails", b"held")
    with Worker(broker) as worker:
        held = worker.take("emails")
        broker.fault("hang", is_on=True)
        began = time.monotonic()
        asked = producer.say(producer.chunk([Message("emails", b"slow")]))
        until((broker.faults / "hangs").exists, "the hang")
        worker.outlive(began, HANG_S)
        broker.fault("hang", is_on=False)
        assert isinstance(producer.answer(asked), Published)
        worker.child.ack(held)
        assert worker.child.receive().message.body == b"slow"


def publish_until_it_ends(broker: Daemon) -> tuple[list[bytes], list[bytes], float]:
    """One message after the other until the broker is gone: those confirmed, those tried.

    And when the last one was sent, on the monotonic clock.
    """
    talker = broker.connect("producer")
    confirmed, tried = [], []
    for number in range(10_000):
        body = str(number).encode()
        tried.append(body)
        sent = time.monotonic()
        try:
            talker.publish("emails", body)
        except (ConnectionLost, Refused, TimeoutError):
            return confirmed, tried, sent
        confirmed.append(body)
        if number == 5 and broker.faults.exists():
            broker.fault("eio", is_on=True)
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("wrapper", "what"),
    [
        pytest.param((), "Input/output error", id="in Python"),
        *(
            pytest.param(
                strace(call, error, when), what, id=f"{call} {error}", marks=pytest.mark.services
            )
            for call, error, when, what in (
                ("fdatasync", "EIO", "12+", "Input/output error"),
                ("fdatasync", "EIO", "12", "Input/output error"),
                ("fdatasync", "ENOSPC", "12", "No space left on device"),
                ("pwrite64", "EIO", "20+", "Input/output error"),
                ("pwrite64", "ENOSPC", "20", "No space left on device"),
            )
        ),
    ],
)
def test_after_a_failed_write_or_sync_nothing_is_confirmed(
    wrapper: tuple[str, ...], what: str, make_broker: Callable[..., Daemon]
) -> None:
    """It ends the process with 74 and a sentence, soon; the next start has all that was confirmed.

    Also if the next try would have succeeded: nothing is tried twice.
    """
    broker = make_broker(shutdown_timeout_ms="90s").start(wrapper, is_faulty=not wrapper)
    confirmed, tried, sent = publish_until_it_ends(broker)
    assert broker.wait() == 74
    assert time.monotonic() - sent < PATIENCE_S, "as slow as an orderly stop"
    assert re.search(rf"failed: .*{what}; nothing more is written", broker.last_words())
    # Then a start without the fault knows what was confirmed, and invented nothing
    broker.start()
    consumer = broker.connect()
    there = consumer.queue("emails")["ready"]
    consumer.consume("emails", credit=1_000)
    bodies = [consumer.receive().message.body for _ in range(there)]
    assert bodies[: len(confirmed)] == confirmed
    assert bodies == tried[: len(bodies)]
