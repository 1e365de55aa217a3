"""Thousands of malformed and oversized frames against the live port.

Each is refused with a code or its connection closed, the broker's memory stays where it was, and
clients that behave notice nothing. `MALFORMED_FRAMES=100000` makes it a long evening's worth.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import psutil
import pytest

from qprotocol import wire
from qprotocol.codec import PREFIX, encode
from qprotocol.errors import ERRORS
from qprotocol.frames import (
    FRAMES,
    Ack,
    Auth,
    Consume,
    Deliver,
    Error,
    Goaway,
    Heartbeat,
    Hello,
    Ok,
    Part,
    Peek,
    Publish,
    Published,
    Settle,
    Settled,
)
from qprotocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_AUTH
from qprotocol.message import Message

FRAMES_SENT = int(os.environ.get("MALFORMED_FRAMES", "2000"))
WARM_UP = 500
AT_ONCE = 16
GROWTH_BYTES_MAX = 5 * 1024 * 1024
PAUSE_S_MAX = 2.0
"""The longest a good client may have waited. Generous: the machine is shared."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120 + FRAMES_SENT // 50)]

_log = logging.getLogger(__name__)

Attack = Callable[[random.Random], bytes]


def frame_of(header: bytes, raw: bytes = b"") -> bytes:
    return PREFIX.pack(2 + len(header) + len(raw), len(header)) + header + raw


def junk(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(6, 3000))


def too_large_for_a_stranger(dice: random.Random) -> bytes:
    length = dice.randrange(FRAME_BYTES_MAX_BEFORE_AUTH + 1, 2**32)
    return PREFIX.pack(length, min(length, 100)) + dice.randbytes(100)


def too_large_for_anybody(dice: random.Random) -> bytes:
    length = dice.randrange(FRAME_BYTES_MAX + 1, 2**32)
    return PREFIX.pack(length, 100) + dice.randbytes(1000)


def lengths_that_disagree(dice: random.Random) -> bytes:
    length = dice.randrange(2000)
    return PREFIX.pack(length, dice.randrange(max(0, length - 1), 2**16)) + bytes(length)


def a_bomb(dice: random.Random) -> bytes:
    """Few bytes that claim to hold many: what made other brokers run out of memory."""
    claims = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
    bombs = [*claims, b"\x91" * 2000, b"\x81\x01" * 900, b"\xc7\xff\x01" + bytes(255)]
    return frame_of(b"\x92" + dice.choice(bombs))


def the_wrong_types(dice: random.Random) -> bytes:
    values: list[Any] = [None, True, -1, 2**64 - 1, 1.5, "x", b"x", [1], {"a": 1}, {1: 1}]
    fields = [dice.choice(values) for _ in range(dice.randrange(8))]
    return frame_of(msgpack.packb([dice.choice([*FRAMES, 0, 255]), -1, *fields]))


def a_frame_that_was_hit(dice: random.Random) -> bytes:
    """A good frame with some bytes of its header changed into what no header has."""
    good = bytearray(encode(Auth(correlation=1, mechanism="none", data=bytes(50))))
    for _ in range(dice.randrange(1, 4)):
        good[dice.randrange(6, 10)] = dice.choice((0xC1, 0xFF, 0xDD, 0xC7))
    return bytes(good)


def a_word_too_early(dice: random.Random) -> bytes:
    return encode(
        dice.choice(
            [
                Peek(correlation=1, queue="q"),
                Heartbeat(sent_ms=1),
                Publish(correlation=1, producer=1, sequence=1, count=1),
                Hello(correlation=1, protocol=1, role="admin", client_id="x"),
                Auth(correlation=1, mechanism=dice.choice(["", "scram", "NONE", "none "])),
            ]
        )
    )


def half_a_frame(dice: random.Random) -> bytes:
    """And then nothing: it hangs up."""
    whole = encode(Auth(correlation=1, mechanism="none", data=bytes(dice.randrange(3000))))
    return whole[: dice.randrange(1, len(whole))]


def the_brokers_own_word(dice: random.Random) -> bytes:
    return encode(dice.choice([Goaway(reason="go"), Ok(correlation=1), Settled(durability="x")]))


def named_twice(_: random.Random) -> bytes:
    return encode(Auth(correlation=9, mechanism="none"))


