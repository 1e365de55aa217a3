"""Encoding, and what is too large for one frame."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol import frames as f
from qprotocol.codec import Assembler, Decoder, encode, encode_in_parts, room
from qprotocol.errors import ProtocolError, Refused
from qprotocol.limits import FRAME_BYTES_MAX, PARTED_MAX

# Encoding.


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (f.Watch(id="x" * 9000), "Watch: a header of 9008 bytes, the limit is 8192"),
        (f.Watch(id="x" * 5000), "the peer would not take this frame"),
        (f.Consume(subscription=1, queues=["q"] * 65, credit=1), "max_array_len(64)"),
        (f.Control(verb="v", arguments={"k": float("nan")}), "Control: arguments is not a map"),
    ],
)
def test_what_the_peer_would_hang_up_for_is_an_error_here(frame, words):
    """The sender hears of it, not everybody who shares its connection."""
    with pytest.raises(ValueError, match=".") as caught:
        encode(frame)
    assert words in str(caught.value)


def test_a_header_between_a_string_and_its_limit_passes():
    """Long because there is much in it, not because one thing is too long."""
    frame = f.Goaway(reason="x" * 4096)
    assert list(Decoder().feed(encode(frame))) == [frame]


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}"])
def test_a_refusal_is_never_too_long_to_be_said(letter):
    """An error that quotes what it was given is cut, whoever was quoted."""
    (found,) = Decoder().feed(
        encode(f.Error(code="BAD_REQUEST", message=letter * 100_000, correlation=7))
    )
    assert (found.code, found.correlation, found.details) == ("BAD_REQUEST", 7, {})
    assert found.message == letter * 500 + " ..."


def test_encoding_goes_on_after_a_failure():
    """The packer is shared; what failed leaves nothing in it."""
    for bad in ("\udcff", 2**64, object()):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            encode(f.Watch(id=bad))
    assert list(Decoder().feed(encode(f.Watch(id="a")))) == [f.Watch(id="a")]


# Parts.


def put_together(pieces: list[bytes], assembler: Assembler) -> list[f.Frame]:
    found = []
    for frame in Decoder().feed(b"".join(pieces)):
        if type(frame) is f.Part:
            assembler.add(frame)
        else:
            found.append(assembler.complete(frame))
    return found


@given(st.integers(0, 1000), st.integers(60, 200))
def test_parts_come_together_again(size, frame_bytes_max):
    """Any size through any frame limit; each piece fits; the caller's frame is unchanged."""
    frame = f.Publish(producer=1, sequence=2, count=3, correlation=4, raw=bytes(range(256)) * 4)
    frame = f.Publish(producer=1, sequence=2, count=3, correlation=4, raw=frame.raw[:size])
    before = copy.deepcopy(frame)
    pieces = encode_in_parts(frame, frame_bytes_max)
    assert all(len(piece) <= 4 + frame_bytes_max for piece in pieces)
    assert put_together(pieces, Assembler(2000)) == [before]
    assert frame == before
    assert encode_in_parts(frame, frame_bytes_max) == pieces


def test_a_frame_that_fits_is_not_cut():
    """Up to the last byte of room."""
    frame = f.Publish(producer=1, sequence=2, count=3, correlation=4)
    frame.raw = bytes(room(frame))
    (piece,) = encode_in_parts(frame)
    assert len(piece) == 4 + FRAME_BYTES_MAX
    frame.raw += b"!"
    assert len(encode_in_parts(frame)) == 2


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(60, 2000), st.integers(1, 12))
def test_a_publish_is_cut_where_a_piece_would_have_too_many_messages(
    sizes, frame_bytes_max, messages_max
):
    """Each piece, the last one too, has bytes of so many messages at most."""
    raw = b"".join(size.to_bytes(4, "little") + bytes(size) for size in sizes)
    frame = f.Publish(producer=1, sequence=2, count=len(sizes), correlation=4, raw=raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qprotocol.codec.MESSAGES_PER_FRAME_MAX", messages_max)
        pieces = encode_in_parts(frame, frame_bytes_max)
    assert put_together(pieces, Assembler(20_000)) == [frame]
    begins = [sum(sizes[:nth]) + 4 * nth for nth in range(len(sizes))]
    ends = [*begins[1:], len(raw)]
    at = 0
    for piece in Decoder(frame_bytes_max).feed(b"".join(pieces)):
        end = at + len(piece.raw)
        touched = sum(b < end and at < e for b, e in zip(begins, ends, strict=False))
        assert touched <= messages_max
        at = end
    assert at == len(raw)


def test_parts_name_the_frame_they_belong_to():
    """So the broker can stage a publish while it arrives."""
    pieces = encode_in_parts(f.Report(correlation=1, raw=bytes(300_000)))
    parts = list(Decoder().feed(b"".join(pieces)))[:-1]
    assert [(part.index, part.of) for part in parts] == [(0, 0x55), (1, 0x55)]


def test_a_push_without_a_number_cannot_be_cut():
    """Nobody could tell whose parts they are."""
    with pytest.raises(AssertionError, match="Deliver in parts needs a correlation id"):
        encode_in_parts(
            f.Deliver(subscription=1, grant=1, count=1, runs=1, touched=0, raw=bytes(200_000))
        )


def part(index: int, correlation: int = 1, raw: bytes = b"raw") -> f.Part:
    return f.Part(index=index, correlation=correlation, raw=raw)


def test_parts_of_several_frames_may_alternate():
    """Each frame gets its own; what is complete is forgotten and its bytes are free again."""
    assembler = Assembler(12)
    for index in range(2):
        assembler.add(part(index, 1, b"abc"))
        assembler.add(part(index, 2, b"xyz"))
    assert assembler.complete(f.Report(correlation=2, raw=b"!")).raw == b"xyzxyz!"
    assert assembler.complete(f.Report(correlation=2, raw=b"!")).raw == b"!"
    assembler.add(part(2, 1, b"defghi"))
    assert assembler.complete(f.Report(correlation=1)).raw == b"abcabcdefghi"


@pytest.mark.parametrize(
    "bad",
    [part(0), part(2), part(1, raw=b""), part(0, correlation=0), part(0, 2, b"")],
    ids=["again", "gap", "empty", "for nobody", "empty first"],
)
def test_parts_out_of_order_are_a_violation(bad):
    """A lost or doubled part would be a body with a hole in it."""
    assembler = Assembler(100)
    assembler.add(part(0))
    with pytest.raises(ProtocolError, match="BAD_FRAME: part"):
        assembler.add(bad)


def test_parts_are_bounded_in_bytes_and_in_number():
    """A stranger's parts take no more memory than their limit says."""
    assembler = Assembler(100)
    for index in range(33):
        assembler.add(part(index))
    with pytest.raises(ProtocolError, match="FRAME_TOO_LARGE: parts of over 100 bytes"):
        assembler.add(part(33))
    assembler = Assembler(10**9)
    for correlation in range(PARTED_MAX):
        assembler.add(part(0, correlation + 1))
    with pytest.raises(ProtocolError, match="FRAME_TOO_LARGE: parts of over 64 frames at once"):
        assembler.add(part(0, PARTED_MAX + 1))


# Errors as values.


def test_an_error_has_a_known_code():
    """A code that is not in the table cannot be said at all."""
    assert ProtocolError("BAD_FRAME", "m").message == "m"
    assert Refused("BLOCKED", "m").details == {}
    for kind in (ProtocolError, Refused):
        with pytest.raises(AssertionError):
            kind("NO_SUCH_CODE", "m")
