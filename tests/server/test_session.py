"""One conversation without a socket: what a peer may say when, and what it is told."""

from __future__ import annotations

import dataclasses

import pytest

from qbroker.net.session import FROM_CLIENTS, ROLES, Session, Terms
from qprotocol.conversation import PROTOCOL_VERSION, Phase
from qprotocol.errors import ProtocolError
from qprotocol.frames import (
    CLIENT,
    FRAMES,
    SERVER,
    Ack,
    Auth,
    Consume,
    Credit,
    Error,
    Frame,
    Goaway,
    Greeting,
    Heartbeat,
    Hello,
    Ok,
    Part,
    Peek,
    Publish,
    Published,
    Running,
    Settle,
)
from qprotocol.limits import PARTED_MAX


class Told:
    """A session and what it said."""

    def __init__(self, terms: Terms) -> None:
        self.said: list[Frame] = []
        self.session = Session(terms, self.said.append)

    def greeted(self) -> Told:
        self.session.greet()
        return self

    def named(self) -> Told:
        self.greeted().session.hear(Auth(correlation=1, mechanism="none"))
        return self

    def open(self, role: str = "producer") -> Told:
        assert self.named().session.hear(hello(role=role))
        self.session.welcomed()
        self.said.clear()
        return self

    def violation(self, frame: Frame) -> tuple[str, str]:
        with pytest.raises(ProtocolError) as caught:
            self.session.hear(frame)
        return caught.value.code, caught.value.message


def hello(**fields: object) -> Hello:
    given = {"correlation": 2, "protocol": PROTOCOL_VERSION, "role": "producer", "client_id": "c"}
    return Hello(**given | fields)


@pytest.fixture
def told(terms: Terms) -> Told:
    return Told(terms)


def test_the_broker_says_first_who_it_is_and_what_it_allows(told: Told, terms: Terms) -> None:
    (greeting,) = told.greeted().said
    assert isinstance(greeting, Greeting)
    assert (greeting.product, greeting.version, greeting.epoch) == ("qbroker", "1.2.3", 7)
    assert greeting.limits == terms.limits
    assert (greeting.protocol_min, greeting.protocol_max) == (PROTOCOL_VERSION, PROTOCOL_VERSION)


def test_no_two_greetings_have_the_same_nonce(terms: Terms) -> None:
    nonces = {Told(terms).greeted().said[0].nonce for _ in range(100)}
    assert len(nonces) == 100
    assert {len(nonce) for nonce in nonces} == {16}


def test_a_handshake_ends_open_and_only_then_is_anything_legal(told: Told) -> None:
    session = told.named().session
    assert isinstance(told.said[-1], Ok)
    assert told.said[-1].correlation == 1
    assert session.hear(hello()), "the engine decides about a Hello"
    assert session.legal == frozenset()
    session.welcomed()
    assert session.legal == FROM_CLIENTS
    assert session.is_open


@pytest.mark.parametrize(
    "frame",
    [kind for kind in FRAMES.values() if kind is not Auth],
    ids=lambda kind: kind.__name__,
)
def test_a_stranger_may_say_nothing_but_who_he_is(told: Told, frame: type[Frame]) -> None:
    code, message = told.greeted().violation(blank(frame))
    assert code == "BAD_STATE"
    assert "from the client while greeted" in message


def test_what_clients_may_say_when_open_is_what_the_conversation_says() -> None:
    assert {kind.SENDER for kind in FROM_CLIENTS} == {"client", "both"}
    assert not FROM_CLIENTS & {Auth, Hello, Part}, "these are looked at first"
    assert Published not in FROM_CLIENTS


def test_the_brokers_own_words_are_a_violation_from_a_client(told: Told) -> None:
    code, message = told.open().violation(
        Published(correlation=3, first=1, count=1, durability="synced")
    )
    assert (code, message) == ("BAD_STATE", "Published from the client while open")


def test_an_unknown_mechanism_is_refused(told: Told) -> None:
    code, message = told.greeted().violation(Auth(correlation=1, mechanism="scram"))
    assert (code, message) == (
        "AUTH_FAILED",
        "the mechanism 'scram' is not accepted; accepted here: none",
    )


def test_without_mechanisms_nobody_gets_in(terms: Terms) -> None:
    told = Told(dataclasses.replace(terms, mechanisms=())).greeted()
    code, message = told.violation(Auth(correlation=1, mechanism="none"))
    assert (code, message[-14:]) == ("AUTH_FAILED", "there are none")


def test_another_protocol_version_is_refused_with_both_numbers(told: Told) -> None:
    code, message = told.named().violation(hello(protocol=9))
    assert code == "UNSUPPORTED_VERSION"
    assert message == "the client speaks protocol 9, this broker 1: upgrade the older one"


