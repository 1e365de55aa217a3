"""Each disk call of a keeper and of a start fails, in every way: the broker knows what it knew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from digest import digest
from diskcalls import CHECKPOINT_CALLS, WAYS, Story, sites, table, tell, told_all, unknown
from qbroker import checkpoint
from qbroker.bodies import Bodies
from qbroker.checkpoint import file
from qbroker.checkpoint.errors import CheckpointError, DamagedError
from qbroker.checkpoint.keeper import Kept, Order, Told, keep
from qbroker.checkpoint.shelf import Restored, Shelf
from qbroker.core.settings import Settings
from qbroker.core.state import BrokerState
from qbroker.log.cleaning import Rewritten
from qbroker.log.errors import LogError
from qbroker.log.log import Log, LogSettings
from qbroker.replaying import replay
from qprotocol import frames as f
from qprotocol.message import unpack_message
from simdisk import lose_all

TROUBLE = (LogError, CheckpointError, DamagedError, OSError)
LOG = LogSettings(segment_bytes=8 << 10)
SIZE = 300


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is synced several times, as large ones are."""
    monkeypatch.setattr(file, "PIECE_BYTES", 1_000)


class Life:
    """Copies of the disks of a broker that was killed, and what it knew."""

    def __init__(self, room: Any) -> None:
        machine = room.machine
        self.now = machine.now
        self.knew = digest(machine.core.state, self.now)
        self.disks = machine.disk.copy(), room.disk.copy()
        for each in self.disks:
            each.kill()
        self.told: list[Told] = []
        self.open()
        self.had = self.bodies(machine.core.state)

    def again(self) -> Life:
        """The same once more, with a log that is open."""
        life = object.__new__(Life)
        life.now, life.knew, life.had, life.told = self.now, self.knew, self.had, []
        life.disks = self.disks[0].copy(), self.disks[1].copy()
        life.open()
        return life

    def open(self) -> None:
        self.log, self.shelf = Log.open(self.disks[0], LOG), Shelf(self.disks[1])

    def restore(self) -> Restored:
        found = self.shelf.restore(self.log, self.log.durable, Settings())
        replay(self.log, found.core, found.ages, lambda batch, last: None, found.batch + 1)
        return found

    def bodies(self, state: BrokerState) -> dict[int, bytes]:
        """Of all that waits or is handed out, from the disk."""
        bodies, found = Bodies(self.log, 0, lambda: 0), {}
        for position in {*state.leases, *(p for q in state.numbered for _, p in q.waiting())}:
            bodies.keep(bodies.load([position]))
            found[position] = unpack_message(bodies.message(position)).body
        return found

    def keep(self, live_percent: int) -> None:
        """A keeper runs; the log and the shelf do what it tells."""
        order = Order(
            self.log.durable, self.now.wall_ms, Settings(), live_percent, LOG.segment_bytes
        )
        keep(self.disks[0], self.shelf, order, self.hear)

    def hear(self, told: Told) -> None:
        self.told.append(told)
        if isinstance(told, Kept):
            self.shelf.keep(told.batch, told.before)
        else:
            rewritten = isinstance(told, Rewritten)
            done = self.log.adopt(told) if rewritten else self.log.drop(told)
            assert done or self.disks[0].failed, "only a full disk may refuse"

    def check(self) -> None:
        """The next life knows the same; a keeper that comes then does its work."""
        for each in self.disks:
            each.heal()
        self.open()
        self.check_knows(self.restore())
        self.told.clear()
        self.keep(50)
        assert isinstance(self.told[0], Kept)
        assert not [name for name in self.disks[1].files if name.endswith(".tmp")]
        for each in self.disks:
            each.crash(lose_all)
        self.open()
        assert self.shelf.names()[0] == file.name_of(self.told[0].batch)
        self.check_knows(self.restore())

    def check_knows(self, found: Restored) -> None:
        assert digest(found.core.state, self.now) == self.knew
        assert self.bodies(found.core.state) == self.had


MODELS: dict[Callable[[Any], None], Life] = {}


def scene(prepare: Callable[[Any], None]) -> Callable[[type], Life]:
    def fresh(kind: type) -> Life:
        if prepare not in MODELS:
            room = kind()
            prepare(room)
            life = Life(room)
            for each in life.disks:
                each.kill()
            MODELS[prepare] = life
        return MODELS[prepare].again()

    return fresh


# --- Scenes


def some(room: Any, first: int, count: int) -> None:
    for number in range(first, first + count, 4):
        room.publish(*(name(each) for each in range(number, number + 4)))


def name(number: int) -> str:
    return f"{number:04d}" + "." * SIZE


def without_one(room: Any) -> None:
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    some(room, 0, 8)
    room.take(name(1), result=b"one")


def with_one(room: Any) -> None:
    without_one(room)
    room.keep()
    some(room, 8, 4)


def with_two(room: Any) -> None:
    with_one(room)
    room.keep()
    some(room, 12, 4)


def mostly_dead(room: Any) -> None:
    """One checkpoint stands; of the files below it some are dead, and some nearly so."""
    room.say(f.Consume(subscription=1, queues=["q"], credit=1_000))
    some(room, 0, 160)
    room.take(*(name(each) for each in range(160) if each not in (100, 130)))
    room.keep()
    some(room, 160, 4)


def half_made(room: Any) -> None:
    """A keeper had begun with the same."""
    with_one(room)
    room.disk.create(f"{file.name_of(room.machine.log.durable)}.tmp")


def with_a_damaged_one(room: Any) -> None:
    with_two(room)
    inode = room.disk.files[room.shelf.names()[0]]
    for content in (inode.cached, inode.durable):
        content[200] ^= 1


# --- What is done


def keeps(life: Life) -> None:
    life.keep(0)


def cleans(life: Life) -> None:
    life.keep(50)
    kinds = {type(each) for each in life.told}
    assert kinds == {Kept, list, Rewritten} or any(disk.failed for disk in life.disks)


def starts(life: Life) -> None:
    life.check_knows(life.restore())


STORIES = [
    Story("the first", scene(without_one), keeps, Life.check, has_second_try=True),
    Story("the next", scene(with_one), keeps, Life.check),
    Story("the third", scene(with_two), keeps, Life.check),
    Story("one half made", scene(half_made), keeps, Life.check),
    Story("one that cleans", scene(mostly_dead), cleans, Life.check),
    Story("a start", scene(with_two), starts, Life.check),
    Story("a start that passes one over", scene(with_a_damaged_one), starts, Life.check),
]


def told_in(story: Story, room: Any) -> Story:
    return replace(story, scene=partial(story.scene, type(room)))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_any_call_may_end_it(story: Story, way: Any, room: Any) -> None:
    """Of either disk: what the broker knew is known, and what it held can be read."""
    assert tell(told_in(story, room), way, TROUBLE).lives > 10


def test_every_call_fails_somewhere(room: Any) -> None:
    """The same for calls that fail alone; and no place in the code, no kind of call is left out."""
    told = told_all([told_in(story, room) for story in STORIES], TROUBLE)
    package = Path(checkpoint.__file__).parent
    assert sites(package) == {site for site in told.sites if (package / site[0]).exists()}
    for calls in (told.made, told.failed):
        rows = table(calls)
        assert {kind: rows[kind] for kind in CHECKPOINT_CALLS} == CHECKPOINT_CALLS
        assert not unknown(calls)
