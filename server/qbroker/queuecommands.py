"""``qbroker queue``: orders about one queue: pause, resume, drain, move."""

import getpass
import socket
import sys
import time
from typing import Any

import click

from qbroker.ops.admin import Admin
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import ago, counted
from qbroker.ordercommands import Span, check_no_filters, filters, told
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json
from qprotocol.frames import Move, Ok, PauseQueue, ResumeQueue

LOOK_EVERY_S = 0.5
PLACES = ("ready", "scheduled", "leased", "held")


@click.group("queue", cls=Commands)
def queue_group() -> None:
    """Orders about one queue."""


def halves(command: Any) -> Any:
    """--intake and --dispatch; the command is given which of the two, both if none was said."""
    dispatch = click.option("--dispatch", is_flag=True, help="What is handed out to workers.")
    intake = click.option("--intake", is_flag=True, help="What publishers send.")
    return intake(dispatch(command))


def said(intake: bool, dispatch: bool) -> tuple[bool, bool]:
    """What the order is about; both if neither was said."""
    both = not (intake or dispatch)
    return intake or both, dispatch or both


def author() -> str:
    """Who gives the order: the user here, and this machine's name."""
    return f"{getpass.getuser()}@{socket.gethostname()}"[:200]


@queue_group.command("pause")
@click.argument("queue")
@halves
@click.option("--reason", default="", help="For those who will wonder.")
@click.option("--author", "who", default="", help="Who says so; else you, at this machine.")
@click.option("--for", "for_ms", type=Span(), default=0, metavar="SPAN", help="90s, 10m, 2h or 1d.")
@BROKER
@JSON
def pause_command(
    *,
    queue: str,
    intake: bool,
    dispatch: bool,
    reason: str,
    who: str,
    for_ms: int,
    broker: str,
    as_json: bool,
) -> None:
    """Take nothing in, hand nothing out, or both, until resumed. What runs goes on."""
    intake, dispatch = said(intake, dispatch)
    frame = PauseQueue(
        queue=queue,
        intake=intake,
        dispatch=dispatch,
        reason=reason,
        author=who or author(),
        for_ms=for_ms,
    )
    with asking(broker) as admin:
        count = admin.ask(frame, Ok).count
    chosen = {"intake": intake, "dispatch": dispatch}
    paused = " and ".join(half for half in chosen if chosen[half])
    if as_json:
        echo_json({"queue": queue, **chosen, "newly_paused": count, "for_ms": for_ms})
    else:
        until = f"for {ago(for_ms)}" if for_ms else f"until: qbroker queue resume {queue}"
        click.echo(f"{paused} of {queue} paused {until}")


@queue_group.command("resume")
@click.argument("queue")
@halves
@BROKER
@JSON
def resume_command(queue: str, *, intake: bool, dispatch: bool, broker: str, as_json: bool) -> None:
    """Take in and hand out again."""
    intake, dispatch = said(intake, dispatch)
    frame = ResumeQueue(queue=queue, intake=intake, dispatch=dispatch)
    with asking(broker) as admin:
        count = admin.ask(frame, Ok).count
    if as_json:
        echo_json({"queue": queue, "resumed": count})
    else:
        click.echo(f"{queue} goes on" if count else f"{queue} was not paused")


@queue_group.command("drain")
@click.argument("queue")
@click.option("--reason", default="draining", show_default=True, help="What publishers are told.")
@click.option(
    "--within",
    "within_ms",
    type=Span(),
    default=600_000,
    metavar="SPAN",
    help="Give up waiting after that long; default 10m.",
)
@BROKER
@JSON
def drain_command(queue: str, reason: str, within_ms: int, broker: str, as_json: bool) -> None:
    """Pause the intake, and wait until nothing waits or runs.

    The intake stays paused. Exit codes: 0 the queue is empty; 75 it was not within the time.
    """
    deadline = time.monotonic() + within_ms / 1000
    with asking(broker) as admin:
        admin.ask(PauseQueue(queue=queue, intake=True, reason=reason, author=author()), Ok)
        left = wait_until_empty(admin, queue, deadline)
    if as_json:
        echo_json({"queue": queue, "drained": not left, "left": left})
    elif not left:
        click.echo(f"{queue} is empty; its intake is paused: qbroker queue resume {queue}")
    if left:
        raise Trouble(
            f"{counted(left)} of {queue} still {'waits or runs' if left == 1 else 'wait or run'} "
            f"after {ago(within_ms)}; its intake stays paused: drain it again, or "
            f"qbroker queue resume {queue}",
            Exit.UNFINISHED,
        )


def wait_until_empty(admin: Admin, queue: str, deadline: float) -> int:
    """How many messages are left when all are gone, or the time is over; 0 if the queue is gone."""
    shown = sys.stderr.isatty()
    while True:
        rows = admin.inspect("queues")
        row = next((each for each in rows if each["name"] == queue), None)
        if row is None:
            return 0
        counts: dict[str, int] = {name: row[name] for name in PLACES}
        left = sum(counts.values())
        if shown:
            told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            click.echo(f"\r{queue}: {told}   ", nl=not left, err=True)
        if left and "dispatch" in row["paused"]:
            raise Trouble(
                f"{queue} is not empty ({counted(left)}), and its dispatch is paused, so it never "
                f"will be: qbroker queue resume {queue} --dispatch",
                Exit.FAILED,
            )
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(LOOK_EVERY_S)


@queue_group.command("move")
@click.argument("queue", metavar="FROM")
@click.argument("to")
@click.option("--id", "ids", multiple=True, help="Only this one; may be said more than once.")
@filters("ready", "scheduled", "held")
@BROKER
@JSON
def move_command(
    *,
    queue: str,
    to: str,
    ids: tuple[str, ...],
    states: tuple[str, ...],
    dry_run: bool,
    broker: str,
    as_json: bool,
    **rest: Any,
) -> None:
    """Let messages that wait in FROM wait in TO, in their order, with all that is known of them."""
    if ids:
        check_no_filters("--id", older=rest["older_ms"])
    count = 0
    with asking(broker) as admin:
        for each in ids or ("",):
            frame = Move(
                queue=queue, to=to, id=each, states=",".join(states), dry_run=dry_run, **rest
            )
            count += admin.ask(frame, Ok).count
    if as_json:
        echo_json({"from": queue, "to": to, "moved": count, "dry_run": dry_run})
    else:
        click.echo(told(count, f"moved from {queue} to {to}", dry_run=dry_run))
