"""``qbroker dead``: look through dead letters, replay, edit and drop them."""

import getpass
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import click

from qbroker.deadediting import edit_command
from qbroker.ops import letters
from qbroker.ops.admin import Admin, RefusedByBroker
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.letters import Filter, Pace, Row, Where
from qbroker.ops.lettertexts import shown
from qbroker.ops.show import ago, counted
from qbroker.ordercommands import Moment, Span, told
from qbroker.taskcommands import moment, show_history, why
from qbroker.terminal import BROKER, JSON, Commands, asking, confirm, echo_json, echo_table
from qprotocol.causes import LETTER_CAUSES
from qprotocol.frames import Search
from qprotocol.limitrules import parse_rate
from qprotocol.options import is_dead_queue
from qprotocol.wire import NUMBERS, ROWS

NOUN = "dead letter"
F = TypeVar("F", bound=Callable[..., Any])
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only count them.")
CANARY_HEAD_START_MS = 1_000
"""So much later than others canaries begin."""
ALL = click.option("--all", "all_of_them", is_flag=True, help="All there are.")


def filters(command: F) -> F:
    """--queue, --task, --cause, --error, --worker and --older."""
    for option in (
        click.option("--older", "older_ms", type=Span(), default=0, metavar="SPAN",
                     help="Dead for longer: 90s, 10m, 2h or 1d."),
        click.option("--worker", default="", help="Its worker's session, or how it begins."),
        click.option("--error", default="", help="Any part of the error, or of the reason."),
        click.option("--cause", type=click.Choice(LETTER_CAUSES), default=None,
                     help="Why it is dead."),
        click.option("--task", default="", help="Only of this task."),
        click.option("--queue", default="", help="Where it died, or its queue of dead letters."),
    ):  # fmt: skip
        command = option(command)
    return command


def filter_of(given: dict[str, Any]) -> Filter:
    """The filter that the options say."""
    return Filter(**{**given, "cause": given["cause"] or ""})


@click.group("dead", cls=Commands)
def dead_group() -> None:
    """Look through dead letters, replay, edit and drop them."""


dead_group.add_command(edit_command)


@dead_group.command("list")
@filters
@click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@click.option("--after", type=int, default=0, metavar="NUMBER", help="Go on behind this one.")
@BROKER
@JSON
def list_command(*, limit: int, after: int, broker: str, as_json: bool, **given: Any) -> None:
    """List dead letters, those that died first first."""
    show_letters(filter_of(given), limit, after, broker, as_json=as_json)


@dead_group.command("search")
@click.argument("text")
@filters
@click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@BROKER
@JSON
def search_command(*, text: str, limit: int, broker: str, as_json: bool, **given: Any) -> None:
    """List dead letters with TEXT in their error or reason."""
    which = filter_of({**given, "error": text})
    show_letters(which, limit, 0, broker, as_json=as_json)


def show_letters(which: Filter, limit: int, after: int, broker: str, *, as_json: bool) -> None:
    """A line a letter."""
    with asking(broker) as admin:
        rows = list(letters.found(admin, which, ROWS, limit, after))
    if as_json:
        echo_json(rows)
        return
    now_ms = time.time_ns() // 1_000_000
    header = ("number", "id", "task", "queue", "dead for", "cause", "failures", "worker", "why")
    table = [
        (
            *(row["number"], row["id"] or "", row["task"], row["queue"]),
            ago(max(0, now_ms - row["died_ms"])) if row["died_ms"] else "",
            *(row["cause"].replace("_", " "), row["failures"], row["worker"][:8], why(row)),
        )
        for row in rows
    ]
    echo_table(header, table)
    if len(rows) == limit:
        click.echo(f"perhaps more; to go on: --after {rows[-1]['number']}", err=True)


@dead_group.command("show")
@click.argument("task_id", metavar="ID")
@BROKER
@JSON
def show_command(task_id: str, broker: str, as_json: bool) -> None:
    """Show all that is known of one dead letter: its arguments, its error, its attempts."""
    with asking(broker) as admin:
        row = letters.there(admin, task_id)
        row["attempts"] = attempts_of(admin, task_id)
    row["content"] = shown(letters.message_of(row))
    del row["raw"]
    if as_json:
        echo_json(row)
        return
    trace, attempts = row.pop("traceback") or "", row.pop("attempts")
    content = row.pop("content")
    table = [
        (
            name.removesuffix("_ms").replace("_", " "),
            moment(value) if name.endswith("_ms") else value,
        )
        for name, value in row.items()
        if name not in content.keys() - {"queue"} and value not in (None, "", 0, False)
    ]
    table += [
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in content.items()
        if name != "queue"
    ]
    echo_table(("what", "value"), table)
    show_history(attempts, trace)


def attempts_of(admin: Admin, task_id: str) -> list[Row]:
    """What the archive knows of its attempts; nothing where there is none."""
    try:
        found = admin.report(Search(id=task_id))["task"]
    except RefusedByBroker as error:
        click.echo(f"its attempts cannot be shown: {error}", err=True)
        return []
    attempts: list[Row] = found.get("attempts", []) if found else []
    return attempts


