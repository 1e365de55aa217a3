"""Whatever went wrong on the way: once nothing does any more, everything is run and settled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker.config import Config
from qworker.backoff import MAX_S
from qworker.slots import ENDED_PLAIN, RING, TAKEN
from worker.factory import SOON, Call, Factory, factory


@pytest.fixture
def world() -> Iterator[Factory]:
    """A worker of one runner, ready, and nothing goes wrong by itself."""
    with factory(seed=1, runners=1) as made:
        made.faults = False
        made.step_parent()
        made.step_runner(made.runners[0])
        made.machine.wait(1_000)
        yield made


@pytest.mark.timeout(1_800)  # with HYPOTHESIS_PROFILE=long
@given(seed=st.integers(0, 1 << 30), runners=st.integers(1, 3))
def test_everything_drains_when_the_faults_end(seed: int, runners: int) -> None:
    """No task waits for a worker that idles, and none is leased to one that does not run it."""
    with factory(seed, runners) as world:
        world.publish()
        for _ in range(150):
            world.event()
        world.heal()
        assert world.drained, world.figures()
        assert len(world.begun) == world.sent


def test_a_message_whose_lease_was_lost_may_come_again(world: Factory) -> None:
    """It ran, the broker died before it knew, and had given it up when the worker was back.

    The worker is told that the lease is lost. That says nothing of the next one.
    """
    # Given a task that was run, and its ack that was never read
    world.publish(1)
    runner = world.runners[0]
    while not world.begun["m0"]:
        world.step_runner(runner)
    assert runner.member.settlements.unanswered
    world.cable(runner).cut(with_all=True)
    world.machine.kill()
    # When the worker comes back too late
    world.machine.wait(SOON.grace_ms + 100)
    world.heal()
    # Then the task runs again, and is over
    assert world.drained, world.figures()
    assert world.begun["m0"] == 2


def test_what_was_void_in_hand_is_told_to_the_broker(world: Factory) -> None:
    """A lease that was lost before its task began is given back all the same.

    A broker that crashed may not know that it gave it, nor that it took it away: a token that
    is neither settled nor held any more could be taken for a claim.
    """
    world.publish(2)
    runner = world.runners[0]
    while len(runner.member.hand) < 2:
        world.machine.settle()
        runner.member.receive()
    world.cable(runner).cut()
    world.machine.wait(SOON.session_timeout_ms + 100)
    world.machine.settle()
    world.heal()
    assert world.drained, world.figures()
    while runner.member.settlements.unanswered:
        world.step_runner(runner)
    assert runner.member.hand.outstanding() == []


def test_a_watchman_leaves_a_runner_alone_that_waits(
    world: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task ends while the watchman is about to look after it.

    What he took in then, nobody would see: the runner sleeps until its connection has
    something to read.
    """
    member = world.runners[0].member
    granted = member.credit.granted
    seen: list[float] = []

    class Slow:
        """The member's network lock, got only after the task has ended."""

        def acquire(self, *, blocking: bool) -> bool:
            assert not blocking
            member.hand.slot.ends[(member.words[TAKEN] - 1) % RING] = ENDED_PLAIN
            return True

        def release(self) -> None:
            """Nobody else wants it."""

    def meanwhile(call: Call, _parcel: object, _index: int) -> tuple[None, str]:
        world.machine.wait(100)
        with monkeypatch.context() as patch:
            patch.setattr(member, "network", Slow())
            seen.append(world.runners[0].watchman._tend(member))
        assert member.credit.granted == granted
        return None, ""

    monkeypatch.setattr(Call, "execute", meanwhile)
    world.publish(1)
    while not seen:
        world.step_runner(world.runners[0])


def test_a_worker_is_back_while_the_broker_still_waits_for_claims() -> None:
    """After a crash: parent and children both, or what they run would be handed out anew."""
    assert Config().claims_ms >= 2 * MAX_S * 1000
