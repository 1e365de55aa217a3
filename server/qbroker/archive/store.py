"""The archive's file as its one writer has it: transactions, quota, time to live.

Every transaction is: rows, results, what the archivist knows, the last batch. It is on
stable storage when ``save`` returns.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbroker.archive.changes import COLUMNS, Changes
from qbroker.archive.known import Known, Lane, Queue, Tries, pack_grant, unpack_grant
from qbroker.archive.schema import PAGE_BYTES, judged, open_to_write

SWEEP_ROWS_MAX = 2_000
"""Rows that go in one transaction because their time is over, or there is no room."""
NAMES_MAX = 10_000
"""Names of tasks, queues and workers, above which a start looks for those no row has."""
ATTEMPTS_MAX = 50
"""Attempts kept of one message: the last."""
VACUUM_PAGES = 2_000
"""Free pages that stay in the file, to be used again; what is more goes back to the disk."""
_INSERT = f"INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_INHERIT = (
    "UPDATE tasks SET (error, message, content) = "
    "(SELECT error, message, content FROM tasks WHERE position = ?) WHERE position = ?"
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the archive holds, as of the last transaction. Totals are since it was made."""

    batch: int
    rows: int
    """Rows ever written."""
    shed: int
    """Rows never written, because the archive was too far behind."""
    bytes: int
    """Of pages in use; free ones and SQLite's own files are not counted."""


