"""``qworker -A module[:app]``: reads options, becomes the parent, ends with its exit code."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from qprotocol import __version__
from qprotocol.options import QUEUE_ORDERS, WEIGHTED
from qworker import logs
from qworker.options import (
    LEVELS,
    LOG_FORMATS,
    OptionError,
    WorkerOptions,
    parse_size_kib,
    split_weights,
)
from qworker.pidfile import Pidfile, PidfileError
from qworker.pools import POOLS
from qworker.worker import EXIT_NOT_STARTED, Worker


def split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Queues: -Q a,b and -Q a -Q b mean the same."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    try:
        return parse_size_kib(value) if value else 0
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-A", "--app", required=True, help="module, module:attribute or module.attribute.")
@click.option(
    "-Q",
    "--queues",
    multiple=True,
    callback=split,
    help="Queues, with commas; high:5,low:1 are shares.",
)
@click.option(
    "--queue-order",
    type=click.Choice(QUEUE_ORDERS),
    default=WEIGHTED,
    show_default=True,
    help="How several queues take turns; strict: as -Q names them.",
)
@click.option("-P", "--pool", type=click.Choice(list(POOLS)), default="prefork", show_default=True)
@click.option("-c", "--concurrency", type=int, default=0, help="Tasks at once [one a CPU].")
@click.option(
    "-l",
    "--loglevel",
    "level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="text", show_default=True)
@click.option("-n", "--name", "--hostname", "name", default="worker@%h", show_default=True)
@click.option("-b", "--broker", default="", help="qbroker://host[:port] [the application's].")
@click.option("--max-tasks-per-child", type=int, default=0, help="Then another takes its place.")
@click.option(
    "--max-memory-per-child",
    "max_memory_per_child_kib",
    default="",
    callback=size,
    help="KiB, or 200MB; then another takes its place.",
)
@click.option(
    "--time-limit", "time_limit_s", type=float, default=0.0, help="Seconds; then it is killed."
)
@click.option(
    "--soft-time-limit",
    "soft_time_limit_s",
    type=float,
    default=0.0,
    help="Seconds; then SoftTimeLimitExceeded is raised in the task.",
)
@click.option(
    "--shutdown-timeout",
    "shutdown_timeout_s",
    type=float,
    default=25.0,
    show_default=True,
    help="Seconds that running tasks get after SIGTERM.",
)
@click.option("--pidfile", default="", help="Holds the parent's process id while it runs.")
@click.option("--workdir", default="", help="Change there first; -A is looked up there.")
@click.version_option(__version__, prog_name="qworker")
def main(workdir: str, pidfile: str, **given: Any) -> None:
    """Run the tasks of an application.

    SIGTERM or SIGINT lets running tasks finish, a second one does not. See worker/README.md.
    """
    pidfile = str(Path(pidfile).absolute()) if pidfile else ""
    if workdir:
        os.chdir(workdir)
    given["level"] = given["level"].upper()
    given["queues"], given["queue_weights"] = split_weights(given["queues"])
    try:
        options = WorkerOptions(**given).checked()
        with Pidfile(pidfile):
            logs.set_up(options.level, options.log_format, "worker")
            code = Worker(options).run()
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    except (PidfileError, OSError) as error:
        click.echo(f"qworker: {error}", err=True)
        code = EXIT_NOT_STARTED
    sys.exit(code)


if __name__ == "__main__":
    main()
