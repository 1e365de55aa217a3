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
from qbroker.core.results import Finished, Remembered
from qprotocol.failure import Failure
from qprotocol.ids import pack_id, unpack_id
from qprotocol.states import State

PAGE_ROWS_MAX = 1_000
SEARCH_MS_MAX = 2_000
"""A search that has found no whole page by then ends with what it has."""
_STEPS = 10_000
"""SQLite's own steps between two looks at the clock: some hundred microseconds."""

_SHOWN = (
    "position, tasks.id, t.text, q.text, w.text, state, failures, published_ms, started_ms, "
    "finished_ms, run_ms, reason, error, message, root, parent, preview"
)
_FROM = (
    "FROM tasks LEFT JOIN names t ON t.number = task LEFT JOIN names q ON q.number = queue "
    "LEFT JOIN names w ON w.number = worker"
)


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; what is empty or 0 is not asked. Times are milliseconds since 1970."""

    task: str = ""
    queue: str = ""
    worker: str = ""
    """A session, as its hexadecimal text or the beginning of it; or session/member."""
    state: int = 0
    error: str = ""
    """The kind of the failure, or the beginning of it."""
    preview: str = ""
    """Any part of what was shown of the arguments."""
    since_ms: int = 0
    until_ms: int = 0
    limit: int = 50
    after: tuple[int, int] = (0, 0)
    """(finished_ms, position) of the last row of the page before."""


@dataclass(slots=True)
class Page:
    """Rows, newest first."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    next: tuple[int, int] | None = None
    """Where the next page begins; None if there is none."""
    is_cut: bool = False
    """The time was over before the page was full: narrow the search."""


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
                    f"SELECT {_SHOWN}, content, bytes {_FROM} LEFT JOIN results USING (position) "
                    "WHERE tasks.id = ? ORDER BY position DESC LIMIT 1",
                    (name if minted else name.decode(),),
                ).fetchone()
            )
        if not found:
            return None
        *row, content, kept = found
        shown = shown_row(row)
        shown |= {"content": content, "result_bytes": None if kept is None else len(kept)}
        if kept and shown["state"] == "FAILURE":
            shown |= whole_failure(kept)
        return shown

    def search(self, query: Query) -> Page:
        """A page of rows. Raises ArchiveError. Takes SEARCH_MS_MAX at most."""
        limit = max(1, min(query.limit, PAGE_ROWS_MAX))
        page = Page()
        with self._asked(SCHEMA) as db:
            if db is None:
                return page
            where, values = conditions(db, query)
            deadline = time.monotonic() + SEARCH_MS_MAX / 1000
            db.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            try:
                cursor = db.execute(
                    f"SELECT {_SHOWN} {_FROM} WHERE {where} "
                    "ORDER BY finished_ms DESC, position DESC LIMIT ?",
                    (*values, limit + 1),
                )
                for row in cursor:
                    page.rows.append(shown_row(row))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                page.is_cut = True
            finally:
                db.set_progress_handler(None, 0)
        if len(page.rows) > limit or (page.is_cut and page.rows):
            page.rows = page.rows[:limit]
            page.next = page.rows[-1]["finished_ms"], page.rows[-1]["position"]
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


def conditions(db: sqlite3.Connection, query: Query) -> tuple[str, list[object]]:
    """The WHERE clause, and its values."""
    found: list[tuple[str, object]] = []
    for column in ("task", "queue"):
        text = getattr(query, column)
        if text:
            # By number, so that the index is used; 0 is the number of none.
            row = db.execute("SELECT number FROM names WHERE text = ?", (text,)).fetchone()
            found.append((f"tasks.{column} = ?", row[0] if row else 0))
    if query.worker:
        like = "worker IN (SELECT number FROM names WHERE text GLOB ?)"
        found.append((like, literal(query.worker) + "*"))
    if query.state:
        found.append(("state = ?", query.state))
        if query.state != State.SUCCESS:
            found.append(("state <> ?", int(State.SUCCESS)))
    if query.error:
        found.append(("error GLOB ?", literal(query.error) + "*"))
    if query.preview:
        found.append(("instr(preview, ?) > 0", query.preview))
    if query.since_ms:
        found.append(("finished_ms >= ?", query.since_ms))
    if query.until_ms:
        found.append(("finished_ms < ?", query.until_ms))
    finished_ms, position = query.after
    if position:
        found.append(("finished_ms <= ?", finished_ms))
        found.append(("(finished_ms, tasks.position) < (?, ?)", (finished_ms, position)))
    where = " AND ".join(text for text, _ in found) or "1"
    values: list[object] = []
    for _, value in found:
        values += value if isinstance(value, tuple) else (value,)
    return where, values


def literal(text: str) -> str:
    """``text`` for GLOB, meaning itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


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
