"""``qbroker event``: listen to what applications say with ``app.events``, and say something."""

import sys
import time
from typing import Any

import click

from qbroker.ops.eventtexts import line, packed
from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import counted
from qbroker.ordercommands import Span
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json
from qprotocol.frames import Event, Listen, Notify, Ok
from qprotocol.topics import check_pattern, check_topic


@click.group("event", cls=Commands)
def event_group() -> None:
    """Listen to events, and publish one. They are kept nowhere: who is not there misses them."""


@event_group.command("listen")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@click.option("--for", "for_ms", type=Span(), default=0, metavar="SPAN", help="End after that.")
@BROKER
@JSON
def listen_command(
    *, patterns: tuple[str, ...], count: int | None, for_ms: int, broker: str, as_json: bool
) -> None:
    """Show events whose topic fits a PATTERN (order.*.paid, order.#), as they come; all without.

    A line each; with --json an object each. Ends with Ctrl-C, or as the options say.
    """
    chosen = [checked(check_pattern, pattern) for pattern in patterns] or ["#"]
    end_s = time.monotonic() + for_ms / 1000 if for_ms else None
    left = count
    with asking(broker) as admin:
        admin.ask(Listen(listener=1, patterns=chosen), Ok)
        while left is None or left:
            event = admin.push(Event, None if end_s is None else end_s - time.monotonic())
            if event is None:
                return
            click.echo(line(event, as_json=as_json))
            left = left and left - 1


@event_group.command("send")
@click.argument("topic")
@click.argument("payload", default="-")
@BROKER
@JSON
def send_command(topic: str, payload: str, broker: str, as_json: bool) -> None:
    """Publish an event: PAYLOAD, or what comes on stdin, which is JSON or else text."""
    checked(check_topic, topic)
    text = sys.stdin.read() if payload == "-" else payload
    with asking(broker) as admin:
        frame = Notify(topic=topic, raw=packed(text))
        count = admin.ask(frame, Ok).count
    if as_json:
        echo_json({"topic": topic, "listeners": count})
    else:
        click.echo(f"{counted(count, 'listener')} told")


def checked(check: Any, text: str) -> str:
    """The text, if it is a topic or pattern."""
    try:
        check(text)
    except ValueError as error:
        raise Trouble(str(error), Exit.USAGE) from error
    return text
