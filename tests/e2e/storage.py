"""What a broker does with its data folder meanwhile, and if its archive is right in the end."""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from contextlib import closing
from typing import Any

from e2e.books import Books
from e2e.daemon import Daemon, until
from qprotocol.ids import unpack_id

OFTEN = {"checkpoint_log_bytes": "128KiB", "segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}
"""Settings under which checkpoints and cleaning happen every few seconds of a load."""
SEGMENT = re.compile(r"(\d{20})(\.\d+)?\.qlog")
SUCCESS = 6


class Sight:
    """What was seen of a data folder, looked at again and again. Counts are what it is at least."""

    def __init__(self, broker: Daemon) -> None:
        self._broker = broker
        self._log = broker.data / "log"
        self._checkpoints = broker.data / "checkpoints"
        self._seen: set[str] = set()
        self.cut_short = 0
        """Kills that left a checkpoint or a cleaned file half made."""

    def look(self) -> bool:
        """Always true, so that it may stand in conditions."""
        self._seen.update(path.name for path in self._log.glob("*.qlog"))
        return True

    def wait_for_keeper(self, *, whole: bool, more_s: float) -> None:
        """A new checkpoint stands, or is begun; and then some time more is over."""
        end, before = ".qckp" if whole else ".tmp", self.checkpoint_names()

        def stands() -> bool:
            return self.look() and any(
                name.endswith(end) for name in self.checkpoint_names() - before
            )

        until(stands, "the next checkpoint", patience_s=60)
        moment = time.monotonic() + (more_s if whole else 0)
        until(lambda: self.look() and time.monotonic() >= moment, "the kill")

    def checkpoint_names(self) -> set[str]:
        return {path.name for path in self._checkpoints.glob("*")}

    def look_after_kill(self) -> None:
        self.look()
        half = [*self._checkpoints.glob("*.tmp"), *self._log.glob("*.*-*.tmp")]
        self.cut_short += bool(half)

    def figures(self) -> dict[str, int]:
        self.look()
        there = {path.name for path in self._log.glob("*.qlog")}
        gone = [name for name in self._seen - there if SEGMENT.fullmatch(name)]
        said = self._broker.output.read_text(errors="replace")
        return {
            "checkpoints": said.count("checkpoint of batch"),
            "segments": len(self._seen),
            "segments_gone": len(gone),
            "segments_cleaned": sum(1 for name in self._seen if name.count(".") == 2),
            "log_bytes": sum(path.stat().st_size for path in self._log.glob("*.qlog")),
            "kills_with_something_half_made": self.cut_short,
        }


def count_rows(broker: Daemon) -> int:
    with closing(connected(broker)) as db:
        return int(db.execute("SELECT count(*) FROM tasks").fetchone()[0])


def connected(broker: Daemon) -> sqlite3.Connection:
    path = broker.data / "archive" / "archive.sqlite"
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def judge_rows(broker: Daemon, parts: list[Books]) -> list[str]:
    """Sentences about rows that lack, are there twice or nobody asked for. All is drained.

    Every task that was run has one row, a success with the result it was given; a message that
    is no task has none.
    """
    with closing(connected(broker)) as db:
        found = db.execute(
            "SELECT tasks.id, state, bytes FROM tasks LEFT JOIN results USING (position)"
        ).fetchall()
        (loose,) = db.execute(
            "SELECT count(*) FROM results WHERE position NOT IN (SELECT position FROM tasks)"
        ).fetchone()
    rows = Counter(name_of(raw) for raw, _, _ in found)
    due = {name: mark for books in parts for name, mark in books.due_rows().items()}
    nameless = sum(books.nameless for books in parts)
    wrong = [f"{number} rows of task {name}" for name, number in rows.items() if number > 1]
    wrong += [f"no row of task {name} ({due[name]})" for name in sorted(due.keys() - rows.keys())]
    strange = sorted(rows.keys() - due.keys())
    if len(strange) != nameless:
        wrong.append(f"{len(strange)} rows of tasks with ids not known, {nameless} have run")
    results = {name: result for books in parts for name, result in books.results.items()}
    for raw, state, result in found:
        if state != SUCCESS:
            wrong.append(f"task {name_of(raw)} is in state {state}")
        elif result not in results.get(name_of(raw), {None}):
            wrong.append(f"task {name_of(raw)} has the result {result!r}")
    if loose:
        wrong.append(f"{loose} results of no row")
    return wrong


def name_of(raw: Any) -> str:
    """A task's id as its caller knows it."""
    return unpack_id(raw, minted=True) if isinstance(raw, bytes) else str(raw)
