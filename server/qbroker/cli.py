"""The ``qbroker`` command: run a broker, read its settings and its log, ask a running one.

Rule 1. Trouble is one line on stderr and an exit code (server.Exit); never a traceback.
Rule 2. Tables for people, ``--json`` for programs; colour only on a terminal.
Rule 3. Every setting is a flag of ``serve`` and ``config``, made from the table in config.py.
Rule 4. What only one command needs is imported by it: a look at a queue need not wait for
        the web server, the core and the log to load (0.5 s, and 0.2 s without).
"""

import functools
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from qbroker import config as settings
from qbroker.backupcommands import backup_command, restore_command
from qbroker.config import SETTINGS, Config, ConfigError
from qbroker.deadcommands import dead_group
from qbroker.definitioncommands import export_command, import_command, policy_group
from qbroker.eventcommands import event_group
from qbroker.exchangecommands import (
    bind_command,
    bindings_command,
    exchange_group,
    publish_command,
    unbind_command,
)
from qbroker.keycommands import unique_group
from qbroker.limitcommands import limit_group
from qbroker.logcommands import log_group
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.peeking import peeked_messages
from qbroker.ops.show import ago, flat, left
from qbroker.ops.tables import refresh
from qbroker.ordercommands import cancel_command, purge_command, why_command
from qbroker.queuecommands import queue_group
from qbroker.taskcommands import task_command, tasks_command
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json, echo_table
from qprotocol import __version__
from qprotocol.frames import Peek, Peeked

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: list[str] | None = None) -> None:
    """The command's entry point: exits with what became of it."""
    message, code = "", int(Exit.FAILED)
    try:
        sys.exit(commands.main(arguments, prog_name="qbroker", standalone_mode=False) or 0)
    except Trouble as trouble:
        message, code = str(trouble), trouble.code
    except click.ClickException as trouble:
        message, code = trouble.format_message(), trouble.exit_code
    except click.Abort:
        message, code = "interrupted: nothing more was done", Exit.INTERRUPTED
    except ConfigError as trouble:
        message, code = str(trouble), Exit.USAGE
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILED)
    click.echo("qbroker: " + " ".join(message.split()), err=True)
    sys.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qbroker")
def commands() -> None:
    """A durable task broker: one process, one folder."""


for more in (
    *(log_group, backup_command, restore_command, tasks_command, task_command, queue_group),
    *(policy_group, export_command, import_command),
    *(exchange_group, bind_command, unbind_command, bindings_command, publish_command),
    *(limit_group, dead_group, unique_group, event_group),
    *(cancel_command, purge_command, why_command),
):
    commands.add_command(more)


# --- Running, and what it would run with ----------------------------------------------------------


def with_settings(command: F) -> F:
    """Every setting as a flag, and --config; the command is given a Config."""

    @functools.wraps(command)
    def loaded(config_path: Path | None, **given: Any) -> Any:
        flags = {name: given.pop(name) for name in SETTINGS}
        return command(settings.load(flags, os.environ, config_path), **given)

    for row in reversed(SETTINGS.values()):
        default = row.kind.show(row.default) or "none"
        text = f"{row.why} ({row.allowed}; default {default})"
        if isinstance(row.default, bool):
            flag = f"{row.flag}/--no-{row.flag[2:]}"
            option = click.option(flag, row.name, default=None, help=row.why)
        else:
            metavar = row.name.rpartition("_")[2].upper()
            option = click.option(row.flag, row.name, metavar=metavar, help=text)
        loaded = option(loaded)
    where = click.Path(dir_okay=False, path_type=Path)
    option = click.option(
        "--config",
        "config_path",
        type=where,
        envvar="QBROKER_CONFIG",
        help="TOML file of settings.",
    )
    return option(loaded)  # type: ignore[return-value]


@commands.command("serve")
@with_settings
@click.option(
    "--move-archive-aside",
    "move_aside",
    is_flag=True,
    help="Keep a damaged or foreign archive under another name, and begin a new one.",
)
def serve_command(config: Config, move_aside: bool) -> None:
    """Run a broker until SIGTERM or Ctrl-C.

    Each setting may also be a variable (QBROKER_LISTEN) or a key of the TOML file. Exit codes:
    0 stopped; 1 an address is taken; 2 bad settings; 65 the log is damaged; 70 a bug;
    73 the data folder is in use or not ours; 74 the disk failed.
    """
    if not __debug__:
        raise Trouble(
            "python -O switches off the assertions that guard your data: run without -O "
            "and without PYTHONOPTIMIZE",
            Exit.USAGE,
        )
    from qbroker.ops.journal import open_journal  # noqa: PLC0415  # rule 4
    from qbroker.server import serve  # noqa: PLC0415  # rule 4

    open_journal(config.log_level, config.log_format)
    code = serve(config, functools.partial(click.echo, color=False), move_aside=move_aside)
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to be done, and to free ten million messages one by one takes seconds.
    os._exit(code)


