"""``make planted``: plants each bug in a process of its own, and runs seeds until one fails.

python -m sim.planted                 all of them
python -m sim.planted token           those with the word in their name
python -m sim.planted --seeds 40      give up after so many seeds
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings

from sim.planted.bank import BANK
from sim.planted.editing import Planted
from sim.story import run
from sim.swarm import draw
from sim.world import World

SEEDS = 400


def hunt(planted: Planted, seeds: int) -> tuple[str, int, str]:
    """The bug's name, the seeds it took (0: not found), and what broke."""
    warnings.simplefilter("ignore")  # coroutines of a killed broker never end
    try:
        planted.plant()
    except (LookupError, AttributeError, SyntaxError) as error:
        return planted.name, 0, f"it does not fit the code any more: {error}"
    for seed in range(seeds):
        swarm = draw(World(seed).rng("swarm"), planted.focus)
        outcome = run(seed, swarm=swarm)
        if outcome.violation:
            return planted.name, seed + 1, outcome.violation
    return planted.name, 0, ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make planted", description=__doc__)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    bank = [planted for planted in BANK if given.word in planted.name]
    began, missed = time.monotonic(), 0
    breaks = {planted.name: planted.breaks for planted in bank}
    context = multiprocessing.get_context("fork")
    with context.Pool(given.jobs, maxtasksperchild=1) as fresh:
        asked = [fresh.apply_async(hunt, (planted, given.seeds)) for planted in bank]
        for each in asked:
            name, seeds, what = each.get()
            missed += not seeds
            found = f"after {seeds:>3} seeds: {what[:90]}" if seeds else f"NOT FOUND {what}"
            sys.stdout.write(f"{name:<36} {found}\n")
            if not seeds:
                sys.stdout.write(f"{'':<36} it breaks this: {breaks[name]}\n")
            sys.stdout.flush()
    took = time.monotonic() - began
    sys.stdout.write(f"{len(bank)} planted, {missed} not found, {took:.0f} s\n")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
