"""The archive's file: its tables, how it is opened, and how it is told from others.

    tasks      a row a settled message, by its position in the log
    attempts   a row an attempt, of messages that did not succeed at once, and what people did
    results    the bytes of its result, or of its packed failure
    names      tasks, queues and workers, which rows name by number
    queues, lanes, grants, tries    what the archivist knows beside the rows
    meta       of which log it is, and up to which batch it tells

Rule 1. Rows, what the archivist knows, and the last batch change in one transaction: after
        any crash the file tells of whole batches, each once.
Rule 2. One process writes (it holds a lock), any may read.
Rule 3. What is there and cannot be read is never replaced: a person decides.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qbroker.archive.errors import ArchiveError, BusyError, DamagedError, ForeignError, NewerError

FILE_NAME = "archive.sqlite"
APPLICATION_ID = 0x71627261
"""``qbra``: by which the file is known, to `file` too."""
SCHEMA = 4
PAGE_BYTES = 8192
CACHE_KIB = 16 * 1024
BUSY_MS = 5_000
"""How long a reader or a checkpoint of SQLite's own may keep a statement waiting."""

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE names (number INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE tasks (
    position INTEGER PRIMARY KEY,
    id,                              -- 16 bytes of a UUIDv7, or the text its caller chose
    task INTEGER,                    -- names; NULL for a plain message
    queue INTEGER,                   -- names: where it was published to
    root TEXT,
    parent TEXT,
    published_ms INTEGER,            -- all times: milliseconds since 1970
    worker INTEGER,                  -- names: session/member; NULL where none is known
    state INTEGER NOT NULL,          -- qprotocol.states.State
    failures INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER NOT NULL,
    run_ms INTEGER,
    keep_until_ms INTEGER NOT NULL,  -- until then callers may ask for it; 0: not any more
    brief INTEGER NOT NULL,          -- 1: the row goes when nobody may ask any more
    reason TEXT,                     -- why it failed for good, or was revoked
    error TEXT,                      -- the failure's kind
    message TEXT,                    -- and how it begins; all of it is in results
    content INTEGER,                 -- how the result is encoded; NULL without one
    preview TEXT                     -- what the client showed of the arguments; NULL without one
);
CREATE TABLE results (position INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL, history TEXT NOT NULL);
CREATE TABLE lanes (number INTEGER PRIMARY KEY, queue INTEGER NOT NULL, task TEXT NOT NULL);
CREATE TABLE grants (
    number INTEGER PRIMARY KEY, worker INTEGER, granted_ms INTEGER NOT NULL,
    still INTEGER NOT NULL,          -- messages that are not back
    entries BLOB NOT NULL,           -- lane, first position, count: u64 each
    back BLOB NOT NULL               -- positions that wait again: u64 each
);
CREATE TABLE tries (
    position INTEGER PRIMARY KEY, failures INTEGER NOT NULL, published_ms INTEGER NOT NULL,
    lane INTEGER NOT NULL
);
CREATE TABLE attempts (
    position INTEGER NOT NULL,
    at INTEGER NOT NULL,             -- the record that ended it: the order of attempts
    worker INTEGER,                  -- names
    started_ms INTEGER,
    ended_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL,           -- succeeded, failed, crashed, rejected; replayed, edited ...
    error TEXT,
    message TEXT,                    -- how the error's begins; or who did it, and why
    PRIMARY KEY (position, at)
) WITHOUT ROWID;
CREATE INDEX attempts_ended ON attempts (ended_ms);
CREATE INDEX tasks_id ON tasks (id);
CREATE INDEX tasks_finished ON tasks (finished_ms, queue, worker);
CREATE INDEX tasks_task ON tasks (task, finished_ms);
CREATE INDEX tasks_unsuccessful ON tasks (finished_ms, state, error) WHERE state <> 6;
CREATE INDEX tasks_kept ON tasks (keep_until_ms) WHERE keep_until_ms > 0;
"""
HISTORY = """
CREATE VIEW history AS
    SELECT position, CASE typeof(id) WHEN 'blob' THEN lower(hex(id)) ELSE id END AS id,
        t.text AS task, q.text AS queue, w.text AS worker,
        CASE state WHEN 6 THEN 'SUCCESS' WHEN 7 THEN 'FAILURE' ELSE 'REVOKED' END AS state,
        failures, published_ms, started_ms, finished_ms, run_ms, reason, error, message, preview
    FROM tasks LEFT JOIN names t ON t.number = task LEFT JOIN names q ON q.number = queue
        LEFT JOIN names w ON w.number = worker
"""
# Searches by queue, worker or error walk rows by time (walking.py) and find these columns in the
# indexes by time. An index of their own would cost every row a tenth of its time.

ATTEMPTS = tuple(each for each in TABLES.split(";\n") if " attempts" in each.split("(")[0])
"""What makes the table of attempts, and its index."""
UPGRADES = {
    1: ("ALTER TABLE tasks ADD COLUMN preview TEXT", "DROP VIEW history", HISTORY),
    2: (
        "DROP INDEX tasks_finished",
        "CREATE INDEX tasks_finished ON tasks (finished_ms, queue, worker)",
        "DROP INDEX tasks_unsuccessful",
        "CREATE INDEX tasks_unsuccessful ON tasks (finished_ms, state, error) WHERE state <> 6",
    ),
    3: ATTEMPTS,
}
"""What makes the schema after it of each schema. The second takes a second a million rows."""


@contextmanager
def judged(path: Path) -> Iterator[None]:
    """What SQLite says as an ArchiveError: damaged, or unusable for now."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or (
            isinstance(error, sqlite3.OperationalError) and "no such" in str(error)
        ):
            raise DamagedError(str(path), str(error)) from error
        raise BusyError(str(path), str(error)) from error
    except OSError as error:
        raise BusyError(str(path), error.strerror or str(error)) from error


