"""The one timer: who is late, who is silent, who does not read, and who is left in peace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from qbroker.net import watch
from qprotocol.codec import encode
from qprotocol.frames import Ack, Auth, Bye, Greeting, Heartbeat, Ok

Until = Callable[[Callable[[], Any]], Any]
QUICK = {"heartbeat_ms": 100, "session_timeout_ms": 300, "handshake_timeout_ms": 300}


@pytest.fixture
def quick(open_door: Callable[..., Any]) -> Any:
    return open_door(**QUICK)


def test_a_stranger_that_says_nothing_is_told_that_time_is_up(quick: Any) -> None:
    started = time.monotonic()
    peer = quick.connect()
    error = peer.refusal()
    assert (error.code, error.message) == (
        "TIMED_OUT",
        "no Hello within 300 ms of connecting",
    )
    assert time.monotonic() - started >= 0.25


def test_a_handshake_has_one_deadline_in_all_however_it_trickles_in(quick: Any) -> None:
    peer, pause = quick.connect(), threading.Event()
    peer.expect(Greeting)
    peer.say(Auth(correlation=1, mechanism="none"))
    peer.expect(Ok)
    trickle = encode(Heartbeat(sent_ms=1, raw=bytes(4000)))
    started = time.monotonic()
    peer.socket.setblocking(False)
    for byte in trickle:
        if pause.wait(0.01) or time.monotonic() - started > 5:
            break
        try:
            peer.socket.send(bytes((byte,)))
            if peer.socket.recv(4096):
                break
        except BlockingIOError:
            continue
    assert time.monotonic() - started < 2
    assert quick.listener.complaints.counts == {"TIMED_OUT": 1}


def test_strangers_are_hurried_and_the_known_are_not(quick: Any, until: Until) -> None:
    known, stranger = quick.connect().shake_hands(), quick.connect()
    stranger.expect(Greeting)
    assert stranger.refusal().code == "TIMED_OUT"
    known.say(Ack(correlation=3))
    until(lambda: quick.engine.submitted)


@pytest.mark.parametrize(
    ("role", "heartbeat_ms", "ends"),
    [
        ("worker", 100, True),
        ("worker", 0, True),
        ("consumer", 0, True),
        ("producer", 100, True),
        ("producer", 0, False),
        ("admin", 0, False),
        ("member", 0, False),
        ("member", 100, False),
    ],
)
def test_silence_ends_those_who_hold_leases_or_promised_to_speak(
    quick: Any, until: Until, role: str, heartbeat_ms: int, ends: bool
) -> None:
    peer = quick.connect().shake_hands(role, heartbeat_ms=heartbeat_ms)
    control = quick.connect().shake_hands("worker", heartbeat_ms=100)
    assert control.refusal().message == "silent for 300 ms"
    if ends:
        assert peer.refusal().message == "silent for 300 ms"
    else:
        peer.say(Bye(correlation=3))
        until(quick.engine.frames)


def test_a_peer_that_speaks_stays_and_hears_heartbeats_when_nothing_else_is_said(
    quick: Any, until: Until
) -> None:
    peer = quick.connect().shake_hands("worker", heartbeat_ms=100)
    for _ in range(8):  # over twice the session's timeout
        assert peer.expect(Heartbeat).sent_ms > 0
        peer.say(Heartbeat(sent_ms=1))
    assert quick.listener.complaints.counts == {}
    until(lambda: len(quick.engine.submitted) == 8)


def test_who_promised_no_heartbeats_gets_none(quick: Any) -> None:
    silent = quick.connect().shake_hands("producer", heartbeat_ms=0)
    beating = quick.connect().shake_hands("worker", heartbeat_ms=100)
    for _ in range(5):
        beating.expect(Heartbeat)
        beating.say(Heartbeat())
    quick.engine.on_frame = lambda connection, _: connection.send(encode(Ok(correlation=3)))
    silent.say(Bye(correlation=3))
    assert isinstance(silent.hear(), Ok)


def test_while_other_words_come_no_heartbeat_is_needed(quick: Any) -> None:
    peer = quick.connect().shake_hands("worker", heartbeat_ms=100)
    quick.engine.on_frame = lambda connection, frame: connection.send(
        encode(Ok(correlation=frame.correlation))
    )
    ended, correlation = time.monotonic() + 0.6, 2
    while time.monotonic() < ended:
        correlation += 1
        peer.say(Bye(correlation=correlation))
        assert peer.expect(Ok).correlation == correlation


def test_a_peer_that_is_not_read_is_not_blamed_for_silence(quick: Any, until: Until) -> None:
    worker = quick.connect().shake_hands("worker", heartbeat_ms=100)
    control = quick.connect().shake_hands("worker", heartbeat_ms=100)
    quick.engine.inbox_bytes = 4 * quick.listener.limits.inbox_bytes_max
    worker.say(Heartbeat())
    until(lambda: [c for c in quick.listener.connections.values() if c.blocked])
    control.refusal()
    quick.engine.inbox_bytes = 0
    quick.do(quick.engine.on_drained)
    worker.say(Ack(correlation=3))
    until(lambda: len(quick.engine.submitted) == 2)


def test_the_time_the_broker_itself_was_stuck_is_nobodys_silence(quick: Any, until: Until) -> None:
    peer = quick.connect().shake_hands("worker", heartbeat_ms=100)
    peer.say(Ack(correlation=3))
    until(lambda: quick.engine.submitted)
    quick.do(lambda: threading.Event().wait(1.0))  # the loop, for three timeouts
    assert quick.listener.watch.take_lag() > 0.9
    peer.expect(Heartbeat)
    peer.say(Heartbeat())
    until(lambda: len(quick.engine.submitted) == 2)
    assert quick.listener.complaints.counts == {}


@pytest.mark.parametrize(("role", "ends"), [("producer", True), ("member", False)])
def test_who_takes_none_of_what_waits_for_it_is_cut_off_but_a_member_is_not(
    quick: Any, until: Until, monkeypatch: pytest.MonkeyPatch, role: str, ends: bool
) -> None:
    monkeypatch.setattr(watch, "STALL_S", 0.2)
    quick.connect().shake_hands(role)
    (connection,) = quick.engine.connections.values()
    beat = encode(Heartbeat(raw=bytes(100_000)))
    while connection.unsent_bytes < 1_000_000:
        quick.do(lambda: connection.send(beat))
    if ends:
        until(lambda: quick.engine.gone == [connection.number])
        assert quick.listener.complaints.counts == {"TIMED_OUT": 1}
    else:
        quick.connect().refusal()  # a handshake's time later
        assert quick.engine.gone == []


def test_a_slow_reader_that_gets_on_is_left_in_peace(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "STALL_S", 0.3)
    peer = quick.connect(kernel_bytes=100_000).shake_hands("producer")
    pause = threading.Event()
    (connection,) = quick.engine.connections.values()
    beat = encode(Heartbeat(raw=bytes(100_000)))
    while connection.unsent_bytes < 5_000_000:
        quick.do(lambda: connection.send(beat))
    started = time.monotonic()
    while time.monotonic() - started < 1.0:
        pause.wait(0.02)
        peer.socket.recv(60_000)
    assert connection.unsent_bytes
    assert quick.engine.gone == []


def test_who_does_not_close_after_a_goodbye_is_closed(quick: Any, until: Until) -> None:
    peer = quick.connect()
    peer.expect(Greeting)
    peer.say(Ok(correlation=1))
    peer.refusal()
    started = time.monotonic()
    until(lambda: not quick.listener.connections)
    assert time.monotonic() - started < 3 * watch.LINGER_S
