"""Bytes from strangers: every one is a frame or a ProtocolError, and costs little."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qprotocol import frames as f
from qprotocol.codec import PREFIX, Decoder, encode
from qprotocol.errors import ProtocolError
from qprotocol.header import CONDITIONS, FAULTS, decode_header, plain, texts
from qprotocol.limits import FRAME_BYTES_MAX, HEADER_BYTES_MAX, HEADER_DEPTH_MAX, INT_MAX
from wire.cases import FRAMES

RAW = {name: encode(frame) for name, frame in FRAMES.items()}


def framed(header: bytes, raw: bytes = b"") -> bytes:
    return PREFIX.pack(2 + len(header) + len(raw), len(header)) + header + raw


def packed(*items) -> bytes:
    return msgpack.packb(list(items), use_bin_type=True)


def refusal(stream: bytes, **options) -> str:
    with pytest.raises(ProtocolError) as caught:
        list(Decoder(**options).feed(stream))
    return str(caught.value)


# Anything at all.


@given(st.binary(max_size=300), st.integers(1, 20))
def test_any_bytes_are_frames_or_a_protocol_error(stream, step):
    """Nothing but ProtocolError leaves the decoder, which keeps no more than it was given."""
    decoder = Decoder()
    try:
        for at in range(0, len(stream), step):
            for frame in decoder.feed(stream[at : at + step]):
                assert isinstance(frame, f.Frame)
    except ProtocolError:
        return
    assert len(decoder._left) <= len(stream)


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_any_header_is_a_frame_or_a_protocol_error(header, raw):
    """The same behind an honest prefix, where random bytes get further."""
    try:
        (frame,) = Decoder().feed(framed(header, raw))
    except ProtocolError:
        return
    assert frame.raw == raw


@given(st.sampled_from(sorted(RAW)), st.integers(0, 1000), st.integers(1, 255))
def test_a_flipped_byte_is_a_frame_or_a_protocol_error(name, at, mask):
    """One wrong byte anywhere in a good frame."""
    stream = bytearray(RAW[name])
    stream[at % len(stream)] ^= mask
    try:
        found = list(Decoder().feed(bytes(stream)))
    except ProtocolError:
        return
    assert len(found) <= 1 or len(stream) > 6


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(f.FRAMES)), st.lists(VALUES, max_size=14))
def test_any_plain_values_are_judged_without_a_crash(number, items):
    """Every kind of value in every field: the frame has the declared kinds, or is refused."""
    try:
        frame = decode_header(packed(number, *items))
    except ProtocolError as error:
        refused = error.code
    else:
        refused = ""
    if refused:
        assert refused == "BAD_FRAME"
        return
    for name, kind in zip(frame.FIELDS, frame.KINDS, strict=True):
        assert type(getattr(frame, name)) is kind


@given(VALUES, st.sampled_from(sorted(FAULTS, key=str)))
def test_a_reader_and_its_explanation_agree(value, kind):
    """What the quick condition refuses, the slow sentence explains, and nothing else."""
    fine = eval(CONDITIONS[kind].format("value"), {"texts": texts, "plain": plain, "value": value})
    assert bool(FAULTS[kind](value)) == (not fine)


# Frames around limits.


def test_a_frame_over_the_limit_is_refused_by_its_length_alone():
    """Six bytes are enough to say no."""
    over = PREFIX.pack(FRAME_BYTES_MAX + 1, 2)
    assert refusal(over) == "FRAME_TOO_LARGE: a frame of 131073 bytes: the limit is 131072"
    assert "the limit is 10" in refusal(PREFIX.pack(11, 2), frame_bytes_max=10)
    assert list(Decoder().feed(PREFIX.pack(FRAME_BYTES_MAX, 2))) == []


def test_a_limit_may_change_between_two_frames_of_one_read():
    """The first frame makes the peer known, and the second may be large."""
    small, large = RAW["heartbeat"], encode(f.Report(raw=bytes(200)))
    decoder = Decoder(frame_bytes_max=100)
    for frame in decoder.feed(small + large):
        assert frame.raw is not None
        decoder.frame_bytes_max = 1000
    assert frame.raw == bytes(200)


@pytest.mark.parametrize("length", [0, 1])
def test_a_frame_has_room_for_its_header_length(length):
    """A length that does not even cover the field behind it."""
    assert "a header of 0 bytes in a frame of" in refusal(PREFIX.pack(length, 0))


def test_a_header_fits_its_frame_and_its_limit():
    """Longer than the frame, or than any header may be."""
    assert "a header of 9 bytes in a frame of 10" in refusal(PREFIX.pack(10, 9))
    assert "a header of 8193 bytes" in refusal(PREFIX.pack(20_000, HEADER_BYTES_MAX + 1))


def test_a_large_frame_in_single_bytes_is_not_copied_at_each():
    """128 KiB in pieces of one byte: one buffer grows, and is joined once, at the end."""
    stream = encode(f.Report(raw=bytes(FRAME_BYTES_MAX - 100)))
    decoder = Decoder()
    assert list(decoder.feed(stream[:10])) == []
    held = decoder._left
    for at in range(10, len(stream) - 1):
        assert list(decoder.feed(stream[at : at + 1])) == []
        assert decoder._left is held
    (frame,) = decoder.feed(stream[-1:])
    assert len(frame.raw) == FRAME_BYTES_MAX - 100
    assert not decoder._left


def test_no_header_takes_much_memory():
    """Eight KiB that declare as much as they can, in lists within lists and lists beside lists."""
    wide = b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x80" * 64) * 64
    deep = b"\xdc\x00\x40" * 1000
    lies = b"\xdd\xff\xff\xff\xff" + b"\xdb\xff\xff\xff\xff" + b"\xdf\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        for header in (wide, deep, lies, b"\x91" * 8000, b"\x81\xa1a" * 2000):
            assert "BAD_FRAME" in refusal(framed(header[:HEADER_BYTES_MAX]))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


# Headers that say something wrong, and what is answered.

HEARTBEAT, CREDIT, CONSUME, ERROR, CONTROL, CANCEL = 0x06, 0x21, 0x20, 0x09, 0x65, 0x43


def deep(levels: int) -> dict:
    return {"k": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "not valid msgpack: Unpack failed: incomplete input"),
        (b"\xc1", "not valid msgpack: FormatError"),
        (b"\x91" * 2000, "not valid msgpack: StackError"),
        (packed(1, 2) + b"\x00", "not valid msgpack: unpack(b) received extra data"),
        (b"\x92\xa1\xff\x01", "'utf-8' codec can't decode byte 0xff"),
        (b"\x93\x65\x00\xd6\xff\0\0\0\1", "exceeds max_ext_len(0)"),
        (b"\x92\x06\xc7\x00\x05", "extension type 5 of 0 bytes"),
        (b"\x94\x65\x00\xa1v\x81\x01\x02", "int is not allowed for map key"),
        (b"\x94\x65\x00\xa1v\x82\xa1k\x01\xa1k\x02", "a map has a key twice"),
        (packed(CONTROL, 0, "v" * 4097), "4097 exceeds max_str_len(4096)"),
        (packed(*range(65)), "65 exceeds max_array_len(64)"),
        (packed(), "not an array of type and correlation"),
        (packed(6), "not an array of type and correlation"),
        (msgpack.packb(6), "not an array of type and correlation"),
        (msgpack.packb(b"\x06\x01"), "not an array of type and correlation"),
        (msgpack.packb({"a": 1}), "not an array of type and correlation"),
        (packed(0x7F, 1), "no frame has the type 127"),
        (packed(True, 1), "no frame has the type True"),
        (packed(6.0, 1), "no frame has the type 6.0"),
        (packed([], 1), "no frame has the type []"),
        (packed("x" * 1000, 1), "no frame has the type " + "x" * 40),
        (packed(HEARTBEAT, -1), f"Heartbeat: correlation is -1: from 0 to {INT_MAX}"),
        (packed(HEARTBEAT, True), "Heartbeat: correlation is bool, not an integer"),
        (packed(HEARTBEAT, None), "Heartbeat: correlation is NoneType, not an integer"),
        (packed(HEARTBEAT, 0, 1.0), "Heartbeat: sent_ms is float, not an integer"),
        (packed(CREDIT, 0, 1), "Credit: the field credit is missing"),
        (packed(CREDIT, 0), "Credit: the field subscription is missing"),
        (packed(CREDIT, 0, 1, -5), "Credit: credit is -5: from 0 to"),
        (packed(CONSUME, 1, 1, None, 1), "Consume: queues is NoneType, not a list"),
        (packed(CONSUME, 1, 1, ["a", 1], 1), "Consume: queues has an item that is not a string"),
        (packed(CANCEL, 1, b"id"), "Cancel: id is bytes, not str"),
        (packed(CANCEL, 1, "id", 0, 1), "Cancel: terminate is int, not bool"),
        (packed(CONTROL, 0, "v", []), "Control: arguments is list, not a map"),
        (packed(CONTROL, 0, "v", {b"k": 1}), "Control: arguments is not a map of strings to plain"),
        (packed(CONTROL, 0, "v", {"k": {b"k": 1}}), "Control: arguments is not a map of strings"),
        (packed(CONTROL, 0, "v", {"k": float("nan")}), "Control: arguments is not a map of"),
        (packed(CONTROL, 0, "v", {"k": [float("inf")]}), "Control: arguments is not a map of"),
        (packed(CONTROL, 0, "v", deep(HEADER_DEPTH_MAX)), "nested at most 4 deep"),
    ],
)
def test_a_bad_header_is_refused_with_its_reason(header, words):
    """BAD_FRAME, naming the frame and the field where there is one."""
    answer = refusal(framed(header))
    assert answer.startswith("BAD_FRAME: ")
    assert words in answer


def test_maps_may_hold_plain_values_to_the_depth_allowed():
    """The edge of what the last test refuses."""
    frame = decode_header(packed(CONTROL, 0, "v", deep(HEADER_DEPTH_MAX - 1)))
    assert frame.arguments == deep(HEADER_DEPTH_MAX - 1)


def test_a_tail_of_a_newer_peer_is_ignored():
    """Fields that this version does not know are cut off."""
    assert decode_header(packed(CREDIT, 0, 1, 2, "new", {"k": []})) == f.Credit(
        subscription=1, credit=2
    )


def test_what_an_older_peer_does_not_send_is_filled_in():
    """Each number of trailing fields left out gives their defaults."""
    known = f.Hello(protocol=1, role="worker", client_id="c", name="n", host="h", pid=5)
    values = [getattr(known, name) for name in known.FIELDS]
    for count in range(6, len(values) + 1):
        assert decode_header(packed(known.TYPE, 0, *values[:count])) == known
    assert decode_header(packed(ERROR, 0, "BLOCKED", "m")).definite is True


def test_a_map_that_is_nil_is_the_empty_map():
    """Nobody has to ask whether there are details."""
    assert decode_header(encode(f.Error(code="BLOCKED", message="m"))[6:]).details == {}
    assert decode_header(packed(ERROR, 0, "BLOCKED", "m")).details == {}
