"""``qbroker tasks`` and ``qbroker task``: what became of settled tasks, from the archive."""

import re
import time
from datetime import datetime
from typing import Any

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import ago, printable
from qbroker.terminal import BROKER, JSON, asking, echo_json, echo_table
from qprotocol.frames import Search
from qprotocol.states import State

PAGE_ROWS = 1_000
STATES = [state.name.lower() for state in State if state.finished]
UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def moment_of(text: str) -> int:
    """A time, so long ago or a date, in ms since 1970. Raises click.BadParameter."""
    span = re.fullmatch(r"(\d+)([smhd])", text)
    if span:
        return time.time_ns() // 1_000_000 - int(span[1]) * UNITS[span[2]]
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except ValueError as error:
        said = f'"{text}": write 2h or 7d for so long ago, or 2026-01-31T18:00'
        raise click.BadParameter(said) from error


@click.command("tasks")
@click.option("--state", type=click.Choice(STATES), help="How they ended.")
@click.option("--task", default="", help="The task's name.")
@click.option("--queue", default="", help="The queue they were published to.")
@click.option("--worker", default="", help="The worker's session, or how it begins.")
@click.option("--error", default="", help="The kind of the failure, or how it begins.")
@click.option("--args", "preview", default="", help="A part of the preview of their arguments.")
@click.option(
    "--since",
    type=moment_of,
    default=None,
    metavar="TIME",
    help="Finished since: 2h, 7d or a date.",
)
@click.option(
    "--until",
    type=moment_of,
    default=None,
    metavar="TIME",
    help="Finished before: 2h, 7d or a date.",
)
@click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@click.option("--after", default="", metavar="PLACE", help="Go on there, as an answer said.")
@BROKER
@JSON
def tasks_command(
    *,
    state: str | None,
    since: int | None,
    until: int | None,
    limit: int,
    after: str,
    broker: str,
    as_json: bool,
    **names: Any,
) -> None:
    """Look through settled tasks, newest first.

    Where an answer says that there is more, the same search with --after goes on.
    """
    number = int(State[state.upper()]) if state else 0
    found: list[dict[str, Any]] = []
    is_cut = False
    with asking(broker) as admin:
        while len(found) < limit:
            frame = Search(
                **names,
                state=number,
                since_ms=since or 0,
                until_ms=until or 0,
                limit=min(limit - len(found), PAGE_ROWS),
                after=after,
            )
            page = admin.report(frame)
            found += page["tasks"]
            after, is_cut = page["next"], page["cut"]
            if not after or is_cut:
                break
    if as_json:
        echo_json(found)
    else:
        show_tasks(found)
    if after:
        click.echo(more(after, is_cut=is_cut), err=True)


def more(after: str, *, is_cut: bool) -> str:
    """How to see the rest, from the place where an answer ended."""
    went = moment(int(after.partition(":")[0]))
    why = f"the search took its time and looked at what ended since {went}" if is_cut else "more"
    return f"{why}; to go on: the same with --after {after}"


def show_tasks(found: list[dict[str, Any]]) -> None:
    """A line a task."""
    header = ("finished", "id", "task", "queue", "state", "ran", "failures", "worker", "why")
    rows = [
        (
            *(moment(row["finished_ms"]), row["id"] or "", row["task"] or "", row["queue"] or ""),
            *(row["state"].lower(), ran(row), row["failures"], (row["worker"] or "")[:8], why(row)),
        )
        for row in found
    ]
    echo_table(header, rows)


@click.command("task")
@click.argument("task_id", metavar="ID")
@BROKER
@JSON
def task_command(task_id: str, broker: str, as_json: bool) -> None:
    """Show all that is known of one settled task."""
    with asking(broker) as admin:
        row = admin.report(Search(id=task_id))["task"]
    if row is None:
        raise Trouble(
            f"no settled task has the id {task_id}: it may wait or run still, or its time in the "
            "archive is over",
            Exit.FAILED,
        )
    if as_json:
        echo_json(row)
        return
    trace, attempts = row.pop("traceback", "") or "", row.pop("attempts")
    shown = []
    for name, value in row.items():
        if value not in (None, ""):
            is_time = name.endswith("_ms") and name != "run_ms"
            label = name.removesuffix("_ms") if name.endswith("_ms") else name
            text = moment(value) if is_time else ago(value) if name == "run_ms" else value
            shown.append((label.replace("_", " "), text))
    echo_table(("what", "value"), shown)
    show_history(attempts, trace)


def show_history(attempts: list[dict[str, Any]], trace: str) -> None:
    """A line for each attempt, and for what people did between; then the last error's traceback."""
    if attempts:
        show_attempts(attempts)
    for line in ("", *trace.splitlines()) if trace else ():
        click.echo(printable(line))


def show_attempts(attempts: list[dict[str, Any]]) -> None:
    """A line for each, and for what people did with the message between."""
    rows = [
        (
            *(number, moment(each["started_ms"]) if each["started_ms"] else ""),
            *(moment(each["ended_ms"]), (each["worker"] or "")[:8], each["outcome"]),
            f"{each['error']}: {each['message']}" if each["error"] else each["message"] or "",
        )
        for number, each in enumerate(attempts, 1)
    ]
    click.echo()
    echo_table(("no", "began", "ended", "worker", "outcome", "why"), rows)


def moment(ms: int) -> str:
    """For people, in their time zone."""
    return datetime.fromtimestamp(ms / 1000).astimezone().isoformat(" ", "milliseconds")[:23]


def ran(row: dict[str, Any]) -> str:
    """How long it ran; else how long its worker had it."""
    if row["run_ms"]:
        return ago(row["run_ms"])
    return ago(max(0, row["finished_ms"] - row["started_ms"])) if row["started_ms"] else ""


def why(row: dict[str, Any]) -> str:
    """The error in one line, or the reason."""
    said = f"{row['error']}: {row['message'] or ''}" if row["error"] else row["reason"] or ""
    return str((said.splitlines() or [""])[0][:80])
