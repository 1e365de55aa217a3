"""The door with real sockets: who gets in, who is told to wait, and how it closes."""

from __future__ import annotations

import gc
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from qbroker.net import connection, listener
from qprotocol.codec import PREFIX, encode
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.frames import (
    Ack,
    Auth,
    Blocked,
    Bye,
    Consume,
    Credit,
    Error,
    Goaway,
    Greeting,
    Heartbeat,
    Hello,
    Ok,
    Part,
    Peek,
    Publish,
    Settle,
    Unblocked,
)
from qprotocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_AUTH

Until = Callable[[Callable[[], Any]], Any]

# --- Coming in


def test_a_peer_shakes_hands_and_its_frames_reach_the_engine_in_order(
    door: Any, until: Until
) -> None:
    peer = door.connect().shake_hands("worker", session=b"s" * 16, heartbeat_ms=1)
    peer.say(
        Ack(correlation=3),
        Credit(subscription=1, credit=2),
        Part(correlation=4, index=0, of=Settle.TYPE, raw=b"x"),
        Settle(correlation=4, count=1),
        Heartbeat(sent_ms=5),
    )
    until(lambda: len(door.engine.submitted) == 5)
    kinds = [type(frame) for frame in door.engine.frames()]
    assert kinds == [Ack, Credit, Part, Settle, Heartbeat]
    assert door.listener.counts() == {"worker": 1}


def test_the_engine_hears_of_nobody_before_hello(door: Any, until: Until) -> None:
    peer = door.connect()
    peer.expect(Greeting)
    peer.say(Auth(correlation=1, mechanism="none"))
    peer.expect(Ok)
    assert door.engine.connections == {}
    assert door.listener.counts() == {"stranger": 1}
    peer.close()
    until(lambda: not door.listener.connections)
    assert door.engine.gone == []


def test_the_engine_hears_once_when_a_peer_is_gone(door: Any, until: Until) -> None:
    peer = door.connect().shake_hands()
    (number,) = door.engine.connections
    peer.close()
    until(lambda: door.engine.gone == [number])
    until(lambda: not door.listener.connections)


def test_a_connection_that_is_over_leaves_no_garbage(door: Any, until: Until) -> None:
    """The collector of a broker does not look at what is old: it would stay for ever."""

    def there() -> int:
        return sum(type(each) is connection.Connection for each in gc.get_objects())

    gc.collect()
    before = there()
    gc.disable()
    try:
        for _ in range(3):
            door.connect().shake_hands().close()
        until(lambda: len(door.engine.gone) == 3 and not door.listener.connections)
        until(lambda: there() <= before)
    finally:
        gc.enable()


def test_a_handshake_may_come_byte_by_byte(door: Any) -> None:
    peer = door.connect()
    peer.expect(Greeting)
    for byte in encode(Auth(correlation=1, mechanism="none")):
        peer.socket.sendall(bytes((byte,)))
    assert peer.expect(Ok).correlation == 1


def test_a_refused_hello_gets_the_engines_reason_and_the_end(door: Any, until: Until) -> None:
    def refuse(connection: Any, hello: Hello) -> None:
        connection.refused()
        error = Error(correlation=hello.correlation, code="NO_SESSION", message="ended")
        connection.send(encode(error))
        connection.close()

    door.engine.on_hello = refuse
    peer = door.connect()
    peer.expect(Greeting)
    peer.say(Auth(correlation=1, mechanism="none"))
    peer.expect(Ok)
    peer.say(Hello(correlation=2, protocol=PROTOCOL_VERSION, role="member", client_id="c"))
    assert peer.expect(Error).code == "NO_SESSION"
    assert peer.hear() is None
    peer.close()
    until(lambda: not door.listener.connections)


def test_a_welcome_for_who_was_hung_up_on_meanwhile_is_no_bug(door: Any, until: Until) -> None:
    """The disk hung, the peer was too silent: its Welcome leaves when nobody is there any more."""
    tried: list[int] = []

    def too_late(connection: Any, hello: Hello) -> None:
        connection.fail("TIMED_OUT", "silent for too long")
        connection.welcomed()
        tried.append(connection.number)

    door.engine.on_hello = too_late
    peer = door.connect()
    peer.expect(Greeting)
    peer.say(Auth(correlation=1, mechanism="none"))
    peer.expect(Ok)
    peer.say(Hello(correlation=2, protocol=PROTOCOL_VERSION, role="producer", client_id="c"))
    assert peer.expect(Error).code == "TIMED_OUT"
    until(lambda: tried)
    assert door.engine.welcomes == []
    peer.close()


