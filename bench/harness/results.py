"""`bench/results.json`: every run of every scenario, on one machine.

A scenario's record always comes from one run of the bench, both sides alternating. Measuring one
scenario again replaces its record; another machine starts a new file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass
class Record:
    """What one scenario gave, run by run."""

    measured: str
    commit: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # side, figure, runs
    probes: list[dict[str, float]] = field(default_factory=list)
    other_load_percent: list[float] = field(default_factory=list)
    trouble: dict[str, str] = field(default_factory=dict)

    def add(self, side: str, figures: dict[str, float]) -> None:
        """One more run of `side`."""
        for name, value in figures.items():
            self.values.setdefault(side, {}).setdefault(name, []).append(value)

    def runs(self, side: str, figure: str) -> list[float]:
        """The values of one figure, empty if there are none."""
        return self.values.get(side, {}).get(figure, [])

    def middle(self, side: str, figure: str) -> float | None:
        """The median of one figure."""
        runs = self.runs(side, figure)
        return median(runs) if runs else None


@dataclass
class Results:
    """All records, and what they stand for."""

    machine: dict[str, str]
    versions: dict[str, str]
    records: dict[str, Record] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """`path` holds these results."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def load_or_new(path: Path, machine: dict[str, str], versions: dict[str, str]) -> Results:
    """The results at `path` if they are of this machine, else empty ones."""
    results = Results(machine, versions)
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["machine"] == machine:
            results.records = {name: Record(**of) for name, of in stored["records"].items()}
    return results
