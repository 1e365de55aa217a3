"""A failure as data: what an error looks like on the wire and in a dead letter.

Errors are never imported by name at the other end; they travel as text.
"""

from dataclasses import dataclass
from typing import Self

import msgpack

TEXT_BYTES_MAX = 64 * 1024
"""Each text is cut to this many bytes of UTF-8, and a few that say so."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task failed. ``kind`` is the error's class name, qualified by its module."""

    kind: str
    message: str
    traceback: str = ""

    def pack(self) -> bytes:
        """A msgpack array of three strings. Never fails: what is not UTF-8 is escaped."""
        return bytes(
            msgpack.packb([shorten(self.kind), shorten(self.message), shorten(self.traceback)])
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """The failure in ``raw``. Raises ValueError if it is not one."""
        try:
            parts = msgpack.unpackb(raw, raw=False, max_array_len=16, max_map_len=0, max_ext_len=0)
        except Exception as error:  # msgpack raises a dozen kinds for hostile input
            raise ValueError(f"not a packed failure: {error}") from error
        if type(parts) is not list or len(parts) < 3 or any(type(p) is not str for p in parts[:3]):
            raise ValueError("not a packed failure: expected three strings")
        return cls(*parts[:3])


def shorten(text: str) -> str:
    """``text`` as valid UTF-8, its middle left out if it is over TEXT_BYTES_MAX bytes."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= TEXT_BYTES_MAX:
        return raw.decode()
    half = TEXT_BYTES_MAX // 2
    first, last = raw[:half].decode("utf-8", "ignore"), raw[-half:].decode("utf-8", "ignore")
    return f"{first}\n... {len(raw) - 2 * half} bytes left out ...\n{last}"
