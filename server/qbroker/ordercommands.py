"""``qbroker cancel``, ``purge``, ``why``, and the filters that they share with ``queue move``."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import ago, counted, left, printable
from qbroker.taskcommands import UNITS
from qbroker.terminal import BROKER, JSON, asking, confirm, echo_json, echo_table
from qprotocol.frames import Cancel, CancelGraph, CancelMany, Ok, Purge, Result, Why
from qprotocol.states import State

F = TypeVar("F", bound=Callable[..., Any])


class Span(click.ParamType[int]):
    """A span of time, in ms: 90s, 10m, 2h, 1d."""

    name = "span"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        number, unit = value[:-1], value[-1:]
        if not number.isdecimal() or unit not in UNITS or not int(number):
            self.fail(f'"{value}": write 90s, 10m, 2h or 1d', param, ctx)
        return int(number) * UNITS[unit]


class Moment(click.ParamType[int]):
    """A time, in so long or a date, as ms since 1970."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(datetime.fromisoformat(value).astimezone().timestamp() * 1000)
        except ValueError:
            return time.time_ns() // 1_000_000 + Span().convert(value, param, ctx)


def filters(*places: str) -> Callable[[F], F]:
    """--task, --key, --state, --older and --dry-run; the command is given frame fields."""

    def decorated(command: F) -> F:
        for option in (
            click.option("--dry-run", is_flag=True, help="Only count them."),
            click.option("--older", "older_ms", type=Span(), default=0, metavar="SPAN",
                         help="Published longer ago: 90s, 10m, 2h or 1d."),
            click.option("--state", "states", type=click.Choice(places), multiple=True,
                         help="Only those; may be said more than once."),
            click.option("--key", default="", help="Only with this limit, ordering or fair key."),
            click.option("--task", default="", help="Only of this task."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorated


def told(count: int, done: str, *, dry_run: bool, noun: str = "message") -> str:
    """The sentence at the end."""
    return f"{counted(count, noun)} {'would be ' if dry_run else ''}{done}"


@click.command("cancel")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--queue", default="", help="All in this queue, or what else is said.")
@click.option("--graph", "node", default="", metavar="ID", help="All of its graph.")
@filters("ready", "scheduled", "started", "held")
@click.option("--terminate", is_flag=True, help="Kill what runs, after --grace.")
@click.option("--grace", "grace_ms", type=Span(), default=0, metavar="SPAN", help="Ask first.")
@BROKER
@JSON
def cancel_command(
    *,
    ids: tuple[str, ...],
    queue: str,
    node: str,
    states: tuple[str, ...],
    dry_run: bool,
    terminate: bool,
    grace_ms: int,
    broker: str,
    as_json: bool,
    **rest: Any,
) -> None:
    """Cancel tasks: these IDs, a graph, or all that the filters say. What runs is told to stop.

    An ID that nobody knows is cancelled once its message comes, if it does in time.
    """
    if bool(ids) + bool(node) + bool(queue or rest["task"] or rest["key"]) != 1:
        raise Trouble("name IDs, or a --graph, or else a --queue, --task or --key", Exit.USAGE)
    if node:
        check_no_filters("--graph", state=states, older=rest["older_ms"])
    if ids:
        check_no_filters("IDs", dry_run=dry_run, state=states, older=rest["older_ms"])
    if grace_ms and not terminate:
        raise Trouble(
            f"--grace {ago(grace_ms)} without --terminate: it is how long what runs may go on "
            "before it is killed; say --terminate, too, or leave --grace out",
            Exit.USAGE,
        )
    how: dict[str, Any] = {"terminate": terminate, "grace_ms": grace_ms}
    with asking(broker) as admin:
        if ids:
            frames = [Cancel(id=each, **how) for each in ids]
            found = {frame.id: admin.ask(frame, Result) for frame in frames}
            if as_json:
                echo_json({each: State(answer.state).name for each, answer in found.items()})
            else:
                echo_table(("id", "state"), [(each, state_of(found[each])) for each in found])
            return
        named: dict[str, Any] = {"queue": queue, "states": ",".join(states), "dry_run": dry_run}
        frame = CancelGraph(id=node, dry_run=dry_run, **how) if node else None
        count = admin.ask(frame or CancelMany(**named, **how, **rest), Ok).count
    if as_json:
        echo_json({"cancelled": count, "dry_run": dry_run})
    else:
        click.echo(told(count, "cancelled", dry_run=dry_run))


def check_no_filters(named: str, **filters: object) -> None:
    """Raise Trouble for filters beside names: an order is about these messages, whatever fits."""
    said = ", ".join(f"--{name.replace('_', '-')}" for name, value in filters.items() if value)
    if said:
        raise Trouble(
            f"{said} beside {named}: what is named is meant as it is, and filters choose among "
            "many; leave one of them out",
            Exit.USAGE,
        )


def state_of(answer: Result) -> str:
    """The state in which a cancel has left the task; of an unknown one, what is kept of it."""
    state = State(answer.state).name.lower()
    return f"{state}: {noticed(answer.noticed_until_ms)}" if answer.noticed_until_ms else state


def noticed(until_ms: int) -> str:
    """What a cancel of an unknown id has left."""
    return f"cancelled if it comes within {left(until_ms)}"


@click.command("purge")
@click.argument("queue")
@filters("ready", "scheduled", "held")
@click.option("--yes", is_flag=True, help="Do not ask.")
@BROKER
@JSON
def purge_command(
    *,
    queue: str,
    states: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    broker: str,
    as_json: bool,
    **rest: Any,
) -> None:
    """Drop every waiting message of a queue, or those that fit. There is no way back."""
    chosen = {"states": ",".join(states), **rest}
    filtered = any(chosen.values())
    with asking(broker) as admin:
        if not (yes or dry_run):
            which = "waiting messages that fit" if filtered else "every waiting message"
            confirm(f"drop {which} of {queue}?")
        if filtered or dry_run:
            frame = CancelMany(queue=queue, purge=True, dry_run=dry_run, **chosen)
            count = admin.ask(frame, Ok).count
        else:
            count = admin.ask(Purge(queue=queue), Ok).count
    if as_json:
        echo_json({"queue": queue, "purged": count} | ({"dry_run": True} if dry_run else {}))
    else:
        click.echo(told(count, f"dropped from {queue}", dry_run=dry_run))


@click.command("why")
@click.argument("task_id", metavar="ID")
@BROKER
@JSON
def why_command(task_id: str, broker: str, as_json: bool) -> None:
    """Say what a message waits for."""
    with asking(broker) as admin:
        found = admin.report(Why(id=task_id))
    if as_json:
        echo_json(found)
        return
    where = f" in {found['queue']}" if found.get("queue") else ""
    click.echo(printable(f"{task_id} is {found['state'].lower()}{where}"))
    for row in found["reasons"]:
        sentence = SENTENCES.get(row["reason"], shut)
        click.echo(printable(f"  {sentence(row)}"))
    if not found["reasons"]:
        click.echo("  nothing keeps it: it goes in a coming turn")


def due(row: dict[str, Any]) -> str:
    after = f" after {counted(row['failures'], 'failure')}" if row["failures"] else ""
    return f"it waits for its time{after}" + (f", in {ago(row['in_ms'])}" if row["due_ms"] else "")


def inputs(row: dict[str, Any]) -> str:
    named = ", ".join(str(each) for each in row["positions"])
    left = row["of"] - row["met"]
    which = f": {named}" + (", ..." if left > len(row["positions"]) else "") if named else ""
    return f"it waits for others: {row['met']} of {row['of']} have ended{which}"


def paused(row: dict[str, Any]) -> str:
    why = f": {row['why']}" if row["why"] else ""
    by = f" by {row['author']}" if row["author"] else ""
    end_ms = row["until_ms"]
    until = f", for {left(end_ms)} more" if end_ms else ", until somebody resumes it"
    return f"the dispatch of its queue is paused{by}{why}{until}"


def at_limit(row: dict[str, Any]) -> str:
    which = f"limit {row['limit']}" + (f" of key {row['key']}" if row["key"] else "")
    taken = f": {row['slots_used']} of {row['slots']} slots are taken" if row.get("slots") else ""
    heavy = f", and it weighs {row['weight']}" if row.get("weight") else ""
    opens = row["opens_in_ms"]
    return which + taken + heavy + (f"; room in {ago(opens)}" if opens else "")


def redelayed(row: dict[str, Any]) -> str:
    times = "once" if row["redelayed"] == 1 else f"{row['redelayed']} times"
    return f"others with its unique key {row['key']!r} have moved its time {times}"


def shut(row: dict[str, Any]) -> str:
    opens = row.get("opens_in_ms")
    more = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("reason", "opens_in_ms") and v)
    when = f"; room in {ago(opens)}" if opens else ""
    return f"{row['reason']}: no room now" + (f" ({more})" if more else "") + when


def settled(row: dict[str, Any]) -> str:
    return "it has ended" + (f": {row['why']}" if row["why"] else "")


def unknown(row: dict[str, Any]) -> str:
    until_ms = row.get("noticed_until_ms")
    rest = f"; {noticed(until_ms)}" if until_ms else ""
    return f"nobody knows it: never published, or forgotten after its time{rest}"


def started(row: dict[str, Any]) -> str:
    who = f"worker {row['worker'][:8]}" if row["worker"] else "a consumer"
    return f"{who} has it" + ("" if row["is_connected"] else ", and is not connected now")


def full(row: dict[str, Any]) -> str:
    count = row["consumers"]
    who = "its consumer is" if count == 1 else f"all {count:,} consumers are"
    return f"{who} full: {counted(row['unsettled'])} out, and room for {row['credit']:,} in all"


def fair(row: dict[str, Any]) -> str:
    count = row["tenants_before"]
    whose = f"its fair key {row['key']!r}" if row["key"] else "messages without a fair key"
    return f"{count:,} other {'tenant has' if count == 1 else 'tenants have'} had less than {whose}"


def behind(row: dict[str, Any]) -> str:
    count = row["of_its_lane"]
    return f"{count:,} of its task and keys {'goes' if count == 1 else 'go'} before it"


SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "due": due,
    "inputs": inputs,
    "unique": redelayed,
    "paused": paused,
    "limit": at_limit,
    "large_order": lambda _row: "a cancel, purge or move by filter of its queue is under way",
    "ordering_key": lambda _row: "another message with its ordering key goes first, or is out",
    "started": started,
    "settled": settled,
    "unknown": unknown,
    "no_consumer": lambda _row: "nobody listens to its queue",
    "no_worker_knows": lambda row: f"no worker that listens knows the task {row['task']}",
    "single_active_consumer": lambda _row: (
        "its queue has one consumer at a time, and the next one "
        "waits until others have ended what they hold"
    ),
    "consumers_full": full,
    "fair": fair,
    "behind": behind,
}
"""Reasons in a sentence; others are those of gates without a sentence of their own."""
