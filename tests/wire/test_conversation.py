"""Who may say what, when: every phase, frame and sender, and two machines back to back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol import frames as f
from qprotocol.codec import Decoder, encode
from qprotocol.conversation import (
    ANSWERS,
    HANDSHAKE,
    NUMBERED,
    TRANSITIONS,
    Conversation,
    Phase,
)
from qprotocol.errors import ProtocolError
from qprotocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_AUTH
from wire.cases import FRAMES

ONE_OF_EACH = {type(frame): frame for frame in FRAMES.values()}
SENDERS = (f.CLIENT, f.SERVER)
QUIET = {Phase.NEW, Phase.GREETED, Phase.AUTH, Phase.NAMED, Phase.HELLO, Phase.CLOSED}


def legal(phase: Phase, kind: type[f.Frame], sender: str) -> bool:
    """The rules once more, in words of their own."""
    if kind.SENDER not in (sender, f.BOTH):
        return False
    if (phase, kind) in TRANSITIONS:
        return True
    if phase in QUIET or kind in HANDSHAKE:
        return False
    return phase is Phase.OPEN or kind is not f.Goaway


def test_every_phase_frame_and_sender_is_legal_or_bad_state():
    """No triple is forgotten, and what is illegal ends the conversation."""
    count = 0
    for phase in Phase:
        for kind, frame in ONE_OF_EACH.items():
            for sender in (*SENDERS, "stranger"):
                talk = Conversation()
                talk.phase = phase
                count += 1
                if legal(phase, kind, sender) or (sender == "stranger" and allowed(phase, kind)):
                    talk.advance(frame, sender)
                    assert talk.phase is TRANSITIONS.get((phase, kind), phase)
                    continue
                with pytest.raises(ProtocolError) as caught:
                    talk.advance(frame, sender)
                assert caught.value.code == "BAD_STATE"
                assert talk.phase is Phase.CLOSED
    assert count == len(Phase) * len(f.FRAMES) * 3


def allowed(phase: Phase, kind: type[f.Frame]) -> bool:
    """What both ends may say, anybody may."""
    return kind.SENDER == f.BOTH and legal(phase, kind, f.CLIENT)


def test_a_violation_says_who_said_what_when():
    """A sentence for the log."""
    with pytest.raises(ProtocolError, match="BAD_STATE: Publish from the client while new"):
        Conversation().advance(FRAMES["publish"], f.CLIENT)


@pytest.mark.parametrize("kind", sorted(NUMBERED, key=lambda kind: kind.TYPE))
def test_a_request_needs_a_number_to_be_answered_under(kind):
    """An answer with correlation 0 would be taken for a push."""
    talk = Conversation()
    talk.phase = Phase.OPEN
    frame = kind(**{name: getattr(ONE_OF_EACH[kind], name) for name in kind.FIELDS})
    sender = f.CLIENT if kind.SENDER == f.BOTH else kind.SENDER
    with pytest.raises(ProtocolError, match="with correlation 0"):
        talk.advance(frame, sender)
    assert talk.phase is Phase.CLOSED


def test_every_request_has_its_answers():
    """Whatever a client says is answered, but for what is said to need none."""
    unanswered = {f.Heartbeat, f.Part, f.Credit, f.Running}
    said = {kind for kind in f.FRAMES.values() if kind.SENDER in (f.CLIENT, f.BOTH)}
    assert set(ANSWERS) == said - unanswered
    assert all(answer.SENDER == f.SERVER for answers in ANSWERS.values() for answer in answers)


class Pair:
    """A client's and a broker's machine joined by their bytes."""

    def __init__(self) -> None:
        self.ends = {sender: (Conversation(), Decoder()) for sender in SENDERS}

    def say(self, sender: str, frame: f.Frame) -> Phase:
        """Both ends note it, the other one after decoding it; they agree on the phase."""
        other = f.SERVER if sender == f.CLIENT else f.CLIENT
        self.ends[sender][0].advance(frame, sender)
        talk, decoder = self.ends[other]
        decoder.frame_bytes_max = talk.frame_bytes_max
        (heard,) = decoder.feed(encode(frame))
        assert heard == frame
        talk.advance(heard, sender)
        assert talk.phase is self.ends[sender][0].phase
        return talk.phase


def test_two_machines_agree_from_greeting_to_goaway():
    """The whole conversation, with a mechanism of two steps."""
    pair = Pair()
    script = [
        (f.SERVER, "greeting", Phase.GREETED),
        (f.CLIENT, "auth", Phase.AUTH),
        (f.SERVER, "challenge", Phase.GREETED),
        (f.CLIENT, "auth", Phase.AUTH),
        (f.SERVER, "ok", Phase.NAMED),
        (f.CLIENT, "hello", Phase.HELLO),
        (f.SERVER, "welcome", Phase.OPEN),
        (f.CLIENT, "publish", Phase.OPEN),
        (f.SERVER, "published", Phase.OPEN),
        (f.CLIENT, "consume", Phase.OPEN),
        (f.SERVER, "deliver", Phase.OPEN),
        (f.CLIENT, "part", Phase.OPEN),
        (f.CLIENT, "settle", Phase.OPEN),
        (f.SERVER, "error", Phase.OPEN),
        (f.SERVER, "goaway", Phase.DRAINING),
        (f.CLIENT, "ack", Phase.DRAINING),
        (f.SERVER, "settled", Phase.DRAINING),
        (f.CLIENT, "bye", Phase.DRAINING),
        (f.SERVER, "ok", Phase.DRAINING),
    ]
    for sender, name, after in script:
        assert pair.say(sender, FRAMES[name]) is after


@pytest.mark.parametrize("name", ["consume", "credit", "publish", "watch"])
def test_what_crossed_the_goaway_is_no_violation(name):
    """The client could not know yet."""
    client, broker = Conversation(), Conversation()
    client.phase = broker.phase = Phase.OPEN
    client.advance(FRAMES[name], f.CLIENT)
    broker.advance(FRAMES["goaway"], f.SERVER)
    broker.advance(FRAMES[name], f.CLIENT)
    assert broker.phase is Phase.DRAINING


@pytest.mark.parametrize("said", [1, 2, 3, 5, 6])
def test_the_broker_may_hang_up_with_a_reason_at_any_point_of_the_handshake(said):
    """Too slow, too many, wrong version: the client reads why."""
    talk = Conversation()
    steps = ["greeting", "auth", "challenge", "auth", "ok", "hello"][:said]
    for name in steps:
        talk.advance(FRAMES[name], type(FRAMES[name]).SENDER)
    talk.advance(FRAMES["error"], f.SERVER)
    assert talk.phase is Phase.CLOSED


def test_strangers_get_small_frames():
    """Large ones only once the client is known."""
    talk, sizes = Conversation(), {}
    for phase in Phase:
        talk.phase = phase
        sizes[phase] = talk.frame_bytes_max
    small = {Phase.NEW, Phase.GREETED, Phase.AUTH, Phase.CLOSED}
    for phase, size in sizes.items():
        assert size == (FRAME_BYTES_MAX_BEFORE_AUTH if phase in small else FRAME_BYTES_MAX)


@given(st.lists(st.tuples(st.sampled_from(sorted(FRAMES)), st.sampled_from(SENDERS)), max_size=30))
def test_any_talk_ends_or_goes_on(talk):
    """Frames in any order: once closed, nothing is legal any more."""
    machine = Conversation()
    for name, sender in talk:
        closed = machine.phase is Phase.CLOSED
        try:
            machine.advance(FRAMES[name], sender)
        except ProtocolError:
            assert machine.phase is Phase.CLOSED
        else:
            assert not closed
