"""Golden bytes: one of everything, both directions, whole, byte by byte and with a tail.

``pytest --rewrite`` adds lines for new cases. It never changes a line that is there: bytes that
were released decode for ever.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from qprotocol import wire
from qprotocol.codec import Decoder, encode
from qprotocol.failure import Failure
from qprotocol.frames import FRAMES, Frame
from qprotocol.ids import pack_id
from qprotocol.message import Message, Outcome, unpack_message
from qprotocol.options import RetryPolicy
from wire.cases import CASES, DECODED_ONLY

FOLDER = Path(__file__).parent / "vectors"
EACH = [pytest.param(kind, name, id=f"{kind}-{name}") for kind in CASES for name in CASES[kind]]


def read(kind: str) -> dict[str, bytes]:
    path = FOLDER / f"{kind}.txt"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return {name: bytes.fromhex(digits) for name, digits in (line.split() for line in lines)}


def to_bytes(value: object) -> bytes:
    return encode(value) if isinstance(value, Frame) else value.pack()


@pytest.fixture(scope="module", autouse=True)
def new_cases(request):
    """With --rewrite, lines for cases that have none."""
    if not request.config.getoption("--rewrite") and os.environ.get("QBROKER_REWRITE") != "1":
        return
    for kind, cases in CASES.items():
        found = read(kind)
        found |= {name: to_bytes(value) for name, value in cases.items() if name not in found}
        text = "".join(f"{name} {raw.hex()}\n" for name, raw in found.items())
        (FOLDER / f"{kind}.txt").write_text(text, encoding="ascii")


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_bytes_are_as_they_were(kind, name):
    """What is encoded today is what was encoded then."""
    if name not in DECODED_ONLY:
        assert to_bytes(CASES[kind][name]).hex() == read(kind)[name].hex()


@pytest.mark.parametrize("name", CASES["frames"])
@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
@pytest.mark.parametrize("tail", [b"", b"\x07", bytes(5)], ids=["", "tail", "long tail"])
def test_frames_decode_however_they_arrive(name, step, tail):
    """A frame comes out once, equal, and no sooner than its last byte."""
    raw = read("frames")[name]
    decoder, found = Decoder(), []
    stream = raw + tail
    for at in range(0, len(stream), step):
        assert not found or at >= len(raw)
        found += decoder.feed(stream[at : at + step])
    assert found == [CASES["frames"][name]]


def test_frames_decode_from_one_stream():
    """All of them behind one another, in one piece and in every chunk size up to a hundred."""
    stream = b"".join(read("frames").values())
    expected = list(CASES["frames"].values())
    for step in [*range(1, 100), len(stream)]:
        decoder, found = Decoder(), []
        for at in range(0, len(stream), step):
            found += decoder.feed(stream[at : at + step])
        assert found == expected


@pytest.mark.parametrize("tail", [b"", b"xyz"])
@pytest.mark.parametrize(("kind", "name"), [case for case in EACH if case.values[0] != "frames"])
def test_packed_values_decode_wherever_they_lie(kind, name, tail):
    """At an offset, and with bytes behind them."""
    raw, value = read(kind)[name], CASES[kind][name]
    if kind == "messages":
        assert unpack_message(b"before" + raw + tail, 6).pack() == raw
        assert unpack_message(raw + tail) == as_read(value)
    elif kind == "outcomes":
        assert Outcome.unpack(b"before" + raw + tail, 6) == (value, 6 + len(raw))
    elif kind == "policies":
        assert RetryPolicy.unpack(b"before" + raw + tail, 6) == value
    else:
        assert Failure.unpack(raw) == value


def as_read(message: Message) -> Message:
    """A message knows after reading whether its id was minted."""
    minted = wire.ID_MINTED if message.id and pack_id(message.id)[1] else 0
    return replace(message, flags=message.flags | minted)


def test_every_frame_and_vector_has_a_case():
    """Neither a frame without a vector nor a vector that nobody decodes."""
    assert {type(case).TYPE for case in CASES["frames"].values()} == set(FRAMES)
    for kind, cases in CASES.items():
        assert set(read(kind)) == set(cases)
