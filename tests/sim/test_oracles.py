"""What the oracle excuses, and that it excuses no more: it is fed histories that abuse it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from qprotocol.message import Message
from qprotocol.wire import SLOT_BITS
from sim.oracle import NO, YES, Known
from sim.story import Story
from sim.swarm import HOPELESS_MS, draw
from sim.world import MS, Violation, World

BATCH = 5
LONG_US = HOPELESS_MS * MS


@pytest.fixture
def story() -> Iterator[Story]:
    """One in which nothing has happened; its broker is down."""
    swarm = draw(World("excuses").rng("swarm"), frozenset(("tasks", "eio", "restores")))
    made = Story("excuses", swarm)
    yield made
    made.end()


def confirmed(story: Story, uid: int = 1) -> Known:
    """A message that is there for certain, and not a byte of it hurt."""
    message = Message("a", b"%09d" % uid)
    known = story.oracle.add(message, uid, relaxed=False, in_order=True)
    story.oracle.sent([known])
    story.oracle.reveal(known)
    known.position = (BATCH + uid) << SLOT_BITS
    return known


def refuse(story: Story) -> None:
    """A call of the disk, which fails."""
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        story.disk.names()


def fails_on(story: Story) -> None:
    """From now on the disk refuses all."""
    story.disk.fail(1, errno.EIO, sticky=True)
    story.operator.failing_since = story.world.now


def fails_for_long(story: Story) -> None:
    fails_on(story)
    refuse(story)
    story.world.now += LONG_US


def fails_for_a_while(story: Story) -> None:
    fails_on(story)
    refuse(story)
    story.world.now += LONG_US - 1


def fails_once(story: Story) -> None:
    story.disk.fail(1, errno.EIO)
    story.operator.failing_since = story.world.now
    refuse(story)
    story.world.now += LONG_US


def would_fail(story: Story) -> None:
    """Nobody asked the disk for anything."""
    fails_on(story)
    story.world.now += LONG_US


def failed_another_life(story: Story) -> None:
    """This broker has seen it for a moment alone."""
    fails_for_long(story)
    story.process.started_at = story.world.now


def was_put_right(story: Story) -> None:
    """It failed for long, and then the machine was started again."""
    fails_for_long(story)
    story.disk.kill()


def test_a_disk_that_refuses_all_for_long_excuses_what_is_set_aside(story: Story) -> None:
    known = confirmed(story)
    fails_for_long(story)
    story.operator.no_longer_fails()
    story.oracle.set_aside([known.position])
    assert known.over != NO


@pytest.mark.parametrize(
    "history", [fails_for_a_while, fails_once, would_fail, failed_another_life, was_put_right]
)
def test_any_other_trouble_excuses_nothing(story: Story, history: Callable[[Story], None]) -> None:
    known = confirmed(story)
    history(story)
    story.operator.no_longer_fails()
    with pytest.raises(Violation, match="its bytes are whole"):
        story.oracle.set_aside([known.position])


def test_what_is_published_when_the_disk_is_well_again_is_not_excused(story: Story) -> None:
    confirmed(story)
    fails_for_long(story)
    story.operator.no_longer_fails()
    story.disk.heal()
    later = confirmed(story, 2)
    with pytest.raises(Violation, match="message 2 .* its bytes are whole"):
        story.oracle.set_aside([later.position])


# --- Restores


def restored(story: Story, spoil: Callable[[Known], None]) -> None:
    """A broker begins from an empty backup, and there was a message when that was taken."""
    restores = story.process.restores
    known = confirmed(story)
    restores.oracle = story.oracle
    spoil(known)
    restores.take(story.disk, story.process.checkpoints, story.oracle)
    restores.restore()


def test_a_backup_without_what_was_confirmed_is_noticed(story: Story) -> None:
    with pytest.raises(Violation, match="a backup lost message 1"):
        restored(story, lambda known: None)


def test_a_backup_need_not_hold_what_may_have_ended(story: Story) -> None:
    def spoil(known: Known) -> None:
        known.over = YES

    restored(story, spoil)
