"""Canvases on real workers, with kills: each gives what plain Python gives."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from canvases import Failed, Plain, canvas
from e2e.daemon import Daemon
from e2e.fleet import Fleet, load_tasks
from qclient import TaskFailure

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PATIENCE_S = 120.0
KILLS = 10


def outcome(plain: Plain, step: Any) -> tuple[str, Any]:
    try:
        return "value", plain.value(step)
    except Failed as failed:
        return "failed", failed.why


def check(handle: Any, wanted: tuple[str, Any], told: Callable[[], str]) -> None:
    kind, value = wanted
    try:
        found = handle.get(timeout=PATIENCE_S)
    except TaskFailure as error:
        assert kind == "failed", (error, value)
        assert error.message in value
    except TimeoutError as error:
        raise AssertionError(told()) from error
    else:
        assert (kind, found) == wanted


def test_canvases_give_what_plain_python_gives(
    broker: Daemon, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    rng = random.Random(5)
    calls = [
        tasks.f.s(1),
        tasks.f.s(2),
        tasks.f.si(3),
        tasks.flaky.s(4),
        tasks.becomes.s(6),
        tasks.boom.s(5),
    ]
    with tasks.app:
        for _ in range(40):
            step = canvas(rng, rng.choice((calls, calls[:5])))
            plain = Plain()
            check(step.delay(), outcome(plain, step), fleet.told)


@pytest.mark.parametrize("seed", [1, 2])
def test_canvases_survive_kills_of_workers_and_broker(
    seed: int, broker: Daemon, make_fleet: Callable[..., Fleet]
) -> None:
    fleet = make_fleet(broker).start()
    tasks = load_tasks(broker)
    rng = random.Random(seed)
    calls = [
        tasks.f.s(1),
        tasks.f.s(2),
        tasks.f.si(3),
        tasks.flaky.s(4),
        tasks.becomes.s(6),
        tasks.boom.s(5),
    ]
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
