"""A record whose bytes went bad costs that record, and nobody loses sight of where it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qbroker.log.errors import CorruptError, DamagedRecord
from qbroker.log.format import BATCH_HEADER_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from qbroker.log.log import LogSettings
from qbroker.log.reader import LogReader
from qbroker.log.salvage import CHECKSUMS_MAX, Damage

FIRST = "00000000000000000001.qlog"
BODIES = [bytes([65 + n]) * (100 + n) for n in range(5)]


@pytest.fixture
def two(new_story):
    """Two batches of five records, in a file that has room for more."""
    story = new_story(settings=LogSettings(segment_bytes=1 << 20))
    story.put(*BODIES)
    story.put(*BODIES)
    return story


def place(index: int) -> int:
    """Where the record begins in the first batch's file."""
    before = sum(RECORD_HEADER_BYTES + len(body) for body in BODIES[:index])
    return SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + before


def damaged_replay(story) -> tuple[list[bytes], list[Damage]]:
    damaged: list[Damage] = []
    found = [r.body for _, records in story.log.replay(damaged=damaged) for r in records]
    return found, damaged


def damaged_block(story) -> tuple[list[bytes], list[Damage]]:
    damaged: list[Damage] = []
    return [r.body for r in story.log.read_block(1, damaged=damaged)], damaged


def damaged_reader(story) -> tuple[list[bytes], list[Damage]]:
    damaged: list[Damage] = []
    reader = LogReader.open(story.disk)
    found = [r.body for _, records in reader.replay(0, 2, damaged) for r in records]
    again: list[Damage] = []
    assert [r.body for r in reader.read_block(1, damaged=again)] == found
    return found, damaged


WAYS = [damaged_replay, damaged_block, damaged_reader]
DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "body": lambda content: content.__setitem__(place(2) + RECORD_HEADER_BYTES + 9, 0),
    "checksum": lambda content: content.__setitem__(place(2), content[place(2)] ^ 255),
    "length": lambda content: content.__setitem__(place(2) + 4, 0),
    "length beyond all": lambda content: content.__setitem__(place(2) + 7, 255),
    "position": lambda content: content.__setitem__(place(2) + 8, 200),
    "count": lambda content: content.__setitem__(place(2) + 18, 200),
    "all of it": lambda content: content.__setitem__(
        slice(place(2), place(3)), bytes(place(3) - place(2))
    ),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_one_bad_record_is_left_out_and_described(two, spoil, way) -> None:
    """Whichever of its bytes: the others are found, and the stretch between is named."""
    spoil(two.file())
    found, (damage,) = way(two)
    assert found == BODIES[:2] + BODIES[3:] + BODIES
    assert (damage.file, damage.offset, damage.length) == (FIRST, place(2), 122)
    assert (damage.position, damage.count) == (1 << 20 | 2, 1)
    assert two.log.evidence(damage) == bytes(two.file()[place(2) : place(3)])


@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_look_up_tells_the_bad_record_from_its_neighbours(two, spoil) -> None:
    """Every other record of the batch can be read; the bad one is said to be bad."""
    spoil(two.file())
    for index in (0, 1, 3, 4):
        assert two.log.read(1 << 20 | index).body == BODIES[index]
    with pytest.raises(DamagedRecord, match="one record of batch 1.*neighbours are intact") as bad:
        two.log.read(1 << 20 | 2)
    assert bad.value.position == 1 << 20 | 2
    assert (bad.value.damage.offset, bad.value.damage.length) == (place(2), 122)
    assert (bad.value.file, bad.value.first) == (FIRST, 1)


def test_without_a_place_for_it_a_bad_record_is_corruption(two) -> None:
    """Nothing is left out behind the caller's back."""
    DAMAGE["body"](two.file())
    for read in (lambda: list(two.log.replay()), lambda: two.log.read_block(1)):
        with pytest.raises(CorruptError):
            read()


def test_first_last_and_neighbouring_records_may_be_bad(two) -> None:
    """Any of the five, and any two: what is lost is exactly those."""
    whole = bytes(two.file())
    for one in range(5):
        for other in range(one, 5):
            content = two.file()
            for index in {one, other}:
                content[place(index) + RECORD_HEADER_BYTES] ^= 255
            found, damaged = damaged_replay(two)
            assert found == [b for n, b in enumerate(BODIES) if n not in (one, other)] + BODIES
            lost = [d.position + n & 0xFFFFF for d in damaged for n in range(d.count)]
            assert lost == sorted({one, other})
            content[:] = whole


def test_a_bad_digest_loses_nothing(two) -> None:
    """The digest's own bytes, or the zeros before it: it is told, with a count of 0."""
    end = SEGMENT_HEADER_BYTES + 1024
    for at in (end - 1, end - 17):
        two.file()[at] ^= 1
        found, (damage,) = damaged_replay(two)
        assert found == BODIES + BODIES
        assert (damage.offset, damage.length, damage.count) == (SEGMENT_HEADER_BYTES, 1024, 0)
        two.file()[at] ^= 1


def test_a_bad_batch_before_the_first_that_is_wanted_breaks_no_chain(two) -> None:
    """A replay that begins later walks over it."""
    DAMAGE["body"](two.file())
    damaged: list[Damage] = []
    assert [info.number for info, _ in two.log.replay(2, damaged)] == [2]
    assert len(damaged) == 1


def test_a_batch_whose_digest_is_right_and_a_record_is_not(two, monkeypatch) -> None:
    """A writer that erred: the record's own checksum decides."""
    DAMAGE["body"](two.file())
    monkeypatch.setattr("qbroker.log.walk.check_batch", lambda content, *_: bytes(content[-16:]))
    found, (damage,) = damaged_replay(two)
    assert found == BODIES[:2] + BODIES[3:] + BODIES
    assert damage.why.startswith("checksum of the record")
    with pytest.raises(CorruptError, match="checksum of the record"):
        list(two.log.replay())


def test_a_bad_batch_header_is_corruption_all_the_same(two) -> None:
    """There is no telling what would be lost."""
    two.file()[SEGMENT_HEADER_BYTES + 20] ^= 1
    for way in WAYS:
        with pytest.raises(CorruptError, match="batch header"):
            way(two)
    with pytest.raises(CorruptError, match="batch header"):
        two.log.read(1 << 20)


def test_bytes_that_look_like_records_cost_bounded_time(new_story) -> None:
    """A body full of likely places is given up after so many checksums, not searched for hours."""
    story = new_story(settings=LogSettings(segment_bytes=4 << 20))
    like = bytes(4) + (2).to_bytes(4, "little") + (1 << 20 | 1).to_bytes(8, "little")
    story.put(b"first", (like + b"\1\0\1\0") * (CHECKSUMS_MAX + 1000), b"last")
    content = story.file()
    content[SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + 25] ^= 1
    found, (damage,) = damaged_replay(story)
    assert found == [b"first"]
    assert (damage.position, damage.count) == (1 << 20 | 1, 2)


def test_a_record_that_no_header_leads_to_is_found_by_its_position(two) -> None:
    """A length that points into the middle of a body misleads the look-up, not the search."""
    content = two.file()
    content[place(0) + 4] -= 40
    assert two.log.read(1 << 20 | 4).body == BODIES[4]
