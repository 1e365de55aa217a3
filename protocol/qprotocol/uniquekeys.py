"""Unique keys and idempotency keys of a message, and the answer for one that was there before.

Both are meta fields of a message that is MARKED::

    2 UNIQUE       | scope u8 | until u8 | on conflict u8 | for_ms u64 | key, UTF-8 |
    3 IDEMPOTENCY  | window_ms u64 | key, UTF-8 |

Of a publish that stored less than it was sent, Published has a row for each message that it did
not store, because another one stands for it::

    | number in the frame u32 | position u64 | minted u8 | length of the id u8 | id |
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from struct import Struct
from typing import NamedTuple, Self

from qprotocol.ids import unpack_id
from qprotocol.names import encoded

UNIQUE_KEY_BYTES_MAX = 255
"""A unique or an idempotency key, UTF-8."""
HOLD_MS_MAX = 366 * 86_400_000
"""How long a key may be held for a time, and the longest window."""

SCOPES = {"queue": 1, "task": 2, "global": 3}
"""What else must be the same: the destination, the task, nothing."""
UNTILS = {"started": 1, "finished": 2, "time": 3}
"""When the key is free again: handed to a worker, over, or after ``for_ms``."""
CONFLICTS = {"return": 1, "reject": 2, "replace": 3, "redelay": 4}
"""What becomes of a message whose key is held."""

_UNIQUE = Struct("<BBBQ")
KEY_AT = _UNIQUE.size
"""Where the key begins in a UNIQUE."""
_NUMBERS = {
    (scope, until, conflict): bytes((SCOPES[scope], UNTILS[until], CONFLICTS[conflict]))
    for scope, until, conflict in product(SCOPES, UNTILS, CONFLICTS)
}
"""How a UNIQUE begins, by its words."""
_WORDS = {numbers: words for words, numbers in _NUMBERS.items()}
_IDEMPOTENCY = Struct("<Q")
_EXISTING = Struct("<IQBB")


class UniqueKey(NamedTuple):
    """Of the messages with this key, in its scope, one is there at a time."""

    key: str
    scope: str = "task"
    until: str = "finished"
    conflict: str = "return"
    for_ms: int = 0
    """With ``until`` "time": how long from the publish on, whatever becomes of the message."""

    def pack(self) -> bytes:
        """The value of the field UNIQUE. Raises ValueError naming what is out of bounds."""
        check_time(self.until, self.for_ms)
        numbers = _NUMBERS.get(self[1:4]) or (
            number(SCOPES, "scope", self.scope),
            number(UNTILS, "until", self.until),
            number(CONFLICTS, "conflict", self.conflict),
        )
        return _UNIQUE.pack(*numbers, self.for_ms) + packed_key("unique_key", self.key)

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """The key in ``value``. Raises ValueError for any bytes that ``pack`` would not give."""
        if len(value) <= _UNIQUE.size:
            raise ValueError(f"the meta field UNIQUE has {len(value)} bytes: no key is in them")
        scope, until, conflict, for_ms = _UNIQUE.unpack_from(value)
        words = _WORDS.get(value[:3]) or (
            name(SCOPES, "scope", scope),
            name(UNTILS, "until", until),
            name(CONFLICTS, "conflict", conflict),
        )
        check_time(words[1], for_ms)
        return cls(unpacked_key("unique_key", value[_UNIQUE.size :]), *words, for_ms)


class IdempotencyKey(NamedTuple):
    """A publish with this key, of this task, is done once within the window."""

    key: str
    window_ms: int = 0
    """From the first publish on; 0 is as long as the broker has it by default."""

    def pack(self) -> bytes:
        """The value of the field IDEMPOTENCY. Raises ValueError naming what is out of bounds."""
        check_window(self.window_ms)
        return _IDEMPOTENCY.pack(self.window_ms) + packed_key("idempotency_key", self.key)

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """The key in ``value``. Raises ValueError for any bytes that ``pack`` would not give."""
        if len(value) <= _IDEMPOTENCY.size:
            raise ValueError(
                f"the meta field IDEMPOTENCY has {len(value)} bytes: no key is in them"
            )
        (window_ms,) = _IDEMPOTENCY.unpack_from(value)
        check_window(window_ms)
        return cls(unpacked_key("idempotency_key", value[_IDEMPOTENCY.size :]), window_ms)


def check_time(until: str, for_ms: int) -> None:
    """Raise ValueError unless a time is said exactly where the key is held for one."""
    if (until == "time") != (for_ms > 0) or for_ms > HOLD_MS_MAX:
        raise ValueError(
            f"held until {until!r} and for {for_ms} ms: a time goes with "
            f'"time" alone, and is 1 to {HOLD_MS_MAX} ms'
        )


def check_window(window_ms: int) -> None:
    """Raise ValueError for a window that is too long."""
    if not 0 <= window_ms <= HOLD_MS_MAX:
        raise ValueError(f"a window of {window_ms} ms: 0 to {HOLD_MS_MAX}")


def unpacked_key(what: str, raw: bytes) -> str:
    """The key with these bytes, of which there are some. Raises ValueError if it is too long."""
    if len(raw) > UNIQUE_KEY_BYTES_MAX:
        raise ValueError(f"{what} has {len(raw)} bytes: at most {UNIQUE_KEY_BYTES_MAX}")
    return raw.decode()


def packed_key(what: str, key: str) -> bytes:
    """A key's bytes. Raises ValueError if it is empty or too long."""
    raw = encoded(what, key, UNIQUE_KEY_BYTES_MAX)
    if not raw:
        raise ValueError(f"{what} is empty: leave it out")
    return raw


def number(table: Mapping[str, int], what: str, said: str) -> int:
    """The number of a word. Raises ValueError naming the words there are."""
    found = table.get(said)
    if found is None:
        raise ValueError(f"{what} is {said!r}: {', '.join(table)}")
    return found


def name(table: Mapping[str, int], what: str, said: int) -> str:
    """The word with that number. Raises ValueError."""
    for word, found in table.items():
        if found == said:
            return word
    raise ValueError(f"{what} is {said}: {', '.join(f'{n} {word}' for word, n in table.items())}")


class Existing(NamedTuple):
    """A message that stands for one that was not stored."""

    number: int
    """Of the one that was not stored, in its frame."""
    id: str
    position: int = 0
    """Where it is in the log; 0 if that is not told."""


def pack_existing(rows: Iterable[tuple[int, int, bool, bytes]]) -> bytes:
    """Rows of (number, position, whether the id is minted, its bytes)."""
    return b"".join(
        _EXISTING.pack(at, position, minted, len(raw)) + raw for at, position, minted, raw in rows
    )


def unpack_existing(raw: bytes) -> Iterator[Existing]:
    """What ``pack_existing`` packed. Raises ValueError for anything malformed."""
    at = 0
    while at < len(raw):
        start = at + _EXISTING.size
        if start > len(raw):
            raise ValueError(f"{len(raw) - at} bytes are left over after the last row")
        number_, position, minted, size = _EXISTING.unpack_from(raw, at)
        at = start + size
        if at > len(raw) or minted > 1:
            raise ValueError(f"a row of {size} bytes where {len(raw) - start} are left")
        packed = raw[start:at]
        yield Existing(number_, unpack_id(packed, minted=bool(minted)), position)
