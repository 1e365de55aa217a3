"""``qbroker limit``: rules for how many messages run at once, and how many in a time."""

from typing import Any

import click

from qbroker.ops.show import ago
from qbroker.terminal import BROKER, JSON, Commands, asking, echo_json, echo_table
from qprotocol.frames import DropLimit, Ok, SetLimit
from qprotocol.limitrules import AMOUNT_MAX, LimitRule, check_limit_name, parse_rate, show_rate

WEIGHT = click.IntRange(1, AMOUNT_MAX)
SET_HELP = """Put the rule NAME in force, or change it; it says all anew.

\b
qbroker limit set mail-provider --task shop.send_mail --rate 10/s --burst 20
qbroker limit set reports --queue reports --concurrency 4
qbroker limit set tenants --queue jobs --per-key --concurrency 2 --rate 100/m

Times are ms, s, m, h and d. A change acts at once: what may go goes, what runs goes on. A rule
that a worker declared under the same name (its task's) is not in force until this is dropped.
"""


@click.group("limit", cls=Commands)
def limit_group() -> None:
    """Limit how much runs at once, and how much begins in a time.

    A rule covers a queue, a task, both or everything, as a whole or for each limit_key apart. It
    holds over all workers, at once, and over restarts; what it holds back costs no worker and no
    attempt. A message takes its weight (1 if it says none) of slots and tokens.
    """


@limit_group.command("set", help=SET_HELP)
@click.argument("name")
@click.option("--queue", default="", metavar="Q", help="Messages of this queue; without, of all.")
@click.option("--task", default="", metavar="T", help="Messages of this task; without, all.")
@click.option(
    "--per-key",
    is_flag=True,
    help="Count each limit_key apart. Messages without one are not limited then.",
)
@click.option("--concurrency", type=WEIGHT, metavar="N", help="At most N run at once.")
@click.option("--rate", metavar="N/TIME", help="At most N begin in that time: 10/s, 100/5m, 1/2h.")
@click.option(
    "--burst",
    type=WEIGHT,
    metavar="N",
    help="So many may begin at once after a rest: in T at most burst + rate x T do. [default: 1]",
)
@BROKER
@JSON
def set_command(
    *,
    name: str,
    queue: str,
    task: str,
    per_key: bool,
    concurrency: int | None,
    rate: str | None,
    burst: int | None,
    broker: str,
    as_json: bool,
) -> None:
    """Say the rule to the broker; SET_HELP is what people read."""
    if burst is not None and rate is None:
        raise click.UsageError("--burst goes with a rate: say --rate 10/s, too")
    try:
        check_limit_name(name)
        tokens, window_ms = parse_rate(rate) if rate is not None else (0, 1_000)
        rule = LimitRule.parse(
            {
                "queue": queue,
                "task": task,
                "per_key": per_key,
                "concurrency": concurrency or 0,
                "rate": tokens,
                "window_ms": window_ms,
                "burst": burst or 1,
            }
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with asking(broker) as admin:
        changed = bool(admin.ask(SetLimit(name=name, rule=rule.as_dict()), Ok).count)
    if as_json:
        echo_json({"limit": name, "changed": changed, **rule.as_dict()})
    else:
        click.echo(f"limit {name} is in force" if changed else f"limit {name} was so already")


@limit_group.command("list")
@BROKER
@JSON
def list_command(broker: str, as_json: bool) -> None:
    """List the rules: what they cover, what is taken, what they hold back.

    ORIGIN says who made a rule: an operator, or a worker for its task (code). STUCK are lanes of
    messages that weigh more than the rule has room for: they wait until it is raised.
    """
    with asking(broker) as admin:
        found = admin.inspect("limits")
    if as_json:
        echo_json(found)
        return
    echo_table(
        (
            "limit",
            "origin",
            "covers",
            "slots",
            "rate",
            "burst",
            "keys",
            "next",
            "held back",
            "stuck",
        ),
        [
            (
                *(row["name"], row["origin"], covers(row), slots(row)),
                show_rate(row["rate"], row["window_ms"]) if row["rate"] else "",
                row["burst"] if row["rate"] else "",
                row["keys"] if row["per_key"] else "",
                *(ago(row["next_ms"]) if row["next_ms"] else "", row["held_back"], row["stuck"]),
            )
            for row in found
        ],
    )


def covers(row: dict[str, Any]) -> str:
    """The rule's scope in words."""
    parts = [f"{what} {row[what]}" for what in ("queue", "task") if row[what]] or ["everything"]
    return ", ".join([*parts, *(["per key"] if row["per_key"] else [])])


def slots(row: dict[str, Any]) -> str:
    """Taken slots of how many there are; of a rule per key each key has so many."""
    if not row["concurrency"]:
        return ""
    each = " a key" if row["per_key"] else ""
    return f"{row['used']:,} of {row['concurrency']:,}{each}"


@limit_group.command("drop")
@click.argument("name")
@BROKER
@JSON
def drop_command(name: str, broker: str, as_json: bool) -> None:
    """Drop the rule NAME: what it held back goes at once.

    If a worker declared a rule of that name, that is in force then; drop again to drop it, too,
    until a worker that declares it starts.
    """
    with asking(broker) as admin:
        admin.ask(DropLimit(name=name), Ok)
    if as_json:
        echo_json({"limit": name, "dropped": True})
    else:
        click.echo(f"limit {name} is dropped")
