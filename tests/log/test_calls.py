"""Each disk call of the log room fails, in every way: what was confirmed is there after it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from diskcalls import LOG_CALLS, WAYS, Story, sites, table, tell, told_all
from qbroker import log
from qbroker.log.cleaning import rewrite, sweep
from qbroker.log.errors import CorruptError, LogError, StaleError
from qbroker.log.format import SEGMENT_HEADER_BYTES, SLOT_BITS
from qbroker.log.log import Log
from qbroker.log.manifest import Manifest
from qbroker.log.reader import LogReader
from qbroker.log.repair import loss_of, truncate
from qbroker.log.salvage import Damage
from simdisk import KEEP, TEAR, SimDisk, lose_all
from witness import SMALL, Witness, keep_even

TROUBLE = (LogError, OSError)
BATCH_BYTES = 1_536
"""What each of the witness takes."""


class Life(Witness):
    """A witness whose log may have been left in any state."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__(disk)
        self.disks = (disk,)
        self.ended_at = 0
        """The batch before which somebody wants the log to end."""

    @classmethod
    def of(cls, model: Life) -> Life:
        """The same once more, as its end left it."""
        life = cls(model.disk.copy())
        life.wrote, life.confirmed = dict(model.wrote), model.confirmed
        life.dead, life.ended_at = set(model.dead), model.ended_at
        return life


@cache
def of_some_segments() -> Life:
    """Three are full, and the last was sealed by a clean stop."""
    life = Life(SimDisk())
    life.start()
    for number in range(1, 8):
        life.write([bytes([number]) * 1_400], sync=True)
    life.log.close()
    life.disk.kill()
    return life


def scene(prepare: Callable[[Life], None], *, started: bool = True) -> Callable[[], Life]:
    """A log of several segments, what was done with it; then a start, if it is one of that."""

    @cache
    def model() -> Life:
        life = Life.of(of_some_segments())
        prepare(life)
        return life

    def fresh() -> Life:
        life = Life.of(model())
        if started:
            life.start()
        return life

    return fresh


def nothing(life: Life) -> None:
    """It was left by a clean stop."""


def check(life: Life) -> None:
    """The next life finds what was confirmed, though power is cut; another one goes on."""
    life.disk.heal()
    life.disk.capacity = None
    life.start()
    life.disk.crash(lose_all)
    life.start()
    life.write([b"and goes on"], sync=True)
    life.disk.kill()
    life.start()
    assert not [name for name in life.disk.files if name.endswith(".tmp") and name != "spare.tmp"]


# --- Scenes


def killed(life: Life) -> None:
    life.start()
    life.write([b"a" * 700], sync=True)
    life.write([b"b" * 700], sync=False)
    life.disk.kill()


def torn(life: Life) -> None:
    """The last batches were not synced: the first of them is torn, the next whole."""
    life.start()
    life.write([b"a" * 300], sync=True)
    for body in (b"b", b"c"):
        life.write([body * 1_400], sync=False)
    fates = iter([KEEP, TEAR])
    life.disk.crash(lambda n: next(fates, KEEP) if n == 3 else KEEP)


def torn_without_room(life: Life) -> None:
    """For what is cut off there is none, for a small segment there is once it is cut off."""
    torn(life)
    life.disk.fill_up(2_500)


def prepared(life: Life) -> None:
    life.start()
    life.log.prepare_next()
    life.disk.kill()


def prepared_and_torn_without_room(life: Life) -> None:
    prepared(life)
    torn(life)
    life.disk.fill_up()


def prepared_in_part(life: Life) -> None:
    """The spare has a name, and no room."""
    killed(life)
    life.disk.create("spare.tmp")
    life.disk.kill()
    life.disk.fill_up(6_000)


def cut_off() -> Life:
    """A new directory, in which the power was cut just before META got its name."""
    for nth in range(1, 50):
        disk = SimDisk()
        disk.fail(nth, sticky=True)
        with suppress(*TROUBLE):
            Log.open(disk, SMALL)
        disk.kill()
        if "META.tmp" in disk.files:
            return Life(disk)
    raise AssertionError


def unsealed(life: Life) -> None:
    """The footer of a sealed file is damaged."""
    inode = life.disk.files[f"{1:020d}.qlog"]
    for content in (inode.cached, inode.durable):
        content[-100] ^= 1


def started_and_killed(life: Life) -> None:
    life.start()
    life.disk.kill()


def half_made(life: Life) -> None:
    """What processes were about to make when they ended."""
    life.start()
    rewrite(life.disk, LogReader.open(life.disk).sealed(life.log.durable)[:1], keep_even)
    for name in ("META.tmp", "roll.tmp", "cut.tmp", f"{1:020d}-{7:016x}.torn.tmp"):
        life.disk.create(name)
    life.disk.kill()


