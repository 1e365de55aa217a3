"""A disk that does not come back: who waits, who is told, and that nothing grows meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qbroker.ops.exits import Exit
from qclient import App, NotDone
from qprotocol.codec import encode
from qprotocol.frames import Blocked, Publish, Published, Unblocked
from qprotocol.message import Message

pytestmark = pytest.mark.e2e

Until = Callable[[Callable[[], Any]], Any]
PROGRAM = Path(__file__).with_name("hanging_disk.py")
SENT_BYTES = 60 << 20
GROWTH_BYTES_MAX = 32 << 20
"""The inbox, a batch that is being written and one that is being filled, and their copies."""


class Flood(threading.Thread):
    """A producer that sends much more than anybody would keep, as fast as it is read."""

    def __init__(self, peer: Any, count: int) -> None:
        super().__init__(daemon=True)
        self._peer = peer
        self._raw = Message("mail", bytes(100_000)).pack()
        self.count = count
        self.sent = 0

    def run(self) -> None:
        for number in range(1, self.count + 1):
            frame = Publish(correlation=number, producer=9, sequence=number, count=1)
            frame.raw = self._raw
            with contextlib.suppress(OSError):  # the test is over
                self._peer.socket.sendall(encode(frame))
                self.sent = number


@pytest.fixture
def hang(tmp_path: Path) -> Iterator[Path]:
    """The file whose existence hangs the disk."""
    path = tmp_path / "hang"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def broker(start: Any, hang: Path) -> Any:
    daemon = start(
        *("--inbox-bytes-max", "1MiB", "--batch-bytes-max", "256KiB", "--heartbeat-ms", "500ms"),
        *("--shutdown-timeout-ms", "300ms", "--log-level", "error"),
        python=(str(PROGRAM), str(hang)),
    )
    peer = daemon.connect().shake_hands()
    for number in range(1, 21):  # until the engine knows that this disk is slow
        raw = Message("mail", b"x").pack()
        peer.say(Publish(correlation=number, producer=1, sequence=number, count=1, raw=raw))
        peer.expect(Published)
    return daemon


def test_publishers_are_told_and_held_back_and_all_goes_on_once_the_disk_is_back(
    broker: Any, hang: Path, until: Until
) -> None:
    process = psutil.Process(broker.process.pid)
    peer = broker.connect().shake_hands()
    before = process.memory_info().rss
    # When the disk hangs and a producer goes on
    hang.touch()
    flood = Flood(peer, SENT_BYTES // 100_000)
    flood.start()
    # Then it is told, and no longer read
    assert "publishes are not read" in peer.expect(Blocked).reason
    until(lambda: broker.get("/health")[0] == 503)
    assert broker.health()["status"] == "stalled"
    assert flood.sent < flood.count / 2
    assert process.memory_info().rss - before < GROWTH_BYTES_MAX
    # And when the disk is back, every publish is confirmed, in order
    hang.unlink()
    confirmed, unblocked = [], 0
    while len(confirmed) < flood.count:
        frame = peer.hear()
        if isinstance(frame, Published):
            confirmed.append(frame.correlation)
        else:
            assert isinstance(frame, Blocked | Unblocked)
            unblocked += isinstance(frame, Unblocked)
    assert confirmed == list(range(1, flood.count + 1))
    assert unblocked >= 1
    until(lambda: broker.health()["status"] == "ok")
    flood.join()


def test_nothing_is_confirmed_while_the_disk_hangs(broker: Any, hang: Path, until: Until) -> None:
    peer = broker.connect().shake_hands()
    hang.touch()
    raw = Message("mail", b"x").pack()
    peer.say(Publish(correlation=3, producer=5, sequence=1, count=1, raw=raw))
    until(lambda: broker.health()["status"] == "stalled")
    peer.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.socket.recv(1)
    peer.socket.settimeout(10)
    hang.unlink()
    assert peer.expect(Published).correlation == 3


def test_a_stop_does_not_wait_for_a_disk_that_hangs(broker: Any, hang: Path, until: Until) -> None:
    peer = broker.connect().shake_hands()
    hang.touch()
    raw = Message("mail", b"x").pack()
    peer.say(Publish(correlation=3, producer=5, sequence=1, count=1, raw=raw))
    until(lambda: broker.health()["status"] == "stalled")
    code, said = broker.stop(signal.SIGTERM)
    assert code == Exit.DISK
    assert "the disk did not finish within" in said
    assert Published not in [type(frame) for frame in iter(peer.hear, None)]


def test_whoever_comes_while_the_disk_hangs_learns_that_it_does(
    broker: Any, hang: Path, until: Until
) -> None:
    """The Hello of a stranger waits for the disk, too: he is not told that he was late."""
    peer = broker.connect().shake_hands()
    hang.touch()
    raw = Message("mail", b"x").pack()
    peer.say(Publish(correlation=3, producer=5, sequence=1, count=1, raw=raw))
    # Then one who comes is turned away with the reason, whoever it is
    for role, more in (("producer", {}), ("worker", {"session": bytes(range(16))})):
        with pytest.raises(AssertionError, match="the broker's disk does not answer") as caught:
            broker.connect().shake_hands(role, **more)
        assert "DISK_STALLED" in str(caught.value)
    # And a client says it in its own error: nothing was done
    app = App("shop", broker=broker.url, set_as_current=False)
    app.conf.broker_timeout_s = 3
    with pytest.raises(NotDone, match="the broker's disk does not answer"):
        app.send_task("t")
    # And who was in before is answered once the disk is back, as is who comes then
    hang.unlink()
    assert peer.expect(Published).correlation == 3
    until(lambda: broker.health()["status"] == "ok")
    app.send_task("t")
    app.close()
