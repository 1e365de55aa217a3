"""What a transaction has to do to the archive's rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Row = tuple[Any, ...]
"""The values of COLUMNS."""
COLUMNS = (
    *("position", "id", "task", "queue", "root", "parent", "preview", "published_ms"),
    *("worker", "state", "failures", "started_ms", "finished_ms", "run_ms", "keep_until_ms"),
    *("brief", "reason", "error", "message", "content"),
)


ATTEMPT = ("position", "at", "worker", "started_ms", "ended_ms", "outcome", "error", "message")


@dataclass(slots=True)
class Changes:
    """What a transaction has to do to tasks and results, in this order."""

    renamed: list[tuple[int, int]] = field(default_factory=list)
    """Rows of messages that are at another position now, as they were before all else."""
    forgotten: set[int] = field(default_factory=set)
    settled: dict[int, Row] = field(default_factory=dict)
    """By position; they replace what is there: a dead letter may be settled again."""
    acked: list[Row] = field(default_factory=list)
    """They replace nothing: a dead letter that was acked stays a failure."""
    results: dict[int, bytes] = field(default_factory=dict)
    inherited: dict[int, int] = field(default_factory=dict)
    """By position: another one whose error and failure it has, in the order in which they ended."""
    attempts: dict[int, list[Row]] = field(default_factory=dict)
    """By position, the values of ATTEMPT: those of messages that did not succeed at once."""
    unlearned: set[int] = field(default_factory=set)
    """Messages of which no attempt is to be known any more, as it was before all else."""
    result_bytes: int = 0
    shed: int = 0
    """Rows that were not made, because the archive was too far behind."""

    @property
    def rows(self) -> int:
        return len(self.settled) + len(self.acked)

    def keep(self, position: int, row: Row, result: bytes) -> None:
        """The task is settled, with something to keep."""
        self.settled[position] = row
        self.results[position] = result
        self.result_bytes += len(result)

    def inherit(self, position: int, row: Row, cause: int) -> None:
        """The task ended because of the one at ``cause``, whose failure it has; 0: it has none."""
        self.settled[position] = row
        if cause:
            self.inherited[position] = cause

    def learn(self, position: int, *attempt: Any) -> None:
        """One more attempt of the message, or what else happened to it."""
        self.attempts.setdefault(position, []).append((position, *attempt))

    def unlearn(self, position: int) -> None:
        """Nothing is known of the message's attempts."""
        self.attempts.pop(position, None)
        self.unlearned.add(position)

    def forget(self, positions: Iterable[int]) -> None:
        """Rows of these are not there, however they came."""
        gone = set(positions)
        self.forgotten |= gone
        for position in gone:
            self.settled.pop(position, None)
            self.results.pop(position, None)
            self.inherited.pop(position, None)
        self.acked = [row for row in self.acked if row[0] not in gone]

    def rename(self, position: int, after: int) -> None:
        """What there is of the message is of the one that took its place."""
        self.renamed.append((position, after))
        for gone in (self.forgotten, self.unlearned):
            if position in gone:  # what there was of it in the file is renamed before it goes
                gone.add(after)
        row = self.settled.pop(position, None)
        if row:
            self.settled[after] = (after, *row[1:])
        if position in self.results:
            self.results[after] = self.results.pop(position)
        for heir, cause in self.inherited.items():
            if cause == position:
                self.inherited[heir] = after
        if position in self.attempts:
            self.attempts[after] = [(after, *row[1:]) for row in self.attempts.pop(position)]
