"""What keys cost the core: a message by its step, with unique keys, fair shares and limits.

    python bench/keyed.py [WAY ...]                        CPU time, the least of seven

A thousand messages are published at a time, as send_many does, to a queue with a consumer of 600;
what it is handed is acknowledged 300 at a time, in the order in which it came. `parts` is to
pack the records. `keys` are as many lanes as messages. Apart from the clients, the log and the
deliveries, which are in `lanes_cost`.
"""

from __future__ import annotations

import argparse
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from time import process_time

from qbroker.core import records as r
from qbroker.core.effects import Hand
from qbroker.garbage import spare_the_old
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.ids import mint, unpack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message, pack_fields
from qprotocol.uniquekeys import UniqueKey
from turns import START_MS, Stage

COUNT = 20_000
FRAME = 1_000
ACK = 300
CREDIT = 600
TENANTS = 100
BEHIND = 4
"""Frames that are published before the first message is taken: a backlog, as callers make it."""
REPEATS = 7


def message(number: int, way: str) -> bytes:
    """A call as the client packs it."""
    parts = way.split("+")
    fair = f"tenant-{number % TENANTS}" if "fair" in parts else ""
    limit = f"key-{number}" if "keys" in parts else ""
    unique = {wire.UNIQUE: UniqueKey(f"user-{number}").pack()} if "unique" in parts else {}
    return Message(
        "q",
        b"\x92\x91\xce\x00\x01\x86\xa0\x80",
        id=unpack_id(mint(START_MS, number), minted=True),
        task="task_bodies.tick",
        keys=LaneKeys(limit=limit, fair=fair).pack(),
        flags=wire.IGNORE_RESULT,
        fields=pack_fields(unique) if unique else b"",
    ).pack()


def limit(name: str, **rule: object) -> tuple[int, f.Frame]:
    return 3, f.SetLimit(name=name, rule=dict(rule))


class Timed:
    """A stage that knows where the time went."""

    def __init__(self, way: str) -> None:
        self.stage = Stage()
        self.spent: Counter[str] = Counter()
        self.held: deque[tuple[int, int]] = deque()
        self.stage.hello(2, b"s" * 16)
        if "limits" in way:
            self.stage.turn(limit("slots", queue="q", concurrency=1_000_000))
            self.stage.turn(limit("rate", queue="q", rate=1_000_000, burst=1_000_000))
        if "keys" in way:
            self.stage.turn(limit("each", queue="q", per_key=True, concurrency=10))
        self.stage.consume(2, 0)
        self.credit(CREDIT)

    def credit(self, credit: int) -> None:
        self.execute("credit", f.Credit(subscription=1, credit=credit))

    def append(self, record: r.Record) -> int:
        began = process_time()
        position = self.stage.append(record)
        took = process_time() - began
        self.spent["parts"] += took
        self.inner += took
        return position

    def execute(self, step: str, frame: f.Frame) -> None:
        stage = self.stage
        self.clock(step, lambda: stage.broker.execute(2, frame, stage.now, self.append))

    def dispatch(self) -> None:
        stage = self.stage
        effects = self.clock("dispatch", lambda: stage.broker.dispatch(stage.now, self.append))
        for effect in effects:
            assert isinstance(effect, Hand)
            for first, count in effect.runs:
                self.held.extend(
                    (position, effect.grant) for position in range(first, first + count)
                )
        stage.batch, stage.slot = stage.batch + 1, 0

    def clock(self, step: str, call: Callable[[], list[object]]) -> list[object]:
        self.inner = 0.0
        began = process_time()
        out = call()
        self.spent[step] += process_time() - began - self.inner
        return out

    def ack(self) -> None:
        """Some of what is held, neighbours in one run."""
        runs: list[list[int]] = []
        for _ in range(min(ACK, len(self.held))):
            position, grant = self.held.popleft()
            if runs and runs[-1][0] == grant and runs[-1][1] + runs[-1][2] == position:
                runs[-1][2] += 1
            else:
                runs.append([grant, position, 1])
        self.execute("ack", f.Ack(raw=b"".join(wire.ACK_RUN.pack(*run) for run in runs)))


def frames(way: str) -> Iterator[f.Frame]:
    for at in range(0, COUNT, FRAME):
        raw = b"".join(message(number, way) for number in range(at, at + FRAME))
        yield f.Publish(producer=0, sequence=0, count=FRAME, raw=raw)


def measured(way: str, published: list[f.Frame]) -> Counter[str]:
    timed = Timed(way)
    gc.collect()
    spare_the_old()
    timed.spent.clear()
    for number, frame in enumerate(published):
        timed.execute("publish", frame)
        timed.dispatch()
        for _ in range(FRAME // ACK + 1 if number >= BEHIND else 0):
            timed.ack()
            timed.dispatch()
    while timed.held:
        timed.ack()
        timed.dispatch()
    assert not timed.stage.broker.state.queues["q"].messages
    return timed.spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "ways", nargs="*", default=["plain", "unique", "fair", "unique+fair+limits"]
    )
    steps = "publish", "dispatch", "ack", "parts"
    print(f"{'us a message':20}", *(f"{step:>9}" for step in (*steps, "all")))
    for way in parser.parse_args().ways:
        published = list(frames(way))
        runs = [measured(way, published) for _ in range(REPEATS)]
        least = [min(run[step] for run in runs) / COUNT * 1e6 for step in steps]
        whole = min(run.total() for run in runs) / COUNT * 1e6
        print(f"{way:20}", *(f"{each:9.2f}" for each in (*least, whole)))


if __name__ == "__main__":
    main()