def broken_messages(dice: random.Random) -> bytes:
    raw = bytearray(Message("q", bytes(dice.randrange(200)), id="x").pack())
    at = dice.choice([0, 1, 4, 24, 25, 28, 30])  # sizes, version, lengths of parts
    raw[at] ^= dice.randrange(1, 256)
    raw[dice.randrange(24, 32)] ^= 0xFF
    count = dice.choice([0, 2, 5, 2**40])
    sequence = dice.randrange(1, 1000)
    frame = Publish(
        correlation=9, producer=dice.randrange(1, 2**60), sequence=sequence, count=count
    )
    frame.raw = bytes(raw)
    return encode(frame)


def broken_outcomes(dice: random.Random) -> bytes:
    raw = dice.randbytes(dice.randrange(1, 500))
    kind = dice.choice([Settle(correlation=9, count=dice.randrange(5)), Ack(correlation=9)])
    kind.raw = raw + b"x" * (len(raw) % wire.ACK_RUN.size == 0)
    return encode(kind)


def a_request_that_makes_no_sense(dice: random.Random) -> bytes:
    name = dice.choice(["", "a/b", "x" * 300, "\x00", "\u202e", "q" * 4000])
    return encode(
        dice.choice(
            [
                Peek(correlation=9, queue=name, count=2**62),
                Consume(correlation=9, subscription=1, queues=[name], credit=2**62),
                Consume(correlation=9, subscription=1, queues=[], credit=1),
                Publish(correlation=9, producer=1, sequence=0, count=1, raw=b""),
            ]
        )
    )


def parts_that_do_not_fit(dice: random.Random) -> bytes:
    number = next(iter(kind.TYPE for kind in FRAMES.values() if kind is Publish))
    gap = encode(Part(correlation=9, index=dice.randrange(1, 2**40), of=number, raw=b"x"))
    empty = encode(Part(correlation=9, index=0, of=number))
    nobody = encode(Part(correlation=9, index=0, of=dice.choice([0, 7, 200]), raw=b"x"))
    return dice.choice([gap, empty, nobody])


BY_STRANGERS: list[Attack] = [
    *(junk, too_large_for_a_stranger, lengths_that_disagree, a_bomb, the_wrong_types),
    *(a_frame_that_was_hit, a_word_too_early, half_a_frame, the_brokers_own_word),
]
BY_THE_KNOWN: list[Attack] = [
    *(junk, too_large_for_anybody, lengths_that_disagree, a_bomb, the_wrong_types),
    *(the_brokers_own_word, named_twice, broken_messages, broken_outcomes),
    *(a_request_that_makes_no_sense, parts_that_do_not_fit),
]


def attack(daemon: Any, dice: random.Random) -> Counter[str]:
    """A handful of connections at once, each with one bad thing to say; what became of each."""
    with contextlib.ExitStack() as stack:
        peers = [daemon.visitor() for _ in range(AT_ONCE)]
        for peer in peers:
            stack.callback(peer.close)
        said = [provoke(peer, dice) for peer in peers]
        return Counter(fate(peer, name) for peer, name in zip(peers, said, strict=True))


def provoke(peer: Any, dice: random.Random) -> str:
    """Say one bad thing; its name."""
    known = dice.random() < 0.4
    kind = dice.choice(BY_THE_KNOWN if known else BY_STRANGERS)
    if known:
        peer.shake_hands(dice.choice(["producer", "consumer", "admin"]))
    with contextlib.suppress(OSError):  # it may be refused before it is all said
        peer.socket.sendall(kind(dice))
        if kind in (half_a_frame, junk, lengths_that_disagree):
            peer.socket.shutdown(socket.SHUT_WR)
    return kind.__name__


def fate(peer: Any, said: str) -> str:
    """The code of the refusal, or "closed". Anything else fails the test."""
    try:
        while (frame := peer.hear()) is not None:
            if isinstance(frame, Error):
                assert frame.code in ERRORS
                assert frame.message
                return frame.code
    except TimeoutError:
        pytest.fail(f"no answer to {said}")
    return "closed"


