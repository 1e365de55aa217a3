"""Commands that meet a broker of another version: a sentence with both, and an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from qbroker.ops.admin import Admin
from qbroker.ops.exits import Exit, Trouble
from qprotocol import __version__
from qprotocol.codec import encode
from qprotocol.frames import Cancel, Error, Inspect, Ok, Report
from server.conftest import TERMS, Door, qbroker


@pytest.fixture
def door() -> Iterator[Door]:
    """An older broker: it says less of a queue, and knows the frames of its time."""
    older = Door(replace(TERMS, version="0.0.9"))
    tables: dict[str, Any] = {"queues": [{"name": "q", "ready": 1}]}

    def answer(connection: Any, asked: Any) -> None:
        told: Any = Error(code="BAD_FRAME", message="no frame has the type 73")
        if isinstance(asked, Inspect):
            message = f"there is no table '{asked.what}'"
            told = Error(code="BAD_REQUEST", message=message, correlation=asked.correlation)
            if asked.what in tables:
                told = Report(raw=json.dumps(tables[asked.what]).encode())
                told.correlation = asked.correlation
        connection.send(encode(told))

    older.engine.on_frame = answer
    yield older
    older.close()


def url_of(door: Door) -> str:
    return f"qbroker://{door.address[0]}:{door.address[1]}"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["queues"], 'there is no "scheduled" in its answer'),
        (["queues", "--why"], 'there is no "waiting" in its answer'),
        (["limit", "list"], 'it has no table "limits"'),
        (["dead", "list"], "it does not understand what was asked (no frame has the type 73)"),
        (["why", "x"], "it does not understand what was asked (no frame has the type 73)"),
    ],
)
def test_what_an_older_broker_does_not_know_is_said(door: Door, asked: list[str], why: str) -> None:
    done = qbroker(*asked, "--broker", url_of(door))
    assert done.returncode == Exit.UNLIKE, done.stderr
    assert done.stdout == ""
    assert done.stderr == (
        f"qbroker: the broker at {url_of(door)} is of version 0.0.9, this command of {__version__},"
        f" and they do not fit: {why}; use the command that came with the broker, or update the "
        "broker\n"
    )


def test_what_it_says_is_shown_to_programs_as_it_is(door: Door) -> None:
    done = qbroker("queues", "--json", "--broker", url_of(door))
    assert json.loads(done.stdout) == [{"name": "q", "ready": 1}]


def test_questions_that_are_asked_together_are_refused_alike(door: Door) -> None:
    with (
        Admin(url_of(door)) as admin,
        pytest.raises(Trouble, match=r"0\.0\.9.*type 73") as trouble,
    ):
        admin.ask_all([Cancel(id="a"), Cancel(id="b")], Ok, 0.0)
    assert trouble.value.code == Exit.UNLIKE


def test_a_broker_that_speaks_another_protocol_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch, door: Door
) -> None:
    monkeypatch.setattr("qbroker.ops.admin.PROTOCOL_VERSION", 9)
    with pytest.raises(Trouble, match="it speaks protocol 1 to 1, this command 9") as trouble:
        Admin(url_of(door))
    assert trouble.value.code == Exit.UNLIKE
    assert not door.engine.welcomes
