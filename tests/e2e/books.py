"""What was tried, confirmed and done, kept outside of the broker: the books it is judged by.

Every message has a mark of its own. A mark is

    tried ------ confirmed      the broker said: it is on disk
            |--- refused        the client said: not done, and never will be
            '--- unknown        nobody could say
    run          handed out, or executed, once or more often
    settled      the broker confirmed the end of a run

Rule 1. A mark is written down before its message is sent, and before its settlement is sent: the
        books may know too much, never too little.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 5


@dataclass
class Totals:
    """The verdict over a run: the lists must be empty, the rest is for information."""

    tried: int
    confirmed: int
    refused: int
    unknown: int
    executed: int
    """Marks that were run, once or more often."""
    duplicates: int
    """Runs beyond the first of each mark: allowed where the broker did not confirm its end."""
    lost: list[str]
    """Confirmed, and never run."""
    unexpected: list[str]
    """Run, and never tried, or said to be not done."""
    risen: list[str]
    """Run again after the broker had confirmed the end."""
    unbalanced: list[str] = field(default_factory=list)
    """What the broker counts, where that is not what the books say."""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, invented, risen from the dead or miscounted."""
        return not (self.lost or self.unexpected or self.risen or self.unbalanced)

    def as_dict(self) -> dict[str, Any]:
        """Figures for one line of JSON; of long lists, the first few and how many."""
        found = asdict(self)
        more = found.pop("more")
        for name in ("lost", "unexpected", "risen"):
            found[name] = len(found[name])
            if found[name]:
                found[f"{name}_first"] = sorted(getattr(self, name))[:SHOWN]
        return {"good": self.good, **found, **more}


class Books:
    """Shared by all threads of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0
        self.tried: set[str] = set()
        self.confirmed: set[str] = set()
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.runs: Counter[str] = Counter()
        self.settled: set[str] = set()
        self.names: dict[str, str] = {}
        """The mark of each task whose id is known, by that id."""
        self.plain: set[str] = set()
        """Marks of messages that are no tasks."""
        self.results: dict[str, set[bytes | None]] = {}
        """What was sent as the result of a task, by its id; a settlement may be sent again."""
        self.risen: list[str] = []
        self.resends_recognised = 0

    def marks(self, count: int) -> list[str]:
        """New marks, written down as tried."""
        with self._lock:
            found = [f"m{number}" for number in range(self._next, self._next + count)]
            self._next += count
            self.tried.update(found)
        return found

    def confirm(self, marks: Iterable[str], *, was_duplicate: bool = False) -> None:
        with self._lock:
            self.confirmed.update(marks)
            self.resends_recognised += was_duplicate

    def refuse(self, marks: Iterable[str]) -> None:
        with self._lock:
            self.refused.update(marks)

    def doubt(self, marks: Iterable[str]) -> None:
        with self._lock:
            self.unknown.update(marks)

    def run(self, mark: str) -> None:
        """It was handed out or executed, once more."""
        with self._lock:
            self.runs[mark] += 1
            if mark in self.settled:
                self.risen.append(mark)

    def settle(self, marks: Iterable[str]) -> None:
        """The broker confirmed their end."""
        with self._lock:
            self.settled.update(marks)

    def name(self, mark: str, task_id: str) -> None:
        """The message of that mark is this task; empty if it is none."""
        with self._lock:
            if task_id:
                self.names[task_id] = mark
            else:
                self.plain.add(mark)

    def give(self, task_id: str, result: bytes | None) -> None:
        """The task is about to be settled with that result."""
        with self._lock:
            self.results.setdefault(task_id, set()).add(result)

    def due_rows(self) -> dict[str, str]:
        """The marks of tasks that must have a row, by id, once everything is drained."""
        return {name: mark for name, mark in self.names.items() if mark in self.runs}

    @property
    def nameless(self) -> int:
        """Tasks that have run, and whose ids only the broker knows."""
        return len(self.runs.keys() - set(self.names.values()) - self.plain)

    def totals(self) -> Totals:
        """The verdict, once everything is drained."""
        done = set(self.runs)
        return Totals(
            tried=len(self.tried),
            confirmed=len(self.confirmed),
            refused=len(self.refused),
            unknown=len(self.unknown),
            executed=len(done),
            duplicates=sum(self.runs.values()) - len(done),
            lost=sorted(self.confirmed - done),
            unexpected=sorted((done - self.tried) | (done & self.refused)),
            risen=sorted(self.risen),
        )
