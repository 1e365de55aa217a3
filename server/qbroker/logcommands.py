"""``qbroker log``: the log of a broker that does not run, as people and programs see it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.ops.show import printable
from qbroker.terminal import JSON, Commands, Counting, echo_json, echo_table

if TYPE_CHECKING:
    from qbroker.log.format import BatchInfo, StoredRecord
    from qbroker.log.log import Log
    from qbroker.repairing import Loss


@click.group("log", cls=Commands)
def log_group() -> None:
    """Read a stopped broker's log; only repair changes anything."""


FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


def log_place(folder: Path) -> Path:
    """The log's own folder, in a data folder or given itself. Raises Trouble."""
    inner = folder / "log"
    place = inner if inner.is_dir() else folder
    if not (place / "META").is_file():
        raise Trouble(f"{folder} holds no log: give the folder that --data names", Exit.FAILED)
    return place


@contextmanager
def opened_log(folder: Path) -> "Iterator[Log]":
    """The log in a data folder (or the log's own), read through an overlay."""
    from qbroker.log.disk import FileDisk  # noqa: PLC0415  # rule 4
    from qbroker.log.errors import LogError  # noqa: PLC0415  # rule 4
    from qbroker.log.log import Log, LogSettings  # noqa: PLC0415  # rule 4
    from qbroker.ops.overlay import OverlayDisk  # noqa: PLC0415  # rule 4
    from qbroker.starting import log_trouble  # noqa: PLC0415  # rule 4

    place = log_place(folder)
    try:
        log = Log.open(OverlayDisk(FileDisk(str(place))), LogSettings())
        try:
            yield log
        finally:
            log.close()
    except LogError as error:
        raise log_trouble(error, folder) from error
    except OSError as error:
        raise Trouble(f"{place} cannot be read: {error.strerror or error}", Exit.FAILED) from error


@log_group.command("dump")
@FOLDER
@click.option("--from", "first", type=click.IntRange(0), default=0, metavar="POSITION")
@click.option("--limit", type=click.IntRange(1), help="Records at most.")
@JSON
def dump_command(folder: Path, first: int, limit: int | None, as_json: bool) -> None:
    """Print one line a record: position, when it was written, what it says."""
    from qbroker.core.records import NAMES, describe  # noqa: PLC0415  # rule 4

    shown = 0
    with opened_log(folder) as log:
        for _, records in log.replay(first >> 20):
            for record in records:
                if record.position < first:
                    continue
                if limit is not None and shown >= limit:
                    return
                shown += 1
                if as_json:
                    row: dict[str, int | str] = {
                        "position": record.position,
                        "wall_ms": record.wall_ms,
                    }
                    row |= {"type": NAMES[record.type], "says": describe(record.type, record.body)}
                    click.echo(json.dumps(row))
                    continue
                when = datetime.fromtimestamp(record.wall_ms / 1000).astimezone()
                said = printable(describe(record.type, record.body))
                click.echo(f"{record.position} {when.isoformat(timespec='milliseconds')} {said}")


@log_group.command("verify")
@FOLDER
@JSON
def verify_command(folder: Path, as_json: bool) -> None:
    """Read everything and check every digest; exit 65 if something confirmed is damaged."""
    batches = records = slots = 0
    with opened_log(folder) as log, Counting("verifying") as counting:
        torn = log.statistics().torn_bytes
        for info, stored in log.replay():
            batches += 1
            records += len(stored)
            slots += info.slots
            counting.add(info.length)
        oldest, newest = log.oldest, log.written
    if as_json:
        found = {"records": records, "slots": slots, "batches": batches, "torn_bytes": torn}
        echo_json({**found, "oldest": oldest, "newest": newest})
        return
    click.echo(
        f"intact: {records:,} records and {slots:,} positions in {batches:,} batches, "
        f"{oldest:,} to {newest:,}"
    )
    if torn:
        click.echo(
            f"{torn:,} bytes at the end were never confirmed: the next start sets them aside"
        )


