"""How the daemon ends and what its clients notice: SIGTERM, a second broker, a taken folder."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from e2e.daemon import Daemon, until
from e2e.fleet import Fleet, load_tasks
from qprotocol.frames import Goaway

pytestmark = pytest.mark.e2e


def test_sigterm_says_goodbye_and_ends_clean(broker: Daemon) -> None:
    """Clients hear a Goaway; what one settles after it still counts; the exit code is 0."""
    talker = broker.connect()
    talker.publish("emails", b"first", b"second")
    talker.consume("emails")
    delivery = talker.receive()
    broker.ask_to_stop()
    until(lambda: said_goodbye(talker), "the Goaway")
    talker.ack(delivery)
    talker.close()
    assert broker.wait() == 0
    broker.start()
    assert broker.connect().queue("emails")["ready"] == 1


def said_goodbye(talker) -> bool:
    talker.listen(0.05)
    return any(isinstance(frame, Goaway) for frame in talker.pushed)


def test_a_stop_does_not_wait_for_a_client_that_is_idle(broker: Daemon) -> None:
    """A client that asks nothing keeps no broker from ending."""
    tasks = load_tasks(broker)
    with tasks.app:
        tasks.note.delay("one")
        began = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - began < 5


def test_clients_and_workers_come_back_after_a_stop(
    make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """A stop and a start in between are noticed by nobody who has patience."""
    broker = make_broker(shutdown_timeout_ms=1_000).start()
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    with tasks.app:
        assert tasks.echo.delay("before").get(timeout=10) == "before"
        assert broker.stop() == 0
        broker.start()
        assert tasks.echo.delay("after").get(timeout=20) == "after"
    assert fleet.stop() == 0


def test_one_folder_has_one_broker(broker: Daemon, make_broker: Callable[..., Daemon]) -> None:
    """A second broker on the same folder ends with 73 and says who is there; the first goes on."""
    second = make_broker("second")
    second.data = broker.data
    with pytest.raises(AssertionError, match="is in use by another broker"):
        second.start()
    assert second.wait() == 73
    assert str(broker.pid) in second.last_words()
    broker.connect("producer").publish("emails", b"still here")
