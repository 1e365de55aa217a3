"""``qbroker exchange``, ``bind``, ``unbind``, ``bindings`` and ``publish``: routing by hand."""

import json
import secrets
import sys
from collections.abc import Iterable
from typing import Any

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json, echo_table
from qprotocol import wire
from qprotocol.exchanges import KINDS
from qprotocol.frames import (
    Bind,
    DeclareExchange,
    DeleteExchange,
    Ok,
    Publish,
    Published,
    Unbind,
)
from qprotocol.header import encode_map
from qprotocol.limits import FRAME_BYTES_MAX
from qprotocol.message import Message

BYTES_MAX = FRAME_BYTES_MAX - 1_000
"""What fits into a frame beside its header."""
COUNTED = ("published", "routed", "dropped")


@click.group("exchange", cls=Commands)
def exchange_group() -> None:
    """Orders about exchanges: declare, delete, list."""


@exchange_group.command("declare")
@click.argument("name")
@click.argument("kind", type=click.Choice(KINDS), default="direct")
@click.option("--alternate", default="", metavar="EXCHANGE", help="Gets what no binding takes.")
@click.option(
    "--drop", is_flag=True, help="A message that reaches no queue is dropped, not an error."
)
@BROKER
@JSON
def declare_command(
    *, name: str, kind: str, alternate: str, drop: bool, broker: str, as_json: bool
) -> None:
    """Make an exchange, or find it as it is."""
    options = {"alternate": alternate, "unroutable": "drop" if drop else "refuse"}
    with asking(broker) as admin:
        made = admin.ask(DeclareExchange(exchange=name, kind=kind, options=options), Ok).count
    if as_json:
        echo_json({"exchange": name, "kind": kind, **options, "made": bool(made)})
    else:
        click.echo(f"{kind} exchange {name} {'made' if made else 'was there already'}")


@exchange_group.command("delete")
@click.argument("name")
@click.option("--if-unused", is_flag=True, help="Only if nothing is bound.")
@BROKER
@JSON
def delete_command(*, name: str, if_unused: bool, broker: str, as_json: bool) -> None:
    """Drop an exchange and its bindings. Messages that are in queues stay there."""
    with asking(broker) as admin:
        count = admin.ask(DeleteExchange(exchange=name, if_unused=if_unused), Ok).count
    if as_json:
        echo_json({"exchange": name, "bindings": count})
    else:
        click.echo(f"exchange {name} deleted, and {count} bindings")


@exchange_group.command("list")
@BROKER
@JSON
def list_command(*, broker: str, as_json: bool) -> None:
    """List the exchanges, and what went through them since the start."""
    with asking(broker) as admin:
        found = admin.inspect("exchanges")
    if as_json:
        echo_json(found)
        return
    header = ("name", "kind", "alternate", "unroutable", "bindings")
    rows = [
        (*(row[column] for column in header), *(row["counts"].get(name, 0) for name in COUNTED))
        for row in sorted(found, key=lambda row: str(row["name"]))
    ]
    echo_table(("exchange", *header[1:], *COUNTED), rows)


def bound(command: Any) -> Any:
    """What names a binding."""
    argument = click.option(
        "--argument",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Of a headers exchange; NAME alone wants the header there. x-match is all or any.",
    )
    to_exchange = click.option("--to-exchange", is_flag=True, help="It is an exchange, no queue.")
    key = click.option("--key", default="", help="The routing key, or a pattern of a topic.")
    destination = click.argument("destination")
    return click.argument("exchange")(destination(key(to_exchange(argument(command)))))


@click.command("bind")
@bound
@BROKER
@JSON
def bind_command(**given: Any) -> None:
    """Let messages of EXCHANGE that fit go to DESTINATION, a queue."""
    order(Bind, given, ("bound", "was bound already"))


@click.command("unbind")
@bound
@BROKER
@JSON
def unbind_command(**given: Any) -> None:
    """Drop the binding that was made with the same words."""
    order(Unbind, given, ("unbound", "was not bound"))


def order(kind: type[Bind | Unbind], given: dict[str, Any], words: tuple[str, str]) -> None:
    """Bind or unbind, and say what came of it."""
    broker, as_json = given.pop("broker"), given.pop("as_json")
    given["arguments"] = dict(map(pair, given["arguments"]))
    with asking(broker) as admin:
        count = admin.ask(kind(**given), Ok).count
    if as_json:
        echo_json({**given, "changed": bool(count)})
    else:
        click.echo(f"{given['destination']} {words[0] if count else words[1]}")


def pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE. A value that reads as JSON is what it says there, else text; none is nil."""
    name, has_value, value = text.partition("=")
    if not has_value:
        return name, None
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@click.command("bindings")
@click.option("--exchange", default="", help="Of this one alone.")
@BROKER
@JSON
def bindings_command(*, exchange: str, broker: str, as_json: bool) -> None:
    """List the bindings, the first 10,000."""
    with asking(broker) as admin:
        found = admin.inspect("bindings")
    rows = [row for row in found if exchange in ("", row["exchange"])]
    if as_json:
        echo_json(rows)
        return
    header = ("exchange", "key", "to", "destination", "match", "arguments")
    echo_table(header, [shown(row, header) for row in rows])


def shown(row: dict[str, Any], header: Iterable[str]) -> tuple[str, ...]:
    """A row for people."""
    arguments = " ".join(
        name if value is None else f"{name}={json.dumps(value)}"
        for name, value in row["arguments"].items()
    )
    return tuple(arguments if name == "arguments" else str(row[name]) for name in header)


@click.command("publish")
@click.argument("body", default="-")
@click.option("--queue", default="", help="Into this queue.")
@click.option("--exchange", default="", help="To this exchange instead.")
@click.option("--key", default="", help="With this routing key.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    help="For a headers exchange; may be said more than once.",
)
@click.option(
    "--id", "chosen_id", default="", help="Known by this id; one that is alive is refused."
)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True)
@click.option("--drop", is_flag=True, help="If no queue is bound, drop it; else that is an error.")
@BROKER
@JSON
def publish_command(
    *,
    body: str,
    queue: str,
    exchange: str,
    key: str,
    headers: tuple[str, ...],
    chosen_id: str,
    priority: int,
    drop: bool,
    broker: str,
    as_json: bool,
) -> None:
    """Publish one plain message: BODY, or what comes on stdin."""
    if bool(queue) == bool(exchange):
        raise Trouble("say where to: --queue, or --exchange and perhaps --key", Exit.USAGE)
    message = Message(
        queue or key,
        sys.stdin.buffer.read() if body == "-" else body.encode(),
        id=chosen_id,
        exchange=exchange,
        priority=priority,
        flags=wire.MAY_DROP if drop else 0,
        headers=encode_map({"user": dict(map(pair, headers))}) if headers else b"",
    )
    frame = Publish(producer=secrets.randbits(63), sequence=1, count=1, raw=packed(message))
    with asking(broker) as admin:
        answer = admin.ask(frame, Published)
    if as_json:
        echo_json({"durability": answer.durability, "position": answer.first or None})
    else:
        click.echo(f"published, {answer.durability}")


def packed(message: Message) -> bytes:
    """Its bytes; what is out of bounds is trouble."""
    try:
        raw = message.pack()
    except ValueError as error:
        raise Trouble(str(error), Exit.USAGE) from error
    if len(raw) > BYTES_MAX:
        said = f"a message of {len(raw):,} bytes: this command sends up to {BYTES_MAX:,}"
        raise Trouble(said, Exit.USAGE)
    return raw
