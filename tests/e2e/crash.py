"""Kill the broker with -9 under load, again and again, then count every message.

    python tests/e2e/crash.py --cycles 20 [--seed 1] [--sides raw,workers]

    raw        publishers with resends and consumers that ack, fail, release and vanish, each
               speaking the protocol by itself
    workers    applications that send tasks, and a real prefork worker that runs them

Before each kill some hundred messages are confirmed, so every kill falls into work under way;
checkpoints, cleaning and the archive go on meanwhile, every few kills (storage.OFTEN).
What is printed is one line of JSON: the totals (books.Totals). Exit code 0 if nothing was lost,
invented, risen from the dead or miscounted, and each settled task has its one row in the archive;
else 1, and the data is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent.parent))  # as pytest's pythonpath

from e2e.books import SHOWN, Books, Totals
from e2e.daemon import Daemon, until
from e2e.fleet import Fleet, load_tasks
from e2e.loads import QUEUES, Busy, Consumer, Publisher, Sender
from e2e.storage import OFTEN, Sight, count_rows, judge_rows
from e2e.talker import Talker

GRACE_MS = 300
DRAIN_S = 120.0
STEP = 40
"""Messages that must be confirmed between two kills: a kill of an idle broker shows nothing."""

WAITING = 0.3
"""Of the kills, those that wait for a checkpoint: one half for the file, one for its beginning."""


class Side(Protocol):
    """A load, and the queues that must be empty at the end."""

    books: Books
    queues: tuple[str, ...]

    def start(self) -> None: ...
    def heal(self) -> None:
        """No more is published; all that was is confirmed, refused or unknown."""

    def finish(self) -> None:
        """Everything has stopped, and is in the books."""

    def figures(self) -> dict[str, Any]: ...


class Raw:
    """Four publishers and eight consumers that speak the protocol themselves."""

    queues = QUEUES

    def __init__(self, broker: Daemon, seed: int) -> None:
        self.books = Books()
        self._publishers: list[Busy] = [
            Publisher(f"publisher {n}", broker, self.books, seed) for n in range(4)
        ]
        self._consumers: list[Busy] = [
            Consumer(f"consumer {n}", broker, self.books, seed) for n in range(8)
        ]

    def start(self) -> None:
        for thread in (*self._publishers, *self._consumers):
            thread.start()

    def heal(self) -> None:
        for thread in self._publishers:
            thread.end()

    def finish(self) -> None:
        for thread in self._consumers:
            thread.end()

    def figures(self) -> dict[str, Any]:
        threads = (*self._publishers, *self._consumers)
        return {
            "resends_recognised": self.books.resends_recognised,
            "connections": sum(thread.connections for thread in threads),
        }


class Workers:
    """Four threads of an application that send tasks; a worker with two children runs them."""

    queues = ("default",)

    def __init__(self, broker: Daemon, folder: Path, seed: int) -> None:
        self.books = Books()
        self.fleet = Fleet(folder / "fleet", broker, "-P", "prefork", "-c", "2", "-l", "WARNING")
        self._tasks = load_tasks(broker)
        self._senders = [
            Sender(f"sender {n}", broker, self.books, seed, self._tasks) for n in range(4)
        ]

    def start(self) -> None:
        self.fleet.start(wait_for_ready=False)
        for thread in self._senders:
            thread.start()

    def heal(self) -> None:
        for thread in self._senders:
            thread.end()
        self._tasks.app.close()

    def finish(self) -> None:
        assert self.fleet.stop() == 0, self.fleet.last_words()
        self.books.runs = self.fleet.marks()

    def figures(self) -> dict[str, Any]:
        return {}


def make_side(name: str, broker: Daemon, folder: Path, seed: int) -> Side:
    return Raw(broker, seed) if name == "raw" else Workers(broker, folder, seed)


def run(folder: Path, cycles: int, seed: int, names: list[str]) -> Totals:
    """All of it: load, kills, healing, counting."""
    rng, began = random.Random(seed), time.monotonic()
    broker = Daemon(folder / "broker", grace_ms=GRACE_MS, **OFTEN).start()
    sight = Sight(broker)
    sides = [make_side(name, broker, folder, seed) for name in names]
    try:
        for side in sides:
            side.start()
        down_ms = [crash(broker, sides, rng, sight) for _ in range(cycles)]
        for side in sides:
            side.heal()
        watcher = broker.connect("admin")
        try:
            until(lambda: is_drained(watcher, sides), "the drain", DRAIN_S)
        except AssertionError as error:
            told = [side.fleet.told() for side in sides if isinstance(side, Workers)]
            raise AssertionError("\n".join([str(error), *told])) from error
        for side in sides:
            side.finish()
        totals = merged([side.books.totals() for side in sides])
        totals.unbalanced = [wrong for side in sides for wrong in balance(broker, side)]
        books = [side.books for side in sides]
        with suppress(AssertionError):  # what is missing for good is said below
            until(lambda: not judge_rows(broker, books), "the archive", DRAIN_S / 4)
        totals.more = {
            "cycles": cycles,
            "seed": seed,
            "sides": ",".join(names),
            "seconds": round(time.monotonic() - began, 1),
            "back_ms_median": sorted(down_ms)[len(down_ms) // 2] if down_ms else 0,
            "back_ms_max": max(down_ms, default=0),
            "duplicates_by_side": {
                name: side.books.totals().duplicates
                for name, side in zip(names, sides, strict=True)
            },
        }
        for side in sides:
            totals.more |= side.figures()
        assert broker.stop() == 0, broker.last_words()
        totals.unbalanced += judge_rows(broker, books)[:SHOWN]
        totals.more |= {**sight.figures(), "rows": count_rows(broker)}
        return totals
    finally:
        broker.close()
        for side in sides:
            if isinstance(side, Workers):
                side.fleet.close()


def crash(broker: Daemon, sides: list[Side], rng: random.Random, sight: Sight) -> int:
    """A kill at a random moment of the load; milliseconds until the broker listened again.

    Many lives are too short for a checkpoint; so some kills wait for one that is half made, or
    for a whole one, behind which cleaning begins.
    """
    goals = [len(side.books.confirmed) + rng.randint(STEP, 10 * STEP) for side in sides]
    moment, kind = time.monotonic() + rng.uniform(0, 0.3), rng.random()
    until(
        lambda: (
            sight.look()
            and time.monotonic() >= moment
            and all(
                len(side.books.confirmed) >= goal for side, goal in zip(sides, goals, strict=True)
            )
        ),
        "work under way",
        60.0,
    )
    if kind < WAITING:
        sight.wait_for_keeper(whole=kind < WAITING / 2, more_s=rng.uniform(0, 0.3))
    assert broker.runs, f"the broker ended by itself:\n{broker.last_words()}"
    broker.kill()
    sight.look_after_kill()
    down = time.monotonic()
    broker.start()
    return round((time.monotonic() - down) * 1000)


def is_drained(watcher: Talker, sides: list[Side]) -> bool:
    """Whether no message waits, ready or not, and none is out."""
    rows = [watcher.queue(name) for side in sides for name in side.queues]
    return not any(row[column] for row in rows for column in ("ready", "scheduled", "leased"))


def balance(broker: Daemon, side: Side) -> list[str]:
    """Sentences about what the broker counts and the books do not.

    The broker counts since its first start: a replay counts what the live run counted.
    """
    watcher = broker.connect("admin")
    rows = [watcher.queue(name) for name in side.queues]
    counts = {
        name: sum(row["counts"].get(name, 0) for row in rows)
        for name in ("published", "acked", "dead_lettered", "expired", "purged")
    }
    done = len(side.books.runs)
    wrong = []
    for name, due in (("published", done), ("acked", done)):
        if counts[name] != due:
            wrong.append(f"{name} is {counts[name]} on {side.queues}, the books say {due}")
    wrong += [
        f"{name} is {counts[name]} on {side.queues}, the books know of none"
        for name in ("dead_lettered", "expired", "purged")
        if counts[name]
    ]
    return wrong


def merged(parts: list[Totals]) -> Totals:
    """The totals of several books as one."""
    first, *others = parts
    for other in others:
        for name in ("tried", "confirmed", "refused", "unknown", "executed", "duplicates"):
            setattr(first, name, getattr(first, name) + getattr(other, name))
        for name in ("lost", "unexpected", "risen"):
            getattr(first, name).extend(getattr(other, name))
    return first


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the broker under load, and count.")
    parser.add_argument("--cycles", type=int, default=20, help="kills (20)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--sides", default="raw,workers", help="raw, workers or both (both)")
    given = parser.parse_args()
    names = given.sides.split(",")
    if given.cycles < 1 or not set(names) <= {"raw", "workers"}:
        parser.error("--cycles is 1 or more, --sides is raw, workers or raw,workers")
    folder = Path(tempfile.mkdtemp(prefix="qbroker-crash-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with its processes
    try:
        totals = run(folder, given.cycles, given.seed, names)
    except BaseException:
        sys.stderr.write(f"seed {given.seed}: the data and the logs are in {folder}\n")
        raise
    sys.stdout.write(json.dumps(totals.as_dict()) + "\n")
    if totals.good:
        shutil.rmtree(folder)
        return 0
    sys.stderr.write(f"the data and the logs are in {folder}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