def open_to_write(path: Path, log_id: bytes) -> sqlite3.Connection:
    """The archive of that log, made if there is none. Raises ArchiveError."""
    with judged(path):
        db = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None)
        try:
            if not db.execute("PRAGMA schema_version").fetchone()[0]:
                create(db, log_id)
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            check(db, path, log_id)
            upgrade(db)
        except BaseException:
            db.close()
            raise
    path.chmod(0o600)
    return db


def open_to_read(path: Path) -> sqlite3.Connection | None:
    """The archive for questions; None if there is none yet. For one thread at a time.

    Raises ArchiveError.
    """
    if not path.exists():
        return None
    with judged(path):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            db.execute("PRAGMA query_only=1")
            db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            if not db.execute("PRAGMA schema_version").fetchone()[0]:
                db.close()
                return None
            check(db, path, None)
        except BaseException:
            db.close()
            raise
    return db


def create(db: sqlite3.Connection, log_id: bytes) -> None:
    """Empty tables, all of them or none."""
    for pragma in (
        f"page_size={PAGE_BYTES}",
        "auto_vacuum=INCREMENTAL",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        db.execute(f"PRAGMA {pragma}")
    db.execute("BEGIN IMMEDIATE")
    for statement in (*TABLES.split(";\n"), HISTORY):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA}")
    start = {"log": log_id, "batch": 0, "rows": 0, "shed": 0}
    db.executemany("INSERT INTO meta VALUES (?, ?)", start.items())
    db.execute("COMMIT")


def upgrade(db: sqlite3.Connection) -> None:
    """An archive that an earlier version wrote has this one's tables. All of it or nothing."""
    if schema_of(db) == SCHEMA:
        return
    db.execute("BEGIN IMMEDIATE")
    for schema in range(schema_of(db), SCHEMA):
        for statement in UPGRADES[schema]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version={SCHEMA}")
    db.execute("COMMIT")


def schema_of(db: sqlite3.Connection) -> int:
    """Which schema the file has now."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check(db: sqlite3.Connection, path: Path, log_id: bytes | None) -> None:
    """It is an archive that this version reads, of that log if one is named."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise ForeignError(str(path), "it is another program's database")
    schema = schema_of(db)
    if schema > SCHEMA:
        raise NewerError(str(path), schema, SCHEMA)
    found = dict(db.execute("SELECT name, value FROM meta"))
    if log_id is not None and found.get("log") != log_id:
        raise ForeignError(str(path), f"it is that of log {bytes(found['log']).hex()}")


def move_aside(path: Path, wall_ms: int) -> Path:
    """The file, and what SQLite keeps beside it, have another name, which is returned."""
    aside = path.with_name(f"{path.name}.aside-{wall_ms}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


__all__ = ["ArchiveError", "judged", "move_aside", "open_to_read", "open_to_write"]