@dead_group.command("queues")
@BROKER
@JSON
def queues_command(broker: str, as_json: bool) -> None:
    """List the queues of dead letters: how many, how old, and which have an alarm."""
    with asking(broker) as admin:
        found = [row for row in admin.inspect("queues") if is_dead_queue(row["name"])]
    rows = [
        {
            "queue": row["name"],
            "messages": row["ready"] + row["scheduled"] + row["leased"],
            "oldest_dead_ms": row["oldest_dead_ms"],
            "alarm": row["alarm"],
        }
        for row in sorted(found, key=lambda each: str(each["name"]))
    ]
    if as_json:
        echo_json(rows)
        return
    table = [
        (
            *(row["queue"], row["messages"]),
            *(ago(row["oldest_dead_ms"]) if row["oldest_dead_ms"] else "", row["alarm"]),
        )
        for row in rows
    ]
    echo_table(("queue", "messages", "oldest dead for", "alarm"), table)


# Orders.


def meant(admin: Admin, ids: tuple[str, ...], which: Filter, detail: int) -> Iterator[Row]:
    """The letters that a command is about. Raises Trouble for an id that is none's."""
    if ids:
        for each in ids:
            yield letters.there(admin, each, ROWS)
    else:
        yield from letters.found(admin, which, detail)


def check_meant(ids: tuple[str, ...], which: Filter, *, all_of_them: bool) -> None:
    """Raise Trouble unless a command says in one way which letters it is about."""
    if (bool(ids), which != Filter(), all_of_them).count(True) != 1:
        raise Trouble("name IDs, or filters such as --queue, or else --all", Exit.USAGE)


@dead_group.command("replay")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@ALL
@click.option("--to", default="", metavar="QUEUE", help="Not where they died, but there.")
@click.option("--eta", type=Moment(), default=0, metavar="TIME", help="In 10m or 2h, or at a date.")
@click.option("--rate", metavar="N/TIME", help="No faster than that: 10/s, 100/m.")
@click.option(
    "--canary",
    type=click.IntRange(1, 1_000),
    metavar="N",
    help="Replay N first; go on only if all of them succeed.",
)
@click.option(
    "--canary-timeout",
    "timeout_ms",
    type=Span(),
    default="10m",
    metavar="SPAN",
    help="How long they may take, from their time on.",
    show_default=True,
)
@DRY_RUN
@BROKER
@JSON
def replay_command(
    *,
    ids: tuple[str, ...],
    all_of_them: bool,
    to: str,
    eta: int,
    rate: str | None,
    canary: int | None,
    timeout_ms: int,
    dry_run: bool,
    broker: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Let dead letters run again: these IDs, those that the filters say, or all.

    Each keeps its id and begins anew, as if it had never run. One that dies meanwhile is not met.
    """
    which = filter_of(given)
    check_meant(ids, which, all_of_them=all_of_them)
    try:
        pace = Pace(*parse_rate(rate)) if rate else Pace()
    except ValueError as error:
        raise Trouble(str(error), Exit.USAGE) from error
    where, count, proved = Where(to, eta, getpass.getuser()), 0, 0
    with asking(broker) as admin:
        rows = meant(admin, ids, which, ROWS if canary else NUMBERS)
        if dry_run:
            count = sum(1 for _ in rows)
        else:
            if canary:
                first = list(islice(rows, canary))
                count = proved = try_out(admin, first, where, timeout_ms)
            count += letters.replay(admin, rows, where, pace)
    if as_json:
        echo_json({"replayed": count, "canaries": proved, "dry_run": dry_run})
    else:
        click.echo(told(count, "replayed", dry_run=dry_run, noun=NOUN))


def try_out(admin: Admin, first: list[Row], where: Where, timeout_ms: int) -> int:
    """These were replayed, and all succeeded. Raises Trouble if not: nothing else is replayed."""
    if nameless := [row for row in first if not row["id"]]:
        raise Trouble(
            f"the letter at {nameless[0]['position']} has no id, so nobody can see what becomes "
            "of it: leave --canary out, or filter by --task",
            Exit.USAGE,
        )
    # Who is asked for them must be there before they begin: what ends well may leave no trace.
    soon_ms = admin.wall_ms() + CANARY_HEAD_START_MS
    later = replace(where, due_ms=max(where.due_ms, soon_ms))
    count = letters.replay(admin, first, later, Pace())
    timeout_ms += later.due_ms - soon_ms + CANARY_HEAD_START_MS
    ended = letters.outcomes(admin, [row["id"] for row in first], timeout_ms / 1000)
    bad = {name: state for name, state in ended.items() if state != "SUCCESS"}
    if bad:
        name, state = next(iter(bad.items()))
        raise Trouble(
            f"{len(bad)} of {len(first)} canaries did not succeed ({name} is {state.lower()}): "
            "nothing else was replayed",
            Exit.FAILED,
        )
    return count


@dead_group.command("drop")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters
@ALL
@DRY_RUN
@click.option("--yes", is_flag=True, help="Do not ask.")
@BROKER
@JSON
def drop_command(
    *,
    ids: tuple[str, ...],
    all_of_them: bool,
    dry_run: bool,
    yes: bool,
    broker: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Drop dead letters: these IDs, those that the filters say, or all. There is no way back."""
    which = filter_of(given)
    check_meant(ids, which, all_of_them=all_of_them)
    with asking(broker) as admin:
        rows = list(meant(admin, ids, which, NUMBERS))
        count = len(rows)
        if not dry_run:
            if not (yes or ids):
                confirm(f"drop {counted(count, NOUN)}?")
            count = letters.drop(admin, rows, getpass.getuser())
    if as_json:
        echo_json({"dropped": count, "dry_run": dry_run})
    else:
        click.echo(told(count, "dropped", dry_run=dry_run, noun=NOUN))
