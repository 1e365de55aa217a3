"""One seed from beginning to end: a world, its actors, faults; then healing, and the end.

Phase 1. Everybody does what the seed's swarm says, and things break.
Phase 2. Nothing breaks any more. Within ``DRAIN_S`` simulated seconds all that must be there
         has been handed out and settled, every request is answered, the books are at zero;
         then the broker is stopped, started, and knows the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbroker import archiving, bodies
from qbroker.core import closing
from sim.asker import Asker
from sim.broker import Process
from sim.clerk import Clerk
from sim.disk import FaultyDisk
from sim.limits import Limits
from sim.maker import Maker
from sim.net import Net
from sim.operator import Operator
from sim.oracle import Oracle
from sim.publisher import Publisher
from sim.rows import check_rows, read_rows
from sim.swarm import HOPELESS_MS, Swarm, draw, oldest_every
from sim.taker import Taker
from sim.turns import Turns
from sim.worker import Consumer, Worker
from sim.world import MS, S, Violation, World

PHASE_S = 25
DRAIN_S = 150
SMALL = (
    (bodies, "READ_AHEAD_BYTES", 2 << 10),  # for segments of some kilobytes
    (bodies, "UNREADABLE_MS", HOPELESS_MS),
    (archiving, "SAMPLE_BYTES", 2 << 10),  # for lags of some kilobytes
    (closing, "LANE_IDLE_MS", 600),  # for stories of some seconds
    (closing, "LOOK_MS", 200),
)
"""What is as small as the rest of a simulated world, while a seed runs."""
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # made by mkdtemp
"""Where an archive's file is: a simulated disk costs no time."""


@dataclass
class Outcome:
    """What a seed came to."""

    seed: int | str
    violation: str = ""
    trace: str = ""
    digest: str = ""
    events: int = 0
    simulated_s: float = 0.0
    messages: int = 0
    lives: int = 0
    sometimes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    sites: Counter[Any] = field(default_factory=Counter)
    cut: Counter[Any] = field(default_factory=Counter)
    transcript: list[str] = field(default_factory=list)