def test_an_unknown_role_is_refused_with_a_suggestion(told: Told, terms: Terms) -> None:
    assert told.named().violation(hello(role="producre")) == (
        "BAD_REQUEST",
        "unknown role 'producre': did you mean 'producer'?",
    )
    _, message = Told(terms).named().violation(hello(role="x"))
    assert message == "unknown role 'x': one of producer, worker, member, consumer, admin"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_gets_in(told: Told, role: str) -> None:
    assert told.open(role).session.role == ROLES[role]


@pytest.mark.parametrize(
    "frame",
    [Peek(queue="q"), Part(index=0), Ack(), Consume(subscription=1, queues=["q"], credit=1)],
    ids=lambda frame: type(frame).__name__,
)
def test_a_request_without_a_correlation_id_could_never_be_answered(
    told: Told, frame: Frame
) -> None:
    code, message = told.open().violation(frame)
    name = type(frame).__name__
    assert (code, message) == ("BAD_FRAME", f"{name} with correlation 0: nothing could answer it")


@pytest.mark.parametrize("frame", [Heartbeat(), Credit(subscription=1, credit=1), Running()])
def test_what_is_never_answered_needs_no_correlation_id(told: Told, frame: Frame) -> None:
    assert told.open().session.hear(frame)


def test_a_refused_hello_is_the_end(told: Told) -> None:
    session = told.named().session
    session.hear(hello())
    session.refused()
    assert not session.is_open
    assert told.violation(Heartbeat())[0] == "BAD_STATE"


def test_settlements_pass_while_the_broker_goes_away(told: Told) -> None:
    told.open("worker").session.leaving(Goaway(reason="stop"))
    assert told.session.hear(Ack(correlation=3))
    assert told.session.is_open
    assert told.session.conversation.phase is Phase.DRAINING


def test_requests_for_work_that_cross_the_goodbye_are_too_late_and_no_fault(told: Told) -> None:
    told.open("worker").session.leaving(Goaway(reason="stop"))
    assert not told.session.hear(Credit(subscription=1, credit=5))
    assert not told.session.hear(Consume(correlation=3, subscription=1, queues=["q"], credit=5))
    (answer,) = told.said
    assert isinstance(answer, Error)
    assert (answer.correlation, answer.code, answer.retryable) == (3, "SHUTTING_DOWN", True)


# --- Parts


def part(index: int, correlation: int = 3, of: type[Frame] = Publish, raw: bytes = b"x") -> Part:
    return Part(correlation=correlation, index=index, of=of.TYPE, raw=raw)


def test_parts_come_in_order_before_their_frame(told: Told) -> None:
    session = told.open().session
    for frame in (part(0), part(0, 4, Settle), part(1), part(2), part(1, 4, Settle)):
        assert session.hear(frame)
    assert session.hear(Settle(correlation=4, count=1))
    session.complete(Publish(correlation=3, producer=1, sequence=1, count=1))
    assert session.parts == {}
    assert session.hear(part(0)), "the id may be used again"


@pytest.mark.parametrize(
    "bad",
    [part(2), part(0), part(1, raw=b""), part(1, of=Settle), part(1, 9), part(0, 9, of=Peek)],
    ids=["gap", "again", "empty", "of another frame", "of none", "of one that has none"],
)
def test_parts_that_do_not_fit_are_a_violation(told: Told, bad: Part) -> None:
    assert told.open().session.hear(part(0))
    code, message = told.violation(bad)
    assert code == "BAD_FRAME"
    assert message.startswith(f"part {bad.index} of frame {bad.correlation}")


def test_another_frame_with_the_parts_id_is_a_violation(told: Told) -> None:
    told.open().session.hear(part(0))
    code, message = told.violation(Peek(correlation=3, queue="q"))
    assert (code, message) == ("BAD_FRAME", "Peek 3 after parts of a Publish")


def test_only_so_many_frames_are_in_parts_at_once(told: Told) -> None:
    told.open()
    for number in range(PARTED_MAX):
        assert told.session.hear(part(0, number + 1))
    assert told.violation(part(0, 1000))[0] == "FRAME_TOO_LARGE"


def blank(kind: type[Frame]) -> Frame:
    """A frame of that kind, its fields whatever they need to be."""
    zero = {int: 0, str: "", bytes: b"", bool: False, list: [], dict: {}}
    values = {name: zero[of] for name, of in zip(kind.FIELDS, kind.KINDS, strict=True)}
    return kind(correlation=1, **values)


def test_the_sender_of_every_frame_is_known() -> None:
    assert {kind.SENDER for kind in FRAMES.values()} == {CLIENT, SERVER, "both"}
