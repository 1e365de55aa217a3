"""Whoever breaks things, and puts them right: faults from a seed, restarts, healing.

Called by name from ``WAYS``; what a seed has not switched on does not happen.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from qbroker.log.salvage import PAGE_BYTES
from qprotocol import frames as f
from qprotocol.wire import SLOT_BITS
from sim.broker import Process
from sim.disk import FaultyDisk
from sim.net import Net
from sim.oracle import Oracle
from sim.publisher import Publisher
from sim.swarm import HOPELESS_MS, Swarm
from sim.taker import NORMAL, Taker
from sim.worker import Consumer, Worker
from sim.world import MS, S, World
from simdisk import Inode

LAST_BATCH = 1 << 44
WALL_JUMP_MS_MAX = 25 * 60_000
"""In all: the broker forgets producers that are silent for an hour of wall time."""


class Operator:
    """Restarts the broker, and until ``heal`` makes things fail."""

    def __init__(
        self,
        world: World,
        net: Net,
        disk: FaultyDisk,
        swarm: Swarm,
        *,
        oracle: Oracle,
        process: Process,
    ) -> None:
        self.world = world
        self.net = net
        self.disk = disk
        self.swarm = swarm
        self.oracle = oracle
        self.process = process
        self.rng = world.rng("operator")
        self.publishers: list[Publisher] = []
        self.workers: list[Worker] = []
        self.consumers: list[Consumer] = []
        self.healed = False
        self.flips = False
        self.flipped: tuple[str, int, int] | None = None
        self.hopeless: list[tuple[Inode, int, int]] = []
        """Files, and where, for how many bytes, reads may be refused so long that it is damage."""
        self.failing_since = 0
        """When the disk was last told to fail, and to go on failing."""
        self.rotten: tuple[Inode, int, int] | None = None
        self.cut_is_power = True
        process.on_end = self.ended
        process.before_end = self.ending
        process.on_start = self.unflip
        process.on_keep = self.cut_keeper
        world.on_power_cut = self.power_cut
        self.ways = [way for name, way in self.table() if swarm.fails(name) or swarm.has(name)]

    def table(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("power cut", self.cut_power),
            ("kill", self.kill),
            ("cut at a site", self.arm_cut),
            ("cut on an answer", self.arm_answer),
            ("clean restart", self.process.stop),
            ("eio", self.fail),
            ("short write", self.short_write),
            ("disk full", self.fill),
            ("bit flip", self.plan_flip),
            ("bad sectors", self.spoil),
            ("rot", self.rot),
            ("freeze", self.freeze),
            ("wall jump", self.jump),
            ("reset", self.reset),
            ("storm", self.storm),
            ("half close", self.half_close),
            ("blackhole", self.blackhole),
            ("slow network", self.slow_network),
            ("worker crash", lambda: self.any_worker(Worker.crash)),
            ("member crash", lambda: self.any_worker(Worker.crash_member)),
            (
                "worker stall",
                lambda: self.any_worker(lambda w: w.stall(self.rng.randint(1, 9) * S)),
            ),
            ("bye", lambda: self.any_worker(Worker.bye)),
            ("unsubscribe", self.unsubscribe),
            ("credit changes", self.change_credit),
            ("stale settle", self.stale_settle),
            ("checkpoints", self.process.keep),
            ("restores", self.process.restores.restore),
            ("archivist killed", self.kill_archivist),
            ("archivist stalled", self.stall_archivist),
        ]

    def begin(self) -> None:
        self.process.start()
        self.world.after(self.pause(), self.think)

    def pause(self) -> int:
        return self.rng.randint(1, 2 * self.swarm.fault_every_us)

    def think(self) -> None:
        if self.healed:
            return
        self.world.after(self.pause(), self.think)
        if self.ways:
            self.rng.choice(self.ways)()

    # The broker's ends.

    def ending(self) -> None:
        if self.rotten or self.hopeless:
            self.unspoil()  # else the next start is refused, and that is told elsewhere
        for worker in self.workers:
            worker.blameless = False  # the next life of the broker does not stand still
        self.oracle.ended_a_life()
        if self.process.troubled:
            self.oracle.power_lost()  # what a failed sync leaves in the cache is not on the disk

    def ended(self, how: str) -> None:
        if self.swarm.has("restores") and not self.flips and not self.flipped:
            self.process.restores.take(self.disk, self.process.checkpoints, self.oracle)
        if self.flips and how != "refused" and not self.healed:
            self.flip()
        elif self.flipped:
            self.unflip()
        if self.healed:
            self.repair()
        self.world.after(self.rng.randint(10 * MS, 1_500 * MS), self.start)

    def start(self) -> None:
        if self.process.state != "down":
            return
        if self.swarm.fails("cut at a site") and not self.healed and self.rng.random() < 0.4:
            self.arm_cut()  # so that starts are cut, too, at every step
        self.process.start()

    def power_cut(self) -> None:
        """The disk was switched off at some call."""
        self.world.fault("cut at a call")
        self.end_machine("the power is cut at a call", power=self.cut_is_power)

    def end_machine(self, how: str, *, power: bool) -> None:
        self.process.die(how, power=power)
        if power:
            self.oracle.power_lost()

    def cut_power(self) -> None:
        if self.process.state != "down":
            self.world.fault("power cut")
            self.end_machine("the power is cut", power=True)

    def kill(self) -> None:
        if self.process.state != "down":
            self.world.fault("kill")
            self.end_machine("killed", power=False)

    def arm_cut(self) -> None:
        """At one of the next calls, or at the next call of a kind that is rare."""
        self.cut_is_power = self.rng.random() < 0.6
        has_others = self.swarm.has("checkpoints") and self.rng.random() < 0.3
        disk = self.process.checkpoints if has_others else self.disk
        way = self.rng.random()
        if disk.made and way < 0.3:
            disk.cut_site = self.rng.choice(sorted(disk.made))
        elif way < 0.7:
            disk.cut_unseen = True
        else:
            disk.cut_at = disk.calls + self.rng.randint(1, 60)

    def cut_keeper(self) -> None:
        """At any of the calls of a keeper, and of what the broker does with its news."""
        if self.swarm.fails("cut at a site") and not self.healed and self.rng.random() < 0.4:
            self.cut_is_power = self.rng.random() < 0.6
            disk = self.rng.choice((self.disk, self.process.checkpoints))
            disk.cut_at = disk.calls + self.rng.randint(1, self.rng.choice((30, 300)))

    def arm_answer(self) -> None:
        """Just after a client was told something, all that is not on the disk is lost."""
        wanted = self.rng.choice((f.Published, f.Settled, f.Result, f.Frame))
        self.oracle.on_answer = lambda frame: self.answer_cut(frame, wanted)

    def answer_cut(self, frame: f.Frame, wanted: type[f.Frame]) -> None:
        if isinstance(frame, wanted):
            self.oracle.on_answer = None
            self.world.fault("cut on an answer")
            self.disk.lose_all = True
            self.world.after(0, self.cut_power)

    def kill_archivist(self) -> None:
        if self.process.books.lives:
            self.world.fault("archivist killed")
            self.process.books.kill()

    def stall_archivist(self) -> None:
        for each in self.process.books.lives:
            self.world.fault("archivist stalled")
            each.freeze(self.rng.randint(200 * MS, 15 * S))

    # The disk.

    def fail(self) -> None:
        self.world.fault("eio")
        self.no_longer_fails()
        self.disk.fail(self.rng.randint(1, 30), errno.EIO, sticky=self.rng.random() < 0.3)
        self.failing_since = self.world.now

    def no_longer_fails(self) -> None:
        """What was wrong with the disk is over, or something else will be: a write may succeed.

        Reads that were refused all the time count as damage, if nothing was written meanwhile.
        """
        self.process.hurt = self.process.troubled
        took = self.world.now - max(self.failing_since, self.process.started_at)
        if self.disk.sticky and self.disk.failed and took >= HOPELESS_MS * MS:
            self.world.sometimes["a disk failed for long, and nothing was written"] += 1
            self.oracle.rots(1, LAST_BATCH)

    def short_write(self) -> None:
        self.world.fault("short write")
        self.no_longer_fails()
        self.disk.fail(self.rng.randint(1, 10), "short")

    def fill(self) -> None:
        self.world.fault("disk full")
        self.disk.fill_up(self.rng.choice((0, 0, 2_000, 40_000)))
        self.world.after(self.rng.randint(1, 4) * S, self.empty)

    def empty(self) -> None:
        self.process.hurt = self.process.troubled
        self.disk.capacity = None

    def plan_flip(self) -> None:
        """A bit changes while the broker is down; sealed segments are all confirmed."""
        if self.process.state == "up" and not self.flips and self.disk.capacity is None:
            self.flips = True
            if self.rng.random() < 0.5:
                self.process.stop()
            else:
                self.kill()

    def flip(self) -> None:
        """All of a sealed segment was confirmed, and of another what later batches prove."""
        self.flips = False
        sizes = {
            name: len(inode.durable) if inode.mode == 0o400 else self.disk.proved_bytes(name)
            for name, inode in sorted(self.disk.files.items())
            if name.endswith(".qlog")
        }
        files = [name for name, size in sizes.items() if size]
        if files:
            name = files[-1] if self.rng.random() < 0.5 else self.rng.choice(files)
            at = self.rng.randrange(sizes[name])
            self.flipped = name, at, self.rng.randrange(8)
            self.world.note("operator", "byte %d of %s changes at rest", at, name)
            self.world.fault("bit flip")
            self.disk.flip(self.disk.files[name], *self.flipped[1:])
            self.process.damaged = True

    def unflip(self) -> None:
        """The operator has a backup."""
        if self.flipped:
            name, at, bit = self.flipped
            self.disk.flip(self.disk.files[name], at, bit)
            self.flipped = None
            self.process.damaged = False

    # What cannot be read while the broker serves.

    def spoil(self) -> None:
        """Some sectors of a file cannot be read for a while; they are intact."""
        found = self.some_file()
        if found is None:
            return
        inode, at = found
        took = self.rng.choice((100, 1_000, 2_000, 3 * HOPELESS_MS)) * MS
        at -= at % PAGE_BYTES
        span = self.rng.choice((PAGE_BYTES, 2 * PAGE_BYTES, 1 << 20))
        self.world.note("operator", "%s: %d bytes at %d cannot be read", inode.name, span, at)
        self.world.fault("bad sectors")
        self.disk.bad[inode] = at, at + span
        if took >= HOPELESS_MS * MS or self.process.unreadable:
            self.hopeless.append((inode, at, span))
            self.oracle.rots_on = True
            self.oracle.rots(*self.disk.batches_at(inode, at, span))
        self.process.spoiled = True
        self.world.after(took, self.unspoil)

    def rot(self) -> None:
        """A bit of a file changes under the running broker, until the file is put back."""
        found = self.some_file()
        if found is None or self.rotten or self.flipped:
            return
        inode, at = found
        self.rotten = inode, at, self.rng.randrange(8)
        self.world.note("operator", "byte %d of %s rots", at, inode.name)
        self.world.fault("rot")
        self.oracle.rots(*self.disk.batches_at(inode, at))
        self.disk.flip(*self.rotten)
        self.process.spoiled = True
        self.world.after(self.rng.randint(200 * MS, 10 * S), self.unspoil)

    def some_file(self) -> tuple[Inode, int] | None:
        """A file, and a byte of its batches: mostly of one in which a message waits."""
        if self.process.state != "up" or self.healed:
            return None
        spans = {
            batch: (inode, start, stop)
            for name, inode in sorted(self.disk.files.items())
            if name.endswith(".qlog")
            for batch, start, stop in self.disk.batches(inode)
        }
        waiting = [
            each.position >> SLOT_BITS
            for each in self.oracle.still()
            if each.position and not each.leases
        ]
        wanted = [batch for batch in waiting if batch in spans]
        if not spans:
            return None
        choice = wanted if wanted and self.rng.random() < 0.7 else list(spans)
        inode, start, stop = spans[self.rng.choice(choice)]
        return inode, self.rng.randrange(start, stop)

    def unspoil(self) -> None:
        """The disk reads again, and what had rotted was put back."""
        if self.rotten:
            self.disk.flip(*self.rotten)
            self.rotten = None
        if self.disk.refused:
            self.world.sometimes["a read was refused"] += self.disk.refused
        self.disk.bad.clear()
        self.disk.refused = 0
        for place in self.hopeless:  # what came into it meanwhile
            self.oracle.rots(*self.disk.batches_at(*place))
        self.hopeless.clear()
        self.oracle.rots_on = False
        if self.process.spoiled:
            self.process.spoiled = False
            self.process.spoiled_until = self.world.now + 5 * S

    # Time and network.

    def freeze(self) -> None:
        self.world.fault("freeze")
        took = self.rng.randint(100 * MS, 12 * S)
        self.world.note("operator", "the broker stands still for %d ms", took // MS)
        self.process.freeze(took)
        if self.rng.random() < 0.5 and self.process.state == "up":
            for worker in self.workers:
                worker.suspend(took)

    def jump(self) -> None:
        world = self.world
        jump = self.rng.choice((-600_000, -5_000, 5_000, 60_000, 600_000))
        if abs(world.wall_offset_ms + jump) <= WALL_JUMP_MS_MAX:
            world.fault("wall jump")
            world.wall_offset_ms += jump

    def wires(self) -> list[Any]:
        return self.net.alive()

    def reset(self) -> None:
        if self.wires():
            self.world.fault("reset")
            self.rng.choice(self.wires()).reset("reset by the network")

    def storm(self) -> None:
        self.world.fault("storm")
        for wire in self.wires():
            wire.client.storms = True
            wire.reset("reset by the network")

    def half_close(self) -> None:
        if self.wires():
            self.world.fault("half close")
            wire = self.rng.choice(self.wires())
            wire.cut_short(self.rng.randint(0, max(1, wire.up.bytes)))

    def blackhole(self) -> None:
        if self.wires():
            self.world.fault("blackhole")
            wire = self.rng.choice(self.wires())
            wire.hurt()
            pipe = self.rng.choice((wire.up, wire.down))
            pipe.dark_until = self.world.now + self.rng.randint(200 * MS, 12 * S)

    def slow_network(self) -> None:
        self.world.fault("slow network")
        self.net.delay_us = 1 * MS, 300 * MS
        self.world.after(self.rng.randint(1, 5) * S, self.usual_network)

    def usual_network(self) -> None:
        self.net.delay_us = self.swarm.delay_us

    # Actors.

    def any_worker(self, do: Callable[[Worker], None]) -> None:
        do(self.rng.choice(self.workers))

    def takers(self) -> list[Taker]:
        return [member for worker in self.workers for member in worker.members] + list(
            self.consumers
        )

    def unsubscribe(self) -> None:
        taker = self.rng.choice(self.takers())
        if taker.open and not taker.silent and NORMAL in taker.subscribed:
            taker.subscribed.discard(NORMAL)
            self.world.sometimes["a taker unsubscribed"] += 1
            taker.ask(f.Unsubscribe(subscription=NORMAL), lambda answer, mark: None)
            self.world.after(self.rng.randint(1, 2_000 * MS), taker.subscribe)

    def change_credit(self) -> None:
        taker = self.rng.choice(self.takers())
        if NORMAL in taker.subscribed and not taker.silent:
            taker.credit = self.rng.choice((1, 2, 5, 50))
            taker.credit_most = max(taker.credit_most, taker.credit)
            taker.say(f.Credit(subscription=NORMAL, credit=taker.credit))

    def stale_settle(self) -> None:
        taker = self.rng.choice(self.takers())
        if taker.graves:
            self.world.sometimes["settled late"] += 1
            taker.late([self.rng.choice(list(taker.graves))])

    # The end of it.

    def heal(self) -> None:
        """Nothing fails any more, and the broker comes up if it is down."""
        self.healed = True
        self.world.note("operator", "everything is put right")
        self.oracle.on_answer = None
        self.ways = []
        self.repair()
        self.usual_network()
        self.world.wall_offset_ms += max(0, self.world.wall_high - self.world.wall_ms())
        for wire in self.wires():
            wire.up.dark_until = wire.down.dark_until = 0

    def repair(self) -> None:
        self.unflip()
        self.unspoil()
        self.no_longer_fails()
        self.disk.heal()
        self.disk.capacity = None
        for disk in (self.disk, self.process.checkpoints):
            disk.cut_at, disk.cut_site, disk.cut_unseen = 0, None, False
        self.swarm.hung_sync = self.swarm.slow_sync = 0.0