def left_over(change: Callable[[Life], None]) -> Callable[[Life], None]:
    """META ceased to count files, and the process ended before it removed them."""

    def prepare(life: Life) -> None:
        life.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Manifest, "_remove", lambda self, gone: None)
            change(life)
        life.disk.kill()

    return prepare


def damaged(number: int) -> Callable[[Life], None]:
    """A bit of a file's first batch, or of its second, is another one, and all was synced."""

    def prepare(life: Life) -> None:
        name = sorted(name for name in life.disk.files if name.endswith(".qlog"))[1]
        inode = life.disk.files[name]
        life.ended_at = int(name[:20]) + number
        for content in (inode.cached, inode.durable):
            content[SEGMENT_HEADER_BYTES + number * BATCH_BYTES + 300] ^= 1

    return prepare


# --- What is done


def refuses(life: Life) -> None:
    with suppress(CorruptError):
        life.start()


def mended(life: Life) -> None:
    """Nothing was changed: with the file from a backup it is the log it was."""
    unsealed(life)
    check(life)


def commits(life: Life) -> None:
    life.write([b"a" * 300], sync=False)
    life.log.sync()
    life.confirmed = life.log.durable
    life.write([b"b" * 300], sync=True)


def rolls(life: Life) -> None:
    for number in range(3):
        life.write([bytes([number]) * 3_000], sync=True)


def rolls_prepared(life: Life) -> None:
    for number in range(3):
        life.log.prepare_next()
        life.write([bytes([number]) * 3_000], sync=True)


def large_ones(life: Life) -> None:
    """Larger than a segment: one that is empty grows, one that is not is sealed."""
    life.write([b"l" * 20_000], sync=True)
    life.write([b"m" * 20_000], sync=True)


def is_refused_room(life: Life) -> None:
    """A roll that finds none; then there is some."""
    life.write([b"a" * 2_000], sync=True)
    life.disk.fill_up()
    life.write([b"n" * 6_000], sync=True)


def rolls_on_a_full_disk(life: Life) -> None:
    """Onto the spare, the reserve; META goes on to count an older one as the newest."""
    life.log.prepare_next()
    life.disk.fill_up()
    for number in range(3):
        life.write([bytes([number]) * 2_000], sync=True)
    life.log.prepare_next()


def prepares_without_room(life: Life) -> None:
    life.disk.fill_up()
    assert life.log.prepare_next() is False or life.disk.failed


def stops(life: Life) -> None:
    life.write([b"a" * 300], sync=False)
    life.log.close(clean=True)
    life.confirmed = life.log.durable


def cleans(life: Life) -> None:
    life.clean(1)
    life.clean(3)


def cleans_on_a_full_disk(life: Life) -> None:
    """The file is there, and META finds no room."""
    made = beside(lambda: rewrite(life.disk, sealed(life)[:1], keep_even))
    if made is not None:
        life.disk.fill_up()
        life.dead.update(n for n in range(made.first, made.last + 1) if n % 2)
        life.log.adopt(made)


def cleans_what_is_dead(life: Life) -> None:
    assert beside(lambda: rewrite(life.disk, sealed(life)[:1], lambda record: None)) is None


def adopts_what_is_stale(life: Life) -> None:
    """It was made of what is not there any more."""
    made = beside(lambda: rewrite(life.disk, sealed(life)[:1], keep_even))
    life.dead.update(range(1, 5))
    life.log.drop([1])
    if made is not None:
        with suppress(StaleError):
            life.log.adopt(made)


def sweeps(life: Life) -> None:
    beside(lambda: rewrite(life.disk, sealed(life)[:1], keep_even))
    beside(lambda: sweep(life.disk))


def beside(do: Callable):
    """In another process, which may end over it: the log goes on."""
    try:
        return do()
    except TROUBLE:
        return None


def sealed(life: Life):
    return LogReader.open(life.disk).sealed(life.log.durable)


def drops(life: Life) -> None:
    life.drop()
    life.trim(life.log.durable - 3)


def reads(life: Life) -> None:
    """Of everything, by every way in; a read that the disk refuses costs that read."""
    life.write([b"a" * 300], sync=True)
    with suppress(*TROUBLE):
        reads_all(life)
    life.write([bytes([each]) * 20_000 for each in b"bcd"], sync=True)  # it has marks
    reads_all(life)


