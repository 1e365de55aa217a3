"""What the scenario does not show of alarms: their bounds, and what a walk over letters finds."""

from __future__ import annotations

import pytest

from harness import Harness
from qbroker.core import alarms
from qbroker.core.alarms import Alarms
from qbroker.core.letters import Letter


def dies(harness: Harness, queue: str, *bodies: str) -> None:
    harness.run(f"publish q={queue} {' '.join(bodies)}")
    harness.run(f"consume q={queue} c={queue} credit=100")
    for body in bodies:
        harness.run(f"reject c={queue} {body}")


def alarms_of(harness: Harness) -> Alarms:
    return harness.machine.core.state.catalogue.alarms


def ages(harness: Harness) -> dict[str, int]:
    found = alarms_of(harness)
    names = {queue.number: name for name, queue in harness.machine.core.state.queues.items()}
    return {names[number]: found.age_ms(number) for number in found.oldest}


def test_a_walk_ends_once_each_queue_has_its_oldest() -> None:
    harness = Harness()
    dies(harness, "a", "a1", "a2")
    harness.run("wait 10s")
    dies(harness, "b", "b1", "b2")
    harness.run("wait 2s")
    assert ages(harness).keys() == {"a.dead", "b.dead"}
    assert ages(harness)["a.dead"] >= ages(harness)["b.dead"] + 10_000
    harness.run("move q=a.dead to=b.dead")  # the oldest counts where it lies now
    harness.run("wait 2s")
    assert ages(harness).keys() == {"b.dead"}
    assert ages(harness)["b.dead"] >= 12_000
    harness.run("consume q=b.dead c=D credit=9")  # also when it is handed out
    harness.run("wait 2s")
    assert ages(harness)["b.dead"] >= 14_000
    harness.run("ack c=D a1 a2 b1 b2")
    harness.run("wait 2s")
    assert ages(harness) == {}


def test_so_many_letters_and_queues_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "ALARM_LETTERS_MAX", 2)
    monkeypatch.setattr(alarms, "ALARM_QUEUES_MAX", 1)
    harness = Harness()
    for queue in ("a", "b"):
        harness.run(f"declare q={queue}.dead alarm_length=1 alarm_age_ms=1")
    dies(harness, "a", *(f"a{n}" for n in range(6)))
    dies(harness, "b", "b1")
    begun = []
    for _ in range(8):
        harness.run("wait 1s")
        begun.append([each.queue for each in harness.machine.core.alarms()])
        assert len(harness.machine.core.take_news()) <= 1
    assert sorted(begun[-1]) == ["a.dead", "b.dead"]
    assert len(begun[0]) <= 1
    assert "alarm_age_ms" in harness.machine.core.alarms()[-1].why
    assert set(ages(harness)) == {"a.dead", "b.dead"}


def test_what_died_before_anybody_wrote_down_when_has_no_age() -> None:
    harness = Harness()
    harness.run("declare q=a.dead alarm_age_ms=1")
    dies(harness, "a", "a1")
    letters = harness.machine.core.state.letters
    ((position, letter),) = letters.ordered()
    letters.by_position[position] = Letter(letter.number, 0, letter.home, b"")
    harness.run("wait 5s")
    assert harness.machine.core.alarms() == []


def test_an_alarm_begins_anew_after_a_start_and_has_its_first_time_until_it_ends() -> None:
    harness = Harness()
    harness.run("declare q=a.dead alarm_length=1")
    dies(harness, "a", "a1")
    assert harness.run("wait 1s") is not None
    (first,) = harness.machine.core.alarms()
    harness.run("wait 5s")
    assert harness.machine.core.alarms() == [first]
    harness.machine.core.take_news()
    harness.run("crash")
    harness.run("wait 1s")
    assert [news.begins for news in harness.machine.core.take_news()] == [True]
    (again,) = harness.machine.core.alarms()
    assert again.since_ms > first.since_ms
    (row,) = [q for q in harness.machine.core.statistics().queues if q.name == "a.dead"]
    assert (row.alarm, row.oldest_dead_ms > 6_000) == (again.why, True)


def test_an_option_that_is_taken_back_ends_the_alarm() -> None:
    harness = Harness()
    dies(harness, "a", "a1")
    harness.run("set q=a.dead alarm_length=1")
    harness.run("wait 1s")
    assert [each.queue for each in harness.machine.core.alarms()] == ["a.dead"]
    harness.run("set q=a.dead alarm_length=none")
    harness.run("wait 1s")
    assert [news.begins for news in harness.machine.core.take_news()] == [True, False]
