"""``qbroker dead``: dead letters listed, replayed, edited and dropped, over a restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import msgpack
import pytest

from qbroker.ops.exits import Exit
from qbroker.ops.lettertexts import CannotEditError, Setting, changed, shown
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import Ack, Consume, Deliver, Ok, Publish, Published, Settle, Settled
from qprotocol.message import Message, Outcome, pack_fields, pack_origin
from qprotocol.options import RetryPolicy

Command = Callable[..., CompletedProcess[str]]
BODY = bytes(msgpack.packb([[1, "two"], {"to": "ana"}]))


def task(name: str, **more: Any) -> Message:
    return Message("q", BODY, id=name, task="shop.mail", content=1, **more)


# --- Texts


def test_a_task_is_shown_and_changed_by_what_can_be_said_in_json() -> None:
    headers = bytes(msgpack.packb({"retry": RetryPolicy(2).pack(), "user": {"k": "v"}}))
    origin = pack_fields({wire.ORIGIN: pack_origin("e", "k"), 200: b"x"})
    before = task("a", headers=headers, fields=origin, flags=wire.MARKED)
    to = shown(before)
    assert to == {
        "queue": "q",
        "priority": 0,
        "retries": 2,
        "args": [1, "two"],
        "kwargs": {"to": "ana"},
    }
    for text in ("queue=slow", "retries=9", "args.0=5", "kwargs.to=bob", "kwargs.more=[1]"):
        Setting.parse(text).apply(to)
    after = changed(before, to)
    assert shown(after) == {
        "queue": "slow",
        "priority": 0,
        "retries": 9,
        "args": [5, "two"],
        "kwargs": {"to": "bob", "more": [1]},
    }
    assert msgpack.unpackb(after.headers)["user"] == {"k": "v"}
    assert after.fields == pack_fields({200: b"x"})
    assert (after.id, after.task) == ("a", "shop.mail")


def set_to(message: Message, text: str) -> Message:
    to = shown(message)
    Setting.parse(text).apply(to)
    return changed(message, to)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("queue", "write NAME=VALUE"),
        ("queue=5", "it takes a str"),
        ("size=5", "'size' cannot be set"),
        ("args.7=5", "there is no 'args.7'"),
        ("queue.x=5", "there is no 'queue.x'"),
        ("retries=99999", "from 0 to 65535"),
    ],
)
def test_what_cannot_be_set_is_said(text: str, said: str) -> None:
    with pytest.raises(CannotEditError, match=said):
        set_to(task("a"), text)


def test_what_is_no_json_stays_as_it_is() -> None:
    odd = task("a")
    odd.body = bytes(msgpack.packb([[msgpack.ExtType(1, b"\0")], {}]))
    assert "args" not in shown(odd)
    assert changed(odd, {"priority": 5}).body == odd.body
    with pytest.raises(CannotEditError, match="are no JSON"):
        changed(odd, {"args": [1]})
    assert shown(Message("q", b"hello"))["body"] == "hello"
    assert "body" not in shown(Message("q", b"\xff"))
    assert changed(Message("q", b"hello"), {"body": "bye"}).body == b"bye"


# --- Commands


def dies(peer: Any, *names: str) -> None:
    """Tasks with these ids that fail for good: each with its name in the error."""
    raw = b"".join(task(name).pack() for name in names)
    peer.say(Publish(correlation=3, producer=1, sequence=1, count=len(names), raw=raw))
    peer.expect(Published)
    peer.say(Consume(correlation=4, subscription=1, queues=["q"], credit=100))
    peer.expect(Ok)
    deliver = peer.expect(Deliver)
    first, count = wire.RUN.unpack_from(deliver.raw)
    assert count == len(names)
    outcomes = [
        Outcome(
            wire.FAIL,
            first + index,
            deliver.grant,
            result=Failure("Boom", f"of {name}", "line 1\nline 2").pack(),
            flags=wire.NO_RETRY,
        ).pack()
        for index, name in enumerate(names)
    ]
    peer.say(Settle(correlation=5, count=count, raw=b"".join(outcomes)))
    peer.expect(Settled)


def acks(peer: Any) -> int:
    """What is delivered next is done; how many."""
    deliver = peer.expect(Deliver)
    first, count = wire.RUN.unpack_from(deliver.raw)
    peer.say(Ack(correlation=9, raw=wire.ACK_RUN.pack(deliver.grant, first, count)))
    peer.expect(Settled)
    return int(count)


@pytest.mark.e2e
def test_dead_letters_are_worked_on_from_the_command_line(start: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b", "c", "d")
    rows = json.loads(daemon.ask("dead", "list", "--json").stdout)
    assert [(row["id"], row["cause"], row["error"]) for row in rows] == [
        (name, "failed", "Boom") for name in "abcd"
    ]
    assert "Boom: of c" in daemon.ask("dead", "search", "of c").stdout
    assert "perhaps more" in daemon.ask("dead", "list", "-n", "2").stderr
    shown_one = daemon.ask("dead", "show", "a").stdout
    assert "line 2" in shown_one
    assert '"to": "ana"' in shown_one
    assert json.loads(daemon.ask("dead", "show", "a", "--json").stdout)["content"]["args"][0] == 1

    count = daemon.ask("dead", "replay", "--error", "of b", "--dry-run").stdout
    assert count == "1 dead letter would be replayed\n"
    assert daemon.ask("dead", "replay", "a").stdout == "1 dead letter replayed\n"
    assert acks(peer) == 1
    assert daemon.ask("dead", "edit", "b", "--set", "args=[7]").stdout == "b is edited\n"
    assert json.loads(daemon.ask("dead", "show", "b", "--json").stdout)["content"]["args"] == [7]
    assert daemon.ask("dead", "drop", "d").stdout == "1 dead letter dropped\n"

    daemon.stop(signal.SIGKILL)
    daemon = start()
    left = json.loads(daemon.ask("dead", "list", "--json").stdout)
    assert sorted(row["id"] for row in left) == ["b", "c"]
    said = daemon.ask("dead", "replay", "--all", "--rate", "100/s", "--to", "other").stdout
    assert said == "2 dead letters replayed\n"
    assert json.loads(daemon.ask("dead", "list", "--json").stdout) == []


@pytest.mark.e2e
def test_an_alarm_is_told_everywhere_while_it_lasts(start: Any, until: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b")
    assert daemon.health()["alarms"] == []
    said = daemon.ask("queue", "set", "q.dead", "alarm_length=2")
    assert said.returncode == 0, said.stderr
    (alarm,) = until(lambda: daemon.health()["alarms"])
    assert (alarm["queue"], alarm["why"]) == ("q.dead", "2 messages, and alarm_length is 2")
    assert daemon.get("/health")[0] == 200
    assert alarm["why"] in daemon.ask("dead", "queues").stdout
    assert alarm["why"] in daemon.ask("queues").stdout
    (row,) = json.loads(daemon.ask("dead", "queues", "--json").stdout)
    assert (row["queue"], row["messages"], row["alarm"]) == ("q.dead", 2, alarm["why"])
    metrics = daemon.get("/metrics")[1]
    assert 'qbroker_dead_letters_alarm{queue="q.dead"} 1.0' in metrics
    assert 'qbroker_dead_letters_oldest_seconds{queue="q.dead"}' in metrics
    assert 'qbroker_dead_letters_alarm{queue="q"}' not in metrics
    daemon.ask("dead", "drop", "a")
    until(lambda: not daemon.health()["alarms"])
    _, journal = daemon.stop()
    assert journal.count("too much in q.dead: 2 messages, and alarm_length is 2") == 1
    assert journal.count("the alarm about q.dead is over") == 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["replay"], Exit.USAGE, "name IDs, or filters"),
        (["replay", "x", "--all"], Exit.USAGE, "name IDs, or filters"),
        (["replay", "--all", "--rate", "ten"], Exit.USAGE, "write a number and a time"),
        (["edit", "x", "--eta", "5m"], Exit.USAGE, "--eta goes with --replay"),
        (["drop", "--all", "--older", "x"], Exit.USAGE, "write 90s, 10m, 2h or 1d"),
    ],
)
def test_a_slip_is_one_line(command: Command, arguments: list[str], code: int, said: str) -> None:
    done = command("dead", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
