"""The promise: what is durable is never lost, and nothing is invented, doubled or reordered.

Checked against disks that lose, tear and refuse, at every call; and the check itself
is checked, by planting the faults it is there to find.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker.log import recovery, walk
from qbroker.log.active import SegmentWriter
from qbroker.log.cleaning import _Writing
from qbroker.log.errors import CorruptError, LogError
from qbroker.log.log import Log
from qbroker.log.manifest import Manifest
from simdisk import Choose, SimDisk, SimFile, keep_all, lose_all, random_choice
from witness import ENDS, SMALL, TROUBLE, Witness, cleaning, of_many_segments, survives


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("how", [errno.EIO, errno.ENOSPC, "short"])
def test_any_call_may_fail(end, how) -> None:
    """After the nth call failed, and the process ended one way or another, the promise holds."""
    assert survives(end, how, sticky=False) > 50


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_power_may_be_cut_at_any_call(end) -> None:
    """From the nth call on nothing reaches the disk any more; the next lives find the promise."""
    assert survives(end, errno.EIO, sticky=True) > 50


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    ("how", "sticky"),
    [(errno.EIO, False), (errno.ENOSPC, False), ("short", False), (errno.EIO, True)],
)
def test_cleaning_may_be_cut_at_any_call(end, how, sticky) -> None:
    """Rewriting, adoption and drop, at each of their steps: no kept record is lost."""
    lives = survives(end, how, sticky=sticky, life=cleaning, first=of_many_segments)
    assert lives > 100


@pytest.mark.parametrize("seed", range(6))
def test_recovery_may_be_cut_at_any_call_again_and_again(seed) -> None:
    """A start that dies at its nth call leaves a directory from which the next one starts."""
    choose = random_choice(seed)
    witness = Witness(SimDisk())
    witness.live()
    witness.start()
    for number in range(3):
        witness.write([bytes([number]) * 900], sync=True)
    witness.write([b"u" * 900], sync=False)
    witness.write([b"v" * 900], sync=False)
    witness.disk.crash(choose)
    for nth in range(1, 200):
        witness.disk.fail(nth, sticky=True)
        try:
            witness.start()
        except TROUBLE:
            witness.disk.crash(choose)
        else:
            break
    assert nth > 15


# --- Any story at all

steps = st.one_of(
    st.tuples(st.just("write"), st.lists(st.binary(max_size=1200), max_size=3), st.booleans()),
    st.sampled_from([("sync",), ("prepare",), ("trim",), ("stop",), ("kill",), ("crash",)]),
    st.sampled_from([("full",), ("room",), ("clean", 1), ("clean", 3), ("drop",)]),
    st.tuples(
        st.just("fail"), st.integers(1, 12), st.sampled_from([errno.EIO, errno.ENOSPC, "short"])
    ),
)


@given(story=st.lists(steps, max_size=30), data=st.data())
def test_any_story_keeps_the_promise(story, data) -> None:
    """Written, synced, trimmed, stopped, killed, crashed, filled up and failed in any order."""

    def choose(n: int) -> int:
        return data.draw(st.integers(0, n - 1))

    witness = Witness(SimDisk())
    witness.start()
    for step in story:
        try:
            take(witness, step, choose)
        except TROUBLE:
            restart(witness, lambda: witness.disk.crash(choose))
    restart(witness, lambda: witness.disk.crash(choose))


def restart(witness: Witness, end: Callable[[], None]) -> None:
    """The process ends, somebody sees to the disk, the process starts."""
    end()
    witness.disk.heal()
    witness.disk.capacity = None
    witness.start()


def take(witness: Witness, step: tuple, choose: Choose) -> None:
    log = witness.log
    match step:
        case ("write", bodies, sync):
            witness.write(bodies, sync=sync)
        case ("sync",):
            log.sync()
            witness.confirmed = log.durable
        case ("prepare",):
            log.prepare_next()
        case ("trim",):
            witness.trim(log.durable - 2)
        case ("clean", count):
            witness.clean(count)
        case ("drop",):
            witness.drop()
        case ("stop",):
            log.close()
            witness.confirmed = log.durable
            restart(witness, witness.disk.kill)
        case ("kill",):
            restart(witness, witness.disk.kill)
        case ("crash",):
            restart(witness, lambda: witness.disk.crash(choose))
        case ("full",):
            witness.disk.fill_up()
        case ("room",):
            witness.disk.capacity = None
        case ("fail", nth, how):
            witness.disk.fail(nth, how)


# --- Would we notice?


def unsynced(real: Callable) -> Callable:
    """The same, and no file is synced meanwhile."""

    def hasty(*arguments, **more):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SimFile, "sync", lambda self: None)
            return real(*arguments, **more)

    return hasty


def no_directory_sync(patch) -> None:
    """A new file's name may be lost with all that is in it."""
    patch.setattr(SimDisk, "sync_directory", lambda self: None)


def no_sync_of_a_batch(patch) -> None:
    """Durable is said without asking the disk."""

    def hasty(log: Log) -> None:
        log.durable = log.written

    patch.setattr(Log, "_sync", hasty)


