"""What was confirmed is true after kill -9: messages, settlements, results, delays, counters."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from e2e.daemon import Daemon
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import Publish, Published
from qprotocol.message import Message
from qprotocol.options import RetryPolicy
from qprotocol.states import State

pytestmark = pytest.mark.e2e

AT_ONCE = RetryPolicy(retries_max=5, backoff_ms=0, jitter=False).pack()


def test_confirmed_means_there_after_kill_nine(broker: Daemon) -> None:
    """Every message that was confirmed is delivered after a crash, in order."""
    # Given fifty messages, confirmed one by one and in chunks
    bodies = [str(number).encode() for number in range(50)]
    talker = broker.connect("producer")
    for body in bodies[:10]:
        assert talker.publish("emails", body).durability == "synced"
    talker.publish("emails", *bodies[10:])
    # When the broker dies without a word, and comes back
    broker.restart()
    # Then all of them are handed out
    consumer = broker.connect()
    consumer.consume("emails", credit=100)
    assert [consumer.receive().message.body for _ in bodies] == bodies


def test_acked_means_gone_even_after_kill_nine(broker: Daemon) -> None:
    """What was acknowledged before a crash is not delivered after it."""
    # Given two messages, of which the first was delivered and acknowledged
    talker = broker.connect()
    talker.publish("emails", b"first", b"second")
    talker.consume("emails")
    talker.ack(talker.receive())
    # When the broker dies without a word, and comes back
    broker.restart()
    # Then only the second is there
    again = broker.connect()
    row = again.queue("emails")
    assert row["ready"] + row["leased"] + row["scheduled"] == 1
    again.consume("emails")
    assert again.receive().message.body == b"second"


def test_an_unsettled_delivery_comes_again(broker: Daemon) -> None:
    """A message that was out when the broker died is delivered again, and says so."""
    talker = broker.connect()
    talker.publish("emails", b"hi")
    talker.consume("emails")
    assert talker.receive().deliveries == 1
    # A grant is logged unawaited; once something later is confirmed, so is the grant.
    talker.publish("other", b"-")
    broker.restart()
    again = broker.connect()
    again.consume("emails")
    delivery = again.receive()
    assert (delivery.message.body, delivery.deliveries) == (b"hi", 2)
    assert (delivery.failures, delivery.crashes) == (0, 0)


def test_results_survive(broker: Daemon) -> None:
    """A task's result that was confirmed can be asked for after a crash."""
    talker = broker.connect()
    task_id = talker.task("emails")
    talker.consume("emails")
    talker.ack(talker.receive(), result=b"forty-two")
    broker.restart()
    found = broker.connect("producer").look(task_id)
    assert (State(found.state), found.raw) == (State.SUCCESS, b"forty-two")


def test_follow_on_messages_and_the_ack_are_one(broker: Daemon) -> None:
    """What an acknowledgement published with it is there after a crash; the acked is not."""
    talker = broker.connect()
    talker.publish("first", b"one")
    talker.consume("first")
    next_one = Message("second", b"two").pack()
    assert talker.settle(talker.receive(), wire.ACK, follow_on=(next_one,)) == []
    broker.restart()
    again = broker.connect()
    assert (again.queue("first")["ready"], again.queue("second")["ready"]) == (0, 1)


def test_a_delayed_message_survives_and_is_not_early(broker: Daemon) -> None:
    """A due time outlives the broker: neither forgotten nor brought forward by a crash."""
    talker = broker.connect()
    due_ms = talker.link.server_ms() + 3_000
    talker.task("emails", b"later", due_ms=due_ms)
    task_id = talker.task("emails", b"much later", due_ms=due_ms + 3_600_000)
    broker.restart()
    again = broker.connect()
    assert State(again.look(task_id).state) is State.SCHEDULED
    again.consume("emails")
    assert again.receive().message.body == b"later"
    assert again.link.server_ms() >= due_ms - 1, "delivered before its time"