def test_small_frames_leave_at_once_and_dead_peers_are_noticed(door: Any) -> None:
    seen = {}

    def look(connection: Any, _: Any) -> None:
        sock = connection._transport.get_extra_info("socket")
        seen["delay"] = not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        seen["keepalive"] = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    door.engine.on_frame = look
    peer = door.connect().shake_hands()
    door.engine.on_frame = lambda c, f: (look(c, f), c.send(encode(Ok(correlation=3))))
    peer.say(Bye(correlation=3))
    peer.expect(Ok)
    assert seen == {"delay": False, "keepalive": True}


# --- Violations


def frame_of(header: bytes, raw: bytes = b"") -> bytes:
    return PREFIX.pack(2 + len(header) + len(raw), len(header)) + header + raw


VIOLATIONS = [
    ("not a frame at all", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "FRAME_TOO_LARGE"),
    ("an empty header", frame_of(b""), "BAD_FRAME"),
    ("a header beyond its frame", struct.pack("<IH", 4, 9) + bytes(9), "BAD_FRAME"),
    ("no msgpack", frame_of(b"\xc1\xc1"), "BAD_FRAME"),
    ("no array", frame_of(b"\x80"), "BAD_FRAME"),
    ("an unknown type", frame_of(b"\x92\x7f\x01"), "BAD_FRAME"),
    ("a missing field", frame_of(b"\x92\x04\x01"), "BAD_FRAME"),
    ("a field of the wrong type", frame_of(b"\x94\x02\x01\x07\xc4\x00"), "BAD_FRAME"),
    ("a negative correlation", frame_of(b"\x93\x02\xff\xa4none"), "BAD_FRAME"),
    ("an array of 2^32 items", frame_of(b"\xdd\xff\xff\xff\xff"), "BAD_FRAME"),
    ("a thousand arrays in one another", frame_of(b"\x91" * 2000), "BAD_FRAME"),
    ("text that is no UTF-8", frame_of(b"\x94\x02\x01\xa1\xff\xc4\x00"), "BAD_FRAME"),
    ("a 4 KiB frame and one byte", PREFIX.pack(4097, 9), "FRAME_TOO_LARGE"),
    ("a 4 GiB frame", PREFIX.pack(2**32 - 1, 9), "FRAME_TOO_LARGE"),
    ("work before a name", encode(Peek(correlation=1, queue="q")), "BAD_STATE"),
    ("a heartbeat before a name", encode(Heartbeat()), "BAD_STATE"),
    ("the broker's own word", encode(Ok(correlation=1)), "BAD_STATE"),
    ("an unknown mechanism", encode(Auth(correlation=1, mechanism="x")), "AUTH_FAILED"),
]


@pytest.mark.parametrize(
    ("said", "code"), [pytest.param(said, code, id=name) for name, said, code in VIOLATIONS]
)
def test_a_stranger_who_breaks_the_rules_is_told_the_code_and_let_go(
    door: Any, until: Until, said: bytes, code: str
) -> None:
    peer = door.connect()
    peer.expect(Greeting)
    peer.socket.sendall(said)
    error = peer.refusal()
    assert (error.code, error.correlation) == (code, 0)
    assert error.message
    peer.close()
    until(lambda: not door.listener.connections)
    assert door.listener.complaints.counts == {code: 1}
    assert door.troubles == []


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (PREFIX.pack(FRAME_BYTES_MAX + 1, 9), "FRAME_TOO_LARGE"),
        (frame_of(b"\xc1"), "BAD_FRAME"),
        (encode(Auth(correlation=1, mechanism="none")), "BAD_STATE"),
        (encode(Goaway(reason="go")), "BAD_STATE"),
        (encode(Publish(producer=1, sequence=1, count=1)), "BAD_FRAME"),
    ],
    ids=["too large", "no msgpack", "twice named", "the broker's own word", "no correlation"],
)
def test_a_known_peer_who_breaks_the_rules_is_let_go_and_the_engine_told(
    door: Any, until: Until, said: bytes, code: str
) -> None:
    peer = door.connect().shake_hands()
    (number,) = door.engine.connections
    peer.socket.sendall(said)
    assert peer.refusal().code == code
    until(lambda: door.engine.gone == [number])
    assert door.engine.submitted == []


def test_what_came_before_a_violation_counts_and_nothing_after_it(door: Any) -> None:
    peer = door.connect().shake_hands()
    good, bad = encode(Peek(correlation=3, queue="q")), frame_of(b"\xc1")
    peer.socket.sendall(good + bad + good)
    assert peer.refusal().code == "BAD_FRAME"
    assert [type(frame) for frame in door.engine.frames()] == [Peek]


