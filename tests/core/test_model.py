"""No message is lost, doubled or invented, whatever order things happen in.

A stateful model over the real core, log and group commit, on a disk that keeps, drops or
tears each unsynced sector when power is cut. The oracle knows messages by their bodies:

    sent        asked to be published                       nothing else may ever appear
    promised    confirmed, or revealed by any answer        must be somewhere
    over        ended, and the end was confirmed            must never appear again
    doubtful    an end was asked for and not yet answered   may be here or not

HYPOTHESIS_PROFILE=long tries fifty times as many stories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from digest import check_places, digest
from machine import Machine, Peer
from qbroker.ages import Ages
from qbroker.core import leaving, orders, purging
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.purging import finish
from qbroker.core.settings import Settings
from qbroker.groupcommit import GroupCommit, Held
from qbroker.log import log
from qbroker.log.errors import LogError
from qbroker.log.log import Log, LogSettings
from qbroker.replaying import replay
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome, unpack_message, walk
from qprotocol.options import RetryPolicy
from simdisk import Choose, SimDisk, SimFile, keep_all, lose_all, random_choice

LOG = LogSettings(segment_bytes=8 << 10)
QUEUES = ("a", "b")
PACES = ("settles", "lags", "by hand")
SETTINGS = Settings(session_timeout_ms=30_000, grace_ms=20_000, named_ids_max=20, results_max=30)


@dataclass
class Client:
    """One who talks to the broker, over many connections: a worker, its child, or anybody."""

    name: str
    session: bytes = b""
    member: int = 0
    peer: Peer | None = None
    correlation: int = 1
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    asked: dict[int, Callable[[f.Frame], None]] = field(default_factory=dict)
    consumes: bool = False


class Story(RuleBasedStateMachine):
    """What may happen, and what must then be true."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(settings=SETTINGS, log_settings=LOG, window_bytes=2_000)
        self.clients = [
            Client("producer"),
            Client("parent", b"s" * 16),
            Client("child", b"s" * 16, 1),
            Client("consumer"),
        ]
        self.count = 0
        self.sequence = 0
        self.chunks: dict[int, tuple[list[bytes], list[str]]] = {}
        """Sequences that are not confirmed, to packed messages and their bodies."""
        self.sendings: list[int] = []
        """Sequences as often as they were sent: one that is refused may be taken the next time."""
        self.sent: set[str] = set()
        self.promised: set[str] = set()
        self.over: set[str] = set()
        self.doubtful: set[str] = set()
        self.ids: dict[str, set[str]] = {}
        """Chosen ids to the bodies that ever bore them."""
        self.bodies: dict[int, str] = {}
        self.paused: dict[tuple[str, str], bool | None] = {}
        """(half, queue) to what was confirmed of it; None while that is not known."""
        self.paused_before: set[int] = set()
        self.cancelling: list[str] = []
        """Ids whose cancel is not answered."""
        self.noticed: dict[str, bool] = {}
        """Ids that nobody knew when they were cancelled, to whether no message with them was under
        way then: the next one is over when it comes."""
        self.revoked: set[str] = set()
        self.pace = "settles"
        self.is_down = False
        self.is_armed = self.is_doomed = False
        """The power goes once a publish was confirmed; it was."""

    # What is true at any time.

    @invariant()
    def time_goes_on_and_nothing_is_lost(self) -> None:
        """After each step the broker goes on, as far as the pace of the story says."""
        machine = self.machine
        if self.pace == "settles":
            machine.settle()
        elif self.pace == "lags":
            machine.write()
            machine.turn()
            machine.begin_write()
        self.hear()
        if self.is_doomed:
            self.is_armed = self.is_doomed = False
            self.end(self.machine.crash, during=False)
        self.nothing_leaves_a_paused_queue()
        self.every_message_is_in_one_place()

    def nothing_leaves_a_paused_queue(self) -> None:
        """By the records, in their order: a delivery is born with its grant."""
        state, noted = self.machine.core.state, self.machine.noted
        paused = set(self.paused_before)
        for _, record in noted:
            if isinstance(record, r.QueuePaused) and record.dispatch:
                paused.add(record.queue)
            elif isinstance(record, r.QueueResumed) and record.dispatch:
                paused.discard(record.queue)
            elif isinstance(record, r.Granted) and not record.adopted:
                queues = {state.lanes[entry[0]].queue.number for entry in record.entries}
                assert queues.isdisjoint(paused), f"{record} out of a paused queue"
        noted.clear()
        self.paused_before = paused

    def every_message_is_in_one_place(self) -> None:
        alive = self.alive()
        assert not alive - self.sent, f"{alive - self.sent} was never published"
        assert not alive & self.over, f"{alive & self.over} came back"
        lost = self.promised - self.over - self.doubtful - alive
        assert not lost, f"{lost} is lost"

    def alive(self) -> set[str]:
        positions = list(check_places(self.machine.core.state))
        bodies = [self.body_at(position) for position in positions]
        assert len(set(bodies)) == len(bodies), f"a message twice in {sorted(bodies)}"
        return set(bodies)

    def body_at(self, position: int) -> str:
        found = self.bodies.get(position)
        if found is None:
            bodies = self.machine.bodies
            if bodies.missing([position]):
                bodies.keep(bodies.load([position]))
            continued = self.machine.core.state.continued.get(position)
            if continued and bodies.missing(continued):
                bodies.keep(bodies.load(continued))
            raw = bodies.message(position, continued)
            found = self.bodies[position] = unpack_message(raw).body.decode()
        return found

    # What comes back.

    def hear(self) -> None:
        for client in self.clients:
            peer = client.peer
            if peer is None:
                continue
            for frame in peer.received:
                if isinstance(frame, f.Deliver):
                    self.delivered(client, frame)
                elif frame.correlation in client.asked:
                    client.asked.pop(frame.correlation)(frame)
                else:
                    assert isinstance(frame, f.Revoke), f"{frame} answers nothing"
            peer.received.clear()
            if not peer.is_open:
                self.hang_up(client)

    def delivered(self, client: Client, frame: f.Deliver) -> None:
        positions, at = [], 0
        for _ in range(frame.runs):
            first, count = wire.RUN.unpack_from(frame.raw, at)
            positions += range(first, first + count)
            at += wire.RUN.size
        at += wire.TOUCHED.size * frame.touched
        for position, (start, _) in zip(positions, walk(frame.raw, at), strict=True):
            body = unpack_message(frame.raw, start).body.decode()
            assert body in self.sent, f"{body} was never published"
            assert body not in self.over, f"{body} was delivered after its end"
            assert body not in self.revoked, f"{body} was cancelled before it came"
            self.promised.add(body)
            client.held[body] = position, frame.grant

    def hang_up(self, client: Client) -> None:
        client.peer = None
        client.consumes = False
        client.asked.clear()
        if not client.session:
            client.held.clear()

    def ask(self, client: Client, frame: f.Frame, answered: Callable[[f.Frame], None]) -> None:
        assert client.peer is not None
        if not frame.correlation:
            client.correlation += 1
            frame.correlation = client.correlation
        client.asked[frame.correlation] = answered
        self.machine.submit(client.peer, frame)

    def connected(self, client: Client) -> Client:
        if client.peer is None:
            client.peer = self.machine.connect()
            role = "member" if client.member else "worker" if client.session else "consumer"
            raw = b"".join(wire.TOKEN.pack(*token) for token in client.held.values())
            hello = f.Hello(
                protocol=1,
                role=role,
                client_id=client.name,
                session=client.session,
                member=client.member,
                raw=raw,
            )
            self.ask(client, hello, lambda frame: self.welcomed(client, frame))
        return client

    def welcomed(self, client: Client, frame: f.Frame) -> None:
        assert isinstance(frame, f.Welcome), frame
        lost = set(wire.TOKEN.iter_unpack(frame.raw))
        client.held = {body: token for body, token in client.held.items() if token not in lost}

    # Publishing.

    def new_body(self) -> str:
        self.count += 1
        body = f"m{self.count}"
        self.sent.add(body)
        return body

    def message(self, data: Any, body: str, *, name: str = "") -> bytes:
        wait_ms = data.draw(st.sampled_from([0, 0, 0, 200, 5_000]), "in ms")
        return Message(
            data.draw(st.sampled_from(QUEUES), "queue"),
            body.encode(),
            id=name,
            task=data.draw(st.sampled_from(["", "t"]), "task"),
            priority=data.draw(st.sampled_from([0, 0, 1]), "priority"),
            due_ms=self.machine.wall_ms + wait_ms if wait_ms else 0,
        ).pack()

    @rule(
        data=st.data(),
        count=st.integers(1, 4),
        named=st.booleans(),
        parts=st.booleans(),
        twice=st.booleans(),
    )
    def publish(self, data: Any, count: int, named: bool, parts: bool, twice: bool) -> None:
        bodies = [self.new_body() for _ in range(count)]
        name = f"id{data.draw(st.integers(0, 3), 'id')}" if named else ""
        raws = [
            self.message(data, body, name=name if index == 0 else "")
            for index, body in enumerate(bodies)
        ]
        if name:
            self.ids.setdefault(name, set()).add(bodies[0])
            if name in self.cancelling:  # it is looked for first, and may find this one
                self.doubtful.add(bodies[0])
            if name in self.noticed:
                self.doubtful.add(bodies[0])
                if self.noticed[name]:
                    self.revoked.add(bodies[0])
                    self.noticed[name] = False
        self.sequence += 1
        self.chunks[self.sequence] = raws, bodies
        self.send_chunk(self.sequence, data if parts else None)
        if twice:
            self.machine.turn()
            self.hear()
            self.send_chunk(self.sequence, None)

    @initialize(
        data=st.data(), count=st.integers(1, 4), who=st.integers(1, 3), pace=st.sampled_from(PACES)
    )
    def begin(self, data: Any, count: int, who: int, pace: str) -> None:
        """Something waits, and somebody works, before the story begins."""
        self.pace, self.is_armed = pace, data.draw(st.booleans(), "armed")
        twice = data.draw(st.booleans(), "twice")
        self.publish(data, count, named=True, parts=False, twice=twice)
        self.consume(who, 3)

    @precondition(lambda self: self.chunks)
    @rule(nth=st.integers(0, 3))
    def publish_again(self, nth: int) -> None:
        """A chunk whose answer did not come is sent once more, unchanged."""
        self.send_chunk(sorted(self.chunks)[nth % len(self.chunks)], None)

    def send_chunk(self, sequence: int, data: Any) -> None:
        if sequence not in self.chunks:
            return
        raws, bodies = self.chunks[sequence]
        self.sendings.append(sequence)
        client = self.connected(self.clients[0])
        raw = b"".join(raws)
        client.correlation += 1
        if data is not None:
            cut = data.draw(st.integers(1, len(raw) - 1), "cut")
            part = f.Part(index=0, of=f.Publish.TYPE, correlation=client.correlation, raw=raw[:cut])
            assert client.peer is not None
            self.machine.submit(client.peer, part)
            raw = raw[cut:]
        frame = f.Publish(producer=9, sequence=sequence, count=len(bodies), raw=raw)
        frame.correlation = client.correlation
        self.ask(client, frame, lambda answer: self.published(sequence, bodies, answer))

    def published(self, sequence: int, bodies: list[str], frame: f.Frame) -> None:
        if isinstance(frame, f.Published):
            self.promised.update(bodies)
            self.is_doomed = self.is_armed
            for name in [name for name in self.noticed if bodies[0] in self.ids.get(name, ())]:
                del self.noticed[name]  # it was for one message
        else:
            assert isinstance(frame, f.Error), frame
            assert frame.code in ("DUPLICATE_ID", "QUEUE_PAUSED"), frame
            if frame.code == "QUEUE_PAUSED":
                assert self.paused.get(("intake", frame.details["queue"])) is not False
            if self.sendings.count(sequence) == 1:
                self.sent.difference_update(bodies)
        self.chunks.pop(sequence, None)

    # Consuming and settling.

    @rule(who=st.integers(1, 3), credit=st.integers(1, 5))
    def consume(self, who: int, credit: int) -> None:
        client = self.connected(self.clients[who])
        assert client.peer is not None
        if client.consumes:
            self.machine.submit(client.peer, f.Credit(subscription=1, credit=credit))
        else:
            client.consumes = True
            frame = f.Consume(subscription=1, queues=[*QUEUES, "a.dead"], credit=credit)
            self.ask(client, frame, lambda frame: None)

    @property
    def holders(self) -> list[Client]:
        return [client for client in self.clients if client.held]

    def pick(self, nth: int) -> tuple[Client, str]:
        """Somebody who holds messages, and one of those."""
        holders = self.holders
        client = holders[nth % len(holders)]
        nth //= len(holders)
        return self.connected(client), list(client.held)[nth % len(client.held)]

    @precondition(lambda self: self.holders)
    @rule(nth=st.integers(0, 9), count=st.integers(1, 3))
    def ack(self, nth: int, count: int) -> None:
        """A run of acks; neighbours of the one that is held may be anybody's, or nobody's."""
        client, body = self.pick(nth)
        first, grant = client.held[body]
        wanted = range(first, first + count)
        bodies = {p: b for b, (p, g) in client.held.items() if g == grant and p in wanted}
        self.doubtful.update(bodies.values())
        frame = f.Ack(raw=wire.ACK_RUN.pack(grant, first, count))
        self.ask(client, frame, lambda frame: self.settled(client, bodies, frame))

    @precondition(lambda self: self.holders)
    @rule(
        nth=st.integers(0, 9),
        kind=st.sampled_from([wire.ACK, wire.START, wire.CRASH, wire.EXTEND]),
        follow=st.booleans(),
        data=st.data(),
    )
    def settle(self, nth: int, kind: int, follow: bool, data: Any) -> None:
        flags = wire.HAS_RESULT if kind == wire.ACK else 0
        follows = follow and kind in (wire.ACK, wire.CRASH)
        then = [self.new_body() for _ in range(2)] if follows else []
        given = {"kind": kind, "flags": flags, "then": then, "data": data}
        self.outcome(*self.pick(nth), **given, ends=kind == wire.ACK)

    @precondition(lambda self: self.holders)
    @rule(
        nth=st.integers(0, 9),
        kind=st.sampled_from([wire.FAIL, wire.FAIL, wire.RELEASE, wire.REJECT]),
        delay=st.sampled_from([0, 300, wire.DELAY_BY_POLICY]),
        replace=st.booleans(),
        data=st.data(),
    )
    def give_back(self, nth: int, kind: int, delay: int, replace: bool, data: Any) -> None:
        replaced = replace and kind != wire.REJECT
        then = [self.new_body()] if replaced else []
        flags = wire.HAS_REPLACEMENT if replaced else 0
        given = {"kind": kind, "flags": flags, "then": then, "data": data}
        self.outcome(*self.pick(nth), **given, ends=replaced, delay=delay)

    def outcome(
        self,
        client: Client,
        body: str,
        *,
        kind: int,
        flags: int,
        then: list[str],
        data: Any,
        ends: bool,
        delay: int = 0,
    ) -> None:
        position, grant = client.held[body]
        policy = RetryPolicy(9, 400).pack() if kind == wire.FAIL else b""
        packed = Outcome(
            kind,
            position,
            grant,
            delay_ms=delay,
            result=Failure("E", "m").pack(),
            flags=flags,
            policy=policy,
            follow_on=tuple(self.message(data, each) for each in then),
        )
        if ends:
            self.doubtful.add(body)
        goes_on = kind in (wire.START, wire.EXTEND)
        self.ask(
            client,
            f.Settle(count=1, raw=packed.pack()),
            lambda frame: self.settled(
                client, {position: body}, frame, then=then, ends=ends, goes_on=goes_on
            ),
        )

    def settled(
        self,
        client: Client,
        bodies: dict[int, str],
        frame: f.Frame,
        *,
        then: list[str] | None = None,
        ends: bool = True,
        goes_on: bool = False,
    ) -> None:
        assert isinstance(frame, f.Settled), frame
        assert frame.durability == "synced"
        lost = {position for (position,) in wire.POSITION.iter_unpack(frame.raw)}
        for position, body in bodies.items():
            if position not in lost:
                if ends:
                    self.over.add(body)
                self.promised.update(then or ())
            if not goes_on or position in lost:
                client.held.pop(body, None)

    @precondition(lambda self: self.holders)
    @rule(nth=st.integers(0, 9))
    def run_all(self, nth: int) -> None:
        """The worker says that all it holds has begun."""
        client, _ = self.pick(nth)
        raw = b"".join(wire.TOKEN.pack(*token) for token in client.held.values())
        assert client.peer is not None
        self.machine.submit(client.peer, f.Heartbeat(raw=raw))

    # Asking.

    @rule(nth=st.integers(0, 3), wait=st.booleans())
    def watch(self, nth: int, wait: bool) -> None:
        name = f"id{nth}"
        client = self.connected(self.clients[0])
        question = f.Watch(id=name, wait_ms=3_000 if wait else 0)
        self.ask(client, question, lambda frame: None)

    @rule(nth=st.integers(0, 3))
    def cancel(self, nth: int) -> None:
        name = f"id{nth}"
        self.doubtful |= self.ids.get(name, set())
        client = self.connected(self.clients[0])
        self.cancelling.append(name)
        self.ask(client, f.Cancel(id=name), lambda frame: self.cancel_answered(name, frame))

    def cancel_answered(self, name: str, frame: f.Frame) -> None:
        self.cancelling.remove(name)
        if isinstance(frame, f.Result) and frame.noticed_until_ms:
            mine = self.ids.get(name, set())
            under_way = any(bodies[0] in mine for _, bodies in self.chunks.values())
            self.noticed[name] = not under_way

    @rule(queue=st.sampled_from(QUEUES))
    def look(self, queue: str) -> None:
        """What a Peek shows is there after any crash."""
        client = self.connected(self.clients[3])
        self.ask(client, f.Peek(queue=queue), self.peeked)

    def peeked(self, frame: f.Frame) -> None:
        if isinstance(frame, f.Error):
            assert frame.code == "NO_QUEUE"
            return
        at = 0
        while at < len(frame.raw):
            *_, n_reason, n_error = wire.PEEKED.unpack_from(frame.raw, at)
            at += wire.PEEKED.size + n_reason + n_error
            message = unpack_message(frame.raw, at)
            at += 4 + int.from_bytes(frame.raw[at : at + 4], "little")
            self.promised.add(message.body.decode())

    @rule(queue=st.sampled_from([*QUEUES, "a.dead"]))
    def purge(self, queue: str) -> None:
        """What waits there is over; and so may be what is on its way there."""
        places = check_places(self.machine.core.state)
        # What is settled on its way here may be a dead letter by the time the purge is done.
        ends = (f" {queue}", f" {queue.removesuffix('.dead')}")
        there = {self.body_at(at) for at, place in places.items() if place.endswith(ends)}
        self.doubtful |= there | (self.sent - self.alive())
        client = self.connected(self.clients[3])
        self.ask(client, f.Purge(queue=queue), lambda frame: None)

    # Orders.

    @rule(
        queue=st.sampled_from(QUEUES),
        half=st.sampled_from(["intake", "dispatch"]),
        on=st.booleans(),
        for_ms=st.sampled_from([0, 0, 5_000]),
    )
    def pause(self, queue: str, half: str, on: bool, for_ms: int) -> None:
        client, key = self.connected(self.clients[0]), (half, queue)
        chosen: Any = {"queue": queue, half: True}
        frame = f.PauseQueue(**chosen, for_ms=for_ms) if on else f.ResumeQueue(**chosen)
        self.paused[key] = None

        def answered(frame: f.Frame) -> None:
            if isinstance(frame, f.Ok) and not for_ms:
                others = [ask for ask in client.asked.values() if getattr(ask, "key", 0) == key]
                self.paused[key] = None if others else on

        answered.key = key  # type: ignore[attr-defined]
        self.ask(client, frame, answered)

    @rule(
        queue=st.sampled_from([*QUEUES, "a.dead"]),
        to=st.sampled_from(QUEUES),
        task=st.sampled_from(["", "", "t"]),
        states=st.sampled_from(["", "", "ready", "scheduled"]),
        nth=st.sampled_from([-1, -1, -1, 0, 1]),
    )
    def move(self, queue: str, to: str, task: str, states: str, nth: int) -> None:
        client = self.connected(self.clients[0])
        name = f"id{nth}" if nth >= 0 else ""
        frame = f.Move(queue=queue, to=to, task=task, states=states, id=name)
        self.ask(client, frame, lambda frame: None)

    @rule(
        queue=st.sampled_from(QUEUES),
        task=st.sampled_from(["", "", "t"]),
        states=st.sampled_from(["", "", "ready", "scheduled", "started"]),
        purge=st.booleans(),
    )
    def cancel_many(self, queue: str, task: str, states: str, purge: bool) -> None:
        places = check_places(self.machine.core.state)
        there = {self.body_at(at) for at, place in places.items() if place.endswith(f" {queue}")}
        self.doubtful |= there | (self.sent - self.alive())
        if self.machine.core.state.orders or self.machine.inbox:  # a move may be on its way
            self.doubtful |= self.alive()
        client = self.connected(self.clients[3])
        frame = f.CancelMany(queue=queue, task=task, states=states, purge=purge)
        self.ask(client, frame, lambda frame: None)

    # Dead letters.

    @rule(
        nth=st.integers(0, 3),
        to=st.sampled_from(["", "", *QUEUES]),
        in_ms=st.sampled_from([0, 0, 3_000]),
        twice=st.booleans(),
    )
    def replay_dead(self, nth: int, to: str, in_ms: int, twice: bool) -> None:
        """It waits to run again; asked twice, it is replayed once."""
        client, letters = self.connected(self.clients[0]), self.letters(nth)
        due_ms = self.machine.wall_ms + in_ms if in_ms else 0
        for raw in letters * (1 + twice):
            frame = f.ReplayDead(queue=to, due_ms=due_ms, raw=raw)
            self.ask(client, frame, lambda frame: None)

    @rule(nth=st.integers(0, 3))
    def drop_dead(self, nth: int) -> None:
        client = self.connected(self.clients[0])
        for raw in self.letters(nth):
            body = self.body_at(wire.LETTER.unpack(raw)[0])
            self.doubtful.add(body)
            self.ask(client, f.DropDead(raw=raw), lambda frame, body=body: self.ended(frame, body))

    @rule(nth=st.integers(0, 3), queue=st.sampled_from(QUEUES))
    def edit_dead(self, nth: int, queue: str) -> None:
        """Another message takes its place, under its id: the one before is over with that."""
        client = self.connected(self.clients[0])
        for raw in self.letters(nth):
            position, number = wire.LETTER.unpack(raw)
            body, after = self.body_at(position), self.new_body()
            found = unpack_message(self.machine.bodies.message(position))
            if found.id:
                self.ids.setdefault(found.id, set()).add(after)
                if found.id in self.cancelling:
                    self.doubtful.add(after)
            self.doubtful.add(body)
            packed = Message(queue, after.encode(), id=found.id, task=found.task).pack()
            frame = f.EditDead(position=position, number=number, raw=packed)

            def answered(frame: f.Frame, body: str = body, after: str = after) -> None:
                if self.ended(frame, body):
                    self.promised.add(after)

            self.ask(client, frame, answered)

    def ended(self, frame: f.Frame, body: str) -> bool:
        """Whether the answer says that the message with that body is over."""
        assert isinstance(frame, f.Ok), frame
        if frame.count:
            self.over.add(body)
        return bool(frame.count)

    def letters(self, nth: int) -> list[bytes]:
        """The nth dead letter, if there is one."""
        found = self.machine.core.state.letters.ordered()
        return [wire.LETTER.pack(p, letter.number) for p, letter in found[nth : nth + 1]]

    # Coming, going, time.

    @rule(who=st.integers(0, 3))
    def disconnect(self, who: int) -> None:
        client = self.clients[who]
        if client.peer is not None:
            self.machine.disconnect(client.peer)
            self.hang_up(client)

    @rule(who=st.integers(1, 2))
    def bye(self, who: int) -> None:
        client = self.connected(self.clients[who])
        client.held.clear()
        self.ask(client, f.Bye(), lambda frame: None)

    @rule(wait_ms=st.sampled_from([1, 25, 400, 6_000, 31_000]))
    def wait(self, wait_ms: int) -> None:
        self.machine.wall_ms += wait_ms
        self.machine.mono_ms += wait_ms

    @rule(pace=st.sampled_from(PACES))
    def goes(self, pace: str) -> None:
        """Everything is answered at once; or a batch is always on its way; or see below."""
        self.pace = pace

    @precondition(lambda self: self.pace == "by hand")
    @rule(step=st.sampled_from(["turn", "begin_write", "write"]))
    def one_step(self, step: str) -> None:
        getattr(self.machine, step)()

    # Ends, and what is true after them.

    @rule(
        during=st.booleans(),
        killed=st.booleans(),
        how=st.one_of(st.sampled_from([lose_all, keep_all]), st.integers()),
    )
    def crash(self, during: bool, killed: bool, how: Choose | int) -> None:
        """Power is cut: perhaps while a batch is being written, or just after a kill."""
        if killed:
            self.kill(during)
        choose = random_choice(how) if isinstance(how, int) else how
        self.end(lambda: self.machine.crash(choose), during=during)

    @rule()
    def arm(self) -> None:
        """Just after the next confirm all that is not on the disk is lost."""
        self.is_armed = True

    @rule(during=st.booleans())
    def kill(self, during: bool) -> None:
        """The process dies; what was handed to the kernel is there."""
        self.end(self.machine.kill, during=during)

    def end(self, how: Callable[[], None], *, during: bool) -> None:
        machine = self.machine
        if during and machine.writing is not None:
            machine.commit(machine.writing, sync=False)
        for client in self.clients:
            self.hang_up(client)
        self.is_down = True
        how()
        self.is_down = False
        self.bodies.clear()
        self.every_message_is_in_one_place()
        # What was recovered can be revealed at once: it must outlive the next crash.
        alive = self.alive()
        self.promised |= alive
        self.doubtful -= alive
        state = machine.core.state
        machine.noted.clear()
        self.paused_before = set(state.pauses.dispatch)
        for (half, queue), known in self.paused.items():
            now = queue in state.queues and half in state.pauses.of(state.queues[queue].number)
            assert known in (None, now), f"{half} of {queue}: {known} was confirmed"
            self.paused[half, queue] = None  # one with an end may be over

    @rule()
    def save(self) -> None:
        """From now on a start reads the snapshot, and the log behind it."""
        self.machine.save()

    @rule()
    def rebuild(self) -> None:
        """A broker that replays the log knows what the one knows that wrote it."""
        machine = self.machine
        machine.write_all()
        self.hear()
        twin = machine.disk.copy()
        core = Broker(SETTINGS)
        replay(Log.open(twin, LOG), core, Ages(), lambda done, last: None)
        now = machine.now
        finish(machine.core.state)
        assert digest(core.state, now) == digest(machine.core.state, now)
        check_places(core.state)
        twin.kill()
        shadow = machine.rebuilt(Log.open(twin, LOG))
        assert digest(shadow.state, now) == digest(core.state, now)
        check_places(shadow.state)

    def teardown(self) -> None:
        """In the end everything can be worked off, and nothing is left."""
        if self.is_down:
            return
        self.machine.settle()
        self.hear()
        self.rebuild()
        for client in self.clients:
            self.disconnect(self.clients.index(client))
        last = self.clients[3]
        self.connected(last)
        for name in QUEUES:
            frame = f.ResumeQueue(queue=name, intake=True, dispatch=True)
            self.ask(last, frame, lambda frame: None)
        queues = [name + end for name in QUEUES for end in ("", ".dead")]
        frame = f.Consume(subscription=1, queues=queues, credit=1_000)
        self.ask(last, frame, lambda frame: None)
        for client in self.clients[:3]:
            client.held.clear()
        for wait_ms in (40_000, 40_000, 4_000_000, 4_000_000):  # dead letters wait for an hour
            self.machine.wait(wait_ms)
            self.hear()
            for nth in range(len(last.held)):
                self.ack(nth, 1)
            self.machine.settle()
            self.hear()
        self.every_message_is_in_one_place()
        assert self.alive() == set()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stories are short: what is done so much a turn must not be done in one."""
    monkeypatch.setattr(leaving, "LOST_MESSAGES_MAX", 2)
    monkeypatch.setattr(leaving, "STARTED_WEIGHT", 1)
    monkeypatch.setattr(purging, "SWEEP_MESSAGES_MAX", 1)
    monkeypatch.setattr(purging, "SWEEP_LANES_MAX", 1)
    monkeypatch.setattr(purging, "SWEEP_STEP", 1)
    monkeypatch.setattr(orders, "ORDER_WORK_MAX", 6)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
STORIES = settings(stateful_step_count=50, suppress_health_check=QUIET)


def test_no_story_loses_doubles_or_invents_a_message() -> None:
    run_state_machine_as_test(Story, settings=STORIES)


# --- Would we notice?


def confirmed_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """Effects leave when their batch is written."""

    def hasty(self: GroupCommit) -> list[Any]:
        out = [effect for held in self._held for effect in held.effects]
        self._held.clear()
        return out

    patch.setattr(GroupCommit, "released", hasty)


def no_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    """A new segment's name may be lost, and with it all that is in it."""
    patch.setattr(SimDisk, "sync_directory", lambda self: None)


