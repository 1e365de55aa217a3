"""A worker: a parent that speaks for it, children that take messages, and how they fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.message import Outcome
from sim.client import Client
from sim.maker import Maker
from sim.oracle import Lease
from sim.taker import Taker
from sim.world import MS, Mark, S, Violation


class Parent(Client):
    """Heartbeats for all children."""

    role = "worker"

    def __init__(self, worker: Worker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.worker = worker
        self.beats = False
        self.claimed: set[tuple[int, int]] = set()
        """What it has claimed for its children, and none of them has come for."""

    def tokens(self) -> bytes:
        """What its children run that are not back yet, as a worker's parent does."""
        if not self.swarm.has("claims of parents"):
            return b""
        away = [member for member in self.worker.members if not member.open]
        self.claimed = {token for member in away for token in member.held}
        return b"".join(w.TOKEN.pack(*token) for token in sorted(self.claimed))

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        if self.claimed:
            self.world.sometimes["a parent claimed for its children"] += 1
        if not self.beats:
            self.beats = True
            self.beat()

    def beat(self) -> None:
        if not self.alive:
            self.beats = False
            return
        self.world.after(self.swarm.config["heartbeat_ms"] * MS, self.beat)
        running = [member.busy for member in self.worker.members if member.busy]
        raw = b""
        if self.swarm.has("running") and running and self.open and not self.silent:
            for lease in running:
                self.oracle.runs(lease)
            raw = b"".join(w.TOKEN.pack(each.position, each.grant) for each in running)
        self.say(f.Heartbeat(raw=raw))

    def release(self, leases: list[Lease]) -> None:
        """The child is gone that would have come for these."""
        leases = [lease for lease in leases if (lease.position, lease.grant) in self.claimed]
        if not leases or not self.open:
            return  # the next Hello does not name them
        outcomes = [Outcome(w.RELEASE, lease.position, lease.grant) for lease in leases]
        for lease in leases:
            self.oracle.ask_end(lease, "released")
        raw = b"".join(outcome.pack() for outcome in outcomes)
        self.ask(f.Settle(count=len(outcomes), raw=raw), lambda answer, mark: None)

    def on_lost(self, *, excused: bool) -> None:
        if excused:
            self.worker.risk()


