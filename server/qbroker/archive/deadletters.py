"""What the archive makes of records about dead letters: rows that go along, and their history.

A replayed letter is under way again, so no row says that it ended; an edited one keeps its row,
under its new position; one that is dropped keeps it as well, for it says how the task died.
"""

from typing import TYPE_CHECKING

from qbroker.archive.changes import COLUMNS
from qbroker.archive.unpacking import unpacked
from qbroker.core import records as r
from qbroker.log.format import StoredRecord
from qprotocol.states import State

if TYPE_CHECKING:
    from qbroker.archive.following import Follower

_PUBLISHED, _FAILURES = COLUMNS.index("published_ms"), COLUMNS.index("failures")


def replayed(self: "Follower", stored: StoredRecord) -> None:
    """They are under way again."""
    record = unpacked(stored, r.Replayed)
    for _, _, to, position, _ in record.entries:
        self.changes.forget((position,))
        self.known.tried(position, to).failures = 0
        happened(self, position, stored, "replayed", by(record.author))


def edited(self: "Follower", stored: StoredRecord) -> None:
    """What is known of the letter is known of the message in its place."""
    self.messages.note(stored)
    record = unpacked(stored, r.LetterEdited)
    tries = self.known.tried(record.letter, -1)
    first_ms = tries.published_ms or next(self.heads(record.letter, 1))[_PUBLISHED]
    self.known.forget(record.letter)
    after = self.known.tried(stored.position, record.batch.runs[0][0])
    after.failures, after.published_ms = tries.failures, first_ms or 0
    self.changes.rename(record.letter, stored.position)
    happened(self, stored.position, stored, "edited", by(record.author))


def dropped(self: "Follower", stored: StoredRecord) -> None:
    """Their rows stay."""
    record = unpacked(stored, r.LettersDropped)
    for position, _, _ in record.positions:
        self.known.forget(position)
        happened(self, position, stored, "dropped", by(record.author))


def overflowed(self: "Follower", stored: StoredRecord) -> None:
    """Their queue was over a limit: dead letters, or thrown away if they were."""
    record = unpacked(stored, r.Overflowed)
    for lane, _, first, count, to, _ in record.entries:
        state = int(State.REVOKED if to < 0 else State.FAILURE)
        brief = int(self.history(lane) == "none")
        times = None, record.finished_ms, None, record.keep_until_ms
        rest = None, state, 0, *times, brief, record.reason, None, None, None
        for head in self.heads(first, count):
            happened(self, head[0], stored, "overflowed", record.reason)
            row = self.with_tries((*head, *rest))
            if to < 0 and self.is_dead(lane):
                self.changes.acked.append(row)  # if there is none that says how it died
                continue
            self.changes.settled[head[0]] = row
            if to >= 0 and row[_FAILURES]:
                tries = self.known.tried(head[0], to)
                tries.failures, tries.published_ms = row[_FAILURES], row[_PUBLISHED] or 0


def happened(
    self: "Follower", position: int, stored: StoredRecord, what: str, why: str | None
) -> None:
    """Something that was no attempt is in the history of the message."""
    self.changes.learn(position, stored.position, None, None, stored.wall_ms, what, None, why)


def by(author: str) -> str | None:
    """Who did it, as a row says it."""
    return f"by {author}" if author else None
