"""The benchmark: qbroker beside Celery + Redis, run by run, on one machine.

`python bench/run.py` measures everything in about twenty minutes. For each scenario it
alternates the sides, each time with a new broker in an empty directory, takes medians, prints the
table, and leaves every run in `bench/results.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from harness.environment import VENV_PYTHON, prepare
from harness.machine import OtherLoad, commit, describe_machine, describe_versions, file_system
from harness.processes import (
    BROKER_CPU,
    CLIENT_CPU,
    BenchError,
    adopt_orphans,
    end_descendants,
    start,
)
from harness.report import CALM_PERCENT, remarks, table, write
from harness.results import Record, Results, load_or_new
from harness.targets import OURS, SCENARIOS, THEIRS, of_group
from probe import probe

BENCH = Path(__file__).resolve().parent
_MEASUREMENT_S = 600
_CALM_TRIES = 5
_CALM_WAIT_S = 30.0


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=SCENARIOS, help="this scenario; may be given again"
    )
    parser.add_argument(
        "--group",
        choices=sorted({scenario.group for scenario in SCENARIOS.values()}),
        default="core",
        help="which questions, if not --only some (default core)",
    )
    parser.add_argument("--side", choices=(OURS, THEIRS), help="one side only; gives no ratios")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work: to try the bench, not to quote"
    )
    parser.add_argument(
        "--calm", action="store_true", help="repeat a run that other programs disturbed"
    )
    parser.add_argument("--write", action="store_true", help="rewrite the table in bench/README.md")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where data goes (default /var/tmp)"
    )
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--write wants figures to quote, so not --quick ones")
    return options


def main() -> int:
    """Exit code 1 if a measurement failed; a target that is not reached is no failure."""
    options = arguments()
    names = [
        name
        for name in options.only or of_group(options.group)
        if options.side is None or options.side in SCENARIOS[name].sides
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    try:
        prepare(
            celery=any(THEIRS in SCENARIOS[name].sides for name in names) and options.side != OURS
        )
        if file_system(options.dir) == "tmpfs":
            raise BenchError(f"{options.dir} is in memory, a sync costs nothing there: give --dir")
        path = BENCH / "results.json"
        results = load_or_new(path, describe_machine(options.dir), describe_versions())
        for name in names:
            results.records[name] = measure(name, options)
            if not options.quick:
                results.save(path)
        show(results, names, options)
    except BenchError as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return 130
    finally:
        end_descendants()
    return int(any(results.records[name].trouble for name in names))


def measure(name: str, options: argparse.Namespace) -> Record:
    """All runs of one scenario, the sides by turns, the first of each pair by turns too."""
    record = Record(f"{datetime.now(UTC):%Y-%m-%d}", commit())
    sides = [side for side in SCENARIOS[name].sides if options.side in (None, side)]
    for run in range(options.runs):
        for side in sides if run % 2 == 0 else reversed(sides):
            if side in record.trouble:
                continue
            try:
                measure_one_side(f"run {run + 1}", name, side, record, options)
            except BenchError as trouble:
                record.trouble[side] = str(trouble).splitlines()[0]
                print(f"{name}, {side}: {trouble}", file=sys.stderr)
    return record


def measure_one_side(
    run: str, name: str, side: str, record: Record, options: argparse.Namespace
) -> None:
    """One run is added to the record; with --calm the calmest of several tries."""
    tries: list[tuple[float, dict[str, float]]] = []
    if side == OURS and SCENARIOS[name].durable:
        record.probes.append(_probe_on_broker_cpu(options.dir))
    for _ in range(_CALM_TRIES if options.calm else 1):
        if options.calm:
            wait_for_calm()
        print(f"{datetime.now(UTC):%H:%M:%S} {name}, {side}, {run}", flush=True)
        tries.append(one_try(name, side, options))
        if tries[-1][0] < CALM_PERCENT:
            break
    load, figures = min(tries, key=lambda one: one[0])
    record.add(side, figures)
    record.other_load_percent.append(round(load, 1))


def wait_for_calm() -> None:
    """Other programs leave the machine alone just now, or half a minute has gone by."""
    end = time.monotonic() + _CALM_WAIT_S
    while time.monotonic() < end:
        load = OtherLoad()
        time.sleep(0.5)
        if load.percent() < CALM_PERCENT:
            return


def one_try(name: str, side: str, options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """One measurement in a process and a directory of its own: others' load, and the figures."""
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.dir))
    try:
        command = [str(VENV_PYTHON), str(BENCH / "measure.py"), name, side, str(directory)]
        command += ["--quick"] if options.quick else []
        load = OtherLoad()
        log = directory / "measure.log"
        process = start(command, cpus={BROKER_CPU, CLIENT_CPU}, env=os.environ, log=log)
        try:
            code = process.wait(_MEASUREMENT_S)
        except subprocess.TimeoutExpired:
            raise BenchError(f"no figures after {_MEASUREMENT_S} s") from None
        if code != 0:
            raise BenchError(_last_words(directory, code))
        return load.percent(), json.loads((directory / "figures.json").read_text())
    finally:
        end_descendants()
        shutil.rmtree(directory, ignore_errors=True)


def _last_words(directory: Path, code: int) -> str:
    """What a failed measurement and its broker said, or how much disk was left if neither did."""
    said = [path.read_text(errors="replace") for path in sorted(directory.glob("*.log"))]
    free_gib = shutil.disk_usage(directory).free / 2**30
    silent = f"exit code {code} without a word; {free_gib:.1f} GiB are free in {directory.parent}"
    return "".join(reversed(said)).strip() or silent


def _probe_on_broker_cpu(directory: Path) -> dict[str, float]:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {BROKER_CPU})
    try:
        return probe(directory)
    finally:
        os.sched_setaffinity(0, usable)


def show(results: Results, names: list[str], options: argparse.Namespace) -> None:
    """Prints the table of what was measured; with --write, README has that of all results."""
    print("\n" + table(results, names))
    for remark in remarks(results, names):
        print(f"- {remark}")
    if options.quick:
        print("\nA quick run: to see that the bench works. Its figures are not to be quoted.")
    if options.write:
        write(BENCH / "README.md", results)


if __name__ == "__main__":
    sys.exit(main())
