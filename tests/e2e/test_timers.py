"""What is due comes when it is due, though nothing else happens in the broker."""

from __future__ import annotations

import pytest

from e2e.daemon import Daemon

pytestmark = pytest.mark.e2e

TIMES = 150
LATE_MS = 900
"""A busy machine's; a broker that has overslept waits for the next word from outside."""


def test_an_idle_broker_never_oversleeps(broker: Daemon) -> None:
    """One delayed message after the other, nothing else going on: none waits for a stir."""
    producer, consumer = broker.connect("producer"), broker.connect()
    consumer.consume("emails", credit=10)
    late = []
    for number in range(TIMES):
        due_ms = producer.link.server_ms() + 3 + number % 37
        producer.publish("emails", b"-", due_ms=due_ms)
        delivery = consumer.receive()
        late.append(consumer.link.server_ms() - due_ms)
        consumer.ack(delivery)
    assert max(late) < LATE_MS, sorted(late)[-5:]
    assert "stood still" not in broker.last_words()