class GoodClient(threading.Thread):
    """Publishes, consumes and acknowledges all the while; notes the longest wait."""

    def __init__(self, daemon: Any) -> None:
        super().__init__(daemon=True)
        self.rounds = 0
        self.longest_s = 0.0
        self.trouble: BaseException | None = None
        self._over = threading.Event()
        self._producer = daemon.connect().shake_hands("producer")
        self._consumer = daemon.connect().shake_hands("consumer")

    def run(self) -> None:
        try:
            self._consumer.say(Consume(correlation=3, subscription=1, queues=["good"], credit=1))
            assert self._hear(self._consumer, Ok).correlation == 3
            while not self._over.wait(0.01):
                began = time.monotonic()
                self._round()
                self.longest_s = max(self.longest_s, time.monotonic() - began)
        except BaseException as trouble:
            self.trouble = trouble

    def _round(self) -> None:
        self.rounds += 1
        raw = Message("good", b"hello").pack()
        self._producer.say(
            Publish(correlation=self.rounds, producer=77, sequence=self.rounds, count=1, raw=raw)
        )
        published = self._hear(self._producer, Published)
        assert (published.correlation, published.duplicate) == (self.rounds, False)
        delivered = self._hear(self._consumer, Deliver)
        position, count = wire.RUN.unpack_from(delivered.raw)
        assert (position, count) == (published.first, 1)
        run = wire.ACK_RUN.pack(delivered.grant, position, 1)
        self._consumer.say(Ack(correlation=self.rounds + 10, raw=run))
        assert self._hear(self._consumer, Settled).lost == 0

    def _hear(self, peer: Any, kind: type[Any]) -> Any:
        while isinstance(frame := peer.hear(), Heartbeat):
            peer.say(Heartbeat())
        assert isinstance(frame, kind), frame
        return frame

    def stop(self) -> None:
        self._over.set()
        self.join(30)


@pytest.fixture
def good(start: Callable[..., Any]) -> Iterator[tuple[Any, GoodClient]]:
    daemon = start("--log-level", "error")
    client = GoodClient(daemon)
    client.start()
    yield daemon, client
    client.stop()


def test_malformed_frames_are_refused_and_nobody_else_notices(
    good: tuple[Any, GoodClient],
) -> None:
    daemon, client = good
    dice = random.Random(2026)
    process = psutil.Process(daemon.process.pid)
    for _ in range(WARM_UP // AT_ONCE):
        attack(daemon, dice)
    before = largest = process.memory_info().rss
    fates: Counter[str] = Counter()
    while fates.total() < FRAMES_SENT:
        fates += attack(daemon, dice)
        largest = max(largest, process.memory_info().rss)
    client.stop()
    _log.info("%s", fates)
    _log.info("RSS %d + %d bytes", before, largest - before)
    _log.info("the good client: %d rounds, longest %.3f s", client.rounds, client.longest_s)
    assert client.trouble is None
    assert client.rounds > 10
    assert client.longest_s < PAUSE_S_MAX
    assert largest - before <= GROWTH_BYTES_MAX, f"{largest - before:,} bytes"
    assert {"BAD_FRAME", "FRAME_TOO_LARGE", "BAD_STATE", "AUTH_FAILED"} <= set(fates)
    assert {"BAD_MESSAGE", "BAD_REQUEST", "closed"} <= set(fates)
    assert daemon.health()["status"] == "ok"
    assert daemon.process.poll() is None


def test_slow_strangers_are_many_and_bounded(start: Callable[..., Any], until: Any) -> None:
    """A thousand peers that say half a word each cost places, time and memory with a limit."""
    daemon = start("--log-level", "error", "--handshakes-max", "200")
    known = daemon.connect().shake_hands("admin")
    process = psutil.Process(daemon.process.pid)
    before = process.memory_info().rss
    half = struct.pack("<IH", FRAME_BYTES_MAX_BEFORE_AUTH, 100) + bytes(3000)
    peers = []
    for _ in range(1000):
        peer = daemon.connect()
        with contextlib.suppress(OSError):
            peer.socket.sendall(half)
        peers.append(peer)
    until(lambda: "TOO_MANY_CONNECTIONS" in daemon.get("/metrics")[1])
    known.say(Peek(correlation=3, queue="none"))
    assert known.expect(Error).code == "NO_QUEUE"
    assert process.memory_info().rss - before < 4 * GROWTH_BYTES_MAX