class Store:
    """One open archive. Made by ``open_store``; all methods raise ArchiveError."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        found = dict(db.execute("SELECT name, value FROM meta"))
        self.batch: int = found["batch"]
        """Everything up to this batch of the log is in."""
        self._rows: int = found["rows"]
        self._shed: int = found["shed"]

    def known(self) -> Known:
        """What the archivist knew at the last batch."""
        with judged(self._path):
            rows = self._db.execute
            self._drop_names()
            return Known(
                {number: Queue(*rest) for number, *rest in rows("SELECT * FROM queues")},
                {number: Lane(*rest) for number, *rest in rows("SELECT * FROM lanes")},
                {number: unpack_grant(*rest) for number, *rest in rows("SELECT * FROM grants")},
                {position: Tries(*rest) for position, *rest in rows("SELECT * FROM tries")},
                {text: number for number, text in rows("SELECT * FROM names")},
            )

    def _drop_names(self) -> None:
        """Once there are many, names that no row has are gone: workers come and go."""
        (count,) = self._db.execute("SELECT count(*) FROM names").fetchone()
        if count > NAMES_MAX:
            self._db.execute(
                "DELETE FROM names WHERE number NOT IN (SELECT task FROM tasks WHERE task > 0 "
                "UNION SELECT queue FROM tasks WHERE queue > 0 "
                "UNION SELECT worker FROM tasks WHERE worker > 0 "
                "UNION SELECT worker FROM attempts WHERE worker > 0 "
                "UNION SELECT worker FROM grants WHERE worker > 0)"
            )

    def save(self, batch: int, changes: Changes, known: Known) -> None:
        """All of it is durable, and covers the log up to ``batch``."""
        with judged(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._save_rows(changes)
                self._save_known(known)
                self._rows += changes.rows
                self._shed += changes.shed
                meta = (("batch", batch), ("rows", self._rows), ("shed", self._shed))
                self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
        self.batch = batch

    def _save_rows(self, changes: Changes) -> None:
        many = self._db.executemany
        for position, after in changes.renamed:
            for table in ("tasks", "results", "attempts"):
                statement = f"UPDATE OR REPLACE {table} SET position = ? WHERE position = ?"  # noqa: S608  # constants
                self._db.execute(statement, (after, position))
        if changes.forgotten:
            gone = [(position,) for position in changes.forgotten]
            many("DELETE FROM tasks WHERE position = ?", gone)
            many("DELETE FROM results WHERE position = ?", gone)
        if changes.settled:
            # For a row that may replace another one SQLite copies every page it touches aside,
            # each time: half of what an archivist took. Hardly any row does.
            made = many(f"INSERT OR IGNORE {_INSERT}", changes.settled.values()).rowcount
            if made < len(changes.settled):
                many(f"INSERT OR REPLACE {_INSERT}", changes.settled.values())
        if changes.acked:
            many(f"INSERT OR IGNORE {_INSERT}", changes.acked)
        self._save_attempts(changes)
        if changes.results:
            many("INSERT OR REPLACE INTO results VALUES (?, ?)", changes.results.items())
        heirs = changes.inherited.items()
        many(
            "INSERT OR REPLACE INTO results SELECT ?, bytes FROM results WHERE position = ?", heirs
        )
        many(_INHERIT, ((cause, heir) for heir, cause in heirs))

    def _save_attempts(self, changes: Changes) -> None:
        many = self._db.executemany
        gone = [(position,) for position in changes.unlearned]
        many("DELETE FROM attempts WHERE position = ?", gone)
        for position, rows in changes.attempts.items():
            many("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute(
                "DELETE FROM attempts WHERE position = ?1 AND at <= (SELECT at FROM attempts "
                "WHERE position = ?1 ORDER BY at DESC LIMIT 1 OFFSET ?2)",
                (position, ATTEMPTS_MAX),
            )

    def _save_known(self, known: Known) -> None:
        many = self._db.executemany
        new = [(n, known.queues[n].name, known.queues[n].history) for n in known.new_queues]
        many("INSERT OR REPLACE INTO queues VALUES (?, ?, ?)", new)
        lanes = [(n, known.lanes[n].queue, known.lanes[n].task) for n in known.new_lanes]
        many("INSERT OR REPLACE INTO lanes VALUES (?, ?, ?)", lanes)
        many("INSERT INTO names VALUES (?, ?)", known.new_names)
        self._replace("grants", "number", known.changed_grants, known.grants, pack_grant)
        self._replace("tries", "position", known.changed_tries, known.tries, pack_tries)

    def _replace(self, table: str, key: str, changed: set[int], found: Any, pack: Any) -> None:
        """The rows of what changed are as they are now, or gone."""
        gone = [(number,) for number in changed if number not in found]
        self._db.executemany(f"DELETE FROM {table} WHERE {key} = ?", gone)  # noqa: S608  # constants
        rows = [pack(number, found[number]) for number in changed if number in found]
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608  # constants

    # What goes.

    def sweep(self, now_ms: int, ttl_ms: int, bytes_max: int) -> bool:
        """A step towards what may be kept: some rows go, oldest first. Whether more have to.

        First what nobody may ask for any more, then rows over ``ttl_ms``, then the oldest
        while there is more than ``bytes_max``.
        """
        with judged(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                moved = self._let_go(now_ms) + self._drop_older(now_ms - ttl_ms)
                if not moved and self.figures().bytes > bytes_max:
                    moved = self._drop_older(now_ms)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise
            free = self._pragma("freelist_count")
            if free > VACUUM_PAGES:
                self._db.execute(f"PRAGMA incremental_vacuum({free - VACUUM_PAGES})").fetchall()
        return moved >= SWEEP_ROWS_MAX or (moved > 0 and self.figures().bytes > bytes_max)

    def _let_go(self, now_ms: int) -> int:
        """Results nobody may ask for any more: their bytes go, and rows kept for them alone."""
        found = self._db.execute(
            "SELECT position, brief, state FROM tasks WHERE keep_until_ms > 0 "
            "AND keep_until_ms <= ? ORDER BY keep_until_ms LIMIT ?",
            (now_ms, SWEEP_ROWS_MAX),
        ).fetchall()
        many = self._db.executemany
        over = [(position,) for position, brief, _ in found if brief]
        many("DELETE FROM tasks WHERE position = ?", over)
        many("DELETE FROM attempts WHERE position = ?", over)
        # A failure is shown as long as its row is there.
        over += [(position,) for position, brief, state in found if state == 6 and not brief]
        many("DELETE FROM results WHERE position = ?", over)
        many(
            "UPDATE tasks SET keep_until_ms = 0 WHERE position = ?",
            [(position,) for position, brief, _ in found if not brief],
        )
        return len(found)

    def _drop_older(self, before_ms: int) -> int:
        """The oldest rows that were finished before that are gone."""
        found = self._db.execute(
            "SELECT position FROM tasks WHERE finished_ms <= ? ORDER BY finished_ms LIMIT ?",
            (before_ms, SWEEP_ROWS_MAX),
        ).fetchall()
        self._db.executemany("DELETE FROM tasks WHERE position = ?", found)
        self._db.executemany("DELETE FROM results WHERE position = ?", found)
        self._db.executemany("DELETE FROM attempts WHERE position = ?", found)
        old = self._db.execute(
            "SELECT position, at FROM attempts WHERE ended_ms <= ? ORDER BY ended_ms LIMIT ?",
            (before_ms, SWEEP_ROWS_MAX),
        ).fetchall()
        self._db.executemany("DELETE FROM attempts WHERE position = ? AND at = ?", old)
        return max(len(found), len(old))

    # What can be said of it.

    def figures(self) -> Figures:
        """What it holds now. Two pragmas."""
        with judged(self._path):
            pages = self._pragma("page_count") - self._pragma("freelist_count")
        return Figures(self.batch, self._rows, self._shed, pages * PAGE_BYTES)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """The file is closed; SQLite puts its journal into it."""
        with judged(self._path):
            self._db.close()


def pack_tries(position: int, tries: Tries) -> tuple[int, int, int, int]:
    """The entry as a row of its table."""
    return position, tries.failures, tries.published_ms, tries.lane


def open_store(path: Path, log_id: bytes) -> Store:
    """The archive of that log, made if there is none. Raises ArchiveError."""
    db = open_to_write(path, log_id)
    with judged(path):
        return Store(path, db)
