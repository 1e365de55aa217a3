"""Which checkpoint a start may use, and which forbids it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from digest import digest
from qbroker.checkpoint import file
from qbroker.checkpoint.errors import (
    AheadCheckpoint,
    CheckpointError,
    DamagedError,
    ForeignCheckpoint,
    NoCheckpoint,
)
from qbroker.checkpoint.keeper import Order
from qbroker.core.settings import Settings
from simdisk import SimDisk


def damage(disk: SimDisk, batch: int) -> None:
    """A bit of the checkpoint is wrong, behind its header."""
    inode = disk.files[file.name_of(batch)]
    inode.cached[200] ^= 1
    inode.durable[200] ^= 1


def test_a_start_reads_the_newest_and_the_log_behind_it(room) -> None:
    room.publish("a")
    first = room.keep()
    room.publish("b")
    second = room.keep()
    room.publish("c")
    assert (first.before, second.before) == (0, first.batch)
    assert first.replayed_bytes > second.replayed_bytes
    found = room.restore()
    assert found.batch == second.batch
    assert found.core.state.numbered[0].ready == 2
    assert found.bytes > 0
    assert found.ages.age_ms(second.batch << 20, room.machine.wall_ms + 7) == 7


def test_a_keeper_knows_what_the_broker_knows(room) -> None:
    room.publish("a", "b")
    room.keep()
    room.publish("c")
    room.keep()
    now = room.machine.now
    assert digest(room.restore().core.state, now) == digest(room.machine.core.state, now)


def test_a_damaged_one_is_passed_over_with_a_word(room) -> None:
    room.publish("a")
    first = room.keep()
    room.publish("b")
    second = room.keep()
    damage(room.disk, second.batch)
    found = room.restore()
    assert found.batch == first.batch
    (said,) = map(str, found.damaged)
    assert file.name_of(second.batch) in said
    assert "checksum" in said


def test_without_a_whole_one_the_whole_log_is_read(room) -> None:
    room.publish("a")
    damage(room.disk, room.keep().batch)
    found = room.restore()
    assert found.batch == 0
    assert len(found.damaged) == 1


def test_without_a_whole_one_a_log_that_lacks_its_beginning_starts_nowhere(room) -> None:
    for number in range(60):
        room.publish(*(f"{number} of a few hundred bytes " * 10 for _ in range(3)))
    kept = room.keep()
    room.machine.log.trim(kept.batch - 10)
    assert room.machine.log.oldest > 1
    assert room.restore().batch == kept.batch
    damage(room.disk, kept.batch)
    with pytest.raises(NoCheckpoint, match=r"checksum.*cleaned.*restore the whole folder"):
        room.restore()
    room.disk.remove(file.name_of(kept.batch))
    with pytest.raises(NoCheckpoint, match="there is no checkpoint; the log was cleaned"):
        room.restore()


def test_one_whose_following_log_is_gone_is_passed_over(room) -> None:
    room.publish("a")
    early = room.keep()
    for number in range(60):
        room.publish(*(f"{number} of a few hundred bytes " * 10 for _ in range(3)))
    late = room.keep()
    room.machine.log.trim(late.batch)
    damage(room.disk, late.batch)
    with pytest.raises(NoCheckpoint, match="the log behind it is gone"):
        room.restore()
    assert early.batch < late.batch


def test_one_of_another_log_forbids_the_start(room) -> None:
    room.publish("a")
    name = file.name_of(room.keep().batch)
    other = file.read(room.disk, name)
    room.disk.remove(name)
    sections = {title: bytes(body) for title, body in other.sections.items()}
    file.write(room.disk, replace(other, log=b"another log, yes"), sections.items())
    with pytest.raises(ForeignCheckpoint, match="belongs to log 616e6f74"):
        room.restore()
    file.write(room.disk, replace(other, chain=b"another history!"), sections.items())
    with pytest.raises(ForeignCheckpoint, match="another history of this log: batch"):
        room.restore()


def test_one_that_knows_more_than_the_log_forbids_the_start(room) -> None:
    room.publish("a")
    before = room.machine.disk.copy()
    room.publish("b")
    kept = room.keep()
    room.machine.disk = before
    with pytest.raises(AheadCheckpoint, match=rf"up to batch {kept.batch}, but the log ends at"):
        room.restore()
    assert issubclass(AheadCheckpoint, CheckpointError)


def test_sections_of_a_newer_version_are_passed_over(room) -> None:
    room.publish("a")
    found = file.read(room.disk, file.name_of(room.keep().batch))
    sections = {title: bytes(body) for title, body in found.sections.items()}
    del sections["ages"]
    file.write(room.disk, replace(found, version="9.9"), sections.items())
    (said,) = room.restore().damaged
    assert isinstance(said, DamagedError)
    assert "written by version 9.9" in str(said)


def test_two_are_kept_and_what_is_newer_is_let_alone(room) -> None:
    batches = []
    for body in "abcd":
        room.publish(body)
        batches.append(room.keep().batch)
    room.disk.create("00000000000000000001.qckp.tmp")
    room.shelf.keep(batches[2], batches[1])
    assert room.shelf.names() == [file.name_of(batch) for batch in batches[:0:-1]]
    assert not any(name.endswith(".tmp") for name in room.disk.names())


def test_an_order_survives_its_line() -> None:
    order = Order(7, 1_700_000_000_000, Settings(results_max=5), 50, 9, "debug", "json")
    assert Order.unpack(order.pack()) == order
    assert "\n" not in order.pack()


def test_a_keeper_that_is_killed_at_any_call_leaves_what_was_there(room) -> None:
    room.publish("a")
    first = room.keep()
    room.publish("b")
    for nth in range(1, 100):
        room.disk.fail(nth, sticky=True)
        try:
            second = room.keep()
        except OSError:
            room.disk.crash()
            assert room.restore().batch in (first.batch, room.machine.log.durable)
        else:
            room.disk.heal()
            break
    assert room.restore().batch == second.batch
    assert second.before == first.batch
