"""Options of queues for people: ``qbroker queue declare|set|show|delete``, ``policy``, exports."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from qbroker.kinds import DURATION, SIZE
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import counted
from qbroker.queuecommands import queue_group
from qbroker.terminal import BROKER, JSON, Commands, asking, confirm, echo_json, echo_table
from qprotocol.frames import (
    Bind,
    ChangeQueue,
    Declare,
    DeclareExchange,
    DeleteQueue,
    Frame,
    Ok,
    SetLimit,
    SetPolicy,
)
from qprotocol.options import OptionRow, QueueOptions, Value, row_of

VERSION = 1
"""Of the format of an export."""
UNITS: dict[str, Callable[[str], Any]] = {"ms": DURATION.parse, "bytes": SIZE.parse}
WORDS = {"true": True, "yes": True, "false": False, "no": False}


class Assignments(click.ParamType[tuple[str, Value | None]]):
    """OPTION=VALUE; durations and sizes may have a unit, and an empty value takes one back."""

    name = "option=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Value | None]:
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f'"{value}": write OPTION=VALUE, or OPTION= to take it back', param, ctx)
        try:
            row = row_of(name)
            return name, read(row, text) if text else None
        except ValueError as error:
            self.fail(str(error), param, ctx)


def read(row: OptionRow, text: str) -> Value:
    """The option's value as a person writes it. Raises ValueError."""
    found: Value = text
    try:
        if row.kind is bool:
            found = WORDS[text.lower()]
        elif row.kind is int:
            found = int(text) if text.lstrip("-").isdecimal() else UNITS[row.unit](text)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{row.name} is {text!r}: {row.wants}") from error
    row.check(found)
    return found


ASSIGNMENTS = click.argument("options", nargs=-1, required=True, type=Assignments())

# --- One queue ------------------------------------------------------------------------------------


@queue_group.command("declare")
@click.argument("queue")
@click.argument("options", nargs=-1, type=Assignments())
@BROKER
@JSON
def declare_command(
    queue: str, options: tuple[tuple[str, Value | None], ...], broker: str, as_json: bool
) -> None:
    """Make a queue with these options, or find it with them: max_length=10000 message_ttl_ms=1h.

    Where it is there with others, each that differs is told, and nothing is changed.
    """
    for name, value in options:
        if value is None:
            raise Trouble(f"{name}= says nothing: leave it out, or give a value", Exit.USAGE)
        if name == "exclusive" and value:
            raise Trouble(
                "an exclusive queue is deleted when the connection that declared it ends, and that "
                "of this command ends at once: declare it where it is used",
                Exit.USAGE,
            )
    with asking(broker) as admin:
        count = admin.ask(Declare(queue=queue, options=dict(options)), Ok).count
    if as_json:
        echo_json({"queue": queue, "made": bool(count)})
    else:
        there = f"{queue} was there already" + (", with these options" if options else "")
        click.echo(f"{queue} is made" if count else there)


@queue_group.command("set")
@click.argument("queue")
@ASSIGNMENTS
@BROKER
@JSON
def set_command(
    queue: str, options: tuple[tuple[str, Value | None], ...], broker: str, as_json: bool
) -> None:
    """Set options of a queue, at once and for good: max_length=10000 message_ttl_ms=1h.

    OPTION= takes one back: then the declaration, a policy or the default counts again.
    """
    with asking(broker) as admin:
        count = admin.ask(ChangeQueue(queue=queue, options=dict(options)), Ok).count
    if as_json:
        echo_json({"queue": queue, "changed": bool(count)})
    else:
        click.echo(f"{queue} is changed" if count else f"{queue} was so already")


@queue_group.command("show")
@click.argument("queue")
@click.option("--all", "everything", is_flag=True, help="Options that are as by default, too.")
@BROKER
@JSON
def show_command(queue: str, everything: bool, broker: str, as_json: bool) -> None:
    """Show a queue's options, and for each whether a declaration, policy or operator gave it.

    Where messages have fair keys, the tenants with most messages, too.
    """
    with asking(broker) as admin:
        found = admin.inspect("queue", queue)
    if as_json:
        echo_json(found)
        return
    rows = [
        (name, shown(row["value"]), row["source"], overridden(row))
        for name, row in found["options"].items()
        if everything or row["source"] != "default"
    ]
    echo_table(("option", "value", "from", "instead of"), rows)
    if found["tenants"]:
        click.echo()
        columns = ("weight", "open", "leased", "used_ms", "message_ms")
        header = ("fair key", "weight", "waiting", "leased", "ran ms", "ms a message")
        tenants = found["tenants"]
        rows = [(row["key"] or "(no key)", *(row[each] for each in columns)) for row in tenants]
        echo_table(header, rows)


