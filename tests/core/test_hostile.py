"""What a client must not be able to do: bytes and numbers that no honest one sends."""

from __future__ import annotations

from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digest import check_places
from machine import Machine, Peer
from qbroker.core.settings import (
    ACK_MESSAGES_MAX,
    DELIVER_MESSAGES_MAX,
    SELECTIONS_MAX,
    Settings,
)
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.limits import ACK_RUNS_MAX, OUTCOMES_MAX, PARTED_MAX
from qprotocol.message import Message, Outcome
from qprotocol.names import pack_task_names

SIZE = wire.MESSAGE.size
UUID7 = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
def machine() -> Machine:
    return Machine()


def greeted(machine: Machine, role: str = "consumer", **fields: object) -> Peer:
    peer = machine.connect()
    hello = f.Hello(correlation=1, protocol=1, role=role, client_id="t", **fields)
    machine.submit(peer, hello)
    machine.settle()
    return peer


def ask(machine: Machine, peer: Peer, *frames: f.Frame) -> f.Frame:
    for frame in frames:
        machine.submit(peer, frame)
    machine.settle()
    return peer.received.pop()


def publish(raw: bytes, count: int = 1) -> f.Publish:
    return f.Publish(correlation=2, producer=1, sequence=1, count=count, raw=raw)


def bent(at: int, kind: str, value: int, message: Message | None = None) -> bytes:
    """A packed message with one field of its fixed part set to something else."""
    raw = bytearray((message or Message("q", b"body", task="t", id="x")).pack())
    pack_into(f"<{kind}", raw, at, value)
    return bytes(raw)


def with_meta(meta: bytes) -> bytes:
    raw = bytearray(Message("q", b"", root="r").pack())
    del raw[-5:]  # the root's two bytes, and three empty names
    raw += meta
    pack_into("<I", raw, 0, len(raw) - 4)
    pack_into("<H", raw, 28, len(meta))
    return bytes(raw)


BENT = {
    "nothing but a head": (Message("q", b"").pack()[:20], "only 20 bytes"),
    "a size beyond the frame": (bent(0, "I", 4000), "its lengths disagree"),
    "a size below its parts": (bent(0, "I", 30), "its lengths disagree"),
    "another version": (bent(4, "B", 2), "version 2"),
    "a task that says it is plain": (bent(5, "B", 0), "kind 0"),
    "a priority of 101": (bent(6, "b", 101), "priority 101"),
    "a minted id of one byte": (bent(7, "B", 1), "a minted id of 1 bytes"),
    "a route that ends in a name": (bent(24, "H", 3), "the route section ends inside a name"),
    "a due time in a thousand years": (bent(8, "Q", 2**62), "over delay_max_ms"),
    "meta that ends inside a name": (with_meta(b"\x09ab"), "the meta section ends inside a name"),
    "a forged principal": (with_meta(b"\x00\x00\x04root\x00"), "the principal 'root'"),
    "an id that is no text": (
        Message("q", b"", id="xy").pack().replace(b"xy", b"\xff\xfe"),
        "its id is no text",
    ),
    "a minted id in its long form": (
        bytes(Message("q", b"", id="i" * 36).pack()).replace(b"i" * 36, UUID7.encode()),
        "travels as its 16 bytes",
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bent_message_is_refused_whole(name: str, machine: Machine) -> None:
    raw, sentence = BENT[name]
    answer = ask(machine, greeted(machine), publish(raw))
    assert isinstance(answer, f.Error)
    assert answer.code == "BAD_MESSAGE"
    assert sentence in answer.message
    assert check_places(machine.core.state) == {}


def test_an_honest_one_is_taken(machine: Machine) -> None:
    """Meta, headers, flags and all."""
    message = Message("q", b"b", UUID7, "t", root="r", parent="p", trace="t", headers=b"h")
    answer = ask(machine, greeted(machine), publish(message.pack()))
    assert isinstance(answer, f.Published)


def test_two_kinds_under_one_new_route_are_seen_in_one_frame(machine: Machine) -> None:
    """The route is planned by the first of them; the second must agree with it."""
    raw = Message("q", b"", task="t").pack() + bent(5, "B", 0, Message("q", b"", task="t"))
    answer = ask(machine, greeted(machine), publish(raw, 2))
    assert "message 1" in answer.message


@given(raw=st.binary(max_size=80), sent=st.sampled_from([f.Ack, f.Settle, f.Publish, f.Hello]))
def test_any_bytes_are_answered_or_hung_up_on(raw: bytes, sent: type[f.Frame]) -> None:
    machine = Machine()
    peer = greeted(machine) if sent is not f.Hello else machine.connect()
    given = {
        f.Ack: {},
        f.Settle: {"count": 1},
        f.Publish: {"producer": 1, "sequence": 1, "count": 1},
        f.Hello: {"protocol": 1, "role": "worker", "client_id": "", "session": b"s" * 16},
    }
    peer.received.clear()
    answer = ask(machine, peer, sent(correlation=2, raw=raw, **given[sent]))
    assert isinstance(answer, f.Error | f.Settled | f.Published | f.Welcome)


numbers = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3 << 20))


