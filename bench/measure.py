"""One measurement in a process of its own: `python bench/measure.py SCENARIO SIDE DIR [--quick]`.

It moves to the second CPU, starts the broker on the first, lets the scenario measure, and leaves
the figures in `DIR/figures.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from harness.arena import Arena
from harness.processes import CLIENT_CPU, BenchError, adopt_orphans, end_descendants
from harness.sides import SIDES


def main() -> int:
    """Runs one scenario for one side; what it cannot do is a sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, {CLIENT_CPU})
    adopt_orphans()
    scenario = importlib.import_module(f"scenarios.{options.scenario}")
    arena = Arena(SIDES[options.side], options.directory, quick=options.quick)
    try:
        arena.start_broker()
        figures = scenario.measure(arena)
        (options.directory / "figures.json").write_text(json.dumps(figures))
    except BenchError as trouble:
        print(trouble, file=sys.stderr)
        return 1
    finally:
        end_descendants()
    return 0


if __name__ == "__main__":
    sys.exit(main())