def shown(value: Value) -> str:
    """The value as it is written."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def overridden(row: dict[str, Any]) -> str:
    """What was said of an option beside what counts."""
    said = (f"{name} {shown(row[name])}" for name in ("declared", "set") if name in row)
    return ", ".join(said)


@queue_group.command("delete")
@click.argument("queue")
@click.option("--if-empty", is_flag=True, help="Only if nothing waits in it or is handed out.")
@click.option("--if-unused", is_flag=True, help="Only if nobody consumes it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@BROKER
@JSON
def delete_command(
    *, queue: str, if_empty: bool, if_unused: bool, yes: bool, broker: str, as_json: bool
) -> None:
    """Delete a queue and what waits in it. There is no way back.

    Its consumers are told; workers that go on consuming it make it anew.
    """
    with asking(broker) as admin:
        if not (yes or if_empty):
            confirm(f"delete {queue} and every message that waits in it?")
        frame = DeleteQueue(queue=queue, if_empty=if_empty, if_unused=if_unused)
        count = admin.ask(frame, Ok).count
    if as_json:
        echo_json({"queue": queue, "dropped": count})
    else:
        click.echo(f"{queue} is deleted, and {counted(count)} with it")


# --- Policies -------------------------------------------------------------------------------------


@click.group("policy", cls=Commands)
def policy_group() -> None:
    """Options for all queues whose names fit a pattern."""


@policy_group.command("set")
@click.argument("name")
@click.argument("pattern")
@ASSIGNMENTS
@click.option("--priority", default=0, help="Of several that fit, the highest counts.")
@click.option("--operator", is_flag=True, help="Bounds what declarations may say.")
@BROKER
@JSON
def policy_set_command(
    *,
    name: str,
    pattern: str,
    options: tuple[tuple[str, Value | None], ...],
    priority: int,
    operator: bool,
    broker: str,
    as_json: bool,
) -> None:
    """Make a policy, or make it another one: qbroker policy set short 'mail.*' max_length=1000."""
    given = {option: value for option, value in options if value is not None}
    frame = SetPolicy(
        name=name, pattern=pattern, priority=priority, operator=operator, options=given
    )
    with asking(broker) as admin:
        count = admin.ask(frame, Ok).count
    if as_json:
        echo_json({"policy": name, "changed": bool(count)})
    else:
        click.echo(f"policy {name} is set" if count else f"policy {name} was so already")


@policy_group.command("drop")
@click.argument("name")
@BROKER
@JSON
def policy_drop_command(name: str, broker: str, as_json: bool) -> None:
    """Drop a policy: queues have what their declarations and other policies say."""
    with asking(broker) as admin:
        admin.ask(SetPolicy(name=name, drop=True), Ok)
    if as_json:
        echo_json({"policy": name, "dropped": True})
    else:
        click.echo(f"policy {name} is dropped")


@policy_group.command("list")
@BROKER
@JSON
def policy_list_command(broker: str, as_json: bool) -> None:
    """List the policies, the one that counts first where several fit."""
    with asking(broker) as admin:
        found = admin.inspect("policies")
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            *(row["name"], row["pattern"], row["priority"]),
            "operators" if row["operator"] else "",
            " ".join(f"{name}={shown(value)}" for name, value in row["options"].items()),
        )
        for row in found
    ]
    echo_table(("policy", "pattern", "priority", "of", "options"), rows)


# --- All definitions ------------------------------------------------------------------------------


@click.command("export")
@BROKER
def export_command(broker: str) -> None:
    """Write all queues, policies, exchanges, bindings and limits as JSON, for "qbroker import".

    Not the limits that workers declare: they do so anew.
    """
    with asking(broker) as admin:
        found = admin.inspect("definitions")
    echo_json({"qbroker_definitions": VERSION, **found})


@click.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@BROKER
@JSON
def import_command(file: Any, broker: str, as_json: bool) -> None:
    """Make what an export holds. What is there already and the same is left; nothing is deleted.

    The first thing that the broker refuses ends it; what was made until then stays.
    """
    frames = list(frames_of(file.read(), Path(file.name)))
    counts: dict[str, int] = {}
    with asking(broker) as admin:
        for table, frame in frames:
            counts[table] = counts.get(table, 0) + admin.ask(frame, Ok).count
    if as_json:
        echo_json(counts)
    else:
        told = ", ".join(f"{count:,} {table}" for table, count in counts.items())
        click.echo(f"new or changed: {told}" if told else "there is nothing in it")


def queue_frames(row: dict[str, Any]) -> Iterator[Frame]:
    yield Declare(queue=row["name"], options=row.get("options", {}))
    if row.get("set"):
        yield ChangeQueue(queue=row["name"], options=row["set"])


def policy_frames(row: dict[str, Any]) -> Iterator[Frame]:
    names = ("name", "pattern", "priority", "operator", "options")
    yield SetPolicy(**{name: row[name] for name in names if name in row})


def exchange_frames(row: dict[str, Any]) -> Iterator[Frame]:
    yield DeclareExchange(exchange=row["name"], kind=row["kind"], options=row.get("options", {}))


def binding_frames(row: dict[str, Any]) -> Iterator[Frame]:
    arguments = {
        name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
        for name, value in row.get("arguments", {}).items()
    }
    yield Bind(
        exchange=row["exchange"],
        key=row["key"],
        destination=row["destination"],
        to_exchange=row.get("to_exchange", False),
        arguments=arguments,
    )


def limit_frames(row: dict[str, Any]) -> Iterator[Frame]:
    yield SetLimit(name=row["name"], rule=row["rule"])


IMPORTS: dict[str, Callable[[dict[str, Any]], Iterable[Frame]]] = {
    "policies": policy_frames,
    "queues": queue_frames,
    "exchanges": exchange_frames,
    "bindings": binding_frames,
    "limits": limit_frames,
}
"""How the rows of each table of an export are made again, in this order."""


def frames_of(text: str, path: Path) -> Iterator[tuple[str, Frame]]:
    """The requests that make all of it, each with its table. Raises Trouble if it is no export."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("qbroker_definitions") != VERSION:
            raise ValueError(f'there is no "qbroker_definitions": {VERSION} in it')
        unknown = found.keys() - IMPORTS - {"qbroker_definitions"}
        if unknown:
            raise ValueError(f"unknown table {min(unknown)!r}: known are {', '.join(IMPORTS)}")
        for table, frames in IMPORTS.items():
            for row in found.get(table, ()):
                if table == "queues":
                    QueueOptions.check(row.get("options", {}))
                for frame in frames(row):
                    yield table, frame
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Trouble(f"{path} is no export of qbroker: {error}", Exit.USAGE) from error
