"""The archive of a real broker: results outlive memory, rows are complete whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil
import pytest

from e2e.daemon import PATIENCE_S, SCRIPTS, Daemon, until
from e2e.talker import Refused, Talker
from qclient import App
from qprotocol import wire
from qprotocol.frames import Cancel, Forget, Ok, Report, Result, Search
from qprotocol.states import State

pytestmark = pytest.mark.e2e

MakeBroker = Callable[..., Daemon]


def archivist(broker: Daemon) -> psutil.Process | None:
    """The broker's archivist; None while none runs."""
    children = psutil.Process(broker.pid).children()
    return next((each for each in children if "qbroker.archive" in each.cmdline()), None)


def search(talker: Talker, **query: Any) -> Any:
    return json.loads(talker.ask(Search(**query), Report).raw)


def row(talker: Talker, task_id: str) -> dict[str, Any]:
    """The task's row, once it is there."""
    return until(lambda: search(talker, id=task_id)["task"], f"the row of {task_id}")


def in_memory(talker: Talker) -> int:
    return int(talker.inspect("stats")["results"])


def run_one(broker: Daemon, talker: Talker, result: bytes | None) -> str:
    """A task that was run; its id."""
    task_id = talker.task("work", b"x")
    talker.ack(talker.receive(), result)
    return task_id


def test_what_becomes_of_tasks_is_kept_searched_and_forgotten(make_broker: MakeBroker) -> None:
    broker = make_broker().start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    kept = run_one(broker, talker, b"42")
    quiet = run_one(broker, talker, None)
    failed = talker.task("work", b"f")
    talker.fail(talker.receive(), "it broke", flags=wire.NO_RETRY)
    held = talker.task("work", b"h")
    talker.receive()
    cancelled = talker.task("work", b"c")
    talker.ask(Cancel(id=cancelled), Result)

    until(lambda: not in_memory(talker), "memory to let go of results")
    assert row(talker, kept)["result_bytes"] == 2
    assert row(talker, kept)["state"] == "SUCCESS"
    assert row(talker, quiet)["state"] == "SUCCESS"
    assert row(talker, quiet)["task"] == "story.task"
    assert row(talker, failed)["traceback"] == "a traceback"
    assert row(talker, failed)["message"] == "it broke"
    assert row(talker, cancelled)["reason"] == "cancelled"
    assert search(talker, id=held)["task"] is None

    found = talker.look(kept)
    assert (found.state, found.raw, found.stored) == (State.SUCCESS, b"42", True)
    assert talker.look(failed).state == State.FAILURE
    assert talker.look(cancelled).state == State.REVOKED
    ids = [each["id"] for each in search(talker, queue="work")["tasks"]]
    assert set(ids) == {kept, quiet, failed, cancelled}
    assert [each["id"] for each in search(talker, state=7)["tasks"]] == [failed]
    assert [each["id"] for each in search(talker, error="Story")["tasks"]] == [failed]
    assert search(talker, task="no.such")["tasks"] == []
    first = search(talker, limit=3)
    rest = search(talker, limit=3, after=first["next"])
    assert [each["id"] for each in first["tasks"] + rest["tasks"]] == ids
    assert rest["next"] == ""

    assert talker.ask(Forget(id=kept), Ok).count == 1
    assert talker.look(kept).state == State.UNKNOWN
    assert kept not in [each["id"] for each in search(talker)["tasks"]]
    broker.restart()
    talker = broker.connect()
    assert talker.look(kept).state == State.UNKNOWN
    assert talker.look(failed).state == State.FAILURE
    with pytest.raises(Refused, match="state 1 is not one"):
        search(talker, state=1)


def test_the_command_line_shows_them_to_people_and_programs(make_broker: MakeBroker) -> None:
    broker = make_broker().start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    kept = run_one(broker, talker, b"42")
    failed = talker.task("work", b"f")
    talker.fail(talker.receive(), "it broke\nbadly", flags=wire.NO_RETRY)
    row(talker, failed)
    assert [each["id"] for each in broker.command("tasks")] == [failed, kept]
    assert [each["id"] for each in broker.command("tasks", "-n", "1")] == [failed]
    one = said(broker, "tasks", "-n", "1", "--json")
    assert one.stderr.startswith("more; to go on: the same with --after ")
    rest = said(broker, "tasks", "--json", "--after", one.stderr.split()[-1])
    assert [each["id"] for each in json.loads(rest.stdout)] == [kept]
    assert rest.stderr == ""
    assert "is not a text that a Report gave" in said(broker, "tasks", "--after", "x").stderr
    assert [each["id"] for each in broker.command("tasks", "--state", "success")] == [kept]
    assert broker.command("tasks", "--since", "1h", "--until", "30m") == []
    assert broker.command("task", failed)["message"] == "it broke\nbadly"

    header, first, second = said(broker, "tasks").stdout.splitlines()
    assert header.split()[:6] == ["finished", "id", "task", "queue", "state", "ran"]
    assert "StoryError: it broke" in first
    assert kept in second
    assert said(broker, "task", failed).stdout.endswith("a traceback\n")
    assert "no settled task has the id nothing" in said(broker, "task", "nothing").stderr
    assert "write 2h or 7d" in said(broker, "tasks", "--since", "yesterday").stderr


