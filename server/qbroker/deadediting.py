"""``qbroker dead edit``: change a dead letter, by settings or in an editor."""

import getpass
import json
from typing import Any

import click

from qbroker.ops import letters
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.letters import Pace, Where
from qbroker.ops.lettertexts import CannotEditError, Setting, changed, shown
from qbroker.ordercommands import Moment
from qbroker.terminal import BROKER, JSON, asking, echo_json


@click.command("edit")
@click.argument("task_id", metavar="ID")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="queue, priority, retries, args, kwargs, kwargs.NAME, args.0 or body.",
)
@click.option("--replay", is_flag=True, help="And let it run again.")
@click.option("--eta", type=Moment(), default=0, metavar="TIME", help="With --replay: not before.")
@BROKER
@JSON
def edit_command(
    *,
    task_id: str,
    settings: tuple[str, ...],
    replay: bool,
    eta: int,
    broker: str,
    as_json: bool,
) -> None:
    """Change a dead letter: by --set, else in $EDITOR. It stays dead until it is replayed."""
    if eta and not replay:
        raise Trouble("--eta goes with --replay", Exit.USAGE)
    who = getpass.getuser()
    with asking(broker) as admin:
        row = letters.there(admin, task_id)
        before = letters.message_of(row)
        try:
            after = changed(before, wanted(shown(before), settings))
        except (CannotEditError, ValueError) as error:
            raise Trouble(str(error), Exit.USAGE) from error
        if not letters.edit(admin, row, after, who):
            raise Trouble(f"{task_id} is no dead letter any more: nothing was done", Exit.FAILED)
        replayed = 0
        if replay:
            now = letters.one(admin, task_id)
            replayed = letters.replay(admin, [now] if now else [], Where("", eta, who), Pace())
    if as_json:
        echo_json({"edited": 1, "replayed": replayed, "content": shown(after)})
    else:
        click.echo(f"{task_id} is edited" + (" and replayed" if replayed else ""))


def wanted(now: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """What it is to say: by settings, or by a person in an editor. Raises CannotEditError."""
    if settings:
        to: dict[str, Any] = json.loads(json.dumps(now))
        for text in settings:
            Setting.parse(text).apply(to)
        return to
    written = click.edit(json.dumps(now, indent=2, ensure_ascii=False) + "\n", extension=".json")
    if written is None:
        raise Trouble("nothing was changed", Exit.FAILED)
    try:
        found = json.loads(written)
    except ValueError as error:
        raise CannotEditError(f"what was written is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CannotEditError("what was written is no JSON object")
    return found