@commands.command("config")
@with_settings
@click.option("--markdown", is_flag=True, help="The table of all settings for the docs.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def config_command(config: Config, markdown: bool, as_json: bool) -> None:
    """Show every setting: its value, and whether a flag, variable or file set it."""
    if markdown:
        click.echo(settings.markdown(), nl=False)
        return
    rows = settings.describe(config)
    if as_json:
        echo_json({row.name: {"value": row.value, "source": row.source} for row in rows})
        return
    shown = [(row.name, row.value or '""', row.source, row.help) for row in rows]
    echo_table(("setting", "value", "from", "why"), shown)


@commands.command("tables", hidden=True)
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if it is out of date.")
def tables_command(document: Path, check: bool) -> None:
    """Write the generated tables of a document again."""
    from qbroker import commandreference  # noqa: PLC0415  # rule 4
    from qbroker.ops import metrics  # noqa: PLC0415  # rule 4
    from qprotocol.tables import option_table  # noqa: PLC0415  # rule 4

    text = document.read_text(encoding="utf-8")
    if document.name == "COMMANDS.md":
        tables = {"commands": commandreference.markdown(commands, "qbroker", SETTINGS)}
    else:
        tables = {"settings": settings.markdown(), "metrics": metrics.markdown()}
        tables["queue options"] = option_table() + "\n"
    try:
        made = refresh(text, tables)
    except ValueError as error:
        raise Trouble(f"{document}: {error}", Exit.FAILED) from error
    if check and made != text:
        raise Trouble(f'{document} is out of date: run "qbroker tables {document}"', Exit.FAILED)
    if made != text:
        document.write_text(made, encoding="utf-8")


# --- Asking a running broker ----------------------------------------------------------------------


@commands.command("queues")
@click.option("--why", is_flag=True, help="What messages wait for, by queue and reason.")
@BROKER
@JSON
def queues_command(broker: str, why: bool, as_json: bool) -> None:
    """List the queues: what waits, what runs, what became of the rest."""
    with asking(broker) as admin:
        found = admin.inspect("queues")
    if as_json:
        echo_json(found)
        return
    if why:
        rows = [
            (queue["name"], reason.replace("_", " "), count)
            for queue in sorted(found, key=lambda each: str(each["name"]))
            for reason, count in sorted(queue["waiting"].items())
        ]
        echo_table(("queue", "waits for", "messages"), rows)
        return
    counted = ("published", "acked", "failed", "retried", "dead_lettered")
    header = (
        "queue",
        "ready",
        "scheduled",
        "leased",
        "held",
        "consumers",
        "oldest",
        "quarantined",
        *counted,
        "paused",
        "alarm",
    )
    rows = [
        (
            *(queue[column] for column in ("name", *header[1:6])),
            ago(queue["oldest_ready_ms"]) if queue["ready"] else "",
            queue["quarantined"],
            *(queue["counts"].get(outcome, 0) for outcome in counted),
            "; ".join(pause_told(*each) for each in queue["paused"].items()),
            queue["alarm"],
        )
        for queue in sorted(found, key=by_name)
    ]
    echo_table([column.replace("_", " ") for column in header], rows)


@commands.command("peek")
@click.argument("queue")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@BROKER
@JSON
def peek_command(queue: str, count: int, broker: str, as_json: bool) -> None:
    """Look at a queue's first messages without taking them."""
    with asking(broker) as admin:
        found = peeked_messages(admin.ask(Peek(queue=queue, count=count), Peeked))
    if as_json:
        echo_json([message.as_dict() for message in found])
        return
    header = (
        "position",
        "id",
        "task",
        "state",
        "priority",
        "tries",
        "failures",
        "bytes",
        "last error",
    )
    rows = [
        (
            str(each.position),
            *(each.id, each.task, each.state.lower(), each.priority),
            *(each.deliveries, each.failures, each.body_bytes, each.error or each.reason),
        )
        for each in found
    ]
    echo_table(header, rows)


@commands.command("quarantine")
@BROKER
@JSON
def quarantine_command(broker: str, as_json: bool) -> None:
    """List the messages that are damaged on disk, until their queue is purged."""
    with asking(broker) as admin:
        found = admin.inspect("quarantine")
    if as_json:
        echo_json(found)
        return
    header = ("position", "queue", "task", "since", "evidence", "why")
    rows = [
        (
            *(str(row["position"]), row["queue"], row["task"]),
            datetime.fromtimestamp(row["since_ms"] / 1000).astimezone().isoformat(" ", "seconds"),
            *(row["evidence"], row["why"]),
        )
        for row in found
    ]
    echo_table(header, rows)


@commands.command("stats")
@BROKER
@JSON
def stats_command(broker: str, as_json: bool) -> None:
    """Show the broker's figures."""
    with asking(broker) as admin:
        found = admin.inspect("stats")
    if as_json:
        echo_json(found)
    else:
        echo_table(("figure", "value"), list(flat(found)))


# --- Saying ---------------------------------------------------------------------------------------


def pause_told(half: str, pause: dict[str, Any]) -> str:
    """What of a queue is paused, why, by whom, and for how long still."""
    still = f", {left(pause['until_ms'])} left" if pause["until_ms"] else ""
    why = f": {pause['reason']}" if pause["reason"] else ""
    by = f" ({pause['author']})" if pause["author"] else ""
    return f"{half}{why}{by}{still}"


def by_name(queue: dict[str, Any]) -> str:
    return str(queue["name"])


if __name__ == "__main__":
    main()
