"""``make simulate``: many seeds, or one with its transcript.

python -m sim 1000              a thousand seeds, on all cores
python -m sim --seed 17         one seed; what happened, line by line, if it fails
python -m sim --seed 17 --all   the same if it does not fail, too
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sim.story import Outcome, run
from sim.swarm import FAULTS, FEATURES

ROOT = Path(__file__).parent.parent.parent
REGRESSIONS = ROOT / "tests" / "regressions"
LINES = 60
NEEDED = (
    "a backup was restored",
    "a checkpoint was written",
    "a chunk was rejected for a key",
    "a child came for what its parent had claimed",
    "a chunk was sent again",
    "a commit outlived its archivist",
    "a duplicate was recognised",
    "a message became several",
    "a publish was broken off",
    "a publish was refused: SEQUENCE_TOO_OLD",
    "a queue waited for another",
    "a queue was closed to publishes",
    "a read was refused",
    "a message was set aside",
    "a request was given up",
    "a restored message was looked at",
    "a retry keeps its ordering key",
    "a running message was revoked",
    "a segment was cleaned",
    "a settlement came too late",
    "a slot was taken",
    "a slow reader was given no more",
    "a start read a checkpoint",
    "a start was confirmed",
    "a taker unsubscribed",
    "a tenant shared with another",
    "a token was lost",
    "a token was spent",
    "a worker crashed",
    "a worker said goodbye",
    "a worker stalled",
    "an archivist could not read the log",
    "an archivist outlived its broker",
    "a message was replaced by its key",
    "a redelayed message came",
    "dead segments were dropped",
    "many were cancelled",
    "messages were moved",
    "publishes were refused until the archive caught up",
    "replay was compared with the live state",
    "rows were held against the oracle",
    "rows were shed",
    "settled late",
    "settled twice",
    "the broker stopped cleanly",
    "younger ones went first",
    "told FAILURE",
    "told QUEUED",
    "told REVOKED",
    "told STARTED",
    "told SUCCESS",
    "told UNKNOWN",
)
"""What a run of a few hundred seeds must have seen."""


class Total:
    """Sums over seeds."""

    def __init__(self) -> None:
        self.seeds = self.events = self.lives = self.messages = 0
        self.simulated_s = 0.0
        self.failed: list[Outcome] = []
        self.sometimes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.features: Counter[str] = Counter()
        self.sites: Counter[tuple[str, str]] = Counter()
        self.cut: Counter[tuple[str, str]] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.events += outcome.events
        self.lives += outcome.lives
        self.messages += outcome.messages
        self.simulated_s += outcome.simulated_s
        for name in ("sometimes", "faults", "features", "sites", "cut"):
            getattr(self, name).update(getattr(outcome, name))
        if outcome.violation:
            self.failed.append(outcome)

    def line(self, took_s: float) -> str:
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        seen = sum(1 for name in NEEDED if self.sometimes[name])
        return (
            f"{self.seeds} seeds, {len(self.failed)} failed; {self.events:,} events "
            f"({self.events / max(took_s, 0.001):,.0f}/s), {self.simulated_s / 3600:,.1f} "
            f"simulated hours, {self.messages:,} messages, {self.lives:,} starts; "
            f"faults: {faults}; disk calls of {len(self.sites)} kinds, cut or failed at "
            f"{len(self.cut)}; {seen} of {len(NEEDED)} sometimes-events"
        )

    def histogram(self) -> Iterator[str]:
        """What the generator made, and what happened."""
        for name in FEATURES:
            yield f"  feature {name:<24} {self.features[name]:>8} seeds"
        for name in FAULTS:
            yield f"  fault   {name:<24} {self.faults[name]:>8} times"
        for name, count in sorted(self.sometimes.items()):
            yield f"  seen    {name:<48} {count:>8}"
        for name in NEEDED:
            if not self.sometimes[name]:
                yield f"  NEVER   {name}"
        for site in sorted(self.sites.keys() - self.cut.keys()):
            yield f"  NEVER CUT AT {site}"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def quiet() -> None:
    warnings.simplefilter("ignore")  # coroutines of a killed broker are never finished


def many(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs, initializer=quiet) as pool:
        yield from pool.map(run, seeds, chunksize=4)


def report(outcome: Outcome, lines: int) -> None:
    say(f"\nseed {outcome.seed} FAILED: {outcome.violation}")
    if lines:
        say(outcome.trace)
        say("\n".join(outcome.transcript[-lines:] if lines > 0 else outcome.transcript))
    say(f"again, with all that happened: make simulate SEED={outcome.seed}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", default="")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--word", default="", help="only lines of the transcript with this word")
    parser.add_argument("--histogram", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write failing seeds as regressions")
    given = parser.parse_args(arguments)
    quiet()
    if given.seed:
        return one(given)
    total, began = Total(), time.monotonic()
    for outcome in many(range(given.first, given.first + given.count), given.jobs):
        total.add(outcome)
        if sys.stderr.isatty():
            done = 40 * total.seeds // given.count
            bar = f"[{'#' * done:<40}] {total.seeds}/{given.count}, {len(total.failed)} failed"
            sys.stderr.write(f"\r{bar}")
            sys.stderr.flush()
        if outcome.violation:
            report(outcome, 0)
            if given.keep:
                keep(outcome)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if given.histogram:
        say("\n".join(total.histogram()))
    say(total.line(time.monotonic() - began))
    return bool(total.failed)


def one(given: argparse.Namespace) -> int:
    seed = int(given.seed) if given.seed.isdigit() else given.seed
    outcome = run(seed, transcript=given.all)
    if given.word:
        outcome.transcript = [line for line in outcome.transcript if given.word in line]
    if outcome.violation:
        report(outcome, -1)
        return 1
    say("\n".join(outcome.transcript))
    say(f"seed {seed} is fine: {outcome.events} events, digest {outcome.digest}")
    return 0


def keep(outcome: Outcome) -> None:
    """A file that ``make test`` runs again from now on."""
    REGRESSIONS.mkdir(exist_ok=True)
    path = REGRESSIONS / f"seed-{outcome.seed}.txt"
    path.write_text(f"{outcome.seed}\n{outcome.violation}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
