"""A whole worker and a whole broker in one thread: the real code of both, and a world that errs.

`Factory` is the broker (machine.Machine), the parent's session and watch, and some members with
their runners. Nothing of them is replaced but clock and network, and the two threads are steps:
`Session` and `Watchman` do what they do when the factory says so. While a task runs, the world
goes on: others run theirs, connections are cut, the broker is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import qworker.hand
import qworker.member
import qworker.runner
import qworker.session
import qworker.settlements
import qworker.watch
import qworker.watchman
from machine import Machine, Peer
from qbroker.core.settings import Settings
from qclient.exceptions import ConnectError, ConnectionLost
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome, unpack_message
from qprotocol.options import RetryPolicy
from qworker.children import Child, autopsy
from qworker.hand import Hand, Parcel
from qworker.member import Member
from qworker.pools import POOLS
from qworker.runner import Runner
from qworker.session import Session
from qworker.slots import Slots
from qworker.terms import Terms
from qworker.watch import Watch
from qworker.watchman import Watchman

QUEUE = "default"
SOON = Settings(session_timeout_ms=3_000, grace_ms=300)
CLAIMS_MS = 300
AGAIN = RetryPolicy(retries_max=1_000, backoff_ms=20, factor=1.0).pack()
WITH_CLOCKS = (
    qworker.hand,
    qworker.member,
    qworker.runner,
    qworker.session,
    qworker.settlements,
    qworker.watch,
    qworker.watchman,
)


class Killed(BaseException):
    """The process in which a task runs is gone."""


class Clock:
    """The time module, for those who may only see the machine's."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory

    def monotonic(self) -> float:
        return self._factory.machine.mono_ms / 1000

    def monotonic_ns(self) -> int:
        return self._factory.machine.mono_ms * 1_000_000

    def time_ns(self) -> int:
        return self._factory.machine.wall_ms * 1_000_000

    def sleep(self, seconds: float) -> None:
        self._factory.machine.wait(max(1, round(seconds * 1000)))


class Cable:
    """In the place of `Link`: a connection to the machine that can be cut."""

    def __init__(self, factory: Factory, peer: Peer, welcome: f.Welcome, fd: int) -> None:
        self.factory, self.peer, self.welcome, self._fd = factory, peer, welcome, fd

    @property
    def whole(self) -> bool:
        return self.factory.machine.peers.get(self.peer.number) is self.peer

    def send(self, *frames: f.Frame, timeout_s: float = 0.0) -> None:
        del timeout_s
        if not self.whole:
            raise ConnectionLost("cut")
        for frame in frames:
            self.factory.machine.submit(self.peer, frame)

    def receive(self, timeout_s: float | None) -> list[f.Frame]:
        del timeout_s
        frames, self.peer.received = self.peer.received, []
        if frames:
            return frames
        if not self.whole:
            raise ConnectionLost("cut")
        self.factory.step_broker()
        return []

    def server_ms(self) -> int:
        return self.factory.machine.wall_ms

    def fileno(self) -> int:
        return self._fd

    def cut(self, *, with_all: bool = False) -> None:
        """It is gone; what was under way arrives, or `with_all` is gone, too."""
        machine = self.factory.machine
        if with_all:
            self.peer.received.clear()
            number = self.peer.number
            machine.inbox = type(machine.inbox)(each for each in machine.inbox if each[0] != number)
        if self.whole:
            machine.disconnect(self.peer)

    def close(self) -> None:
        self.cut()