def reads_all(life: Life) -> None:
    log = life.log
    log.free_bytes()
    for number, batch in life.wrote.items():
        for position, body in batch:
            assert log.read(position).body == body
            held = log.holding(range(number, number + 1), body, key=number)
            assert [each.body for each in held] == [body]
        log.read_block(number)
        log.digest(number)
    log.candidates(5)
    name, number = f"{1:020d}.qlog", min(life.wrote)
    log.evidence(
        Damage(name, SEGMENT_HEADER_BYTES, 512, number << SLOT_BITS, 1, "it was asked for")
    )
    assert len(list(log.replay())) == len(life.wrote)


def reads_beside(life: Life) -> None:
    """Another process follows the log while it is written, and reads in it."""
    reader = LogReader.open(life.disk)
    for _ in range(3):
        life.write([b"r" * 2_000], sync=True)
        found = {
            info.number: [(each.position, each.body) for each in records]
            for info, records in reader.replay(0, life.log.durable)
        }
        assert found == life.wrote
    for number, batch in life.wrote.items():
        assert reader.read(batch[0][0]).body == batch[0][1]
        reader.digest(number)
        reader.read_block(number)


def repairs(life: Life) -> None:
    position = life.ended_at << SLOT_BITS
    loss_of(life.disk, position)
    truncate(life.disk, position, accept_data_loss=True)


def repaired(life: Life) -> None:
    """Done again it goes on; what was before the cut is there, what it took away is evidence."""
    life.disk.heal()
    repairs(life)
    cuts = [name for name in life.disk.files if name.endswith(".cut")]
    assert len(cuts) >= 2
    life.wrote = {n: batch for n, batch in life.wrote.items() if n < life.ended_at}
    life.confirmed = life.ended_at - 1
    check(life)
    assert set(cuts) <= life.disk.files.keys()


STORIES = [
    Story("a new log", lambda: Life(SimDisk()), Life.start, check),
    Story("commits", scene(nothing), commits, check),
    Story("a roll", scene(nothing), rolls, check),
    Story("a roll onto a spare", scene(nothing), rolls_prepared, check),
    Story("batches larger than a segment", scene(nothing), large_ones, check),
    Story("a roll without room", scene(nothing), is_refused_room, check),
    Story("a roll on a full disk", scene(nothing), rolls_on_a_full_disk, check),
    Story("no room for a spare", scene(nothing), prepares_without_room, check),
    Story("a stop", scene(nothing), stops, check),
    Story("a start after a stop", scene(nothing, started=False), Life.start, check),
    Story("a start after a kill", scene(killed, started=False), Life.start, check),
    Story("a start after a start", scene(started_and_killed, started=False), Life.start, check),
    Story("a start with a spare", scene(prepared, started=False), Life.start, check),
    Story("a start with a torn tail", scene(torn, started=False), Life.start, check),
    Story("... on a full disk", scene(torn_without_room, started=False), Life.start, check),
    Story(
        "... which has a spare",
        scene(prepared_and_torn_without_room, started=False),
        Life.start,
        check,
    ),
    Story("a spare that was left", scene(prepared), rolls_prepared, check),
    Story(
        "a start with half a spare on a full disk",
        scene(prepared_in_part, started=False),
        Life.start,
        check,
    ),
    Story("a new log that was cut off", cut_off, Life.start, check),
    Story("a start that refuses", scene(unsealed, started=False), refuses, mended),
    Story("a start with half-made files", scene(half_made, started=False), Life.start, check),
    Story("a start over a drop", scene(left_over(drops), started=False), Life.start, check),
    Story("a start over an adoption", scene(left_over(cleans), started=False), Life.start, check),
    Story("cleaning", scene(nothing), cleans, check),
    Story("cleaning on a full disk", scene(nothing), cleans_on_a_full_disk, check),
    Story("cleaning what is dead", scene(nothing), cleans_what_is_dead, check, has_second_try=True),
    Story("an adoption that comes too late", scene(nothing), adopts_what_is_stale, check),
    Story("a sweep", scene(nothing), sweeps, check),
    Story("drops", scene(nothing), drops, check),
    Story("drops of what was cleaned", scene(left_over(cleans)), drops, check),
    Story("reads", scene(nothing), reads, check, has_second_try=True),
    Story("reads beside", scene(nothing), reads_beside, check),
    Story("a repair", scene(damaged(0), started=False), repairs, repaired),
    Story("a repair within a file", scene(damaged(1), started=False), repairs, repaired),
]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_any_call_may_end_it(story: Story, way) -> None:
    """What was confirmed is there in the lives behind it, once, and they go on."""
    assert tell(story, way, TROUBLE).lives > 3


def test_every_call_fails_somewhere() -> None:
    """The same for calls that fail alone; and no place in the code, no kind of call is left out."""
    told = told_all(STORIES, TROUBLE)
    assert sites(Path(log.__file__).parent) == told.sites
    assert table(told.failed) == LOG_CALLS
    assert table(told.made) == LOG_CALLS
