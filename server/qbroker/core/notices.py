"""Notices: ids that were cancelled before a message with them came.

    cancel of an unknown id -----> notice -----> gone    its message came, which is cancelled then;
                                                         its time is over; too many came after it

So a cancel that overtakes its message, for the publish is sent again after a lost connection, is
not lost. A notice is for one message, or for the copies that one message becomes.
"""

from dataclasses import dataclass, field

from qbroker.core import records as r
from qbroker.core.moment import Now
from qprotocol import wire
from qprotocol.ids import pack_id

_FIXED = wire.MESSAGE.size


@dataclass(slots=True)
class Notices:
    """Durable, all of it."""

    ids: dict[bytes, int] = field(default_factory=dict)
    """Each id, behind a byte that says whether it is minted, to when its time is over, in ms; the
    oldest first."""

    def note(self, name: bytes, until_ms: int, most: int) -> None:
        """The id's next message is cancelled; of more than ``most`` notices the oldest go."""
        self.ids.pop(name, None)
        self.ids[name] = until_ms
        while len(self.ids) > most:
            del self.ids[next(iter(self.ids))]

    def of(self, task_id: str, now: Now) -> int:
        """Until when a message with that id is cancelled as it comes; 0 if it is not."""
        raw_id, minted = pack_id(task_id)
        until_ms = self.ids.get(noticed(raw_id, minted=minted), 0)
        return until_ms if until_ms > now.wall_ms else 0

    def drop_oldest(self, count: int) -> None:
        """So many are gone."""
        for name in list(self.ids)[:count]:
            del self.ids[name]

    def lapsed(self, now: Now, limit: int) -> int:
        """How many of the oldest are over, at most ``limit``."""
        count = 0
        for until_ms in self.ids.values():
            if until_ms > now.wall_ms or count == limit:
                break
            count += 1
        return count

    def next_ms(self) -> int:
        """When the time of the oldest is over; 0 is never."""
        return next(iter(self.ids.values()), 0)

    def met(self, batch: r.MessageBatch, now: Now, begin: int) -> list[list[object]]:
        """[index, id] of the batch's messages that are to be cancelled, from ``begin`` on.

        Costs half a microsecond a message.
        """
        raw, unpack, ids, found = batch.raw, wire.MESSAGE.unpack_from, self.ids, []
        assert batch.offsets is not None
        for index, at in enumerate(batch.offsets[begin:], begin):
            fixed = unpack(raw, at)
            start = at + _FIXED + fixed[7]
            name = noticed(raw[start : start + fixed[8]], minted=bool(fixed[4] & wire.ID_MINTED))
            if ids.get(name, 0) > now.wall_ms:
                found.append([index, name])
        return found


def noticed(raw_id: bytes, *, minted: bool) -> bytes:
    """The id as the table has it."""
    return bytes((minted,)) + raw_id