class Member(Taker):
    """A child: its leases live as long as its parent speaks."""

    role = "member"

    def __init__(self, worker: Worker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.worker = worker

    @property
    def owner(self) -> Any:
        return self.worker

    def tokens(self) -> bytes:
        self.hello_at = self.world.now
        return b"".join(w.TOKEN.pack(*token) for token in self.held)

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        claimed = self.worker.parent.claimed
        for token in claimed & self.held.keys() if mark.life == self.world.life else ():
            if self.worker.number_of(token) == 0:
                raise Violation(f"{self.name} came for {self.held[token].known}: its parent has it")
        if claimed & self.held.keys():
            self.world.sometimes["a child came for what its parent had claimed"] += 1
            if self.swarm.fails("member crash") and self.rng.random() < 0.3:
                soon = self.rng.randint(1, 50 * MS)
                self.world.after(soon, self.worker.crash_child, self)
        claimed -= self.held.keys()
        super().on_welcome(welcome, mark)

    def in_time(self, mark: Mark) -> bool:
        """Whether the broker had to keep what this child claims: it came soon after the start."""
        return mark.now < self.worker.claims_until()

    def on_lost(self, *, excused: bool) -> None:
        if excused:
            self.worker.risk()


class Worker:
    """A process with a session. It may crash, and another takes its place."""

    def __init__(self, name: str, maker: Maker, queues: list[list[str]], *arguments: Any) -> None:
        self.name = name
        self.world = arguments[0]
        self.swarm = arguments[2]
        self.rng = self.world.rng(name)
        self.risk_tick = -1
        self.risk_at = -(10**12)
        self.suspended = self.blameless = False
        self.session = self.rng.randbytes(16)
        self.parent = Parent(self, name, *arguments)
        self.members = [
            Member(self, maker, each, f"{name}.{number}", *arguments)
            for number, each in enumerate(queues, 1)
        ]
        self.claims_until = lambda: 0
        """Until when the broker keeps what a worker claims after its restart."""
        self.number_of: Callable[[tuple[int, int]], int | None] = lambda token: None
        """Whose such a lease is, by the broker's books: 0 is a parent's."""

    @property
    def clients(self) -> list[Client]:
        return [self.parent, *self.members]

    def begin(self) -> None:
        for number, client in enumerate(self.clients):
            client.session, client.member, client.alive = self.session, number, True
            self.world.after(self.rng.randint(0, 50 * MS), client.connect)

    def risk(self) -> None:
        """The broker may take back what was handed out before, and what it hands out soon."""
        self.risk_tick, self.risk_at = self.world.tick, self.world.now

    def excused_since(self, tick: int) -> bool:
        """Whether anything was done to it after which a lease may be lost."""
        broken = any(each.wire and each.wire.broken_at for each in self.clients)
        speechless = not self.parent.open or (self.parent.silent and not self.blameless)
        soon = self.world.now - self.risk_at < 2 * self.swarm.config["session_timeout_ms"] * MS
        return broken or speechless or soon or self.risk_tick >= tick

    # How it fails.

    def crash(self) -> None:
        """All of it is gone; a new one starts a little later."""
        self.world.note(self.name, "crashes")
        self.world.sometimes["a worker crashed"] += 1
        self.risk()
        for client in self.clients:
            client.alive = False
            client.hang_up("the worker crashed")
        for member in self.members:
            for lease in list(member.held.values()):
                member.bury(lease)
            member.endings.clear()
            member.unsure.clear()
            member.todo.clear()
            member.busy = None
        self.session = self.rng.randbytes(16)
        self.world.after(self.rng.randint(10 * MS, 1 * S), self.begin)

    def crash_member(self) -> None:
        """A child dies: it reconnects, and remembers nothing. The parent says so, sometimes."""
        self.crash_child(self.rng.choice(self.members))

    def crash_child(self, member: Member) -> None:
        self.world.note(member.name, "crashes")
        self.world.sometimes["a child crashed"] += 1
        self.risk()
        member.hang_up("the child crashed")
        self.parent.release(list(member.held.values()))
        for lease in list(member.held.values()):
            member.bury(lease)
        member.endings.clear()
        member.unsure.clear()
        member.busy = None

    def stall(self, us: int) -> None:
        """It says nothing for a while, and then goes on as if nothing had been."""
        self.world.note(self.name, "stalls for %d ms", us // MS)
        self.world.sometimes["a worker stalled"] += 1
        self.risk()
        self.suspended = self.blameless = False
        for client in self.clients:
            client.silent = True
        self.world.after(us, self.wake)

    def suspend(self, us: int) -> None:
        """The whole machine stands still, the broker too: nobody is to blame for the silence."""
        if not any(client.silent for client in self.clients):
            for client in self.clients:
                client.silent = True
            self.suspended = self.blameless = True
            self.world.after(us, self.resume)

    def resume(self) -> None:
        if self.suspended:
            if not self.blameless:
                self.risk()
            self.suspended = False
            for client in self.clients:
                client.silent = False
            self.parent.say(f.Heartbeat())
            for member in self.members:
                member.flush()
                member.proceed()

    def wake(self) -> None:
        self.risk()
        for client in self.clients:
            client.silent = False
        for member in self.members:
            member.flush()
            member.proceed()

    def bye(self) -> None:
        """It leaves in order, and comes back as another."""
        if not self.parent.open or self.parent.silent:
            return
        self.risk()
        self.world.note(self.name, "says goodbye")
        self.world.sometimes["a worker said goodbye"] += 1
        self.parent.ask(f.Bye(), lambda answer, mark: self.crash() if self.parent.alive else None)


class Consumer(Taker):
    """A plain consumer: its leases end with its connection."""

    role = "consumer"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.risk_tick = -1
        self.beats = False

    def begin(self) -> None:
        self.connect()

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        super().on_welcome(welcome, mark)
        if not self.beats:
            self.beats = True
            self.beat()

    def beat(self) -> None:
        self.world.after(self.swarm.config["heartbeat_ms"] * MS, self.beat)
        self.say(f.Heartbeat())

    def excused_since(self, tick: int) -> bool:
        return (
            self.wire is None or bool(self.wire.broken_at) or self.risk_tick >= tick or self.silent
        )

    def on_lost(self, *, excused: bool) -> None:
        self.risk_tick = self.world.tick
        for lease in list(self.held.values()):
            self.bury(lease)
        self.endings.clear()
        self.unsure.clear()
