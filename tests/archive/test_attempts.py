"""The history of a message: each attempt that was no success at once, and what people did."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Harness
from qbroker.archive import store
from qbroker.archive.questions import Questions


def history(harness: Harness, task_id: str) -> list[dict[str, Any]] | None:
    harness.run("archive")
    assert harness.machine.archive
    found = Questions(harness.machine.archive.path).task(task_id)
    return found["attempts"] if found else None


def told(attempts: list[dict[str, Any]] | None) -> list[str]:
    """Outcome, and what is said of it."""
    return [
        " ".join(str(each[name]) for name in ("outcome", "error", "message") if each[name])
        for each in attempts or []
    ]


def test_a_task_s_attempts_are_told_from_its_first_failure_to_its_last_success() -> None:
    harness = Harness()
    harness.run("hello c=W session=w")
    harness.run("publish id=a task=t one")
    harness.run("consume c=W")
    harness.run("fail c=W one error=first retries=1 backoff=0s")
    harness.run("archive")  # a transaction between
    harness.run("crashed c=W one")
    harness.run("fail c=W one error=second")
    assert told(history(harness, "a")) == [
        "failed Oops first",
        "crashed Oops it broke",
        "failed Oops second",
    ]
    harness.run("replay 2:2#1 by=ana")
    assert history(harness, "a") is None  # it is under way: there is no row
    harness.run("done c=W one result=saved")
    attempts = history(harness, "a")
    assert told(attempts)[3:] == ["replayed by ana", "succeeded"]
    assert attempts
    assert attempts[0]["worker"].startswith(b"w".hex())
    assert attempts[0]["started_ms"] <= attempts[0]["ended_ms"]


def test_a_success_at_once_has_no_history() -> None:
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("consume")
    harness.run("ack one")
    assert history(harness, "a") == []


def test_plain_acks_of_what_failed_before_are_told() -> None:
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("publish id=b task=t two")
    harness.run("consume")
    harness.run("fail one retries=1 backoff=0s")
    harness.run("ack one two")
    assert told(history(harness, "a")) == ["failed Oops it broke", "succeeded"]
    assert history(harness, "b") == []


def test_it_goes_along_with_what_takes_the_message_s_place() -> None:
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("consume")
    harness.run("fail one retries=5 backoff=0s instead=two id=a task=t")
    harness.run("archive")
    harness.run("reject two result=ugly")
    harness.run("archive")
    (letter,) = [
        f"{p >> 20}:{p & 0xFFFFF}#{x.number}"
        for p, x in harness.machine.core.state.letters.ordered()
    ]
    harness.run(f"edit {letter} body=three id=a task=t by=ana")
    assert told(history(harness, "a")) == [
        "failed Oops it broke",
        "rejected Rejected ugly",
        "edited by ana",
    ]
    position = next(iter(harness.machine.core.state.letters.by_position))
    harness.run(f"drop_dead {position >> 20}:{position & 0xFFFFF}#1")
    assert told(history(harness, "a"))[3:] == ["dropped"]


def test_what_a_limit_or_time_ended_is_told_and_the_row_says_how_it_died() -> None:
    harness = Harness()
    harness.run("declare q=q.dead max_length=1")
    harness.run("publish id=a task=t one")
    harness.run("publish id=b task=t two")
    harness.run("consume")
    harness.run("fail one error=boom")
    harness.run("fail two error=boom")
    assert told(history(harness, "a")) == [
        "failed Oops boom",
        "overflowed overflow: max_length is 1",
    ]
    assert "row   3:2 FAILURE" in "\n".join(harness.run("archive"))
    harness.run("set q=q.dead message_ttl_ms=1000")
    harness.run("publish id=c task=t three")
    harness.run("fail three")
    harness.run("wait 2s")
    assert told(history(harness, "c"))[-1] == "expired"


def test_the_last_of_very_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ATTEMPTS_MAX", 3)
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("consume")
    for number in range(5):
        harness.run(f"fail one error={number} retries=9 backoff=0s")
        harness.run("archive")
    harness.run("fail one error=last retry=no")
    assert told(history(harness, "a")) == ["failed Oops 3", "failed Oops 4", "failed Oops last"]


def test_who_wants_it_forgotten_has_it_forgotten() -> None:
    harness = Harness()
    harness.run("publish id=a task=t one")
    harness.run("consume")
    harness.run("fail one")
    harness.run("forget id=a")
    assert history(harness, "a") is None
