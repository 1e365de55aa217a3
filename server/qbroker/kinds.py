"""Kinds of settings: how a person writes a value, and how it is shown again.

Quantities may carry a unit (``10s``, ``64MiB``). Units are exact: there is no ``MB``.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
LEAST_FACTOR = 5
"""Of two amounts, "5%,2GiB", the fixed one counts at most as this many times the share."""

Value = str | int | Path  # a bool is an int


@dataclass(frozen=True)
class Kind:
    """How a person writes a value. ``parse`` refuses by raising; ``show`` gives text it accepts."""

    noun: str
    example: str
    parse: Callable[[str], Value]
    show: Callable[[Any], str] = str
    unit: str = ""


def quantity(noun: str, example: str, units: dict[str, int]) -> Kind:
    """Whole numbers in the first of ``units``, written with any of them."""
    bare = next(iter(units))

    def parse(text: str) -> int:
        matched = re.fullmatch(r"([0-9][0-9_]*) ?([A-Za-z]*)", text.strip())
        if matched is None or (matched[2] or bare) not in units:
            raise ValueError(text)
        return int(matched[1]) * units[matched[2] or bare]

    def show(value: int) -> str:
        unit = [unit for unit, size in units.items() if value % size == 0][-1] if value else bare
        return f"{value // units[unit]}{unit}"

    return Kind(noun, example, parse, show, "bytes" if bare == "B" else bare)


def parse_bool(text: str) -> bool:
    return (YES | NO)[text.lower()]


def parse_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` as a pair; IPv6 is written ``[::1]:7717``. Raises ValueError."""
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if matched is None or int(matched[3]) > 65_535:
        raise ValueError(text)
    return (str(ipaddress.IPv6Address(matched[1])) if matched[1] else matched[2]), int(matched[3])


def parse_address(text: str) -> str:
    split_address(text)
    return text


def parse_address_or_none(text: str) -> str:
    return parse_address(text) if text else ""


def one_of(*choices: str) -> Kind:
    return Kind("a choice", " or ".join(choices), lambda text: choices[choices.index(text)])


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes of a file system: a share of it, or no less than some bytes."""

    percent: int
    bytes: int

    @classmethod
    def parse(cls, text: str) -> "Amount":
        """``5%``, ``2GiB``, or both with a comma. Raises ValueError."""
        matched = re.fullmatch(r"(?:([0-9]{1,2})%)?(?:(?(1),)([^%,]+))?", text.replace(" ", ""))
        if matched is None or not matched[0]:
            raise ValueError(text)
        return cls(int(matched[1] or 0), cast("int", SIZE.parse(matched[2])) if matched[2] else 0)

    def of(self, total_bytes: int) -> int:
        """How many bytes that is. Of a small file system the share alone decides, five times over:
        2 GiB of a disk of 4 would be half of it.
        """
        share = total_bytes * self.percent // 100
        return max(share, min(self.bytes, share * LEAST_FACTOR) if share else self.bytes)


def parse_room(text: str) -> str:
    Amount.parse(text)
    return text.replace(" ", "")


SIZES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
DURATIONS = {"ms": 1, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
YES = {"true": True, "yes": True, "on": True, "1": True}
NO = {"false": False, "no": False, "off": False, "0": False}

COUNT = quantity("a whole number of 0 or more", "10000 or 10_000", {"": 1})
SIZE = quantity("a size", "64MiB, 512KiB or a number of bytes", SIZES)
ROOM = Kind(
    "a share of the disk or a size",
    '"5%", "2GiB", or "5%,2GiB" for the larger of the two',
    parse_room,
    unit="bytes",
)
DURATION = quantity("a duration", "500ms, 10s, 5m, 1h, 7d or a number of ms", DURATIONS)
BOOL = Kind("a yes or no", "true or false", parse_bool, lambda yes: str(yes).lower())
PATH = Kind("a path", "/var/lib/qbroker", parse_path)
ADDRESS = Kind("an address", "127.0.0.1:7717 or [::1]:7717", parse_address)
ADDRESS_OR_NONE = Kind("an address", '127.0.0.1:7718 or "" for none', parse_address_or_none)