def a_duplicate_answered_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """It is in memory already, so why wait?"""
    real = GroupCommit.hold

    def hasty(self: GroupCommit, effects: list[Any]) -> None:
        known = [e for e in effects if getattr(getattr(e, "frame", None), "duplicate", False)]
        real(self, [effect for effect in effects if effect not in known])
        if known:
            self._held.appendleft(Held(0, known))

    patch.setattr(GroupCommit, "hold", hasty)


def an_unsynced_tail_reused(patch: pytest.MonkeyPatch) -> None:
    """What a killed process left in the cache is taken for durable, and built upon."""
    recover, sync, sync_data = log.recover, SimFile.sync, SimFile.sync_data

    def trusting(disk: SimDisk, *arguments: Any) -> Any:
        old = [inode for name, inode in disk.files.items() if name.endswith(".qlog")]
        with pytest.MonkeyPatch.context() as inner:
            for name, real in (("sync", sync), ("sync_data", sync_data)):
                inner.setattr(
                    SimFile, name, lambda self, real=real: self.inode in old or real(self)
                )
            return recover(disk, *arguments)

    patch.setattr(log, "recover", trusting)


PLANTED = [
    confirmed_before_the_sync,
    no_sync_of_the_directory,
    a_duplicate_answered_before_the_sync,
    an_unsynced_tail_reused,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable[..., None], monkeypatch) -> None:
    """The stories find what they are there to find; the kind of complaint does not matter."""
    plant(monkeypatch)
    hunt = settings(
        STORIES, max_examples=1_000, phases=[Phase.generate], derandomize=True, database=None
    )
    with pytest.raises((AssertionError, LookupError, LogError)):
        run_state_machine_as_test(Story, settings=hunt)