class Factory:
    """A broker, a worker of some runners, and a client that sends tasks."""

    def __init__(self, seed: int, runners: int) -> None:
        self.rng = random.Random(seed)
        self.machine = Machine(settings=SOON, claims_ms=CLAIMS_MS)
        self.faults = True
        self.sent = 0
        self.begun: Counter[str] = Counter()
        self.pipe = os.pipe()
        os.write(self.pipe[1], b"!")  # always readable: nobody waits in a poll here
        self.quiet = os.pipe()
        self.slots = Slots.make(runners)
        self.slots.seal()
        self.terms = Terms(
            "qbroker://there", "ab" * 16, "w", "h", "a", [QUEUE], "ERROR", "plain", "prefork"
        )
        self.children = [Child(number, [number], pid=1) for number in range(runners)]
        self.session = Session(self.terms, self.running_tokens, self.told)
        self.watch = Watch(POOLS["prefork"], self.session, hard_ms=0, soft_ms=0, memory_max_kib=0)
        self.runners = [self.runner(number) for number in range(runners)]
        self.works: set[int] = set()
        """The runners whose task runs now: each within the one before."""
        self.down_until_ms = 0

    def close(self) -> None:
        for fd in (*self.pipe, *self.quiet, self.session._bell, self.session._rope):
            os.close(fd)
        for runner in self.runners:
            self.bury(runner)

    # Its people.

    def runner(self, number: int) -> Runner:
        member = Member(self.terms, number + 1, Hand(self.slots[number]), self.quiet[0])
        watchman = Watchman([member], self.quiet[0])
        log = type("Silence", (), {"flush": lambda self: None})()
        return Runner(member, Call(self, number), watchman, log)  # type: ignore[arg-type]

    @staticmethod
    def bury(runner: Runner) -> None:
        os.close(runner.watchman._bell)
        os.close(runner.watchman._rope)

    def running_tokens(self) -> list[tuple[int, int]]:
        found = (slot.running() for slot in self.slots)
        return [running.token for running in found if running is not None]

    def told(self, event: tuple[str, object]) -> None:
        kind, what = event
        if kind == "done":
            what()  # type: ignore[operator]
        elif kind == "revoke":
            self.watch.revoke(*what)  # type: ignore[misc]

    def open(self, _address: object, hello: f.Hello, *, timeout_s: float) -> Cable:
        """In the place of Link.open."""
        del timeout_s
        if self.machine.mono_ms < self.down_until_ms:
            raise ConnectError("no broker there")
        machine = self.machine
        peer = machine.connect()
        hello.correlation = 2
        machine.submit(peer, hello)
        machine.settle()
        for frame in peer.received:
            if isinstance(frame, f.Welcome):
                peer.received.remove(frame)
                return Cable(self, peer, frame, self.pipe[0])
        raise ConnectError(f"not welcome: {peer.received}")

    # What they do, a step each.

    def publish(self, count: int = 0) -> None:
        """Some tasks, or ``count``, are sent and confirmed."""
        count = count or self.rng.choice((1, 1, 3, 20))
        marks = [f"m{self.sent + n}" for n in range(count)]
        packed = [
            Message(QUEUE, mark.encode(), task="t", flags=wire.IGNORE_RESULT).pack()
            for mark in marks
        ]
        peer = self.machine.connect()
        hello = f.Hello(protocol=1, role="producer", client_id="c", correlation=1)
        self.machine.submit(peer, hello)
        publish = f.Publish(
            producer=0, sequence=0, count=count, raw=b"".join(packed), correlation=2
        )
        self.machine.submit(peer, publish)
        self.machine.settle()
        assert any(isinstance(frame, f.Published) for frame in peer.received)
        self.machine.disconnect(peer)
        self.sent += count

    def step_broker(self) -> None:
        """A turn, or the disk's answer."""
        machine = self.machine
        if machine.writing is None or self.rng.random() < 0.5:
            machine.turn()
            machine.begin_write()
        else:
            machine.write()

    def step_runner(self, runner: Runner) -> None:
        """What the loop of runner.py does in a round, but for the waiting."""
        member = runner.member
        member.flush()
        if member.link is None and not member.reconnect():
            return
        if not member.hand.parcels:
            member.receive()
        if not member.hand.parcels:
            member.words[qworker.slots.IDLE] = 1
            return
        member.words[qworker.slots.IDLE] = 0
        parcel = member.hand.take()
        if parcel is None:
            return
        number = member.number - 1
        self.works.add(number)
        try:
            runner._run_one(parcel)
        except Killed:
            self.die(number)
        finally:
            self.works.discard(number)

    @staticmethod
    def cable(runner: Runner) -> Cable:
        """The runner's connection, which is there."""
        assert isinstance(runner.member.link, Cable)
        return runner.member.link

    def die(self, number: int) -> None:
        """The runner's process is dead; the parent settles, and then it has a successor."""
        runner, child = self.runners[number], self.children[number]
        if runner.member.link is not None:
            runner.member.link.cut()  # type: ignore[attr-defined]
        acks, outcomes = autopsy(child, self.slots, 9)
        self.bury(runner)
        self.slots[number].words[qworker.slots.READY] = 0
        child.pid = 0

        def replace() -> None:
            self.slots[number].renew()
            self.watch.forget(child)
            child.pid = 1
            self.runners[number] = self.runner(number)

        self.session.settle(acks, outcomes, replace)

    def step_parent(self) -> None:
        """The session's thread does what is to do; the loop looks at the children."""
        session = self.session
        os.set_blocking(session._bell, False)
        with contextlib.suppress(BlockingIOError):
            os.read(session._bell, 1 << 16)
        try:
            if session._link is None:
                session._connect()
            link = session._link
            assert link is not None
            tokens = b"".join(wire.TOKEN.pack(*token) for token in self.running_tokens())
            link.send(f.Heartbeat(raw=tokens))
            session._send_waiting(link)
            for frame in link.receive(0):
                session._handle(frame)
        except (ConnectError, ConnectionLost):
            session._link = None
        self.watch.look(self.children, self.slots)

    def step_watchmen(self) -> None:
        for number in list(self.works):
            runner = self.runners[number]
            runner.watchman._tend(runner.member)

    # The world.

    def event(self) -> None:
        """Something happens."""
        free = [n for n, child in enumerate(self.children) if n not in self.works and child.pid]
        kind = self.rng.random()
        if kind < 0.35 and free:
            self.step_runner(self.runners[self.rng.choice(free)])
        elif kind < 0.55:
            self.step_broker()
        elif kind < 0.65:
            self.step_parent()
        elif kind < 0.75:
            self.step_watchmen()
        elif kind < 0.85:
            self.machine.wait(self.rng.choice((1, 5, 30, 150, 400)))
        elif self.faults:
            self.fault()

    def fault(self) -> None:
        kind = self.rng.random()
        if kind < 0.4:
            self.publish()
        elif kind < 0.75:
            cables = [runner.member.link for runner in self.runners] + [self.session._link]
            cable = self.rng.choice(cables)
            if cable is not None:
                cable.cut(with_all=self.rng.random() < 0.5)  # type: ignore[attr-defined]
        elif kind < 0.9:
            self.machine.kill()
            self.down_until_ms = self.machine.mono_ms + self.rng.choice((0, 20, 200))
        elif kind < 0.95 and self.works:
            raise Killed
        else:
            self.machine.wait(self.rng.choice((1_000, 4_000)))

    def heal(self) -> None:
        """No more faults; everybody does what they do, until nothing waits, or for two minutes."""
        self.faults = False
        for _ in range(2_000):
            self.step_parent()
            for number, child in enumerate(self.children):
                if child.pid:
                    self.step_runner(self.runners[number])
            self.machine.wait(20)
            if self.drained:
                return

    @property
    def drained(self) -> bool:
        (queue,) = [q for q in self.machine.core.statistics().queues if q.name == QUEUE] or [None]
        return queue is None or not (queue.ready or queue.scheduled or queue.leased)

    def figures(self) -> str:
        """Where everything is, for who must find out why nothing moves."""
        state = self.machine.core.state
        lines = [f"{q.name}: {q.ready} {q.scheduled} {q.leased}" for q in state.numbered]
        lines += [
            f"consumer {c.member.number}: credit {c.credit} unsettled {c.unsettled} {c.writable}"
            for c in state.consumers.values()
        ]
        lines += [
            f"grant {grant.number:x} of member {member.number}: {grant.remaining} left"
            for session in state.sessions.values()
            for member in session.members.values()
            for grant in member.grants.values()
        ]
        return "\n".join(lines + [f"void {runner.member.void}" for runner in self.runners])


