"""Tables for people: aligned, numbers to the right, colour only on a terminal."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, colour: bool = False) -> str:
    """The rows under their header, two spaces between columns; no line ends in a space.

    A column whose values are all numbers (or empty) is aligned to the right.
    """
    cells = [[show(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(value, int | float) or value == "" for value in column)
        for column in (zip(*rows, strict=True) if rows else [()] * len(header))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    first = line(header)
    lines = [f"{BOLD}{first}{PLAIN}" if colour else first, *map(line, cells)]
    return "\n".join(lines)


def show(value: object) -> str:
    """Whole numbers in groups of three, fractions with three digits, the rest as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return printable(str(value))


def printable(text: str) -> str:
    """Names come from clients: nothing of them may steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def counted(count: int, noun: str = "message") -> str:
    """1 message, 2 messages."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def left(until_ms: int) -> str:
    """How long it is until then, by this machine's clock."""
    return ago(max(0, until_ms - time.time_ns() // 1_000_000))


def ago(ms: int) -> str:
    """A span of time in its largest fitting unit: 850ms, 12.3s, 4.5m, 7.1h, 3.2d."""
    if ms < 1000:
        return f"{ms}ms"
    for unit, size, limit in (("s", 1e3, 6e4), ("m", 6e4, 3.6e6), ("h", 3.6e6, 8.64e7)):
        if ms < limit:
            return f"{ms / size:.1f}{unit}"
    return f"{ms / 8.64e7:.1f}d"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested figures as rows, their names joined by dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