def test_arguments_are_shown_where_an_application_asked_for_it(make_broker: MakeBroker) -> None:
    """What a client sends along is found by any part of it, cut to the broker's setting."""
    broker = make_broker(archive_preview_bytes_max=12).start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    app = App("shop", broker=broker.url, set_as_current=False)
    with app:
        quiet = app.send_task("story.task", ("secret",), queue="work").id
        talker.ack(talker.receive(), None)
        app.conf.task_preview_chars = 50
        shown = app.send_task("story.task", ("order-17", "x" * 50), queue="work").id
        talker.ack(talker.receive(), b"42")
    assert row(talker, shown)["preview"] == "('order-17',"
    assert row(talker, quiet)["preview"] is None
    assert [each["id"] for each in broker.command("tasks", "--args", "der-17")] == [shown]
    assert broker.command("tasks", "--args", "secret") == []
    assert "preview" in said(broker, "task", shown).stdout


def said(broker: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / "qbroker"), *words, "--broker", broker.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_broker_without_an_archive_keeps_results_as_before(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.flags = ["--no-archive"]
    broker.start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    kept = run_one(broker, talker, b"42")
    assert talker.look(kept).raw == b"42"
    assert in_memory(talker) == 1
    assert archivist(broker) is None
    with pytest.raises(Refused, match="--no-archive"):
        search(talker)


def test_a_damaged_archive_stops_no_broker_and_is_kept_aside_when_told(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker(http="127.0.0.1:0").start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    kept = run_one(broker, talker, b"42")
    until(lambda: not in_memory(talker), "memory to let go of the result")
    broker.kill()
    folder = broker.data / "archive"
    for each in folder.glob("archive.sqlite*"):
        each.unlink()
    (folder / "archive.sqlite").write_bytes(b"nothing of the kind" * 1000)

    broker.start()
    talker = broker.connect()
    talker.consume("work", credit=1)
    other = run_one(broker, talker, b"43")
    assert talker.look(other).raw == b"43"
    with pytest.raises(Refused, match="is damaged"):
        talker.look(kept)
    health = until(lambda: trouble(broker), "the trouble in /health")
    assert "--move-archive-aside" in health

    broker.kill()
    broker.flags = ["--move-archive-aside"]
    broker.start()
    talker = broker.connect()
    (aside,) = until(lambda: list(folder.glob("archive.sqlite.aside-*")), "a move")
    until((folder / "archive.sqlite").exists, "a new archive")
    assert row(talker, kept)["result_bytes"] == 2
    assert talker.look(kept).raw == b"42"
    assert aside.read_bytes().startswith(b"nothing of the kind")


def trouble(broker: Daemon) -> str:
    """What /health says keeps the archive from its work."""
    said = broker.output.read_text()
    url = said.rsplit("metrics on ", 1)[1].split("/metrics")[0]
    with urllib.request.urlopen(f"{url}/health") as answer:
        return str(json.loads(answer.read())["archive"].get("trouble", ""))


@pytest.mark.parametrize("seed", [1, 2])
def test_no_row_is_lost_or_doubled_whoever_is_killed(make_broker: MakeBroker, seed: int) -> None:
    """Broker and archivist are killed at any moment; at the end each task has its one row."""
    choose = random.Random(seed)
    broker = make_broker(grace_ms=100, segment_bytes="8MiB", batch_bytes_max="4MiB").start()
    done: dict[str, bytes | None] = {}
    for life in range(4):
        talker = broker.connect()
        talker.consume("work", credit=200)
        for _ in range(choose.randrange(1, 5)):
            work(broker, talker, done, choose)
        if choose.random() < 0.6:
            victim = archivist(broker)
            if victim is not None:
                victim.send_signal(signal.SIGKILL)
        if choose.random() < 0.7 or life == 3:
            broker.restart()
    talker = broker.connect()
    until(lambda: not in_memory(talker), "the archive to catch up")
    for task_id, result in done.items():
        if result is not None:
            assert talker.look(task_id).raw == result
    until(lambda: set(done) <= rows_of(broker), "all rows")
    assert counted(broker) == len(rows_of(broker))


def work(
    broker: Daemon, talker: Talker, done: dict[str, bytes | None], choose: random.Random
) -> None:
    """Some tasks, run: acked in runs, with results, failed."""
    for _ in range(choose.randrange(1, 30)):
        talker.task("work", os.urandom(choose.randrange(1, 2_000)))
    while True:
        try:
            delivery = talker.receive(patience_s=0.1)
        except TimeoutError:
            return
        result = b"r%d" % choose.randrange(1000) if choose.random() < 0.5 else None
        talker.ack(delivery, result)
        done[delivery.message.id] = result


def connected(broker: Daemon) -> sqlite3.Connection:
    return sqlite3.connect(broker.data / "archive" / "archive.sqlite")


def rows_of(broker: Daemon) -> set[str]:
    with closing(connected(broker)) as db:
        found = db.execute("SELECT id FROM history")
        return {dashed(task_id) for (task_id,) in found}


def counted(broker: Daemon) -> int:
    with closing(connected(broker)) as db:
        return int(db.execute("SELECT count(*) FROM tasks").fetchone()[0])


def dashed(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
