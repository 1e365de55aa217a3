"""A log that refuses to start is cut where somebody says, and nothing goes unmentioned."""

from __future__ import annotations

import pytest

from qbroker.log.cleaning import rewrite
from qbroker.log.errors import CorruptError, LockedError, RepairError, UnreadableError
from qbroker.log.format import SEGMENT_HEADER_BYTES
from qbroker.log.meta import read_meta
from qbroker.log.reader import LogReader
from qbroker.log.repair import loss_of, truncate
from simdisk import SimDisk, random_choice

NAMES = [f"{first:020d}.qlog" for first in (1, 24, 47, 70, 93)]


@pytest.fixture
def filled(story):
    """A log of five segments whose process was killed."""
    story.fill(100)
    story.disk.kill()
    assert [name for name in story.disk.files if name.endswith(".qlog")] == NAMES
    return story


def cut_files(disk: SimDisk) -> list[str]:
    return sorted(name for name in disk.files if name.endswith(".cut"))


@pytest.mark.parametrize("batch", [2, 23, 24, 25, 46, 47, 92, 93, 94, 100])
def test_the_log_ends_before_the_batch_and_goes_on(filled, batch) -> None:
    """In the middle of a sealed file, at its end, in the active one: what was before is intact."""
    whole = {name: bytes(filled.disk.files[name].cached) for name in NAMES}
    loss = truncate(filled.disk, batch << 20 | 5, accept_data_loss=True)
    assert (loss.first, loss.last) == (batch, 100)
    assert loss.batches == loss.records == 101 - batch
    assert loss.confirmed == 99
    assert loss.first_ms == loss.last_ms == 1_700_000_000_000
    assert sorted(loss.evidence) == cut_files(filled.disk)
    assert [name[:25] for name in sorted(loss.evidence)] == loss.files
    for name in loss.evidence:
        kept = bytes(filled.disk.files[name].cached).rstrip(b"\0")
        assert whole[name[:25]].rstrip(b"\0").endswith(kept)
    filled.reopen()
    assert filled.contents() == {n: filled.given[n] for n in range(1, batch)}
    filled.fill(2)
    assert list(filled.killed().replay())[-1][0].number == batch + 1


def test_nothing_is_cut_unless_it_is_told(filled) -> None:
    """What would be lost can be asked for, and a cut without consent only says it."""
    before = {name: bytes(inode.cached) for name, inode in filled.disk.files.items()}
    loss = loss_of(filled.disk, 30 << 20)
    assert (loss.batches, loss.records, loss.files) == (71, 71, NAMES[1:])
    assert loss.bytes > 71 * 512
    with pytest.raises(RepairError, match="71 batches with 71 records would be lost.*accepted"):
        truncate(filled.disk, 30 << 20, accept_data_loss=False)
    assert {name: bytes(inode.cached) for name, inode in filled.disk.files.items()} == before
    assert filled.reopen().written == 100


def test_a_log_in_use_is_not_touched(filled) -> None:
    """The broker must be stopped."""
    filled.reopen()
    for act in (loss_of, lambda disk, at: truncate(disk, at, accept_data_loss=True)):
        with pytest.raises(LockedError):
            act(filled.disk, 30 << 20)


def test_a_damaged_batch_is_where_to_cut(filled) -> None:
    """A start refuses and names it; a cut behind it is refused, too, one at it is not."""
    content = filled.file(1)
    content[SEGMENT_HEADER_BYTES + 5 * 512 + 100] ^= 1
    filled.reopen()
    with pytest.raises(CorruptError) as found:
        list(filled.log.replay())
    filled.disk.kill()
    assert found.value.first == 29
    with pytest.raises(CorruptError, match="batch 29"):
        loss_of(filled.disk, 35 << 20)
    loss = truncate(filled.disk, 29 << 20, accept_data_loss=True)
    assert loss.batches == 72
    assert list(filled.killed().replay())[-1][0].number == 28


def test_files_that_cannot_be_read_or_are_missing_do_not_stop_a_cut_before_them(filled) -> None:
    """Their bytes are counted as far as they are there."""
    filled.disk.files[NAMES[2]].cached[:16] = bytes(16)
    content = filled.disk.files[NAMES[3]].cached
    content[SEGMENT_HEADER_BYTES + 30] ^= 1
    content[SEGMENT_HEADER_BYTES + 5 * 512] = 0
    del filled.disk.files[NAMES[4]]
    loss = truncate(filled.disk, 47 << 20, accept_data_loss=True)
    assert loss.files == NAMES[2:4]
    assert (loss.batches, loss.last) == (21, 92)
    assert loss.bytes > 44 * 512
    assert list(filled.killed().replay())[-1][0].number == 46


def test_the_whole_log_is_not_cut(filled) -> None:
    """That is a new log."""
    with pytest.raises(RepairError, match="begin with an empty folder"):
        loss_of(filled.disk, 1 << 20)


def test_cleaned_segments_go_or_stay_whole(filled) -> None:
    """What is within one has no digest to end with; gaps before the cut stay, behind it they go."""
    filled.reopen()
    segments = LogReader.open(filled.disk).sealed(100)
    filled.log.adopt(rewrite(filled.disk, segments[:1], lambda r: (r.type, [r.body])))
    filled.log.adopt(rewrite(filled.disk, segments[2:3], lambda r: (r.type, [r.body])))
    filled.log.drop([24, 70])
    filled.disk.kill()
    with pytest.raises(RepairError, match="was cleaned: choose batch 47 or 70"):
        loss_of(filled.disk, 50 << 20)
    other = filled.disk.copy()
    loss = truncate(other, 70 << 20, accept_data_loss=True)
    assert loss.files == [*NAMES[4:], f"{101:020d}.qlog"]
    assert [gap.first for gap in read_meta(other).gaps] == [24]
    twin = type(filled)(other, filled.settings)
    assert list(twin.contents()) == [*range(1, 24), *range(47, 70)]
    assert truncate(filled.disk, 47 << 20, accept_data_loss=True).batches == 31
    assert read_meta(filled.disk).gaps == ()
    assert list(filled.killed().replay())[-1][0].number == 23
    batch = filled.log.begin()
    assert batch.number == 24


@pytest.mark.parametrize("batch", [30, 47])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_may_be_cut_short_at_any_call(filled, batch, seed) -> None:
    """A start then refuses, or finds the old log or the cut one; done again, it is done."""
    filled.file(2)[SEGMENT_HEADER_BYTES + 100] ^= 1
    for nth in range(1, 300):
        disk = filled.disk.copy()
        disk.fail(nth, sticky=True)
        try:
            truncate(disk, batch << 20, accept_data_loss=True)
        except (OSError, UnreadableError):
            disk.crash(random_choice(seed * 1000 + nth))
        else:
            break
        truncate(disk, batch << 20, accept_data_loss=True)
        twin = type(filled)(disk, filled.settings)
        assert list(twin.contents()) == list(range(1, batch))
        evidence = b"".join(bytes(disk.files[name].cached) for name in cut_files(disk))
        assert filled.given[60][0] in evidence
    assert nth > 20
