"""What the archive must hold once it has followed: a row a settled task, and what it says.

Held against what clients asked for and were answered, as all of the oracle's books; the file
is read by SQL alone.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from qprotocol.ids import unpack_id
from qprotocol.states import State
from sim.oracle import YES, Known, Oracle
from sim.world import Violation

ROWS = """
SELECT position, tasks.id, t.text, q.text, state, failures, bytes
FROM tasks LEFT JOIN names t ON t.number = task LEFT JOIN names q ON q.number = queue
    LEFT JOIN results USING (position) ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One of the table of tasks."""

    position: int
    id: str
    task: str
    queue: str
    state: State
    failures: int
    kept: bytes | None

    def __str__(self) -> str:
        return f"the row of position {self.position} ({self.state.name}, id {self.id!r})"


def read_rows(path: Path) -> tuple[list[Row], int]:
    """All rows, and how many were shed."""
    db = sqlite3.connect(path)
    try:
        found = [
            Row(
                position,
                unpack_id(name, minted=True) if isinstance(name, bytes) else name or "",
                task or "",
                queue or "",
                State(state),
                failures,
                kept,
            )
            for position, name, task, queue, state, failures, kept in db.execute(ROWS)
        ]
        ((shed,),) = db.execute("SELECT value FROM meta WHERE name = 'shed'")
    finally:
        db.close()
    return found, shed


def check_rows(oracle: Oracle, rows: list[Row], shed: int) -> None:
    """The archive has followed to the log's end. Raises Violation."""
    by_position = {each.position: each for each in oracle.known.values() if each.position}
    of: dict[int, Row] = {}
    strangers = 0
    for row in rows:
        known = by_position.get(row.position) or of_its_id(oracle, row)
        if known is None:
            strangers += 1
            continue
        if known.uid in of:
            raise Violation(f"{known} has two rows: {of[known.uid]}, {row}")
        of[known.uid] = row
        check_row(oracle, known, row)
    unplaced = sum(1 for each in oracle.known.values() if not each.position and each.born)
    if strangers > unplaced:
        raise Violation(f"{strangers} rows of messages that nobody knows")
    missing = [
        each
        for each in oracle.known.values()
        if each.uid not in of and is_wanted(each) and not oracle.flows.may_be_skipped(each)
    ]
    without = [each for each in missing if each.kept is None and each.why_over != "revoked"]
    for known in missing:
        if known not in without or len(without) > shed:
            raise Violation(f"{known} is over ({known.why_over}) and has no row; {shed} were shed")
    oracle.world.sometimes["rows were held against the oracle"] += len(of)


def of_its_id(oracle: Oracle, row: Row) -> Known | None:
    """Of messages that nobody was told the position of, the one with the row's id."""
    found = [each for each in oracle.by_id.get(row.id, ()) if not each.position]
    return found[0] if row.id and len(found) == 1 else None


def is_wanted(known: Known) -> bool:
    """Whether there must be a row, but for shedding."""
    if known.over != YES or known.forgotten or known.purge_asked or not known.position:
        return False
    if known.kept is not None or known.why_over == "revoked":
        return True
    return bool(known.message.task) and known.why_over in ("acked", "a success")


def check_row(oracle: Oracle, known: Known, row: Row) -> None:
    message = known.message
    names = row.id, row.task, row.queue
    is_nameless = known.may_rot and not any(names)
    queue = row.queue if row.queue in known.elsewhere else message.queue
    if not is_nameless and names != (message.id, message.task, queue):
        raise Violation(f"{known} is called {names}: {row}")
    if row.state is State.SUCCESS:
        if not any("acked" in lease.whys for lease in known.leases):
            raise Violation(f"{row}, and nobody acked {known}")
        if known.kept is not None and row.kept != known.kept:
            raise Violation(f"{row} has another result: {row.kept!r}, not {known.kept!r}")
        if row.kept is not None and row.kept not in known.results:
            raise Violation(f"{row} has a result that nobody sent: {row.kept!r}")
    elif row.state is State.FAILURE:
        if known.may_rot:
            return  # of what is set aside nobody can say more
        if not known.may_be_dead and not oracle.flows.is_let_down(known):
            raise Violation(f"{row}, and nothing has failed: {known}")
    elif not (
        known.cancel_asked
        or message.expires_ms
        or oracle.may_end_unasked(known)
        or (known.purge_asked and known.is_node)
    ):
        raise Violation(f"{row}, and it was neither cancelled nor can it end so: {known}")
    least, most = known.failures[0] - known.failures_dead, known.failures[1]
    if not least <= row.failures <= most:
        raise Violation(f"{row} says {row.failures} failures: {least} to {most} are true")