@given(tokens=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_tokens_out_of_thin_air_settle_nothing(tokens: list[tuple[int, int]]) -> None:
    machine = Machine()
    peer = greeted(machine)
    acks = b"".join(wire.ACK_RUN.pack(grant, at, 1) for at, grant in tokens)
    outcomes = [Outcome(wire.ACK, at, grant).pack() for at, grant in tokens]
    raw = b"".join(wire.TOKEN.pack(*token) for token in tokens)
    assert ask(machine, peer, f.Ack(correlation=2, raw=acks)).lost >= 1
    settle = f.Settle(correlation=3, count=len(outcomes), raw=b"".join(outcomes))
    assert ask(machine, peer, settle).lost == len(tokens)
    machine.submit(peer, f.Running(raw=raw))
    machine.submit(peer, f.Heartbeat(raw=raw))
    hello = f.Hello(
        correlation=1, protocol=1, role="worker", client_id="", session=b"s" * 16, raw=raw
    )
    answer = ask(machine, machine.connect(), hello)
    assert isinstance(answer, f.Welcome)
    assert len(answer.raw) == wire.TOKEN.size * len(set(tokens))


def test_an_ack_frame_has_a_limit_of_work(machine: Machine) -> None:
    peer = greeted(machine)
    run = wire.ACK_RUN.pack(1, 1, DELIVER_MESSAGES_MAX)
    most = ACK_MESSAGES_MAX // DELIVER_MESSAGES_MAX
    assert isinstance(ask(machine, peer, f.Ack(correlation=2, raw=run * most)), f.Settled)
    answer = ask(machine, peer, f.Ack(correlation=3, raw=run * (most + 1)))
    assert answer.code == "BAD_REQUEST"


def test_an_ack_frame_has_so_many_runs(machine: Machine) -> None:
    peer = greeted(machine)
    run = wire.ACK_RUN.pack(1, 1, 1)
    assert isinstance(ask(machine, peer, f.Ack(correlation=2, raw=run * ACK_RUNS_MAX)), f.Settled)
    answer = ask(machine, peer, f.Ack(correlation=3, raw=run * (ACK_RUNS_MAX + 1)))
    assert (answer.code, answer.message) == (
        "BAD_REQUEST",
        "2001 ack runs in a frame: at most 2000, use more frames",
    )


def test_a_settle_frame_has_so_many_outcomes(machine: Machine) -> None:
    peer = greeted(machine)
    raw = Outcome(wire.ACK, 1, 1).pack()
    for count, announced in ((OUTCOMES_MAX + 1, OUTCOMES_MAX + 1), (OUTCOMES_MAX + 1, 1)):
        frame = f.Settle(correlation=2, count=announced, raw=raw * count)
        answer = ask(machine, peer, frame)
        assert answer.code == "BAD_REQUEST"
    frame = f.Settle(correlation=2, count=OUTCOMES_MAX, raw=raw * OUTCOMES_MAX)
    assert isinstance(ask(machine, peer, frame), f.Settled)


@pytest.mark.parametrize("frame", [f.Running(raw=b"x"), f.Heartbeat(raw=b"x" * 17)], ids=repr)
def test_what_has_no_answer_is_answered_with_a_hang_up(machine: Machine, frame: f.Frame) -> None:
    peer = greeted(machine)
    answer = ask(machine, peer, frame)
    assert isinstance(answer, f.Error)
    assert not answer.correlation
    assert not peer.is_open


def test_parts_of_too_many_frames_at_once_end_the_connection(machine: Machine) -> None:
    peer = greeted(machine)
    peer.received.clear()
    for number in range(PARTED_MAX):
        machine.submit(peer, f.Part(correlation=number + 2, index=0, of=f.Settle.TYPE, raw=b"x"))
    machine.settle()
    assert not peer.received
    part = f.Part(correlation=999, index=0, of=f.Settle.TYPE, raw=b"x")
    answer = ask(machine, peer, part)
    assert answer.code == "FRAME_TOO_LARGE"
    assert not peer.is_open
    assert not machine.core.state.arrivals


def test_a_body_too_large_is_refused_when_its_first_part_is_here() -> None:
    """Its bytes are not waited for."""
    machine = Machine(settings=Settings(body_bytes_max=1_000))
    peer = greeted(machine)
    raw = Message("q", b"x" * 2_000).pack()
    part = f.Part(correlation=2, index=0, of=f.Publish.TYPE, raw=raw[:100])
    answer = ask(machine, peer, part, publish(b""))
    assert answer.code == "BODY_TOO_LARGE"


HELLOS = {
    "a session of 3 bytes": ({"role": "worker", "session": b"abc"}, "16 bytes, not 3"),
    "half a token": ({"role": "worker", "session": b"s" * 16, "raw": b"x"}, "no whole tokens"),
}


@pytest.mark.parametrize("name", HELLOS)
def test_a_bad_hello_is_refused(name: str, machine: Machine) -> None:
    fields, sentence = HELLOS[name]
    peer = machine.connect()
    answer = ask(machine, peer, f.Hello(correlation=1, protocol=1, client_id="", **fields))
    assert sentence in answer.message


def test_a_subscription_to_nothing_is_refused(machine: Machine) -> None:
    peer = greeted(machine)
    answer = ask(machine, peer, f.Consume(correlation=2, subscription=1, queues=[], credit=1))
    assert "at least one queue" in answer.message


def test_a_queue_has_so_many_different_sets_of_known_tasks(machine: Machine) -> None:
    peer = greeted(machine)
    for number in range(SELECTIONS_MAX + 1):
        frame = f.Consume(correlation=2, subscription=number % 64, queues=["q"], credit=1)
        frame.raw = pack_task_names([f"task{number}", "common"])
        if number == SELECTIONS_MAX:
            peer = greeted(machine)
        answer = ask(machine, peer, frame)
        assert isinstance(answer, f.Ok) is (number < SELECTIONS_MAX)
    assert "know 64 different sets of tasks" in answer.message
    frame.raw = pack_task_names(["common", "task7"])
    assert isinstance(ask(machine, peer, frame), f.Ok)


def test_odd_queue_options_are_refused_by_name(machine: Machine) -> None:
    peer = greeted(machine)
    for value in (-1, 2**32, 1.5, "3", None, True, [1]):
        frame = f.Declare(correlation=2, queue="q", options={"retries_max": value})
        assert "retries_max is" in ask(machine, peer, frame).message
