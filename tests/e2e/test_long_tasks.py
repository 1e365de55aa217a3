"""Tasks that take long: they outlive a broker's crash, and C code that lets nobody else run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.daemon import Daemon, until
from e2e.fleet import Fleet, load_tasks
from qclient import ResultTimeout

pytestmark = pytest.mark.e2e

# A tenth of a second stands for three of real life. Workers try to come back each second at most:
# grace is longer than that.
SOON = {"heartbeat_ms": 200, "session_timeout_ms": 1_000, "grace_ms": 2_000}
PREFORK = ("-P", "prefork", "-c", "2")


def outlive(broker: Daemon, fleet: Fleet, *, beyond_s: float) -> None:
    """A task begins, the broker is killed and comes back, all deadlines pass, the task ends."""
    # Given a task that runs
    tasks = load_tasks(broker)
    with tasks.app:
        long = tasks.wait_for.delay("the-end")
        until(lambda: fleet.marks("begun")["the-end"], "the task's begin")
        # (Its lease is on disk once something after it is. A lease that is lost with the crash
        # can be claimed, unless another child gets the task before.)
        tasks.note.delay("after the lease")
        # When the broker dies, comes back, and the time is over in which leases could be lost
        broker.restart()
        late = tasks.echo.apply_async(args=("late",), countdown=beyond_s)
        try:
            assert late.get(timeout=beyond_s + 30) == "late"
        except ResultTimeout as error:
            raise AssertionError(fleet.told()) from error
        # Then the task still runs, ends once, and its result is known
        assert fleet.marks()["the-end"] == 0
        fleet.release("the-end")
        assert long.get(timeout=30) == 1, "it was delivered more than once"
    assert fleet.marks("begun")["the-end"] == 1
    assert fleet.marks()["the-end"] == 1


@pytest.mark.parametrize(
    "flags", [PREFORK, ("-P", "threads", "-c", "2")], ids=["prefork", "threads"]
)
def test_a_long_task_survives_a_kill_of_the_broker_and_runs_once(
    flags: tuple[str, ...], make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """A task that outlives crash, grace (2 s) and session timeout (1 s) is run once."""
    broker = make_broker(**SOON).start()
    fleet = make_fleet(broker, *flags).start()
    outlive(broker, fleet, beyond_s=3.5)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_task_of_a_minute_survives_at_real_scale(
    make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """The same with the settings as they come: 30 s of grace, 30 s of session timeout."""
    broker = make_broker().start()
    fleet = make_fleet(broker, *PREFORK).start()
    outlive(broker, fleet, beyond_s=65)


def hold(fleet: Fleet, broker: Daemon, seconds: float, timeout_s: float) -> None:
    """A child is in C code for that long; a second child could take its task, if it were lost."""
    tasks = load_tasks(broker)
    with tasks.app:
        result = tasks.hold_interpreter.delay(seconds)
        silent, delivered = result.get(timeout=seconds + 60)
        assert silent > timeout_s, f"the lock was held for {silent:.1f} s only"
        assert delivered == 1
    assert fleet.marks("begun")[result.id] == 1
    assert fleet.marks()[result.id] == 1
    assert fleet.events("lease lost, outcome void") == []


def test_a_child_in_c_code_keeps_its_lease(
    make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """A child that is silent for three times the session timeout runs its task once."""
    broker = make_broker(**SOON).start()
    hold(make_fleet(broker, *PREFORK).start(), broker, 3.5, timeout_s=3.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_child_in_c_code_for_45_seconds_keeps_its_lease(
    make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """The same with the settings as they come: leases are lost after 30 s of silence."""
    broker = make_broker().start()
    hold(make_fleet(broker, *PREFORK).start(), broker, 46.0, timeout_s=45.0)


def test_a_lost_worker_s_task_is_run_by_another(
    make_broker: Callable[..., Daemon], make_fleet: Callable[..., Fleet]
) -> None:
    """Killed with all its children, a worker loses its task to the next one, as a crash."""
    broker = make_broker(**SOON).start()
    fleet = make_fleet(broker, *PREFORK).start()
    tasks = load_tasks(broker)
    with tasks.app:
        result = tasks.wait_for.delay("rescue")
        until(lambda: fleet.marks("begun")["rescue"], "the task's begin")
        fleet.kill()
        fleet.start()
        until(lambda: fleet.marks("begun")["rescue"] == 2, "its second begin")
        fleet.release("rescue")
        assert result.get(timeout=30) == 2
