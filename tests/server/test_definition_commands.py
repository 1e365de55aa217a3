"""Options of queues, policies and exports from the command line, to a real daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qbroker.definitioncommands import IMPORTS, frames_of, read
from qbroker.ops.exits import Exit, Trouble
from qprotocol.frames import Bind, ChangeQueue, Declare, Error, Ok, Publish, Published, SetLimit
from qprotocol.message import Message
from qprotocol.options import row_of
from server.conftest import Daemon


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_length", "10000", 10_000),
        ("message_ttl_ms", "1h", 3_600_000),
        ("max_bytes", "64MiB", 64 << 20),
        ("min_priority", "-5", -5),
        ("exclusive", "Yes", True),
        ("auto_delete", "false", False),
        ("overflow", "reject", "reject"),
        ("fsync", "never", "never"),
    ],
)
def test_values_are_read_as_people_write_them(name: str, text: str, value: object) -> None:
    assert read(row_of(name), text) == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("max_length", "many", "max_length is 'many': an integer from 0"),
        ("max_length", "-1", "max_length is -1: an integer from 0"),
        ("message_ttl_ms", "1 fortnight", "message_ttl_ms is '1 fortnight'"),
        ("auto_delete", "perhaps", "auto_delete is 'perhaps': true or false"),
        ("overflow", "explode", "overflow is 'explode': one of reject, dead_letter_oldest"),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(row_of(name), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no export of qbroker"),
        ("[]", "is no export of qbroker: there is no"),
        ('{"qbroker_definitions": 1, "users": []}', "unknown table 'users'"),
        ('{"qbroker_definitions": 1, "queues": [{}]}', "'name'"),
        (
            '{"qbroker_definitions": 1, "queues": [{"name": "q", "options": {"max_lenght": 1}}]}',
            "did you mean 'max_length'",
        ),
    ],
)
def test_what_is_no_export_is_named(text: str, words: str) -> None:
    with pytest.raises(Trouble, match=words):
        list(frames_of(text, Path("x.json")))


def test_every_table_of_an_export_can_be_imported() -> None:
    from qbroker.core.definitions import DEFINITIONS  # noqa: PLC0415  # the core is not for all

    assert list(IMPORTS) == list(DEFINITIONS)


def test_bytes_in_a_binding_come_back() -> None:
    row = {"exchange": "h", "key": "", "destination": "q", "arguments": {"k": {"hex": "ff"}}}
    text = json.dumps({"qbroker_definitions": 1, "bindings": [row]})
    ((table, frame),) = frames_of(text, Path("x.json"))
    assert (table, type(frame)) == ("bindings", Bind)
    assert frame.arguments == {"k": b"\xff"}  # type: ignore[attr-defined]


# --- With a broker


def fails(daemon: Daemon, code: Exit, *arguments: object) -> str:
    """What the command says on stderr, ending so."""
    done = daemon.ask(*arguments)
    assert done.returncode == code, done
    return done.stderr


def declare(daemon: Daemon, queue: str, **options: Any) -> None:
    peer = daemon.connect().shake_hands()
    peer.say(Declare(correlation=3, queue=queue, options=options))
    peer.expect(Ok)


@pytest.mark.e2e
def test_options_are_set_and_shown_with_where_they_come_from(daemon: Daemon) -> None:
    declare(daemon, "mail", max_length=1)
    ask = daemon.ask
    assert ask("queue", "show", "mail").stdout.split()[-3:] == ["max_length", "1", "declaration"]
    done = ask("queue", "set", "mail", "max_length=2", "message_ttl_ms=1h")
    assert done.stdout == "mail is changed\n"
    assert ask("queue", "set", "mail", "max_length=2").stdout == "mail was so already\n"
    options = json.loads(ask("queue", "show", "mail", "--json").stdout)["options"]
    assert options["max_length"] == {"value": 2, "source": "set", "declared": 1}
    assert options["message_ttl_ms"] == {"value": 3_600_000, "source": "set"}
    assert options["overflow"] == {"value": "reject", "source": "default"}
    assert "overflow" in ask("queue", "show", "mail", "--all").stdout
    peer = daemon.connect().shake_hands()
    raw = b"".join(Message("mail", b"x").pack() for _ in range(3))
    peer.say(Publish(correlation=4, producer=0, sequence=0, count=3, raw=raw))
    refused = peer.expect(Error)
    assert (refused.code, refused.retryable, refused.definite) == ("QUEUE_FULL", True, True)
    assert refused.details["limit"] == "max_length"
    assert json.loads(ask("queue", "set", "mail", "max_length=", "--json").stdout)["changed"]
    wrong = fails(daemon, Exit.USAGE, "queue", "set", "mail", "max_lenght=2")
    assert "did you mean 'max_length'" in wrong
    assert "write OPTION=VALUE" in fails(daemon, Exit.USAGE, "queue", "set", "mail", "x")
    for how in ("show", "pause"):
        said = fails(daemon, Exit.FAILED, "queue", how, "nothing")
        assert "NO_QUEUE: there is no queue 'nothing': declare it, or publish to it first" in said


@pytest.mark.e2e
def test_a_queue_is_declared_and_differences_are_told_one_by_one(daemon: Daemon) -> None:
    declared = ("queue", "declare", "orders", "max_length=5", "message_ttl_ms=1h")
    assert daemon.ask(*declared).stdout == "orders is made\n"
    assert daemon.ask(*declared).stdout == "orders was there already, with these options\n"
    found = json.loads(daemon.ask("queue", "declare", "bare", "--json").stdout)
    assert found == {"queue": "bare", "made": True}
    options = json.loads(daemon.ask("queue", "show", "orders", "--json").stdout)["options"]
    assert options["max_length"] == {"value": 5, "source": "declaration"}
    differs = ("queue", "declare", "orders", "max_length=6", "message_ttl_ms=2h")
    said = fails(daemon, Exit.FAILED, *differs)
    assert "max_length is 5 (declaration), declared 6" in said
    assert "message_ttl_ms is 3600000 (declaration), declared 7200000" in said
    taken_back = ("queue", "declare", "orders", "max_length=")
    assert "max_length= says nothing" in fails(daemon, Exit.USAGE, *taken_back)
    mine = fails(daemon, Exit.USAGE, "queue", "declare", "mine", "exclusive=true")
    assert "an exclusive queue is deleted when the connection that declared it ends" in mine
    assert "holds ' '" in fails(daemon, Exit.FAILED, "queue", "declare", "a b")


@pytest.mark.e2e
def test_policies_come_and_go(daemon: Daemon) -> None:
    ask = daemon.ask
    declare(daemon, "news.eu")
    set_ = ask("policy", "set", "short", "news.*", "max_length=5", "--priority", "3")
    assert set_.stdout == "policy short is set\n"
    again = ask("policy", "set", "short", "news.*", "max_length=5", "--priority", "3", "--json")
    assert json.loads(again.stdout) == {"policy": "short", "changed": False}
    ask("policy", "set", "cap", "*", "max_length=9", "--operator")
    rows = json.loads(ask("policy", "list", "--json").stdout)
    assert [(row["name"], row["operator"]) for row in rows] == [("short", False), ("cap", True)]
    assert "max_length=5" in ask("policy", "list").stdout
    assert "policy short" in ask("queue", "show", "news.eu").stdout
    assert ask("policy", "drop", "short").stdout == "policy short is dropped\n"
    assert json.loads(ask("policy", "drop", "cap", "--json").stdout)["dropped"]
    assert "NO_POLICY" in fails(daemon, Exit.FAILED, "policy", "drop", "cap")


@pytest.mark.e2e
def test_a_queue_is_deleted_if_nobody_minds(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    peer.say(
        Publish(correlation=4, producer=0, sequence=0, count=1, raw=Message("old", b"x").pack())
    )
    peer.expect(Published)
    assert "IN_USE" in fails(daemon, Exit.FAILED, "queue", "delete", "old", "--if-empty")
    assert "give --yes" in fails(daemon, Exit.USAGE, "queue", "delete", "old")
    done = daemon.ask("queue", "delete", "old", "--yes", "--if-unused")
    assert done.stdout == "old is deleted, and 1 message with it\n"
    declare(daemon, "old")
    found = json.loads(daemon.ask("queue", "delete", "old", "--if-empty", "--json").stdout)
    assert found == {"queue": "old", "dropped": 0}


@pytest.mark.e2e
def test_what_one_broker_exports_another_imports(daemon: Daemon, tmp_path: Path) -> None:
    declare(daemon, "shop", max_length=7)
    peer = daemon.connect().shake_hands()
    peer.say(ChangeQueue(correlation=5, queue="shop", options={"history": "none"}))
    peer.expect(Ok)
    daemon.ask("policy", "set", "ttl", "*", "message_ttl_ms=1d")
    daemon.ask("limit", "set", "slow", "--queue", "shop", "--rate", "5/m", "--burst", "3")
    peer.say(SetLimit(correlation=6, name="own", rule={"concurrency": 1}, origin="code"))
    peer.expect(Ok)
    text = daemon.ask("export").stdout
    path = tmp_path / "definitions.json"
    path.write_text(text, encoding="utf-8")
    other = Daemon(tmp_path / "data")
    try:
        counts = json.loads(other.ask("import", str(path), "--json").stdout)
        assert counts["policies"] == 1
        assert counts["queues"] >= 2
        assert counts["limits"] == 1  # a worker declares its own
        assert json.loads(other.ask("export").stdout) == json.loads(text)
        assert "new or changed: 0 policies" in other.ask("import", str(path)).stdout
        assert fails(other, Exit.USAGE, "import", str(tmp_path / "no.json"))
    finally:
        other.close()
