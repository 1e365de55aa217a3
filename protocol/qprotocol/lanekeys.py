"""The lane keys of a message: what it shares a limit, an order or a fair share with.

They stand behind the task's name in a packed route, each at most once, tags ascending::

    | tag u8 | length u8 | value |  ...

    1 limit     UTF-8, 1 to 255 bytes: limits by key count these messages together
    2 ordering  UTF-8, 1 to 255 bytes: one message of them at a time, in order
    3 fair      UTF-8, 1 to 255 bytes: the tenant they are charged to
    4 weight    u16, from 2: what one of them takes of a limit; 1 is not written

So the same keys have one form, and messages with the same task and keys are one lane.
"""

from struct import Struct
from typing import NamedTuple, Self

from qprotocol.names import encoded

LIMIT = 1
ORDERING = 2
FAIR = 3
WEIGHT = 4
LANE_KEY_BYTES_MAX = 255
"""A key, UTF-8. Its length is one byte."""
WEIGHT_MAX = 0xFFFF
"""The heaviest message, in units of its limits."""
KEY_OPTIONS = {LIMIT: "limit_key", ORDERING: "ordering_key", FAIR: "fair_key", WEIGHT: "weight"}
"""Tags to the names of the options that say them, in the order of LaneKeys' fields."""
_WEIGHT = Struct("<H")


class LaneKeys(NamedTuple):
    """What a message is limited, ordered and shared out by; nothing for most."""

    limit: str = ""
    ordering: str = ""
    fair: str = ""
    weight: int = 1

    def pack(self) -> bytes:
        """Their bytes, none without keys. Raises ValueError naming what is out of bounds."""
        if type(self.weight) is not int or not 1 <= self.weight <= WEIGHT_MAX:
            raise ValueError(f"weight is {self.weight!r}: a whole number from 1 to {WEIGHT_MAX}")
        texts = (LIMIT, self.limit), (ORDERING, self.ordering), (FAIR, self.fair)
        fields = [(tag, encoded(KEY_OPTIONS[tag], text, LANE_KEY_BYTES_MAX)) for tag, text in texts]
        if self.weight > 1:
            fields.append((WEIGHT, _WEIGHT.pack(self.weight)))
        return b"".join(bytes((tag, len(raw))) + raw for tag, raw in fields if raw)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The keys in ``raw``. Raises ValueError for any bytes that ``pack`` would not give."""
        limit = ordering = fair = ""
        weight = 1
        for tag, value in split(raw):
            try:
                if tag == LIMIT:
                    limit = value.decode()
                elif tag == ORDERING:
                    ordering = value.decode()
                elif tag == FAIR:
                    fair = value.decode()
                else:
                    weight = unpack_weight(value)
            except UnicodeDecodeError as error:
                raise ValueError(f"{KEY_OPTIONS[tag]} is no UTF-8: {error}") from error
        return cls(limit, ordering, fair, weight)


def split(raw: bytes) -> list[tuple[int, bytes]]:
    """The fields as (tag, value). Raises ValueError for tags that are unknown or out of order."""
    found: list[tuple[int, bytes]] = []
    at, last = 0, 0
    while at < len(raw):
        tag = raw[at]
        end = at + 2 + raw[at + 1] if at + 1 < len(raw) else len(raw) + 1
        if end > len(raw):
            raise ValueError(f"the lane keys end inside the field with tag {tag}")
        if not last < tag <= WEIGHT:
            raise ValueError(f"a lane key with tag {tag} behind {last}: 1 to {WEIGHT}, ascending")
        if end == at + 2:
            raise ValueError(f"the lane key with tag {tag} is empty: leave it out")
        found.append((tag, raw[at + 2 : end]))
        at, last = end, tag
    return found


def unpack_weight(value: bytes) -> int:
    """A weight above 1. Raises ValueError for anything else."""
    weight = int(_WEIGHT.unpack(value)[0]) if len(value) == _WEIGHT.size else 0
    if weight <= 1:
        raise ValueError(f"a weight of {weight} in {len(value)} bytes: from 2, in {_WEIGHT.size}")
    return weight


NO_KEYS = LaneKeys()
