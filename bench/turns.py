"""How long is the longest turn of the core? `python bench/turns.py [CASE ...]`

The core alone, in this process: no log, no socket. A turn is what the engine makes of it: some
frames, what time has made due, the hand-out. Each case builds a backlog, then does one thing that
touches all of it, and goes on with turns until nothing is left to do. Printed are the longest turn
in milliseconds, how many turns it took, and what they took together. The aim is 5 ms a turn.

It is CPU time, and the least of three runs: that the machine does something else at the moment is
not the broker's fault. Garbage is collected before a case, and frozen, as the broker does.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import process_time

from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.settings import ACK_MESSAGES_MAX, DELIVER_MESSAGES_MAX, Settings
from qbroker.garbage import spare_the_old
from qprotocol import frames as f
from qprotocol import graphs, wire
from qprotocol.graphs import Link, Node
from qprotocol.lanekeys import LaneKeys
from qprotocol.limits import ACK_RUNS_MAX, MESSAGES_PER_FRAME_MAX, OUTCOMES_MAX
from qprotocol.message import Message, Outcome, pack_fields

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000
CHUNK = MESSAGES_PER_FRAME_MAX
SETTINGS = Settings(
    credit_max=1_000_000,
    upload_messages_max=1_000_000,
    upload_bytes_max=1 << 30,
    poison_max=9,
    fan_out_max=100_000,
)
REPEATS = 3


class Stage:
    """A broker, its clock, and the longest turn so far."""

    def __init__(self) -> None:
        self.broker = Broker(SETTINGS)
        self.wall_ms, self.mono_ms = START_MS, 1_000
        self.batch, self.slot = 1, 0
        self.longest = self.total = 0.0
        self.turns = 0
        self.correlation = 0
        self.broker.boot(self.now, "bench", self.append)

    @property
    def now(self) -> Now:
        return Now(self.wall_ms, self.mono_ms)

    def append(self, record: r.Record) -> int:
        """As the group commit does: the body is packed, positions go up."""
        record.parts()
        if self.slot + record.slots >= 1 << wire.SLOT_BITS:
            self.batch, self.slot = self.batch + 1, 0
        position = self.batch << wire.SLOT_BITS | self.slot
        self.slot += record.slots
        return position

    def turn(self, *frames: tuple[int, f.Frame]) -> None:
        """Frames in, what is due, the hand-out."""
        began = process_time()
        for connection, frame in frames:
            self.broker.execute(connection, frame, self.now, self.append)
        self.broker.due(self.now, self.append)
        self.broker.dispatch(self.now, self.append)
        took = process_time() - began
        self.longest, self.total = max(self.longest, took), self.total + took
        self.turns += 1
        self.batch, self.slot = self.batch + 1, 0

    def rest(self) -> None:
        """Turns until nothing happens by itself."""
        self.turn()
        while self.broker.has_more or not self.broker.next_due_ms(self.now):
            self.turn()

    def measured(self) -> None:
        """From now on it counts."""
        gc.collect()
        gc.freeze()
        self.longest, self.total, self.turns = 0.0, 0.0, 0

    def pass_ms(self, wait_ms: int) -> None:
        self.wall_ms += wait_ms
        self.mono_ms += wait_ms

    def hello(self, connection: int, session: bytes = b"") -> None:
        role = "worker" if session else "consumer"
        self.turn((connection, f.Hello(protocol=1, role=role, client_id="x", session=session)))

    def consume(self, connection: int, credit: int) -> None:
        self.turn((connection, f.Consume(subscription=1, queues=["q"], credit=credit)))
        self.rest()

    def publish(self, messages: list[bytes]) -> None:
        for at in range(0, len(messages), CHUNK):
            some = messages[at : at + CHUNK]
            self.turn((1, f.Publish(producer=0, sequence=0, count=len(some), raw=b"".join(some))))

    def upload(self, messages: list[bytes]) -> None:
        """All but the frame that makes it true."""
        self.correlation += 1
        for index, at in enumerate(range(0, len(messages), CHUNK)):
            part = b"".join(messages[at : at + CHUNK])
            frame = f.Part(index=index, of=f.Publish.TYPE, raw=part, correlation=self.correlation)
            self.turn((1, frame))

    def commit(self, count: int) -> None:
        self.turn(
            (
                1,
                f.Publish(
                    producer=0, sequence=0, count=count, raw=b"", correlation=self.correlation
                ),
            )
        )
        self.rest()

    def tokens(self) -> list[tuple[int, int]]:
        return [(p, grant.number) for p, grant in self.broker.state.leases.items()]


def plain(count: int, **fields: object) -> list[bytes]:
    return [Message("q", b"x", **fields).pack()] * count  # type: ignore[arg-type]


def delayed(count: int, within_ms: int) -> list[bytes]:
    """Due at any time of a span, in no order."""
    chance = random.Random(count)
    return [
        Message("q", b"x", due_ms=START_MS + 10_000 + chance.randrange(within_ms)).pack()
        for _ in range(count)
    ]


def holding(count: int, session: bytes = b"") -> Stage:
    """Somebody, connection 2, holds so many."""
    stage = Stage()
    stage.hello(2, session)
    stage.publish(plain(count))
    stage.consume(2, count)
    return stage


def lost(count: int) -> Stage:
    """A worker is lost that had started all of its tasks."""
    stage = holding(count, b"s" * 16)
    tokens = stage.tokens()
    for at in range(0, count, CHUNK):
        raw = b"".join(wire.TOKEN.pack(*token) for token in tokens[at : at + CHUNK])
        stage.turn((2, f.Running(raw=raw)))
    stage.pass_ms(31_000)
    stage.measured()
    stage.rest()
    assert not stage.broker.state.leases
    return stage


def goodbye(count: int) -> Stage:
    """A consumer says Bye."""
    stage = holding(count)
    stage.measured()
    stage.turn((2, f.Bye()))
    stage.rest()
    assert not stage.broker.state.leases
    return stage


def reclaimed(count: int) -> Stage:
    """A worker comes back and has forgotten all it held."""
    stage = holding(count, b"s" * 16)
    stage.measured()
    stage.hello(3, b"s" * 16)
    stage.rest()
    assert not stage.broker.state.leases
    return stage


def returned(count: int) -> Stage:
    """Messages that were given back are handed out once more."""
    stage = goodbye(count)
    stage.hello(3)
    stage.measured()
    stage.consume(3, count)
    assert len(stage.broker.state.leases) == count
    return stage


def acked(count: int) -> Stage:
    """Every second message is acked, one run each, in frames as large as they may be."""
    stage = holding(2 * count)
    runs = [wire.ACK_RUN.pack(grant, p, 1) for p, grant in stage.tokens()[::2]]
    stage.measured()
    for at in range(0, count, ACK_RUNS_MAX):
        stage.turn((2, f.Ack(raw=b"".join(runs[at : at + ACK_RUNS_MAX]))))
    assert len(stage.broker.state.leases) == count
    return stage


def acked_whole(count: int) -> Stage:
    """All is acked, in runs as they were handed out and frames as large as they may be."""
    stage = holding(count)
    grants = {grant.number: grant for grant in stage.broker.state.leases.values()}.values()
    runs = [wire.ACK_RUN.pack(g.number, first, n) for g in grants for first, n, _ in g.entries]
    stage.measured()
    most = ACK_MESSAGES_MAX // DELIVER_MESSAGES_MAX
    for at in range(0, len(runs), most):
        stage.turn((2, f.Ack(raw=b"".join(runs[at : at + most]))))
    assert not stage.broker.state.leases
    return stage


def failed(count: int) -> Stage:
    """So many failed, in frames as large as they may be; each tries again later."""
    return settled(count, Outcome(wire.FAIL, 0, 0, delay_ms=5_000, result=b"e"))


def rejected(count: int) -> Stage:
    """So many become dead letters, in frames as large as they may be."""
    return settled(count, Outcome(wire.REJECT, 0, 0, result=b"no"))


def settled(count: int, outcome: Outcome) -> Stage:
    stage = holding(count)
    raws = [replace(outcome, position=p, grant=grant).pack() for p, grant in stage.tokens()]
    stage.measured()
    for at in range(0, count, OUTCOMES_MAX):
        some = raws[at : at + OUTCOMES_MAX]
        stage.turn((2, f.Settle(count=len(some), raw=b"".join(some))))
    assert not stage.broker.state.leases
    return stage


def purged_ready(count: int) -> Stage:
    """A purge of messages that are ready."""
    stage = Stage()
    stage.hello(1)
    stage.publish(plain(1))
    run = stage.broker.state.lanes[0].run(0)
    for _ in range(count // 100_000):
        stage.batch, stage.slot = stage.batch + 1, 0
        stage.broker.state.ready(run, stage.batch << wire.SLOT_BITS, 100_000)
    return purged(stage)


def purged_delayed(count: int) -> Stage:
    """A purge of messages that wait for their time, any within a day."""
    stage = Stage()
    stage.hello(1)
    stage.publish(delayed(count, DAY_MS))
    return purged(stage)


def purged_named(count: int) -> Stage:
    """A purge of messages whose ids were chosen by their callers."""
    stage = Stage()
    stage.hello(1)
    stage.publish([Message("q", b"x", id=f"id{n}").pack() for n in range(count)])
    return purged(stage)


def purged_touched(count: int) -> Stage:
    """A purge of messages that were handed out before."""
    return purged(goodbye(count))


def purged(stage: Stage) -> Stage:
    stage.measured()
    stage.turn((1, f.Purge(queue="q")))
    stage.rest()
    queue = stage.broker.state.queues["q"]
    assert queue.ready == queue.scheduled == 0
    return stage


def upload_ready(count: int) -> Stage:
    """The last frame of an upload of messages that are ready."""
    return uploaded(plain(count))


def upload_delayed(count: int) -> Stage:
    """The last frame of an upload of messages due within a day, with as many there already."""
    return uploaded(delayed(count, DAY_MS), delayed(count + 1, DAY_MS))


def upload_named(count: int) -> Stage:
    """The last frame of an upload of messages with ids that their callers chose."""
    return uploaded([Message("q", b"x", id=f"id{n}").pack() for n in range(count)])


def upload_expiring(count: int) -> Stage:
    """The last frame of an upload of messages that expire."""
    return uploaded(plain(count, expires_ms=START_MS + DAY_MS))


def uploaded(messages: list[bytes], before: list[bytes] | None = None) -> Stage:
    stage = Stage()
    stage.hello(1)
    stage.publish(before or [])
    stage.upload(messages)
    stage.measured()
    stage.commit(len(messages))
    return stage


def parts_delayed(count: int) -> Stage:
    """The parts of an upload of delayed messages, until it is true."""
    stage = Stage()
    stage.hello(1)
    messages = delayed(count, DAY_MS)
    stage.measured()
    stage.upload(messages)
    stage.commit(count)
    return stage


def published_delayed(count: int) -> Stage:
    """Chunks of messages due within a day, in no order."""
    stage = Stage()
    stage.hello(1)
    messages = delayed(count, DAY_MS)
    stage.measured()
    stage.publish(messages)
    return stage


def due_together(count: int) -> Stage:
    """So many come due in the same second, and are handed out."""
    stage = Stage()
    stage.hello(1)
    stage.publish(delayed(count, 1_000))
    stage.hello(2)
    stage.pass_ms(60_000)
    stage.measured()
    stage.rest()
    assert stage.broker.state.queues["q"].ready == count
    return stage


def expired_together(count: int) -> Stage:
    """So many expire in the same second."""
    stage = Stage()
    stage.hello(1)
    stage.publish(plain(count, expires_ms=START_MS + 50_000))
    stage.pass_ms(60_000)
    stage.measured()
    stage.rest()
    assert stage.broker.state.queues["q"].ready == 0
    return stage


def cancelled(count: int) -> Stage:
    """A cancel by filter of messages that are ready."""
    return ordered(filled(count), f.CancelMany(queue="q"))


def moved(count: int) -> Stage:
    """A move of messages that are ready."""
    return ordered(filled(count), f.Move(queue="q", to="to"))


def filled(count: int) -> Stage:
    """Hundreds of thousands are ready, as after large uploads; and there is a queue beside."""
    stage = Stage()
    stage.hello(1)
    stage.publish(plain(1))
    stage.turn((1, f.Declare(queue="to", options={})))
    run = stage.broker.state.lanes[0].run(0)
    for _ in range(count // 100_000):
        stage.batch, stage.slot = stage.batch + 1, 0
        stage.broker.state.ready(run, stage.batch << wire.SLOT_BITS, 100_000)
    stage.batch, stage.slot = stage.batch + 1, 0
    stage.turn((1, f.Declare(queue="head", options={})))
    return stage


def ordered(stage: Stage, frame: f.Frame) -> Stage:
    stage.measured()
    stage.turn((1, frame))
    stage.rest()
    assert stage.broker.state.queues["q"].ready == 0
    return stage


def policy(count: int) -> Stage:
    """A policy for so many queues."""
    stage = queues(count)
    stage.measured()
    stage.turn((1, f.SetPolicy(name="p", pattern="w*", options={"max_length": 5})))
    stage.rest()
    assert stage.broker.state.numbered[-1].options.max_length == 5
    return stage


def queues(count: int) -> Stage:
    """So many, empty."""
    stage = Stage()
    stage.hello(1)
    for number in range(count):
        stage.turn((1, f.Declare(queue=f"w{number}", options={})))
    return stage


def evicted(count: int) -> Stage:
    """A publish for a queue that is full, in as many lanes as messages: the oldest go."""
    return evicting(count, [Message("q", b"x", keys=key(n)).pack() for n in range(count)])


def evicted_plain(count: int) -> Stage:
    """The same, in one lane."""
    return evicting(count, plain(count))


def evicting(count: int, messages: list[bytes]) -> Stage:
    stage = Stage()
    stage.hello(1)
    options = {"max_length": count, "overflow": "dead_letter_oldest"}
    stage.turn((1, f.Declare(queue="q", options=options)))
    stage.publish(messages)
    stage.measured()
    for at in range(0, count // 4, CHUNK):
        stage.publish(messages[at : at + CHUNK])
        stage.rest()
    assert stage.broker.state.queues["q"].ready == count
    return stage


def lowered(count: int) -> Stage:
    """A limit is set for a queue with as many lanes as messages: a quarter has to go."""
    stage = Stage()
    stage.hello(1)
    stage.publish([Message("q", b"x", keys=key(n)).pack() for n in range(count)])
    options = {"max_length": 3 * count // 4, "overflow": "dead_letter_oldest"}
    stage.measured()
    stage.turn((1, f.ChangeQueue(queue="q", options=options)))
    stage.rest()
    assert stage.broker.state.queues["q"].ready == 3 * count // 4
    return stage


def key(number: int) -> bytes:
    return LaneKeys(fair=str(number)).pack()


def peeked(count: int) -> Stage:
    """A Peek into a queue with as many lanes as messages."""
    stage = Stage()
    stage.hello(1)
    stage.publish([Message("q", b"x", keys=key(n)).pack() for n in range(count)])
    stage.measured()
    stage.turn((1, f.Peek(queue="q", count=100)))
    stage.rest()
    return stage


def counted(count: int) -> Stage:
    """A look at all queues, as statistics and metrics take it; a step is a turn."""
    stage = queues(count)
    stage.measured()
    look_at_all(stage)
    return stage


def counted_tasks(count: int) -> Stage:
    """The same, where one queue has so many tasks."""
    stage = Stage()
    stage.hello(1)
    stage.publish([Message("q", b"x", task=f"t{n}").pack() for n in range(count)])
    stage.measured()
    look_at_all(stage)
    return stage


def look_at_all(stage: Stage) -> None:
    census = stage.broker.census()
    while not census.is_over:
        began = process_time()
        census.step()
        took = process_time() - began
        stage.longest, stage.total = max(stage.longest, took), stage.total + took
        stage.turns += 1


def node(*links: Link, **fields: object) -> bytes:
    """A message of a graph, and the links that begin with it."""
    packed = pack_fields({wire.NODE: Node(links).pack()})
    return Message("q", b"x", fields=packed, **fields).pack()  # type: ignore[arg-type]


def fan(count: int) -> list[bytes]:
    """One, so many behind it, and one behind those."""
    middle = [node()] * (count - 1)
    first, join = Link(graphs.SUCCESS, 1, 1, count), Link(graphs.SUCCESS, count + 1, count)
    return [node(first), node(join), *middle, node()]


def graph_published(count: int) -> Stage:
    """The parts of a graph: one, all the others behind it, and one behind those."""
    stage = Stage()
    stage.hello(1)
    messages = fan(count)
    stage.measured()
    stage.upload(messages)
    stage.commit(len(messages))
    assert stage.broker.state.graphs.held == count + 1
    return stage


def fanned(count: int) -> Stage:
    """A graph of that kind, and its first task."""
    stage = graph_published(count)
    stage.hello(2)
    stage.consume(2, 1)
    return stage


def let_go(count: int) -> Stage:
    """The first of them succeeds: all the others go."""
    stage = fanned(count)
    ack_all(stage, measured=True)
    assert stage.broker.state.graphs.held == 1
    return stage


def let_down(count: int) -> Stage:
    """The first of them fails: all the others end."""
    stage = fanned(count)
    ((position, grant),) = stage.tokens()
    outcome = Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY, result=b"e")
    stage.measured()
    stage.turn((2, f.Settle(count=1, raw=outcome.pack())))
    stage.rest()
    assert not stage.broker.state.graphs
    return stage


def joined(count: int) -> Stage:
    """All but the last end, in frames as large as they may be, and that is let go."""
    stage = fanned(count)
    ack_all(stage, measured=False)
    stage.turn((2, f.Credit(subscription=1, credit=count)))
    stage.rest()
    ack_all(stage, measured=True)
    assert not stage.broker.state.graphs.held
    return stage


def ack_all(stage: Stage, *, measured: bool) -> None:
    """What is held is acked, as many runs in a frame as there may be messages."""
    grants = {grant.number: grant for grant in stage.broker.state.leases.values()}.values()
    runs = [wire.ACK_RUN.pack(g.number, first, n) for g in grants for first, n, _ in g.entries]
    if measured:
        stage.measured()
    most = ACK_MESSAGES_MAX // DELIVER_MESSAGES_MAX
    for at in range(0, len(runs), most):
        stage.turn((2, f.Ack(raw=b"".join(runs[at : at + most]))))
    stage.rest()


CASES: dict[Callable[[int], Stage], int] = {
    lost: 8_000,
    goodbye: 10_000,
    reclaimed: 10_000,
    returned: 10_000,
    acked: 6_500,
    acked_whole: 60_000,
    failed: 1_800,
    rejected: 1_800,
    purged_ready: 10_000_000,
    purged_delayed: 200_000,
    purged_named: 200_000,
    purged_touched: 100_000,
    upload_ready: 50_000,
    upload_delayed: 50_000,
    upload_named: 50_000,
    upload_expiring: 50_000,
    parts_delayed: 50_000,
    published_delayed: 200_000,
    due_together: 1_000_000,
    expired_together: 100_000,
    cancelled: 1_000_000,
    moved: 1_000_000,
    policy: 10_000,
    peeked: 20_000,
    counted: 10_000,
    counted_tasks: 20_000,
    evicted: 20_000,
    evicted_plain: 20_000,
    lowered: 20_000,
    graph_published: 100_000,
    let_go: 100_000,
    let_down: 100_000,
    joined: 100_000,
}


def lines(wanted: list[str]) -> Iterator[str]:
    yield f"{'case':18} {'messages':>10} {'longest turn ms':>15} {'turns':>6} {'all ms':>8}"
    for case, count in CASES.items():
        if wanted and case.__name__ not in wanted:
            continue
        stages = []
        for _ in range(1 if count >= 500_000 else REPEATS):
            stage = case(count)
            stages.append((stage.longest, stage.turns, stage.total))
            del stage
            gc.unfreeze()
        longest, turns, total = min(stages)
        yield f"{case.__name__:18} {count:10,} {longest * 1e3:15.2f} {turns:6} {total * 1e3:8.1f}"


if __name__ == "__main__":
    spare_the_old()
    for line in lines(sys.argv[1:]):
        print(line, flush=True)