def test_frames_grow_only_once_a_peer_has_said_who_it_is(door: Any, until: Until) -> None:
    peer = door.connect()
    peer.expect(Greeting)
    long = Auth(correlation=1, mechanism="none", data=bytes(4000))
    assert len(encode(long)) < FRAME_BYTES_MAX_BEFORE_AUTH
    peer.say(long)
    peer.expect(Ok)
    peer.say(Hello(correlation=2, protocol=PROTOCOL_VERSION, role="producer", client_id="c"))
    peer.hear()
    publish = Publish(correlation=3, producer=1, sequence=1, count=1, raw=bytes(120_000))
    peer.say(publish)
    until(lambda: door.engine.frames() == [publish])


def test_a_bug_ends_the_connection_it_happened_on_and_no_other(door: Any, until: Until) -> None:
    good, bad = door.connect().shake_hands(), door.connect().shake_hands()

    def trip(_: Any, frame: Any) -> None:
        assert frame.queue != "tripwire", "planted"

    door.engine.on_frame = trip
    bad.say(Peek(correlation=3, queue="tripwire"))
    assert bad.hear() is None
    good.say(Peek(correlation=3, queue="fine"))
    until(lambda: len(door.engine.submitted) == 2)
    assert len(door.engine.gone) == 1
    assert [type(trouble["exception"]) for trouble in door.troubles] == [AssertionError]


