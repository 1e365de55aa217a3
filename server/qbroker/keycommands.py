"""``qbroker unique``: which unique and idempotency keys are held, by which task, until when."""

from typing import Any

import click

from qbroker.ops.show import ago
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json, echo_table
from qprotocol.frames import ForgetKey, Ok

UNTIL = {"started": "it is started", "finished": "it is over"}


@click.group("unique", cls=Commands)
def unique_group() -> None:
    """Look at unique and idempotency keys, and free them.

    Of the tasks with the same unique key, in its scope, one is there at a time; with the same
    idempotency key a task is published once within a window. A key is freed by whatever ends its
    task, or when its time is over: there is seldom a reason to do it by hand.
    """


@unique_group.command("list")
@click.option("--key", default="", metavar="KEY", help="Only this key, whatever its scope.")
@BROKER
@JSON
def list_command(key: str, broker: str, as_json: bool) -> None:
    """List the keys that are held: what for, by which task, until when. At most 10,000.

    REDELAYED is how often others with the key have moved the time of the task that holds it.
    """
    with asking(broker) as admin:
        found = admin.inspect("keys", key)
    if as_json:
        echo_json(found)
        return
    echo_table(
        ("kind", "key", "of", "task id", "held until", "redelayed"),
        [
            (row["kind"], row["key"], covers(row), row["id"], until(row), row["redelayed"] or "")
            for row in found
        ],
    )


def covers(row: dict[str, Any]) -> str:
    """The key's scope in words."""
    if row["scope"] == "global":
        return "everything"
    return f"{row['scope']} {row['name']}" if row["name"] else "plain messages"


def until(row: dict[str, Any]) -> str:
    """When the key is free, in words."""
    return UNTIL.get(row["until"]) or f"in {ago(row['in_ms'])}"


@unique_group.command("forget")
@click.argument("key")
@click.option("--queue", default="", metavar="Q", help="The key is one of this queue.")
@click.option("--task", default="", metavar="T", help="The key is one of this task.")
@click.option("--global", "is_global", is_flag=True, help="The key is one of all tasks.")
@click.option("--idempotency", is_flag=True, help="It is an idempotency key, of a task.")
@BROKER
@JSON
def forget_command(
    *,
    key: str,
    queue: str,
    task: str,
    is_global: bool,
    idempotency: bool,
    broker: str,
    as_json: bool,
) -> None:
    """Free KEY; the task that holds it goes on. The next one that is published takes it.

    Say of what it is a key, as "qbroker unique list" does; without, it is one of plain messages.
    """
    if bool(queue) + bool(task) + is_global > 1 or (idempotency and (queue or is_global)):
        raise click.UsageError("say one of --queue, --task and --global; with --idempotency --task")
    frame = ForgetKey(
        key=key,
        kind="idempotency" if idempotency else "unique",
        scope="queue" if queue else "global" if is_global else "task",
        name=queue or task,
    )
    with asking(broker) as admin:
        freed = bool(admin.ask(frame, Ok).count)
    if as_json:
        echo_json({"key": key, "kind": frame.kind, "freed": freed})
    else:
        click.echo(f"key {key} is free" if freed else f"nobody held the key {key}")
