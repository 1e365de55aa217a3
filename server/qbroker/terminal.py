"""What all commands share: a group that knows what was meant, tables, JSON, a question."""

import difflib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import click

from qbroker.ops.admin import Admin, RefusedByBroker, Unreachable
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import table
from qprotocol.errors import ProtocolError

JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
BROKER = click.option(
    "--broker",
    envvar="QBROKER_URL",
    default="qbroker://localhost:7717",
    show_default=True,
    metavar="URL",
    help="Where the broker listens; also QBROKER_URL.",
)


class Commands(click.Group):
    """A group that knows what was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            known = ", ".join(self.list_commands(ctx))
            hint = f'did you mean "{near[0]}"?' if near else f"there are {known}"
            raise click.UsageError(f'no command "{name}": {hint}', ctx)
        return super().resolve_command(ctx, args)


class Counting:
    """On a terminal, a line that says how many bytes were read so far; else nothing."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._bytes = 0
        self._shown = sys.stderr.isatty()
        self._due_s = 0.0

    def add(self, size: int) -> None:
        """So many more. Writes ten times a second at most."""
        self._bytes += size
        now = time.monotonic()
        if self._shown and now >= self._due_s:
            self._due_s = now + 0.1
            click.echo(f"\r{self._doing}: {self._bytes / 1e6:,.1f} MB", nl=False, err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._bytes:
            click.echo("\r" + " " * 60 + "\r", nl=False, err=True)


@contextmanager
def asking(broker: str) -> Iterator[Admin]:
    """A conversation with the broker; what it refuses is trouble."""
    try:
        with Admin(broker) as admin:
            yield admin
    except Unreachable as error:
        raise Trouble(str(error), Exit.UNAVAILABLE) from error
    except RefusedByBroker as error:
        raise Trouble(f"the broker refused: {error}", Exit.FAILED) from error
    except (ProtocolError, ValueError) as error:
        raise Trouble(str(error), Exit.USAGE) from error


def confirm(question: str) -> None:
    """Go on only if a person says yes; where nobody can be asked, --yes has to be given."""
    if not sys.stdin.isatty():
        raise Trouble("this is not a terminal, so nobody can be asked: give --yes", Exit.USAGE)
    if not click.confirm(question):
        raise Trouble("nothing was done", Exit.FAILED)


def echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def echo_table(header: Any, rows: Any) -> None:
    click.echo(table(header, rows, colour=sys.stdout.isatty()))
