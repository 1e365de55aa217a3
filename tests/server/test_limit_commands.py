"""``qbroker limit``: what people read, what programs read, and what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from qbroker.ops.exits import Exit
from qprotocol.frames import Consume, Deliver, Ok, Publish, Published
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message

pytestmark = pytest.mark.e2e

Command = Callable[..., CompletedProcess[str]]


def fails(done: CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("qbroker: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "neither concurrency nor rate is given"),
        (["x", "--rate", "ten"], "write a number and a time such as 10/s"),
        (["x", "--rate", "0/s"], "pauses the queue"),
        (["x", "--burst", "5"], "--burst goes with a rate"),
        (["x", "--concurrency", "0"], "0 is not in the range"),
        (["x", "--queue", "a b", "--concurrency", "1"], "holds ' ' at character 2"),
        (["", "--concurrency", "1"], "such as a task's name"),
    ],
)
def test_a_slip_is_one_line_that_says_what_to_write(
    command: Command, arguments: list[str], said: str
) -> None:
    assert said in fails(command("limit", "set", *arguments), Exit.USAGE)


def test_a_rule_is_set_seen_holds_survives_and_is_dropped(start: Any) -> None:
    daemon = start()
    said = daemon.ask("limit", "set", "mail", "--queue", "q", "--rate", "1/h", "--burst", "2")
    assert said.stdout == "limit mail is in force\n"
    again = daemon.ask("limit", "set", "mail", "--queue", "q", "--rate", "1/h", "--burst", "2")
    assert again.stdout == "limit mail was so already\n"
    peer = daemon.connect().shake_hands("consumer")
    raw = b"".join(Message("q", b"%d" % n).pack() for n in range(5))
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=5, raw=raw))
    peer.expect(Published)
    peer.say(Consume(correlation=4, subscription=1, queues=["q"], credit=10))
    peer.expect(Ok)
    assert peer.expect(Deliver).count == 2
    header, row = daemon.ask("limit", "list").stdout.splitlines()
    assert header.split() == [
        *("limit", "origin", "covers", "slots", "rate", "burst"),
        *("keys", "next", "held", "back", "stuck"),
    ]
    assert row.split()[:6] == ["mail", "operator", "queue", "q", "1/h", "2"]
    assert row.split()[-2:] == ["3", "0"]
    daemon.stop(signal.SIGKILL)
    daemon = start()
    (found,) = json.loads(daemon.ask("limit", "list", "--json").stdout)
    assert (found["rate"], found["window_ms"], found["used"]) == (1, 3_600_000, 0)
    assert 3_500_000 < found["next_ms"] <= 3_600_000
    assert daemon.ask("limit", "drop", "mail").stdout == "limit mail is dropped\n"
    assert "NO_LIMIT: there is no limit 'mail'" in fails(
        daemon.ask("limit", "drop", "mail"), Exit.FAILED
    )


def test_rules_for_programs(start: Any) -> None:
    daemon = start()
    done = daemon.ask(
        "limit", "set", "each", "--per-key", "--concurrency", 2, "--task", "t", "--json"
    )
    assert json.loads(done.stdout) == {
        "limit": "each",
        "changed": True,
        "queue": "",
        "task": "t",
        "per_key": True,
        "concurrency": 2,
        "rate": 0,
        "window_ms": 1_000,
        "burst": 1,
    }
    shown = daemon.ask("limit", "list").stdout.splitlines()[1]
    assert "task t, per key" in shown
    assert "0 of 2 a key" in shown
    dropped = daemon.ask("limit", "drop", "each", "--json").stdout
    assert json.loads(dropped) == {"limit": "each", "dropped": True}
    assert json.loads(daemon.ask("limit", "list", "--json").stdout) == []


def test_why_names_the_limit_and_what_is_taken_of_it(start: Any) -> None:
    daemon = start()
    for name, more in (("one", ("--concurrency", "2", "--per-key")), ("two", ("--rate", "1/h"))):
        daemon.ask("limit", "set", name, "--queue", name, *more)
    peer = daemon.connect().shake_hands("consumer")
    keys = LaneKeys(limit="anna", weight=2).pack()
    packed = [Message("one", b"", id=f"one-{n}", keys=keys) for n in range(2)]
    packed += [Message("two", b"", id=f"two-{n}") for n in range(2)]
    raw = b"".join(message.pack() for message in packed)
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=4, raw=raw))
    peer.expect(Published)
    peer.say(Consume(correlation=4, subscription=1, queues=["one", "two"], credit=10))
    peer.expect(Ok)
    assert [peer.expect(Deliver).count for _ in range(2)] == [1, 1]
    said = daemon.ask("why", "one-1").stdout.splitlines()
    assert said[1] == "  limit one of key anna: 2 of 2 slots are taken, and it weighs 2"
    said = daemon.ask("why", "two-1").stdout.splitlines()
    assert said[1] in ("  limit two; room in 60.0m", "  limit two; room in 1.0h")
