"""A search as a walk by time, newest first: over which index it goes, and what it looks for.

    searched for                    over                  known there without looking at rows
    state but success, an error     tasks_unsuccessful    state and error
    task                            tasks_task
    anything else                   tasks_finished        queue and worker

Rule 1. A walk that has to look for what its index is not sorted by goes a slice at a time. So it
        may end behind any slice, and it is known where it goes on.
Rule 2. A slice is SLICE_ROWS rows of its index, and those that were finished in the millisecond of
        the last one: it ends where a millisecond does.
"""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from qprotocol.states import State

SLICE_ROWS = 20_000
"""Rows that are looked at between two looks at the clock: some milliseconds, if they are cached."""

_SHOWN = (
    "position, tasks.id, t.text, q.text, w.text, state, failures, published_ms, started_ms, "
    "finished_ms, run_ms, reason, error, message, root, parent, preview"
)
_NAMED = (
    "LEFT JOIN names t ON t.number = task LEFT JOIN names q ON q.number = queue "
    "LEFT JOIN names w ON w.number = worker"
)
SHOWN = f"SELECT {_SHOWN}"
FROM = f"FROM tasks {_NAMED}"

Term = tuple[str, tuple[object, ...]]
"""A condition, and its values."""
Place = tuple[int, int]
"""(finished_ms, position): behind it, that is before it in time, a page begins."""


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
    after: Place = (0, 0)
    """Where the page before ended; its ``next``."""


@dataclass(slots=True)
class Walk:
    """Rows of one index, newest first."""

    index: str
    along: list[Term] = field(default_factory=list)
    """What the index is entered by: all it goes over is so."""
    wanted: list[Term] = field(default_factory=list)
    """What it has to look for."""

    def end_of_slice(self, db: sqlite3.Connection, after: Place) -> int | None:
        """The finished_ms down to which the next slice goes; None for all there is."""
        if not self.wanted:
            return None
        where, values = joined([*self.along, *behind(after)])
        found = db.execute(
            f"SELECT finished_ms FROM tasks INDEXED BY {self.index} WHERE {where} "  # noqa: S608  # constants
            "ORDER BY finished_ms DESC LIMIT 1 OFFSET ?",
            (*values, SLICE_ROWS - 1),
        ).fetchone()
        return found[0] if found else None

    def rows(self, db: sqlite3.Connection, after: Place, end_ms: int | None, most: int) -> Any:
        """So many rows at most, behind that place and down to the slice's end."""
        down: list[Term] = [] if end_ms is None else [("finished_ms >= ?", (end_ms,))]
        where, values = joined([*self.along, *behind(after), *down, *self.wanted])
        return db.execute(
            f"{SHOWN} FROM tasks INDEXED BY {self.index} {_NAMED} WHERE {where} "
            "ORDER BY finished_ms DESC, position DESC LIMIT ?",
            (*values, most),
        )


def walk_for(db: sqlite3.Connection, query: Query) -> Walk | None:
    """The walk that finds it; None if no row has such a name."""
    names: dict[str, Term] = {}
    for column in ("task", "queue"):
        text = getattr(query, column)
        if text:
            row = db.execute("SELECT number FROM names WHERE text = ?", (text,)).fetchone()
            if row is None:
                return None
            names[column] = f"{column} = ?", row
    if query.worker:
        found = "SELECT number FROM names WHERE text GLOB ?"
        like = (literal(query.worker) + "*",)
        if db.execute(f"{found} LIMIT 1", like).fetchone() is None:
            return None
        names["worker"] = f"worker IN ({found})", like
    if query.error or query.state not in (0, State.SUCCESS):
        walk = Walk("tasks_unsuccessful", [("state <> 6", ())])
    elif query.task:
        walk = Walk("tasks_task", [names.pop("task")])
    else:
        walk = Walk("tasks_finished")
    walk.wanted += names.values()
    if query.state:
        walk.wanted.append(("state = ?", (query.state,)))
    if query.error:
        walk.wanted.append(("error GLOB ?", (literal(query.error) + "*",)))
    if query.preview:
        walk.wanted.append(("instr(preview, ?) > 0", (query.preview,)))
    if query.since_ms:
        walk.along.append(("finished_ms >= ?", (query.since_ms,)))
    if query.until_ms:
        walk.along.append(("finished_ms < ?", (query.until_ms,)))
    return walk


def behind(after: Place) -> list[Term]:
    """What a row is behind that place; nothing for the beginning."""
    if not any(after):
        return []
    return [("finished_ms <= ?", after[:1]), ("(finished_ms, tasks.position) < (?, ?)", after)]


def joined(terms: list[Term]) -> tuple[str, list[object]]:
    """All of them as one condition, and its values."""
    values = [value for _, some in terms for value in some]
    return " AND ".join(text for text, _ in terms) or "1", values


def literal(text: str) -> str:
    """``text`` for GLOB, meaning itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