class Call:
    """In the place of user code: while it runs, the world goes on."""

    def __init__(self, factory: Factory, number: int) -> None:
        self.factory, self.number = factory, number

    def execute(self, parcel: Parcel, index: int) -> tuple[Outcome | None, str]:
        del index
        factory, rng = self.factory, self.factory.rng
        member = factory.runners[self.number].member
        token = parcel.position, parcel.grant
        mark = unpack_message(parcel.raw, parcel.start).body.decode()
        if rng.random() < 0.05 and not member.start_early(Outcome(wire.START, *token), mark):
            return Outcome(wire.RELEASE, *token, delay_ms=0), mark
        factory.begun[mark] += 1
        for _ in range(rng.choice((0, 0, 1, 5, 20)) if factory.faults else 0):
            factory.event()
        kind = rng.random()
        if kind < 0.8 or not factory.faults:
            return None, mark
        if kind < 0.9:
            failure = Failure("Oops", "again").pack()
            return Outcome(wire.FAIL, *token, result=failure, policy=AGAIN), mark
        return Outcome(wire.ACK, *token, result=b"x", flags=wire.HAS_RESULT), mark


@contextmanager
def factory(seed: int, runners: int) -> Iterator[Factory]:
    """A factory whose parts have its clock and its cables; what they log is not of interest."""
    made = Factory(seed, runners)
    link = type("Link", (), {"open": staticmethod(made.open)})
    with pytest.MonkeyPatch.context() as patch:
        for module in WITH_CLOCKS:
            patch.setattr(module, "time", Clock(made))
        for module in (qworker.member, qworker.session):
            patch.setattr(module, "Link", link)
        logging.disable(logging.CRITICAL)
        try:
            yield made
        finally:
            logging.disable(logging.NOTSET)
            made.close()
