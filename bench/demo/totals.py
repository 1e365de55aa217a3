"""What all files together come to: the summary, and what a recount must agree with.

Rule 1. Nothing in it depends on the order in which results arrive: two runs over the same files
        give equal totals, or something was lost, doubled or invented.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from indexer import Index, index_file, most_complex

# A file that is not Python, or not text, or not in the encoding it claims: the standard library
# keeps some of those on purpose, to test itself with.
BROKEN = {"SyntaxError", "IndentationError", "TabError", "TokenError", "UnicodeDecodeError"}
BROKEN |= {"ValueError"}  # a null byte, before Python 3.12


@dataclass
class Totals:
    """Sums over all files. Compared with ==."""

    files: int = 0
    lines: int = 0
    tokens: int = 0
    identifiers: Counter[str] = field(default_factory=Counter)
    functions: list[tuple[int, str]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    """By path: says that the very same bytes were read."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    """By kind of error: the paths."""

    def add(self, index: Index) -> None:
        """One file's results are counted."""
        path = index["path"]
        assert path not in self.digests, f"{path} was counted before"
        self.files += 1
        self.lines += index["lines"]
        self.tokens += index["tokens"]
        self.identifiers.update(index["identifiers"])
        own = [(complexity, f"{name}  {path}") for complexity, name in index["functions"]]
        self.functions = most_complex(self.functions + own, 10)
        self.digests[path] = index["digest"]

    def fail(self, path: str, kind: str) -> None:
        """One file's failure is counted. ``kind`` is the error's class, perhaps with its module."""
        paths = self.failures.setdefault(kind.rpartition(".")[2], [])
        paths.append(path)
        paths.sort()

    @property
    def failed(self) -> int:
        """Files that could not be indexed."""
        return sum(map(len, self.failures.values()))

    @property
    def unexpected(self) -> dict[str, list[str]]:
        """Failures that are not the file's own fault."""
        return {kind: paths for kind, paths in self.failures.items() if kind not in BROKEN}

    def differences(self, other: Totals) -> list[str]:
        """The names of the sums that are not equal."""
        names = [each.name for each in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def count_alone(paths: list[str]) -> Totals:
    """The totals by calling the function here, one file after the other, with no broker at all."""
    totals = Totals()
    for path in paths:
        try:
            totals.add(index_file(path))
        except Exception as error:  # noqa: BLE001  # every kind is counted, as the tasks' are
            totals.fail(path, type(error).__name__)
    return totals
