"""``qbroker log``: the log of a broker that does not run, as people and programs see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import printable
from qbroker.terminal import Commands

if TYPE_CHECKING:
    from qbroker.log.log import Log


@click.group("log", cls=Commands)
def log_group() -> None:
    """Read a stopped broker's log. Nothing in the folder is changed."""


FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@contextmanager
def opened_log(folder: Path) -> "Iterator[Log]":
    """The log in a data folder (or the log's own), read through an overlay."""
    from qbroker.log.disk import FileDisk  # noqa: PLC0415  # rule 4
    from qbroker.log.errors import LogError  # noqa: PLC0415  # rule 4
    from qbroker.log.log import Log, LogSettings  # noqa: PLC0415  # rule 4
    from qbroker.ops.overlay import OverlayDisk  # noqa: PLC0415  # rule 4
    from qbroker.starting import LOG_EXITS, LOG_FOLDER  # noqa: PLC0415  # rule 4

    inner = folder / LOG_FOLDER
    place = inner if inner.is_dir() else folder
    if not (place / "META").is_file():
        raise Trouble(f"{folder} holds no log: give the folder that --data names", Exit.FAILED)
    try:
        log = Log.open(OverlayDisk(FileDisk(str(place))), LogSettings())
        try:
            yield log
        finally:
            log.close()
    except LogError as error:
        raise Trouble(str(error), LOG_EXITS.get(type(error), Exit.FAILED)) from error
    except OSError as error:
        raise Trouble(f"{place} cannot be read: {error.strerror or error}", Exit.FAILED) from error


@log_group.command("dump")
@FOLDER
@click.option("--from", "first", type=click.IntRange(0), default=0, metavar="POSITION")
@click.option("--limit", type=click.IntRange(1), help="Records at most.")
def dump_command(folder: Path, first: int, limit: int | None) -> None:
    """Print one line a record: position, when it was written, what it says."""
    from qbroker.core.records import describe  # noqa: PLC0415  # rule 4

    shown = 0
    with opened_log(folder) as log:
        for _, records in log.replay(first >> 20):
            for record in records:
                if record.position < first:
                    continue
                if limit is not None and shown >= limit:
                    return
                shown += 1
                when = datetime.fromtimestamp(record.wall_ms / 1000).astimezone()
                said = printable(describe(record.type, record.body))
                click.echo(f"{record.position} {when.isoformat(timespec='milliseconds')} {said}")


@log_group.command("verify")
@FOLDER
def verify_command(folder: Path) -> None:
    """Read everything and check every digest; exit 65 if something confirmed is damaged."""
    batches = records = slots = 0
    with opened_log(folder) as log:
        torn = log.statistics().torn_bytes
        for info, stored in log.replay():
            batches += 1
            records += len(stored)
            slots += info.slots
        click.echo(
            f"intact: {records:,} records and {slots:,} positions in {batches:,} batches, "
            f"{log.oldest:,} to {log.written:,}"
        )
    if torn:
        click.echo(
            f"{torn:,} bytes at the end were never confirmed: the next start sets them aside"
        )
