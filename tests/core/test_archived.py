"""What leaves memory because the archive has it, a bounded number in a turn."""

from __future__ import annotations

from machine import Machine
from qbroker.core.records import Archived, Forgotten
from qbroker.core.results import Finished, Results
from qbroker.core.settings import ARCHIVED_MAX, Settings
from qprotocol.states import State

LAST = (1 << 40) - 1


def results_of(count: int) -> Results:
    results = Results(1_000_000)
    for settled in range(1, count + 1):
        entry = Finished(State.SUCCESS, settled, 0, 0, 0, 1 << 50, settled=settled)
        results.store(1_000_000 + settled, entry)
    return results


def test_nothing_goes_that_the_archive_has_not() -> None:
    results = results_of(10)
    assert results.releasable(100) == 0
    results.archived = 4
    assert results.releasable(100) == 4
    assert len(results.release(4)) == 4
    assert results.releasable(100) == 0
    assert [entry.settled for _, entry in results.entries()] == [5, 6, 7, 8, 9, 10]


def test_of_very_many_some_go_at_a_time() -> None:
    results = results_of(10)
    results.archived = LAST
    gone = []
    while upto := results.releasable(3):
        gone.append(len(results.release(upto)))
    assert gone == [3, 3, 3, 1]


def test_what_was_forgotten_is_hidden_until_the_archive_knows() -> None:
    results = results_of(2)
    results.forgotten = {77: 5, 78: 6, 79: 7}
    results.archived = 6
    assert results.releasable(100) == 6
    results.release(6)
    assert results.forgotten == {79: 7}
    results.archived = LAST
    assert results.releasable(1) == 7


def test_a_turn_releases_a_bounded_number_and_wants_another() -> None:
    machine = Machine()
    core = machine.core
    core.state.results = results_of(2 * ARCHIVED_MAX + 1)
    core.archived(LAST)
    kinds = []
    while core.next_due_ms(machine.now) == 0:
        machine.noted.clear()
        core.due(machine.now, machine.append)
        kinds += [type(record) for _, record in machine.noted]
    assert kinds == [Archived] * 3
    assert not core.state.results.finished


def test_without_an_archive_nothing_is_kept_of_what_was_forgotten() -> None:
    for is_on in (True, False):
        machine = Machine(settings=Settings(archive=is_on))
        machine.core.replay(5 << 20, Forgotten([3 << 20]))
        assert machine.core.is_forgotten(3 << 20) is is_on


def test_entries_are_kept_as_they_were() -> None:
    results = Results(10)
    entries = [
        Finished(State.SUCCESS, 1 << 63, 255, 1 << 42, (1 << 32) - 1, 1 << 43, settled=1 << 63),
        Finished(State.FAILURE, 0, 0, 1, 0, 1 << 43, 7, "zu spät", b"\x00name", 3),
        Finished(State.REVOKED, 0, 0, 1, 0, 1 << 43, 0, "cancelled"),
    ]
    for position, entry in enumerate(entries, 1):
        results.store(position, entry)
    assert [results.get(position, 1) for position in (1, 2, 3, 4)] == [*entries, None]
    assert results.get(2, 1 << 43) is None
    assert results.names == {b"\x00name": 2}
    results.drop(1)
    results.drop(2)
    assert list(results.entries()) == [(3, entries[2])]
    assert not results.names
