"""What ``decide`` answers: records to make true, effects to send, one reply."""

from dataclasses import dataclass, field

from qbroker.core.effects import Effect
from qbroker.core.leases import Consumer
from qbroker.core.records import Record
from qprotocol.frames import Frame


@dataclass(slots=True)
class Decision:
    """Records are appended and applied in order; then the reply and the effects may be sent."""

    records: list[Record] = field(default_factory=list)
    reply: Frame | None = None
    effects: list[Effect] = field(default_factory=list)
    afterwards: list[Effect] = field(default_factory=list)
    """Effects that are sent behind the reply."""
    synced: bool | None = None
    """Whether the reply waits for stable storage, or for the kernel only.

    None: as the broker's own fsync setting says.
    """
    positioned: bool = False
    """The reply is a Published whose ``first`` is the last record's position."""
    listen: Consumer | None = None
    """A subscription that begins once the records are applied."""
