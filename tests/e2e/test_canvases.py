"""Canvases on real workers, with kills: each gives what plain Python gives."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from canvases import Failed, Plain, canvas
from e2e.daemon import Daemon, until
from e2e.fleet import Fleet, load_tasks
from qclient import App, GroupResult, Signature, TaskFailure, group

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PATIENCE_S = 120.0
KILLS = 10


def outcome(plain: Plain, step: Any) -> tuple[str, Any]:
    try:
        return "value", plain.value(step)
    except Failed as failed:
        return "failed", failed.why


def ended(handle: Any, told: Callable[[], str]) -> tuple[str, Any]:
    """What became of it in truth."""
    try:
        return "value", handle.get(timeout=PATIENCE_S)
    except TaskFailure as error:
        return "failed", error.message
    except TimeoutError as error:
        raise AssertionError(told()) from error


def calls_of(tasks: ModuleType) -> list[Signature[Any]]:
    """What canvases are made of; the last one fails."""
    return [
        tasks.f.s(1),
        tasks.f.s(2),
        tasks.f.si(3),
        tasks.flaky.s(4),
        tasks.becomes.s(6),
        tasks.boom.s(5),
    ]


def check(handle: Any, wanted: tuple[str, Any], told: Callable[[], str]) -> None:
    kind, found = ended(handle, told)
    assert kind == wanted[0]
    assert found in wanted[1] if kind == "failed" else found == wanted[1]


def test_canvases_give_what_plain_python_gives(
    broker: Daemon, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    rng = random.Random(5)
    calls = calls_of(tasks)
    with tasks.app:
        for _ in range(40):
            step = canvas(rng, rng.choice((calls, calls[:5])))
            plain = Plain()
            check(step.delay(), outcome(plain, step), fleet.told)


def test_one_message_may_be_many_calls(broker: Daemon, make_fleet: Callable[..., Fleet]) -> None:
    """CANV-19"""
    make_fleet(broker).start()
    tasks = load_tasks(broker)
    with tasks.app:
        assert tasks.f.map([1, 2]).delay().get(timeout=30) == [["f", 1], ["f", 2]]
        assert tasks.f.starmap([(1, 2)]).delay().get(timeout=30) == [["f", 1, 2]]
        chunks = tasks.f.chunks([(1,), (2,), (3,)], 2) | tasks.f.s()
        assert chunks.delay().get(timeout=30) == ["f", [[["f", 1], ["f", 2]], [["f", 3]]]]
        with pytest.raises(ValueError, match="chunks of 0: 1 or more"):
            tasks.f.chunks([], 0)


def test_what_is_linked_runs(broker: Daemon, make_fleet: Callable[..., Fleet]) -> None:
    """CANV-05, CANV-06: as options of a call, too."""
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    with tasks.app:
        good = tasks.echo.apply_async(("good",), link=tasks.note.s())
        bad = tasks.boom.apply_async((1,), link_error=[tasks.told.s("bad"), tasks.note.si("told")])
        assert good.get(timeout=30) == "good"
        with pytest.raises(ValueError, match="1"):
            bad.get(timeout=30)
        until(lambda: fleet.marks().keys() >= {"good", "bad:ValueError", "told"}, "what is linked")


def test_a_group_is_asked_as_one(broker: Daemon, make_fleet: Callable[..., Fleet]) -> None:
    """RES-09: and its members may be cancelled together."""
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    with tasks.app:
        members = group(group(tasks.f.s(n) for n in range(600)), tasks.boom.s(1)).delay()
        found = members.get(timeout=60, propagate=False)
        assert [*map(tuple, found[0])] == [("f", n) for n in range(600)]
        assert isinstance(found[1], TaskFailure)
        assert (members.ready(), members.successful(), members.failed()) == (True, False, True)
        assert members.completed_count() == 600
        again = GroupResult.from_list(members.as_list(), tasks.app)
        with pytest.raises(ValueError, match="1"):
            asyncio.run(ended_async(tasks.app, again))
        held = group(tasks.wait_for.s("never") for _ in range(20)).delay()
        with pytest.raises(TimeoutError):
            held.get(timeout=0.2)
        held.revoke(terminate=True)
        until(held.ready, "the end of all")
        assert not held.failed()
    assert fleet.runs


async def ended_async(app: App, handle: GroupResult) -> list[Any]:
    try:
        return await handle.get_async(timeout=60)
    finally:
        await app.close_async()


def test_a_step_is_sent_as_an_argument(broker: Daemon, make_fleet: Callable[..., Fleet]) -> None:
    """CANV-01"""
    make_fleet(broker).start()
    tasks = load_tasks(broker)
    with tasks.app:
        step = (tasks.f.s(1) | tasks.f.s(2)).as_dict()
        assert tasks.run_step.delay(step).get(timeout=30) == ["f", ["f", 1], 2]


@pytest.mark.parametrize("seed", [1, 2])
def test_canvases_survive_kills_of_workers_and_broker(
    seed: int, broker: Daemon, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    rng = random.Random(seed)
    calls = calls_of(tasks)
    steps = [canvas(rng, rng.choice((calls, calls[:5]))) for _ in range(60)]
    pause = threading.Event()

    def kill() -> None:
        for _ in range(KILLS):
            pause.wait(rng.uniform(0.2, 0.8))
            if rng.random() < 0.5:
                broker.restart()
            else:
                fleet.kill()
                fleet.start(wait_for_ready=False)

    with tasks.app:
        killer = threading.Thread(target=kill)
        killer.start()
        handles = [(step.delay(), outcome(Plain(), step)) for step in steps]
        killer.join()
        for handle, wanted in handles:
            check(handle, wanted, fleet.told)
