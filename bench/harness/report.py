"""The table, for the terminal and for `bench/README.md`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from harness.results import Record, Results
from harness.targets import OURS, SCENARIOS, THEIRS, Figure, of_group

_BEGIN = "<!-- {group} table: written by run.py --write -->"
_END = "<!-- {group} table: end -->"
_HEAD = (
    "figure",
    "qbroker",
    "Celery + Redis",
    "ratio",
    "target",
    "verdict",
    "disk p50, p99",
)
CALM_PERCENT = 3.0


def table(results: Results, names: Iterable[str]) -> str:
    """The figures of these scenarios as Markdown that also reads well on a terminal."""
    names = list(names)
    rows: list[tuple[str, ...]] = [_HEAD]
    for name in names:
        if record := results.records.get(name):
            rows += [_row(figure, name, record) for figure in SCENARIOS[name].figures]
    if not any(THEIRS in SCENARIOS[name].sides for name in names):
        rows = [(*row[:2], *row[4:]) for row in rows]  # nobody to be compared with
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def remarks(results: Results, names: Iterable[str]) -> list[str]:
    """What a reader must know before believing the table: failures, and load by others."""
    found: list[str] = []
    for name in names:
        if record := results.records.get(name):
            for side, sentence in sorted(record.trouble.items()):
                found.append(f"{name}, {side}: {sentence}")
            if record.other_load_percent and max(record.other_load_percent) > CALM_PERCENT:
                loads = ", ".join(f"{load:.0f} %" for load in record.other_load_percent)
                found.append(f"{name}: other programs used {loads} of the machine's CPU meanwhile")
    return found


def write(readme: Path, results: Results) -> None:
    """The text between the markers of `readme` is that of `results`, a table a group."""
    text = readme.read_text()
    for group in dict.fromkeys(scenario.group for scenario in SCENARIOS.values()):
        begin, end = _BEGIN.format(group=group), _END.format(group=group)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{_section(results, of_group(group))}\n{end}{after}"
    readme.write_text(text)


def _section(results: Results, names: list[str]) -> str:
    parts = [
        "Machine: " + ", ".join(f"{key} {value}" for key, value in results.machine.items()) + ".",
        "Versions: " + ", ".join(f"{key} {value}" for key, value in results.versions.items()) + ".",
        "Measured: " + _measured(results, names) + ".",
        table(results, names),
        "\n".join(f"- {remark}" for remark in remarks(results, names)),
    ]
    return "\n\n".join(part for part in parts if part)


def _measured(results: Results, names: list[str]) -> str:
    days: dict[str, list[str]] = {}
    for name in names:
        if record := results.records.get(name):
            days.setdefault(f"{record.measured} at {record.commit or 'no commit'}", []).append(name)
    if len(days) == 1:
        return next(iter(days))
    return "; ".join(f"{day}: {', '.join(names)}" for day, names in days.items())


def _row(figure: Figure, name: str, record: Record) -> tuple[str, ...]:
    ours = record.middle(OURS, figure.name)
    theirs = record.middle(THEIRS, figure.name)
    durable = SCENARIOS[name].durable and ours is not None and record.probes
    return (
        f"{figure.text}, {figure.unit}",
        _value(record.runs(OURS, figure.name)),
        _value(record.runs(THEIRS, figure.name)),
        f"{ours / theirs:.2f} ×" if ours is not None and theirs and figure.unit != "%" else "",
        figure.target_text,
        figure.verdict(ours, theirs),
        _disk(record) if durable else "",
    )


def _value(runs: list[float]) -> str:
    """The median, and the range when there was more than one run."""
    if not runs:
        return "—"
    spread = f" ({_number(min(runs))}–{_number(max(runs))})" if len(runs) > 1 else ""
    return _number(median(runs)) + spread


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _disk(record: Record) -> str:
    p50, p99 = (median(run[key] for run in record.probes) for key in ("p50_us", "p99_us"))
    return f"{p50:,.0f} µs, {p99:,.0f} µs"
