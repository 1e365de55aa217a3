"""What the demo shows: a bar that moves on a terminal, a line now and then elsewhere, a table."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from totals import Totals

BAR_EVERY_S = 0.1
LINES_IN_ALL = 5
"""Where there is no terminal: so many lines, however many files."""


class Progress:
    """How far it has come. ``step`` for each file."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.failed = 0
        self.began = time.monotonic()
        self._on_terminal = sys.stdout.isatty()
        self._next_at = 0.0

    @property
    def rate(self) -> float:
        """Tasks a second, since the first was sent."""
        return self.done / max(time.monotonic() - self.began, 1e-6)

    def step(self, *, failed: bool) -> None:
        """One more file is done."""
        self.done += 1
        self.failed += failed
        at_end = self.done == self.total
        if self._on_terminal:
            now = time.monotonic()
            if now >= self._next_at or at_end:
                self._next_at = now + BAR_EVERY_S
                self._draw()
        elif at_end or self.done % max(self.total // LINES_IN_ALL, 1) == 0:
            print(f"  {self._figures()}", flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        clear = "\r\x1b[K" if self._on_terminal else ""
        print(f"{clear}{text}", flush=True)

    def _figures(self) -> str:
        text = f"{self.done:,}/{self.total:,} files  {self.rate:,.0f} tasks/s"
        return f"{text}  {self.failed} failed" if self.failed else text

    def _draw(self) -> None:
        figures = self._figures()
        width = max(10, min(40, shutil.get_terminal_size().columns - len(figures) - 6))
        full = width * self.done // self.total
        bar = "█" * full + "░" * (width - full)
        end = "\n" if self.done == self.total else ""
        print(f"\r\x1b[K  {bar} {figures}", end=end, flush=True)


def show(totals: Totals, folder: Path) -> None:
    """The summary, for people; paths below ``folder`` are shown from there."""
    places = [
        (f"{complexity:>6}", function, shortened(path, folder))
        for complexity, (function, path) in (
            (complexity, name.split("  ", 1)) for complexity, name in totals.functions
        )
    ]
    words = totals.identifiers.most_common(10)
    print()
    print(f"  files indexed {totals.files:>12,}")
    print(f"  lines         {totals.lines:>12,}")
    print(f"  tokens        {totals.tokens:>12,}")
    print(f"  identifiers   {len(totals.identifiers):>12,} different ones")
    print(f"  most used     {', '.join(f'{word} ({count:,})' for word, count in words)}")
    print(f"  failed        {totals.failed:>12,}")
    for kind, paths in sorted(totals.failures.items()):
        first = ", ".join(shortened(path, folder) for path in paths[:2])
        more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
        expected = "" if kind in totals.unexpected else " (broken files, as expected)"
        print(f"    {kind:<20}{len(paths):>6,}  {first}{more}{expected}")
    if places:
        print("  most complex functions")
        width = max(len(function) for _, function, _ in places)
        for complexity, function, path in places:
            print(f"    {complexity}  {function:<{width}}  {path}")
    print()


def shortened(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder))