def test_many_complaints_are_counted_and_few_are_written(
    door: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qbroker.net"):
        for _ in range(20):
            peer = door.connect()
            peer.expect(Greeting)
            peer.socket.sendall(frame_of(b"\xc1"))
            peer.refusal()
            peer.close()
    assert door.listener.complaints.counts == {"BAD_FRAME": 20}
    (line,) = caplog.messages
    assert line.startswith("BAD_FRAME from 127.0.0.1:")


def test_a_peer_that_goes_on_talking_after_its_refusal_is_cut_off(door: Any, until: Until) -> None:
    peer = door.connect()
    peer.expect(Greeting)
    with pytest.raises(OSError, match="reset|Broken pipe"):
        peer.socket.sendall(bytes(100 * connection.DISCARDED_BYTES_MAX))
    until(lambda: not door.listener.connections)


# --- Limits


def test_beyond_connections_max_a_peer_is_told_so(open_door: Callable[..., Any]) -> None:
    door = open_door(connections_max=2)
    first = door.connect().shake_hands()
    door.connect().shake_hands()
    error = door.connect().refusal()
    assert (error.code, error.retryable) == ("TOO_MANY_CONNECTIONS", True)
    assert error.message.startswith("2 connections are open, the limit:")
    first.say(Bye(correlation=3))


def test_strangers_cannot_use_up_more_than_their_own_room(
    open_door: Callable[..., Any], until: Until
) -> None:
    door = open_door(handshakes_max=2)
    strangers = [door.connect() for _ in range(2)]
    for stranger in strangers:
        stranger.expect(Greeting)
    assert "2 handshakes are open" in door.connect().refusal().message
    strangers[0].close()
    until(lambda: len(door.listener.connections) == 1)
    door.connect().shake_hands()


def test_a_place_is_free_again_once_its_peer_is_known(open_door: Callable[..., Any]) -> None:
    door = open_door(handshakes_max=1)
    peers = [door.connect().shake_hands() for _ in range(5)]
    assert len(peers) == len(door.engine.connections) == 5


def test_the_soft_limit_of_open_files_is_raised_and_a_shortage_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(listener.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(listener.resource, "setrlimit", lambda _, pair: limits.append(pair))
    listener.allow_files(2000)
    listener.allow_files(1500)
    assert limits == [(1024, 4096), (2000, 4096)]
    assert caplog.messages == []
    listener.allow_files(9000)
    assert limits[-1] == (4096, 4096)
    assert caplog.messages[0].startswith("4096 files may be open, connections_max asks for 9000")


# --- Busy


def flooded(door: Any, factor: float) -> None:
    door.engine.inbox_bytes = int(door.listener.limits.inbox_bytes_max * factor)


def test_while_the_inbox_is_full_publishers_are_told_and_not_read_settlers_are(
    door: Any, until: Until
) -> None:
    producer, worker = door.connect().shake_hands(), door.connect().shake_hands("worker")
    flooded(door, 1.5)
    for peer in (producer, worker):
        peer.say(Ack(correlation=3))
    producer.expect(Blocked)
    producer.say(Peek(correlation=4, queue="unread"))
    for correlation in range(4, 10):
        worker.say(Ack(correlation=correlation))
    until(lambda: len(door.engine.submitted) == 8)
    assert Peek not in [type(frame) for frame in door.engine.frames()]
    flooded(door, 0.4)
    door.do(door.engine.on_drained)
    producer.expect(Unblocked)
    until(lambda: type(door.engine.frames()[-1]) is Peek)


def test_at_twice_the_limit_nobody_is_read_but_only_publishers_are_told(
    door: Any, until: Until
) -> None:
    worker = door.connect().shake_hands("worker")
    flooded(door, 2.5)
    worker.say(Ack(correlation=3))
    until(lambda: [c for c in door.listener.connections.values() if c.blocked])
    worker.say(Ack(correlation=4))
    flooded(door, 0.4)
    door.do(door.engine.on_drained)
    until(lambda: [frame.correlation for frame in door.engine.frames()] == [3, 4])
    door.do(lambda: door.listener.goaway("stop", 0))
    worker.expect(Goaway)


def test_a_publisher_is_read_again_though_nobody_said_that_the_inbox_drained(
    door: Any, until: Until
) -> None:
    producer = door.connect().shake_hands()
    flooded(door, 1.5)
    producer.say(Ack(correlation=3))
    producer.expect(Blocked)
    flooded(door, 0.4)
    producer.expect(Unblocked)


def test_who_comes_while_the_inbox_is_full_is_told_right_after_the_welcome(door: Any) -> None:
    flooded(door, 1.5)
    door.connect().shake_hands().expect(Blocked)


def test_a_blocked_peer_that_leaves_is_forgotten(door: Any, until: Until) -> None:
    producer = door.connect().shake_hands()
    flooded(door, 1.5)
    producer.say(Ack(correlation=3))
    producer.expect(Blocked)
    producer.close()
    flooded(door, 0.4)
    door.do(door.engine.on_drained)
    until(lambda: not door.listener.connections)


def test_the_engine_is_told_when_a_reader_is_slow_and_when_it_has_caught_up(
    open_door: Callable[..., Any], until: Until
) -> None:
    door = open_door(output_bytes_max=256 * 1024)
    peer = door.connect(kernel_bytes=100_000).shake_hands("consumer")
    (connection,) = door.engine.connections.values()
    beat = encode(Heartbeat(raw=bytes(100_000)))
    while not door.engine.writes:
        door.do(lambda: connection.send(beat))
    assert door.engine.writes == [(connection.number, False)]
    while len(door.engine.writes) < 2:
        peer.expect(Heartbeat)
    assert door.engine.writes[1] == (connection.number, True)


# --- Goodbye


def test_at_the_end_everybody_is_told_and_what_was_sent_arrives(door: Any, until: Until) -> None:
    worker, stranger = door.connect().shake_hands("worker"), door.connect()
    stranger.expect(Greeting)
    door.do(lambda: door.listener.goaway("the broker is stopping", 500))
    goaway = worker.expect(Goaway)
    assert (goaway.reason, goaway.deadline_ms) == ("the broker is stopping", 500)
    assert stranger.refusal().code == "SHUTTING_DOWN"
    with pytest.raises(ConnectionRefusedError):
        door.connect()
    worker.say(Ack(correlation=3))
    worker.say(Consume(correlation=4, subscription=1, queues=["q"], credit=1))
    assert worker.expect(Error).code == "SHUTTING_DOWN"
    assert [type(frame) for frame in door.engine.frames()] == [Ack]
    worker.close()
    stranger.close()
    assert door.wait(door.listener.emptied(5.0))
    assert door.listener.complaints.counts == {}


def test_who_does_not_leave_is_cut_off_at_the_deadline(door: Any) -> None:
    peer = door.connect().shake_hands()
    door.do(lambda: door.listener.goaway("stop", 0))
    assert not door.wait(door.listener.emptied(0.01))
    door.wait(door.listener.close(0.01))
    peer.expect(Goaway)
    assert peer.hear() is None
    assert door.listener.connections == {}


def test_an_abort_says_nothing_more(door: Any) -> None:
    peer = door.connect().shake_hands()
    door.do(door.listener.abort)
    assert peer.hear() is None


def test_ipv6_and_names_are_shown_as_they_are_written() -> None:
    assert connection.show_peer(("::1", 5, 0, 0)) == "[::1]:5"
    assert connection.show_peer(("127.0.0.1", 5)) == "127.0.0.1:5"
    assert connection.show_peer(None) == "?"


def test_a_name_with_two_addresses_gets_one_port(door: Any) -> None:
    other = door.do(
        lambda: listener.Listener(door.engine, door.listener.terms, door.listener.limits)
    )
    host, port = door.wait(other.listen("localhost", 0))
    socket.create_connection((host, port), 5).close()
    door.wait(other.close(1.0))