def test_counters_of_retries_survive(broker: Daemon) -> None:
    """A message that failed twice before the crash fails for the third time after it."""
    talker = broker.connect()
    talker.publish("emails", b"hi")
    talker.consume("emails")
    for _ in range(2):
        talker.fail(talker.receive(), policy=AT_ONCE)
    broker.restart()
    again = broker.connect()
    again.consume("emails")
    delivery = again.receive()
    assert delivery.failures == 2
    assert delivery.deliveries >= 3


def test_a_retry_that_waits_survives(broker: Daemon) -> None:
    """The delay of a retry outlives the broker, and so does its last error."""
    talker = broker.connect()
    task_id = talker.task("emails")
    talker.consume("emails")
    talker.fail(talker.receive(), "try later", policy=AT_ONCE, delay_ms=3_600_000)
    broker.restart()
    found = broker.connect("producer").look(task_id)
    assert State(found.state) is State.RETRY
    assert Failure.unpack(found.raw).message == "try later"


def test_priorities_survive(broker: Daemon) -> None:
    """After a crash the higher priority still goes first, and equals go in order."""
    talker = broker.connect("producer")
    for body, priority in ((b"low", -5), (b"a", 0), (b"high", 9), (b"b", 0)):
        talker.publish("emails", body, priority=priority)
    broker.restart()
    consumer = broker.connect()
    consumer.consume("emails", credit=10)
    assert [consumer.receive().message.body for _ in range(4)] == [b"high", b"a", b"b", b"low"]


def test_dead_letters_are_seen_by_peek(broker: Daemon) -> None:
    """A task that failed for good lies in the dead-letter queue with its error, also after kill."""
    talker = broker.connect()
    task_id = talker.task("emails")
    talker.consume("emails")
    talker.fail(talker.receive(), "no such user", flags=wire.NO_RETRY)
    for _ in range(2):
        (row,) = broker.command("peek", "emails.dead")
        assert row["id"] == task_id
        assert row["error"] == "StoryError: no such user"
        assert row["failures"] == 1
        broker.restart()
    assert State(broker.connect("producer").look(task_id).state) is State.FAILURE


def test_a_chunk_sent_again_after_a_crash_is_recognised(broker: Daemon) -> None:
    """A producer that lost the answer resends the chunk, and nothing is there twice."""
    talker = broker.connect("producer")
    chunk = talker.chunk(Message("emails", body) for body in (b"one", b"two"))
    assert not talker.ask(chunk, Published).duplicate
    broker.restart()
    again = broker.connect("producer")
    answer = again.ask(
        Publish(producer=chunk.producer, sequence=chunk.sequence, count=2, raw=chunk.raw), Published
    )
    assert (answer.duplicate, answer.first) == (True, 0)
    assert again.queue("emails")["ready"] == 2


def test_what_was_published_in_parts_is_there_whole(broker: Daemon) -> None:
    """A body far over one frame is confirmed once, and is whole after a crash."""
    body = bytes(range(256)) * 3_000
    broker.connect("producer").publish("files", body)
    broker.restart()
    consumer = broker.connect()
    consumer.consume("files")
    assert consumer.receive().message.body == body


def test_a_start_that_fails_does_not_make_a_crash_a_clean_stop(
    make_broker: Callable[..., Daemon],
) -> None:
    """Claims come first after a crash, also if the start before this one found its port taken."""
    broker = make_broker(claims_ms=60_000).start()
    broker.connect("producer").publish("emails", b"hi")
    # When it dies, and a start ends because another listens there
    broker.kill()
    taken = pytest.raises(AssertionError, match="something listens there already")
    with socket.create_server(("127.0.0.1", broker.port)), taken:
        broker.start()
    # Then nothing is handed out before the workers of before had their time
    broker.start()
    waits = broker.connect()
    waits.consume("emails")
    waits.listen(0.5)
    assert not waits.waiting
    assert waits.queue("emails")["ready"] == 1
    # And a clean stop is a clean one, whatever failed before
    waits.close()
    assert broker.stop() == 0
    with socket.create_server(("127.0.0.1", broker.port)), taken:
        broker.start()
    broker.start()
    taker = broker.connect()
    taker.consume("emails")
    assert taker.receive().message.body == b"hi"
