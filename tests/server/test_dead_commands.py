"""``qbroker dead``: dead letters listed, replayed, edited and dropped, over a restart."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgpack
import pytest

from qbroker.ops.exits import Exit
from qbroker.ops.letters import outcomes
from qbroker.ops.lettertexts import CannotEditError, Setting, changed, shown
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import (
    Ack,
    Consume,
    Deliver,
    Ok,
    Publish,
    Published,
    Result,
    Settle,
    Settled,
    Watch,
)
from qprotocol.message import Message, Outcome, pack_fields, pack_origin
from qprotocol.options import RetryPolicy
from qprotocol.states import State

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
    assert daemon.ask("dead", "edit", "b", "--set", "priority=7").stdout == "b is edited\n"
    rows = daemon.ask("dead", "show", "b").stdout.splitlines()
    assert [row.split() for row in rows if row.startswith("priority")] == [["priority", "7"]]
    assert daemon.ask("dead", "drop", "d").stdout == "1 dead letter dropped\n"

    daemon.stop(signal.SIGKILL)
    daemon = start()
    left = json.loads(daemon.ask("dead", "list", "--json").stdout)
    assert sorted(row["id"] for row in left) == ["b", "c"]
    said = daemon.ask("dead", "replay", "--all", "--rate", "100/s", "--to", "other").stdout
    assert said == "2 dead letters replayed\n"
    assert json.loads(daemon.ask("dead", "list", "--json").stdout) == []


class Canaries:
    """A replay with canaries of all dead letters, while ``peer`` and others see to them."""

    def __init__(self, daemon: Any, *more: str) -> None:
        arguments = ("dead", "replay", "--all", "--json", *more)
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(daemon.ask, *arguments)

    def end(self) -> CompletedProcess[str]:
        done = self._done.result(60)
        self._pool.shutdown()
        return done


def left(daemon: Any) -> list[str]:
    return sorted(row["id"] for row in json.loads(daemon.ask("dead", "list", "--json").stdout))


def canaries_wait(daemon: Any) -> bool:
    (row,) = [
        row for row in json.loads(daemon.ask("queues", "--json").stdout) if row["name"] == "q"
    ]
    return bool(row["scheduled"] + row["ready"] + row["leased"])


@pytest.mark.e2e
def test_when_all_canaries_succeed_the_others_follow(start: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b", "c")
    replay = Canaries(daemon, "--canary", "2")
    assert sum(acks(peer) for _ in range(2)) in (2, 3)
    done = replay.end()
    assert json.loads(done.stdout) == {"replayed": 3, "canaries": 2, "dry_run": False}, done.stderr
    assert left(daemon) == []


@pytest.mark.e2e
def test_a_canary_that_fails_keeps_the_others_back(start: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b", "c")
    replay = Canaries(daemon, "--canary", "1")
    deliver = peer.expect(Deliver)
    first, _ = wire.RUN.unpack_from(deliver.raw)
    again = Outcome(wire.FAIL, first, deliver.grant, flags=wire.NO_RETRY).pack()
    peer.say(Settle(correlation=7, count=1, raw=again))
    peer.expect(Settled)
    done = replay.end()
    assert done.returncode == Exit.FAILED
    assert "1 of 1 canaries did not succeed (a is failure)" in done.stderr
    assert left(daemon) == ["a", "b", "c"]


@pytest.mark.e2e
def test_a_canary_that_is_purged_is_no_success(start: Any, until: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b")
    peer.close()
    replay = Canaries(daemon, "--canary", "1")
    until(lambda: canaries_wait(daemon))
    daemon.ask("purge", "q", "--yes")
    done = replay.end()
    assert done.returncode == Exit.FAILED
    assert "1 of 1 canaries did not succeed (a is revoked)" in done.stderr
    assert left(daemon) == ["b"]


@pytest.mark.e2e
def test_a_canary_that_nobody_runs_is_waited_for_so_long(start: Any) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands("consumer")
    dies(peer, "a", "b")
    peer.close()
    done = Canaries(daemon, "--canary", "1", "--canary-timeout", "1s").end()
    assert done.returncode == Exit.FAILED
    assert "(a is pending)" in done.stderr
    assert left(daemon) == ["b"]


def test_what_nobody_knows_the_end_of_is_no_success() -> None:
    class Forgetful:
        def ask_all(self, watches: list[Watch], *_: Any) -> list[Result]:
            return [Result(id=watch.id, state=State.UNKNOWN) for watch in watches]

    assert outcomes(Forgetful(), ["a"], 5.0) == {"a": "UNKNOWN"}  # type: ignore[arg-type]


@pytest.mark.e2e
def test_a_letter_is_edited_in_an_editor(start: Any, command: Command, tmp_path: Path) -> None:
    daemon = start()
    dies(daemon.connect().shake_hands("consumer"), "a")
    editor = tmp_path / "editor.py"

    def edit(program: str, *more: str) -> CompletedProcess[str]:
        editor.write_text(f"import json, sys\npath = sys.argv[1]\n{program}\n")
        name = f"{sys.executable} {editor}"
        return command("dead", "edit", "a", *more, QBROKER_URL=daemon.url, EDITOR=name, VISUAL=name)

    def content() -> Any:
        return json.loads(daemon.ask("dead", "show", "a", "--json").stdout)["content"]

    before = content()
    for program, code, said in (
        ("pass", Exit.FAILED, "nothing was changed"),
        ("open(path, 'w').write('{')", Exit.USAGE, "what was written is no JSON"),
        ("open(path, 'w').write('[]')", Exit.USAGE, "no JSON object"),
        ("open(path, 'w').write('{\"size\": 5}')", Exit.USAGE, "'size' cannot be set"),
        ("sys.exit(1)", Exit.FAILED, "Editing failed"),
    ):
        done = edit(program)
        assert (done.returncode, content()) == (code, before), done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    better = (
        "now = json.load(open(path)); now['kwargs']['to'] = 'bob'; json.dump(now, open(path, 'w'))"
    )
    assert edit(better).stdout == "a is edited\n"
    assert content() == before | {"kwargs": {"to": "bob"}}
    assert edit(better.replace("bob", "eve"), "--replay").stdout == "a is edited and replayed\n"
    assert left(daemon) == []


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