class Story:
    """Everything of one seed."""

    def __init__(self, seed: int | str, swarm: Swarm | None = None) -> None:
        world = self.world = World(seed)
        swarm = self.swarm = swarm or draw(world.rng("swarm"))
        self.net = Net(world, swarm)
        self.disk = FaultyDisk(world.rng("disk"))
        self.oracle = Oracle(
            world,
            calm=swarm.calm,
            results_max=swarm.config["results_max"],
            slack_us=(14 if swarm.fails("freeze") else 1) * S,
        )
        self.data = Path(tempfile.mkdtemp(prefix="qbroker-sim-", dir=IN_MEMORY))
        self.oracle.limited = {n for n, each in swarm.queues.items() if "max_length" in each}
        self.oracle.oldest_every = {n: oldest_every(swarm, n) for n in swarm.queues}
        burials = self.oracle.burials
        burials.few = any("deliveries_max" in each for each in swarm.queues.values())
        burials.mortal = {
            name.removesuffix(".dead")
            for name, options in swarm.dead.items()
            if options.keys() & {"message_ttl_ms", "max_length"}
        }
        self.oracle.by_task = swarm.has("known tasks")
        if swarm.features & {"limits", "ordering keys"}:
            self.oracle.limits = Limits(self.oracle, swarm)
        self.oracle.turns = Turns(self.oracle, swarm)
        self.process = Process(world, self.net, self.disk, swarm, self.data)
        self.operator = Operator(
            world, self.net, self.disk, swarm, oracle=self.oracle, process=self.process
        )
        common = world, self.net, swarm, self.oracle
        maker = Maker(world, swarm, self.oracle)
        names = list(swarm.queues)
        rng = world.rng("story")
        self.publishers = [
            Publisher(maker, f"publisher-{n}", *common) for n in range(1, swarm.publishers + 1)
        ]
        self.workers = []
        for n in range(1, swarm.workers + 1):
            queues = [
                names if n == number == 1 else rng.sample(names, rng.randint(1, len(names)))
                for number in range(1, swarm.members + 1)
            ]
            self.workers.append(Worker(f"worker-{n}", maker, queues, *common))
        self.consumers = [
            Consumer(maker, names, f"consumer-{n}", *common) for n in range(1, swarm.consumers + 1)
        ]
        self.asker = Asker(maker, "asker", *common)
        self.clerk = Clerk(maker, "clerk", *common)
        for worker in self.workers:
            worker.claims_until = self.claims_until
            worker.number_of = self.process.number_of
        self.operator.publishers = self.publishers
        self.operator.workers = self.workers
        self.operator.consumers = self.consumers

    def claims_until(self) -> int:
        held_ms = min(self.swarm.config["claims_ms"], self.swarm.config["grace_ms"])
        return self.process.started_at + held_ms * MS

    @property
    def takers(self) -> list[Taker]:
        return self.operator.takers()

    # The phases.

    def run(self) -> None:
        """Raises Violation."""
        world = self.world
        for line in self.swarm.lines():
            world.note("swarm", "%s", line)
        self.operator.begin()
        for actor in (*self.publishers, *self.workers, *self.consumers, self.asker, self.clerk):
            actor.begin()
        world.after(3 * S, self.audit)
        world.run(PHASE_S * S, self.idle)
        self.calm()
        end = world.now + DRAIN_S * S
        if not world.run(end, self.drained):
            raise Violation(f"not done {DRAIN_S} s after all was put right: {self.what_is_left()}")
        self.close()

    def audit(self) -> None:
        """Now and then the broker's own books are looked at."""
        self.process.check()
        self.world.after(3 * S, self.audit)

    def idle(self) -> bool:
        """Nothing more would happen in the first phase but faults."""
        return all(each.idle for each in self.publishers) and self.drained()

    def calm(self) -> None:
        self.operator.heal()
        for taker in self.takers:
            taker.calm = True
            taker.subscribe()
        for publisher in self.publishers:
            publisher.calm = True
        self.asker.settle_down()
        self.clerk.calm = True
        if self.process.state == "down":
            self.operator.start()

    def drained(self) -> bool:
        core = self.process.core
        if core is None or self.process.state != "up":
            return False
        if core.state.quarantined:
            self.oracle.set_aside(core.state.quarantined)
        return (
            not any(queue.ready or queue.scheduled or queue.leased for queue in core.state.numbered)
            and all(each.idle for each in self.publishers)
            and not any(taker.unsure or taker.endings for taker in self.takers)
            and not core.state.uploads
            and not core.state.graphs
            and not self.oracle.still()
            and self.process.followed
        )

    def what_is_left(self) -> str:
        core = self.process.core
        queues = core.state.numbered if core else []
        books = {q.name: (q.ready, q.scheduled, q.leased) for q in queues}
        unsure = {t.name: len(t.unsure) for t in self.takers if t.unsure}
        waiting = {p.name: list(p.unconfirmed) for p in self.publishers if p.unconfirmed}
        uploads = list(core.state.uploads) if core else []
        left = ", ".join(str(known) for known in self.oracle.still()[:5])
        return (
            f"the broker is {self.process.state}, queues (ready, scheduled, leased) {books}, "
            f"archived up to {self.process.books.batch}, settlements unanswered {unsure}, "
            f"chunks unanswered {waiting}, parts of publishes {uploads}, "
            f"nodes held {core.state.graphs.held if core else 0}, "
            f"not ended: {left}"
        )

    def close(self) -> None:
        """A clean stop and a start: the same is known, and nothing is left."""
        world = self.world
        self.process.check()
        for client in (*self.publishers, *self.consumers, self.asker, self.clerk):
            client.alive = False
            client.hang_up("the end")
        assert self.oracle.turns
        self.oracle.turns.check()
        if self.swarm.has("archive"):
            check_rows(self.oracle, *read_rows(self.process.books.path))
        for worker in self.workers:
            for client in worker.clients:
                client.alive = False
                client.hang_up("the end")
        self.process.stop()
        world.run(world.now + 30 * S, lambda: self.process.state == "down", every=1)
        if self.process.state != "down":
            raise Violation("the broker does not stop")
        self.process.start()
        core = self.process.core
        assert core is not None
        counts = [(q.name, q.ready, q.scheduled, q.leased) for q in core.state.numbered]
        if any(sum(rest) for _, *rest in counts):
            raise Violation(f"after the end there is something left: {counts}")
        if core.state.uploads:
            raise Violation(f"parts of publishes are kept that nobody ends: {core.state.uploads}")
        if core.state.graphs:
            raise Violation(f"{core.state.graphs.nodes} nodes of graphs are kept for ever")
        world.sometimes["lanes were closed"] += bool(core.state.closed)
        aside = len(core.state.quarantined)
        self.world.sometimes["a message was set aside"] += aside
        lost = self.oracle.still()
        if lost:
            raise Violation(f"lost: {', '.join(map(str, lost[:5]))}")

    def end(self) -> None:
        """Whatever happened, nothing of it goes on."""
        self.process.abandon()
        self.process.books.close()
        self.process.close()
        shutil.rmtree(self.data)
        asyncio._set_running_loop(None)


def run(seed: int | str, *, swarm: Swarm | None = None, transcript: bool = False) -> Outcome:
    """Run a seed. Its violation, if there is one, is in the outcome."""
    logging.disable(logging.CRITICAL)
    usual = [getattr(module, name) for module, name, _ in SMALL]
    for module, name, value in SMALL:
        setattr(module, name, value)
    story = Story(seed, swarm)
    outcome = Outcome(seed)
    try:
        story.run()
    except Violation as violation:
        outcome.violation = str(violation) or repr(violation)
        outcome.trace = traceback.format_exc()
    except Exception as error:
        outcome.violation = f"{type(error).__name__}: {error}"
        outcome.trace = traceback.format_exc()
    finally:
        story.end()
        for (module, name, _), value in zip(SMALL, usual, strict=True):
            setattr(module, name, value)
        logging.disable(logging.NOTSET)
    world = story.world
    if transcript or outcome.violation:
        outcome.transcript = world.transcript()
    outcome.digest = world.digest()
    outcome.events = world.tick
    outcome.simulated_s = world.now / S
    outcome.messages = len(story.oracle.known)
    outcome.lives = world.life
    outcome.sometimes, outcome.faults = world.sometimes, world.faults
    outcome.features = Counter({**dict.fromkeys(story.swarm.features, 1)})
    checkpoints = story.process.checkpoints
    outcome.sites = story.disk.made + checkpoints.made
    outcome.cut = story.disk.spoiled + checkpoints.spoiled
    return outcome