def no_sync_of_the_old_tail(patch) -> None:
    """What a killed process left in the cache is taken for durable, and built upon."""
    real = recovery._opened

    def trusting(*arguments, **named):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SimFile, "sync", lambda self: None)
            return real(*arguments, **named)

    patch.setattr(recovery, "_opened", trusting)


def trust_in_the_cache(patch) -> None:
    """What a failed sync left in the cache is taken for what the disk has."""
    patch.setattr(SimFile, "forget_cache", lambda self: None)


def life_after_a_failed_sync(patch) -> None:
    """The next sync succeeds, and is believed."""
    real = Log._sync

    def undaunted(log: Log) -> None:
        try:
            real(log)
        except OSError:
            real(log)

    patch.setattr(Log, "_sync", undaunted)


def a_successor_before_the_seal(patch) -> None:
    """There are two unsealed files after a crash, and no telling which bytes were confirmed."""

    patch.setattr(SegmentWriter, "seal", unsynced(SegmentWriter.seal))


def a_batch_without_proof(patch) -> None:
    """No batch says what was durable: a damaged end cannot be told from a torn one."""
    real = SegmentWriter.append

    def silent(self: SegmentWriter, batch, stamp) -> None:
        stamp.durable_upto = 0
        real(self, batch, stamp)

    patch.setattr(SegmentWriter, "append", silent)


def a_tail_read_without_digests(patch) -> None:
    """A torn batch whose header survived is taken whole."""
    patch.setattr(walk, "check_batch", lambda content, salt, chain: bytes(content[-16:]))


def a_rewritten_file_that_is_not_synced(patch) -> None:
    """It is verified in the cache, and adopted, and its sources are removed."""

    def hasty(self: _Writing) -> None:
        self.file.write_at(self.written, self.buffer)
        self.written += len(self.buffer)
        self.buffer = bytearray()

    patch.setattr(_Writing, "_write", hasty)
    patch.setattr(_Writing, "finish", unsynced(_Writing.finish))


def files_removed_before_meta_ceased_to_count_them(patch) -> None:
    """A drop that begins with the files leaves a hole that nobody can explain."""
    real = Manifest._recount

    def hasty(self: Manifest, kept, gaps) -> bool:
        gone = [segment for segment in self.segments if segment not in kept]
        for segment in gone:
            self._disk.remove(segment.name)
        self._disk.sync_directory()
        return real(self, kept, gaps)

    patch.setattr(Manifest, "_recount", hasty)
    patch.setattr(Manifest, "_remove", lambda self, gone: None)


def leftovers_that_are_taken_for_segments(patch) -> None:
    """What a drop did not finish removing is back after a crash."""

    def trusting(meta, names):
        kept, leftovers = COUNTED(meta, names)
        return sorted([*kept, *leftovers]), []

    patch.setattr(recovery, "counted", trusting)


PLANTED = [
    no_directory_sync,
    no_sync_of_a_batch,
    no_sync_of_the_old_tail,
    trust_in_the_cache,
    life_after_a_failed_sync,
    a_successor_before_the_seal,
    a_batch_without_proof,
    a_tail_read_without_digests,
]
IN_CLEANING = [
    a_rewritten_file_that_is_not_synced,
    files_removed_before_meta_ceased_to_count_them,
    leftovers_that_are_taken_for_segments,
]


def then_power_is_cut(disk: SimDisk) -> None:
    """The process ends and starts; then power is cut, before anything new is written."""
    disk.kill()
    with suppress(*TROUBLE):
        list(Log.open(disk, SMALL).replay())
    disk.crash(lose_all)


def a_hunt() -> None:
    """What the tests above try, in short, and damage to a batch that was confirmed."""
    for end in (*ENDS.values(), then_power_is_cut):
        survives(end, errno.EIO, sticky=False)
        survives(end, errno.EIO, sticky=True)
    witness = Witness(SimDisk())
    witness.start()
    for body in (b"a", b"b", b"c"):
        witness.write([body], sync=True)
    witness.disk.files["00000000000000000001.qlog"].durable[4096 + 512 + 80] ^= 1
    witness.disk.crash(keep_all)
    with pytest.raises(CorruptError):
        witness.start()


def a_hunt_while_cleaning() -> None:
    """The same for what is rewritten, adopted and dropped."""
    for end in list(ENDS.values())[:2]:
        survives(end, errno.EIO, sticky=True, life=cleaning, first=of_many_segments)


def test_nothing_is_found_in_the_log_as_it_is() -> None:
    """The hunts below find no fault where none was planted."""
    a_hunt()
    a_hunt_while_cleaning()


@pytest.mark.parametrize(
    ("plant", "hunt"),
    [*((plant, a_hunt) for plant in PLANTED), *((p, a_hunt_while_cleaning) for p in IN_CLEANING)],
)
def test_a_planted_fault_is_found(plant, hunt, monkeypatch) -> None:
    """Leave out one of the syncs or checks, and the hunt sees what is lost by it."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, LogError, pytest.fail.Exception)):
        hunt()


COUNTED = recovery.counted
