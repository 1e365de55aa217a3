"""``qbroker unique``: what people read, what programs read, and what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from qbroker.ops.exits import Exit
from qprotocol import wire
from qprotocol.frames import Publish, Published
from qprotocol.message import Message, pack_fields
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey, unpack_existing

pytestmark = pytest.mark.e2e

Command = Callable[..., CompletedProcess[str]]


def message(name: str, unique: UniqueKey | None = None, window: str = "", task: str = "t") -> bytes:
    fields = {}
    if unique:
        fields[wire.UNIQUE] = unique.pack()
    if window:
        fields[wire.IDEMPOTENCY] = IdempotencyKey(window).pack()
    return Message("q", b"x", name, task, fields=pack_fields(fields)).pack()


@pytest.mark.parametrize(
    "arguments", [["--queue", "q", "--task", "t"], ["--global", "--idempotency"]]
)
def test_a_key_is_of_one_thing(command: Command, arguments: list[str]) -> None:
    done = command("unique", "forget", "k", *arguments)
    assert done.returncode == Exit.USAGE
    assert "say one of --queue, --task and --global" in done.stderr


def test_keys_are_seen_survive_and_are_freed(start: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("producer")
    raw = b"".join(
        [
            message("a", UniqueKey("user-7"), "order-9"),
            message("b", UniqueKey("user-7")),
            message("c", UniqueKey("user-7", "queue")),
            message("d", UniqueKey("all", "global", "time", for_ms=3_600_000)),
            message("e", UniqueKey("plain"), task=""),
        ]
    )
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=5, raw=raw))
    answer = peer.expect(Published)
    assert [(row.number, row.id) for row in unpack_existing(answer.raw)] == [(1, "a")]
    daemon.stop(signal.SIGKILL)
    daemon = start()
    header, *rows = daemon.ask("unique", "list").stdout.splitlines()
    assert header.split() == ["kind", "key", "of", "task", "id", "held", "until", "redelayed"]
    shown = [" ".join(row.split()) for row in rows]
    assert shown[0] == "unique user-7 task t a it is over"
    assert shown[1].startswith("idempotency order-9 task t a in ")
    assert shown[2] == "unique user-7 queue q c it is over"
    assert shown[3].startswith("unique all everything d in ")
    assert shown[4] == "unique plain plain messages e it is over"
    found = json.loads(daemon.ask("unique", "list", "--key", "user-7", "--json").stdout)
    assert [row["scope"] for row in found] == ["task", "queue"]
    for arguments in (
        ["user-7", "--task", "t"],
        ["user-7", "--queue", "q"],
        ["all", "--global"],
        ["order-9", "--task", "t", "--idempotency"],
    ):
        said = daemon.ask("unique", "forget", *arguments).stdout
        assert said == f"key {arguments[0]} is free\n"
    assert daemon.ask("unique", "forget", "all", "--global").stdout == "nobody held the key all\n"
    assert json.loads(daemon.ask("unique", "forget", "plain", "--json").stdout) == {
        "key": "plain",
        "kind": "unique",
        "freed": True,
    }
    assert daemon.ask("unique", "list", "--json").stdout.strip() == "[]"
