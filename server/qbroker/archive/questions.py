"""Questions to the archive: one task by its id, or many by what they are.

Rule 1. Answers are pages, newest first; a page is bounded, and so is the time it takes.
Rule 2. For one thread at a time. Nothing is changed.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbroker.archive.errors import ArchiveError, OlderError
from qbroker.archive.schema import SCHEMA, judged, open_to_read, schema_of
from qbroker.archive.walking import FROM, SHOWN, Place, Query, walk_for
from qbroker.core.results import Finished, Remembered
from qprotocol.failure import Failure
from qprotocol.ids import pack_id, unpack_id
from qprotocol.states import State

PAGE_ROWS_MAX = 1_000
SEARCH_MS_MAX = 2_000
"""A search that has found no whole page by then ends with what it has, and says where."""


@dataclass(slots=True)
class Page:
    """Rows, newest first."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    next: Place | None = None
    """Where the next page begins; None if there is none."""
    is_cut: bool = False
    """The time was over before the page was full: ``next`` is how far the search came."""


class Questions:
    """The archive as it can be asked. It need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def find(self, name: bytes, *, minted: bool) -> Remembered | None:
        """What callers may know of the task with that id, the latest if there were several.

        Raises ArchiveError. Two look-ups in indexes.
        """
        with self._asked() as db:
            found = (
                db
                and db.execute(
                    "SELECT position, state, content, finished_ms, run_ms, keep_until_ms, "
                    "failures, reason, bytes FROM tasks LEFT JOIN results USING (position) "
                    "WHERE id = ? AND keep_until_ms > 0 ORDER BY position DESC LIMIT 1",
                    (name if minted else name.decode(),),
                ).fetchone()
            )
        if not found:
            return None
        position, state, content, finished_ms, run_ms, until_ms, failures, reason, kept = found
        entry = Finished(
            *(State(state), 0 if kept is None else position, content or 0, finished_ms),
            *(run_ms or 0, until_ms, failures, reason or ""),
        )
        return Remembered(position, entry, kept or b"")

    def task(self, task_id: str) -> dict[str, Any] | None:
        """All that is known of one task; with its traceback, and its result's size."""
        name, minted = pack_id(task_id)
        with self._asked(SCHEMA) as db:
            found = (
                db
                and db.execute(
                    f"{SHOWN}, content, bytes {FROM} LEFT JOIN results USING (position) "
                    "WHERE tasks.id = ? ORDER BY position DESC LIMIT 1",
                    (name if minted else name.decode(),),
                ).fetchone()
            )
            history = attempts_of(db, found[0]) if db and found else []
        if not found:
            return None
        *row, content, kept = found
        shown = shown_row(row) | {"attempts": history}
        shown |= {"content": content, "result_bytes": None if kept is None else len(kept)}
        if kept and shown["state"] == "FAILURE":
            shown |= whole_failure(kept)
        return shown

    def search(self, query: Query) -> Page:
        """A page of rows. Raises ArchiveError. Takes SEARCH_MS_MAX and a slice at most."""
        limit = max(1, min(query.limit, PAGE_ROWS_MAX))
        page = Page()
        deadline = time.monotonic() + SEARCH_MS_MAX / 1000
        after = query.after
        with self._asked(SCHEMA) as db:
            walk = walk_for(db, query) if db else None
            while db and walk:
                end_ms = walk.end_of_slice(db, after)
                found = walk.rows(db, after, end_ms, limit + 1 - len(page.rows))
                page.rows += map(shown_row, found)
                if len(page.rows) > limit:
                    del page.rows[limit:]
                    page.next = page.rows[-1]["finished_ms"], page.rows[-1]["position"]
                    break
                if end_ms is None:
                    break
                after = end_ms, 0
                if time.monotonic() > deadline:
                    page.next, page.is_cut = after, True
                    break
        return page

    @contextmanager
    def _asked(self, schema: int = 1) -> Iterator[sqlite3.Connection | None]:
        """The open file, None if there is none yet. After trouble it is opened anew.

        Raises OlderError while it has not got ``schema``.
        """
        try:
            if self._db is None:
                self._db = open_to_read(self._path)
            with judged(self._path):
                found = schema_of(self._db) if self._db and schema > 1 else schema
                if found < schema:
                    raise OlderError(str(self._path), found, schema)
                yield self._db
        except ArchiveError:
            self.close()
            raise

    def close(self) -> None:
        """The file is closed; the next question opens it again."""
        db, self._db = self._db, None
        if db is not None:
            db.close()


def attempts_of(db: sqlite3.Connection, position: int) -> list[dict[str, Any]]:
    """The history of a message, the first attempt first; of one that succeeded at once, none."""
    rows = db.execute(
        "SELECT w.text, started_ms, ended_ms, outcome, error, message FROM attempts "
        "LEFT JOIN names w ON w.number = worker WHERE position = ? ORDER BY at",
        (position,),
    )
    names = ("worker", "started_ms", "ended_ms", "outcome", "error", "message")
    return [dict(zip(names, row, strict=True)) for row in rows]


def shown_row(row: Any) -> dict[str, Any]:
    """A row as people and programs see it."""
    names = (
        *("position", "id", "task", "queue", "worker", "state", "failures", "published_ms"),
        *("started_ms", "finished_ms", "run_ms", "reason", "error", "message", "root", "parent"),
        "preview",
    )
    shown = dict(zip(names, row, strict=True))
    if isinstance(shown["id"], bytes):
        shown["id"] = unpack_id(shown["id"], minted=True)
    shown["state"] = State(shown["state"]).name
    return shown


def whole_failure(raw: bytes) -> dict[str, Any]:
    """The failure with all of its message, and its traceback."""
    try:
        failure = Failure.unpack(raw)
    except ValueError:
        return {}
    return {"error": failure.kind, "message": failure.message, "traceback": failure.traceback}
