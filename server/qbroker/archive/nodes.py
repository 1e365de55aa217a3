"""Rows of nodes of graphs that end because of others, and what these leave to them.

A node that cannot run any more since one before it failed has that one's error and failure: who
asks for its result is told what went wrong there.
"""

from typing import TYPE_CHECKING

from qbroker.archive.unpacking import unpacked
from qbroker.core import records as r
from qbroker.core.advancing import PURGED, REASONS
from qbroker.log.format import StoredRecord
from qprotocol.states import State

if TYPE_CHECKING:
    from qbroker.archive.changes import Row
    from qbroker.archive.following import Follower


def advanced(self: "Follower", stored: StoredRecord) -> None:
    """Some nodes ended as those before them did; those that are held again have not, after all.

    Of what nobody needs there is no row.
    """
    record = unpacked(stored, r.Advanced)
    for position, lane, _, state, cause, failure in record.ends:
        if state:
            about = state, REASONS[State(state)]
            row = ended(self, position, lane, record, about)
            self.changes.inherit(position, row, cause if failure else 0)
        self.known.forget(position)
    for position, _ in record.again:
        self.changes.forget((position,))


def swept(self: "Follower", stored: StoredRecord) -> None:
    """Nodes that were purged."""
    record = unpacked(stored, r.NodesSwept)
    for position, lane, _ in record.ends:
        row = ended(self, position, lane, record, (int(State.REVOKED), PURGED))
        self.changes.settled[position] = self.with_tries(row)


def ended(
    self: "Follower",
    position: int,
    lane: int,
    record: r.Advanced | r.NodesSwept,
    about: tuple[int, str],
) -> "Row":
    """The row of a node that never ran; ``about`` is its state and the reason."""
    state, reason = about
    brief = int(self.history(lane) == "none")
    return (
        *next(self.heads(position, 1)),
        *(None, state, 0, None, record.wall_ms, None),
        *(record.keep_until_ms, brief, reason, None, None, None),
    )