@log_group.command("stats")
@FOLDER
@JSON
def stats_command(folder: Path, as_json: bool) -> None:
    """Show what each segment holds, how much of it lives, and what it costs on disk.

    Reads the whole log, and the checkpoints if there are some. What lives is counted in
    positions; its bytes are an estimate.
    """
    from qbroker.ages import Ages  # noqa: PLC0415  # rule 4 of cli.py
    from qbroker.checkpoint.shelf import FOLDER as CHECKPOINTS  # noqa: PLC0415
    from qbroker.checkpoint.shelf import Shelf  # noqa: PLC0415
    from qbroker.core.broker import Broker  # noqa: PLC0415
    from qbroker.core.settings import Settings  # noqa: PLC0415
    from qbroker.figures import figures  # noqa: PLC0415
    from qbroker.log.disk import FileDisk  # noqa: PLC0415
    from qbroker.replaying import replay  # noqa: PLC0415
    from qbroker.starting import restore  # noqa: PLC0415

    with opened_log(folder) as log, Counting("reading") as counting:
        if (folder / CHECKPOINTS).is_dir():
            shelf = Shelf(FileDisk(str(folder / CHECKPOINTS)))
            core = restore(log, shelf, Settings(), lambda *_: None)[0].core
        else:
            core = Broker(Settings())
            replay(log, core, Ages(), lambda *_: None)

        def counted() -> "Iterator[tuple[BatchInfo, list[StoredRecord]]]":
            for info, stored in log.replay():
                counting.add(info.length)
                yield info, stored

        rows = figures(log_place(folder), counted(), core.state)
    if as_json:
        echo_json(
            [
                asdict(row)
                | {"records": dict(row.records), "live_bytes": row.live_bytes}
                | {"amplification": row.amplification}
                for row in rows
            ]
        )
        return
    types = sorted({name for row in rows for name in row.records})
    header = ("segment", "batches", "bytes", "written per record byte", "slots", "live", *types)
    shown = [
        (
            *(row.name, row.batches, row.bytes, row.amplification, row.slots),
            f"{100 * row.live / row.slots:.0f} %" if row.slots else "",
            *(row.records[name] for name in types),
        )
        for row in rows
    ]
    echo_table(header, shown)


@log_group.command("repair")
@FOLDER
@click.option(
    "--truncate-at",
    "position",
    type=click.IntRange(1 << 20),
    required=True,
    metavar="POSITION",
    help="Its batch, and everything behind it, is cut off.",
)
@click.option("--i-accept-data-loss", "accepted", is_flag=True, help="Do it.")
@JSON
def repair_command(folder: Path, position: int, accepted: bool, as_json: bool) -> None:
    """Cut a damaged log off where it is damaged, if there is no backup.

    Says what will be lost, and changes nothing without --i-accept-data-loss. What is cut is
    kept in the data folder.
    """
    from qbroker.log.errors import LogError  # noqa: PLC0415  # rule 4 of cli.py
    from qbroker.repairing import Repair, RepairError  # noqa: PLC0415
    from qbroker.starting import log_trouble  # noqa: PLC0415

    log_place(folder)
    try:
        repair = Repair(folder, position >> 20)
        loss = repair.loss
        kept = folder / f"cut-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        if as_json:
            counted = {"records": dict(loss.records), "messages": dict(loss.messages)}
            echo_json({**asdict(loss), **counted, "kept_in": str(kept) if accepted else ""})
        else:
            say_loss(loss)
        if not accepted:
            raise Trouble("nothing was changed: add --i-accept-data-loss to cut", Exit.USAGE)
        repair.carry_out(kept)
        repair.close()
    except RepairError as error:
        raise Trouble(str(error), Exit.FAILED) from error
    except LogError as error:
        raise log_trouble(error, folder) from error
    except OSError as error:
        raise Trouble(f"the repair failed: {error}; start it again", Exit.FAILED) from error
    if not as_json:
        click.echo(f"cut; what was cut is in {kept}; see qbroker log verify, then start the broker")


def say_loss(loss: "Loss") -> None:
    """What a cut takes away, in lines for people."""
    click.echo(
        f"cutting {loss.cut_file} at byte {loss.cut_offset:,} loses batch {loss.batch:,} and all "
        f"behind it: {loss.batches:,} batches, {loss.bytes:,} bytes that can be read and "
        f"{loss.unreadable_bytes:,} that cannot; {len(loss.files)} whole segments and "
        f"{len(loss.checkpoints)} checkpoints"
    )
    for name, count in sorted(loss.records.items()):
        click.echo(f"  {count:>12,}  {name} records")
    for queue, count in sorted(loss.messages.items()):
        click.echo(f"  {count:>12,}  messages published to {printable(queue)}")
    if loss.ids:
        click.echo(f"  the first of them: {printable(', '.join(loss.ids))}")
