"""``qbroker backup`` and ``qbroker restore``: a data folder into another folder, and back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from qbroker.ops.exits import Exit, Trouble
from qbroker.terminal import JSON, Counting, echo_json

PLACE = click.Path(file_okay=False, path_type=Path)


@contextmanager
def in_one_line(doing: str) -> Iterator[Callable[[int], None]]:
    """What goes wrong is Trouble. Gives what is told of bytes, shown on a terminal."""
    from qbroker.backup.manifest import BackupError  # noqa: PLC0415  # rule 4 of cli.py
    from qbroker.log.errors import LogError  # noqa: PLC0415  # rule 4 of cli.py

    try:
        with Counting(doing) as counting:
            yield counting.add
    except BackupError as error:
        raise Trouble(str(error), Exit.FAILED) from error
    except LogError as error:
        raise Trouble(str(error), Exit.CORRUPT) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Trouble(f"{doing} failed: {error.strerror or error}{where}", Exit.FAILED) from error


@click.command("backup")
@click.argument("folder", metavar="DIR", type=PLACE)
@click.option(
    "--data",
    type=PLACE,
    envvar="QBROKER_DATA",
    default=Path("qbroker-data"),
    show_default=True,
    help="The broker's data folder; also QBROKER_DATA.",
)
@JSON
def backup_command(folder: Path, data: Path, as_json: bool) -> None:
    """Back up a data folder into DIR, whether its broker runs or not.

    All that was confirmed before is in it. Into a DIR with an earlier backup only what is new is
    copied; the earlier one is whole until this one is.
    """
    from qbroker.backup.taking import take  # noqa: PLC0415  # rule 4 of cli.py

    with in_one_line("backing up") as told:
        taken = take(data, folder, told)
    if as_json:
        echo_json(asdict(taken))
        return
    click.echo(
        f"backed up {data} up to batch {taken.batch:,} into {folder}: {taken.files:,} files, "
        f"{taken.bytes:,} bytes; new: {taken.copied_files:,} files, {taken.copied_bytes:,} bytes"
    )


@click.command("restore")
@click.argument("folder", metavar="DIR", type=PLACE)
@click.argument("data", metavar="DATA", type=PLACE)
@JSON
def restore_command(folder: Path, data: Path, as_json: bool) -> None:
    """Verify the backup in DIR, and make the data folder DATA of it, which must be new or empty.

    What workers of the lost broker hold since the backup is lost to them: they are told so when
    they come, and the messages are handed out anew.
    """
    from qbroker.backup.restoring import restore  # noqa: PLC0415  # rule 4 of cli.py

    with in_one_line("restoring") as told:
        manifest = restore(folder, data, told)
    if as_json:
        size = sum(entry.bytes for entry in manifest.entries)
        echo_json({"batch": manifest.batch, "made_ms": manifest.made_ms, "bytes": size})
        return
    when = datetime.fromtimestamp(manifest.made_ms / 1000).astimezone()
    click.echo(
        f"restored {data} as it was on {when.isoformat(' ', 'seconds')}, up to batch "
        f"{manifest.batch:,}; start it with: qbroker serve --data {data}"
    )
