"""What qbroker promises, and what was seen: an oracle that knows nothing of the code.

It is told what clients asked for, what they were answered, and what was delivered, each
with the moment at which the broker sent it. It knows messages by their bodies.

    born    NO       asked to be published at most, or refused for certain
            MAYBE    sent, and no answer yet
            YES      confirmed, or revealed by any answer or delivery
    over    NO / MAYBE (an end was asked for, or time may have ended it) / YES (confirmed)

Promises held here (numbers are those of the list of promises):
    P1  what was confirmed is there, or has ended           ``still``
    P2  ... and is handed out again until it has ended      ``delivered``, ``still``
    P4  a publish sent again is done once                   ``published``
    P7  a token that was replaced settles nothing           ``settled``
    P8  counters are true                                   ``check_counters``
    P9  only what ran counts as crashed                     ``check_counters``
    P11 first deliveries of a queue and priority in order    ``check_order``
    who goes next of queues, ages and tenants    ``sim/turns.py``
    P20 results are what the worker sent                    ``told``
    a dead letter stays until it is replayed, edited or dropped, each once  ``sim/burials.py``
    of a unique key one is there, and what is not stored is answered  ``sim/keys.py``
    nodes of graphs go behind what they wait for, with its results   ``sim/flows.py``
    what names an exchange is in each queue bound for it, once, or in none  ``still``, ``_placed``
and: nothing is invented, nothing comes back after its end, nothing comes before its time,
a lease ends only for a reason, and "definitely not done" is the truth.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message, meta_fields, unpack_message, walk
from qprotocol.states import State
from qprotocol.wire import NODE, SLOT_BITS
from sim.burials import Burials
from sim.flows import Flows
from sim.keys import Keys
from sim.limits import Limits
from sim.swarm import EVERY
from sim.turns import Turns
from sim.world import Mark, Violation, World

NO, MAYBE, YES = range(3)
EARLY_MS = 60
"""The broker hands out what is due within 50 ms."""
LATE_MS = 40_000
"""Longer than anything here can hold a delivery between its decision and its sending."""


ENDS = ("acked", "replaced")
"""Of a settlement; a message that is replaced by another with its key is "replaced", too."""
AGAIN = ("failed", "failed, and runs again", "released", "crashed", "replaced")
BURIES = ("failed", "failed for good", "rejected", "crashed")


@dataclass(eq=False, slots=True)
class Lease:
    """One delivery of one message to one client."""

    known: Known
    position: int
    grant: int
    mark: Mark
    holder: Any
    """The worker or consumer; None if nobody ever heard of it."""
    counters: tuple[int, int, int] | None = None
    excused: bool = False
    """Something happened after which the broker may have taken it back."""
    asked: bool = False
    """A settlement was asked for."""
    whys: set[str] = field(default_factory=set)
    """What was asked for, each once."""
    running: bool = False
    survived: bool = False
    """It was good when a life of the broker ended: the next one must know it."""
    done: bool = False
    """Settled for certain, or known to be lost."""
    dead: bool = False
    """It came as a dead letter."""


@dataclass(eq=False, slots=True)
class Known:
    """All that is known of one message."""

    uid: int
    message: Message
    raw: bytes
    relaxed: bool
    plain_order: bool
    """Takes part in the check of FIFO: neither delayed nor in parts."""
    born: int = NO
    over: int = NO
    over_tick: int = 0
    over_now: int = 0
    why_over: str = ""
    refused: bool = False
    synced: bool = False
    """Its publish was confirmed as on stable storage."""
    position: int = 0
    leases: list[Lease] = field(default_factory=list)
    ghosts: int = 0
    failures: list[int] = field(default_factory=lambda: [0, 0])
    """At least, at most."""
    failures_dead: int = 0
    """Of the least, those in a queue of dead letters, of which its row says nothing."""
    crashes: list[int] = field(default_factory=lambda: [0, 0])
    may_be_dead: bool = False
    """Something was asked that may have made it a dead letter."""
    may_overflow: bool = False
    """Its queue has a limit: it may be a dead letter for that, and before its time."""
    results: list[bytes] = field(default_factory=list)
    """Those that any ack brought."""
    kept: bytes | None = None
    """The one whose ack was confirmed."""
    forgotten: bool = False
    cancel_asked: bool = False
    purge_asked: bool = False
    begun: int = 0
    """Acks early: the tick at which its start was confirmed."""
    again: bool = False
    """Somebody asked for another run."""
    may_rot: bool = False
    """Its bytes on disk were changed, or refused for long: it may be set aside."""
    packed: bytes | None = None
    """What is sent for it, if that is not the message itself: with an exchange, for all copies
    of it together; nothing for the second and further ones."""
    elsewhere: set[str] = field(default_factory=set)
    """Queues that it may have been moved to."""
    replays: int = 0
    """How often a replay of it was asked for, as a dead letter."""
    edited: Known | None = None
    """The dead letter whose place it is to take."""
    cause: Lease | None = None
    """The delivery whose settlement brought it, and that ended with it."""
    needs: list[tuple[int, Known]] = field(default_factory=list)
    """Kind of link, and the message that must have ended so before it goes."""
    successors: list[Known] = field(default_factory=list)
    """What was to replace it."""

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def is_node(self) -> bool:
        """Whether it is one of a graph: a purge is an end that others are told of."""
        return NODE in meta_fields(self.message.fields)

    @property
    def places(self) -> set[str]:
        """The queues that it may be in."""
        return {self.message.queue, *self.elsewhere}

    @property
    def sent(self) -> bytes:
        """Its bytes in a publish."""
        return self.raw if self.packed is None else self.packed

    def __str__(self) -> str:
        return f"message {self.uid} (queue {self.message.queue}, position {self.position})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of a message when a question about it was asked."""

    mark: Mark
    born: int
    over: int
    kept: bytes | None

    @classmethod
    def of(cls, known: Known, mark: Mark) -> Snapshot:
        return cls(mark, known.born, known.over, known.kept)


class Oracle:
    """The books."""

    def __init__(self, world: World, *, calm: bool, results_max: int, slack_us: int) -> None:
        self.world = world
        self.slack_us = slack_us
        """How long what is decided may wait for a cold read."""
        self.calm = calm
        self.results_max = results_max
        self.known: dict[int, Known] = {}
        self.copies: dict[tuple[int, str], Known] = {}
        """Messages that an exchange made: by the number in their body, and queue."""
        self.by_id: dict[str, list[Known]] = {}
        self.grants: dict[int, tuple[Any, Mark]] = {}
        """Every grant that was ever seen, and whose it was."""
        self.handed: dict[int, list[int]] = {}
        """Grant to the priorities of its messages: large ones come in several frames."""
        self.pauses: dict[str, tuple[int, Mark]] = {}
        """Queue to the end of its pause, and when that was confirmed."""
        self.closed: dict[str, tuple[int, Mark]] = {}
        """The same of those that take nothing in."""
        self.by_task = False
        """Consumers know some tasks only: each task of a queue goes by itself."""
        self.order: dict[tuple[int, str, str, int, str], list[tuple[int, int]]] = {}
        """(life, queue, task, priority, ordering key) to (grant, position) of first deliveries."""
        self.rots_on = False
        """What is published now may come into a place that is refused for long."""
        self.rotted = False
        """Something on the disk was not what it had been."""
        self.on_answer: Callable[[f.Frame], None] | None = None
        self.oldest_every: dict[str, int] = {}
        """Queues to how often the oldest message has a turn."""
        self.single: dict[str, Mark] = {}
        """Queues with one consumer at a time, and since when."""
        self.limited: set[str] = set()
        """Queues with a limit, over which messages become dead letters."""
        self.held_of: dict[str, list[Lease]] = {}
        """What was handed out of those."""
        self.limits: Limits | None = None
        """Those of the seed, if it has limits or ordering keys."""
        self.keys = Keys(self)
        self.turns: Turns | None = None
        """Who went when, if the seed is a whole story."""
        self.burials = Burials(self)
        self.flows = Flows(self)
        self.underway: list[Callable[[], object]] = []
        """Orders that are not answered: each marks again what it may mean by now."""
        self.lost_tick = -1
        """When something that was only written was last lost."""

    def answered(self, frame: f.Frame) -> None:
        """Somebody was told something: what it reveals must outlive anything from now on."""
        if self.on_answer is not None:
            self.on_answer(frame)

    def gone(self, known: Known, mark: Mark) -> bool:
        """Whether what the broker said of it then was true of what is lost since."""
        return known.relaxed and mark.tick < self.lost_tick

    # Publishing.

    def add(self, message: Message, uid: int, *, relaxed: bool, in_order: bool) -> Known:
        """A message that somebody is about to publish."""
        known = Known(uid, message, message.pack(), relaxed, in_order and not message.due_ms)
        known.may_overflow = known.may_be_dead = message.queue in self.limited
        known.may_rot = self.rots_on
        self.known[uid] = known
        if message.id:
            self.by_id.setdefault(message.id, []).append(known)
        self.keys.added(known)
        return known

    def add_copy(self, known: Known, uid: int, packed: bytes) -> None:
        """The message is one of those that an exchange makes of the one numbered ``uid``."""
        known.packed = packed
        self.copies[uid, known.message.queue] = known

    def sent(self, messages: list[Known]) -> None:
        for known in messages:
            known.born = max(known.born, MAYBE)

    def published(self, chunk: Any, reply: f.Published, mark: Mark) -> None:
        """The chunk was confirmed."""
        messages: list[Known] = chunk.messages
        if reply.count != sum(bool(known.sent) for known in messages):
            raise Violation(f"{reply.count} messages confirmed of {len(messages)}: {chunk}")
        if reply.duplicate and chunk.attempts < 2:
            raise Violation(f"called a duplicate, and sent once: {chunk}")
        if not reply.duplicate and chunk.confirmed:
            raise Violation(f"taken a second time: {chunk}")
        if chunk.wants_sync and reply.durability != "synced":
            raise Violation(f"confirmed as {reply.durability}: {chunk}")
        stored = self.keys.published(chunk, reply, mark)
        if not reply.duplicate and not chunk.doubled:
            self._check_closed(stored, mark, chunk.asked_at)
        for index, known in enumerate(stored):
            if known.refused:
                raise Violation(f"confirmed after it was refused for certain: {known}")
            known.synced = known.synced or reply.durability == "synced"
            if not known.synced and self.gone(known, mark):
                continue
            if reply.first:
                self._placed(known, reply.first + index)
            self.reveal(known)
            if self.turns:
                self.turns.confirmed(known, mark)

    def _check_closed(self, messages: list[Known], mark: Mark, asked: Mark) -> None:
        for known in messages:
            until_ms, since = self.closed.get(known.message.queue, (0, mark))
            if mark.wall_high < until_ms and since.tick < asked.tick:
                raise Violation(f"{known} was let in, its queue is paused until {until_ms}")

    def refused(self, chunk: Any, error: f.Error) -> None:
        """The chunk was refused: for certain, none of it was or will be done."""
        if chunk.doubled:
            return
        if error.code == "NOT_UNIQUE":
            self.keys.rejected(chunk)
        for known in chunk.messages:
            if error.definite and known.born == YES:
                raise Violation(f"{error.code} says not done, but {known} was seen")
            if error.definite and not error.retryable:
                known.refused = True

    def _placed(self, known: Known, position: int) -> None:
        if known.position and known.position != position:
            raise Violation(f"{known} is there twice: also at {position}")
        known.position = position

    def reveal(self, known: Known) -> None:
        """Somebody was told of it: from now on it must be there, or have ended."""
        if known.refused:
            raise Violation(f"{known} was refused for certain, and exists")
        if known.born == NO:
            raise Violation(f"{known} exists, and nobody has sent it yet")
        known.born = YES

    # Deliveries.

    def parse(self, deliver: f.Deliver) -> list[tuple[int, Known, tuple[int, int, int] | None]]:
        """(position, message, counters if it was handed out before) for each."""
        raw = deliver.raw
        at = w.RUN.size * deliver.runs
        positions = [
            position
            for first, count in w.RUN.iter_unpack(raw[:at])
            for position in range(first, first + count)
        ]
        end = at + w.TOUCHED.size * deliver.touched
        touched = {index: rest for index, *rest in w.TOUCHED.iter_unpack(raw[at:end])}
        packed = [raw[a:b] for a, b in walk(raw, end)]
        if not len(positions) == len(packed) == deliver.count:
            raise Violation(
                f"{len(packed)} messages, {len(positions)} positions in {deliver.count}"
            )
        out = []
        for index, (position, each) in enumerate(zip(positions, packed, strict=True)):
            known = self.recognise(each)
            row = touched.get(index)
            out.append((position, known, (row[0], row[1], row[2]) if row else None))
        return out

    def recognise(self, packed: bytes) -> Known:
        """The message of these bytes: one that somebody sent, and nothing else."""
        message = unpack_message(packed)
        uid = int(message.body[:9]) if message.body[:9].isdigit() else 0
        known = self.copies.get((uid, message.queue)) or self.known.get(uid)
        if known is None or known.raw != packed:
            raise Violation(f"nobody sent this message: {unpack_message(packed)}"[:400])
        return known

    def delivered(
        self, holder: Any, deliver: f.Deliver, mark: Mark, *, dead: bool, queues: list[str]
    ) -> list[Lease]:
        """``holder`` got these; ``dead``: from queues for dead letters."""
        self._check_grant(holder, deliver.grant, mark)
        out = []
        found = self.parse(deliver)
        self._check_priorities(deliver.grant, found, dead=dead)
        for position, known, counters in found:
            if not self.gone(known, mark):
                self.reveal(known)
                self._placed(known, position)
            early = bool(known.replays) or (dead and known.may_overflow)
            due_ms = self.keys.due_ms(known, at=mark, is_first=counters is None)
            self._check_alive(known, mark, 0 if early else due_ms)
            if not dead and not known.elsewhere:
                self._check_paused(known, mark)
            if dead and not known.may_be_dead:
                raise Violation(f"a dead letter that nothing has killed: {known}")
            if not dead and not known.places & set(queues):
                raise Violation(f"{known} came from {queues}")
            if not dead:
                self.flows.delivered(known)
            may_begin = known.again or known.replays
            if 0 < known.begun < mark.tick and not may_begin and not dead:
                raise Violation(f"acks early: it has begun, and comes again: {known}")
            if known.cause is not None and not known.relaxed:
                # One fact: with it the delivery has ended whose settlement brought it.
                self.end(known.cause.known, "followed by another", mark)
            if known.edited is not None and not known.relaxed:
                self.end(known.edited, "edited", mark)
            known.may_be_dead = known.may_be_dead or self.burials.few
            self._check_not_held(known, deliver.grant, mark)
            if not any(lease.grant > deliver.grant for lease in known.leases):
                self._check_counters(known, counters)
            lease = Lease(known, position, deliver.grant, mark, holder, counters, dead=dead)
            known.leases.append(lease)
            out.append(lease)
            if counters is None and known.plain_order and not dead and self._is_ordered(known):
                self._check_order(known, position, deliver.grant, mark)
        if not dead:
            self._check_alone(holder, out)
            if self.limits:
                self.limits.delivered(out, mark)
        return out

    def ghost(self, deliver: f.Deliver, mark: Mark) -> None:
        """Sent by the broker, and lost with its connection."""
        for position, known, _ in self.parse(deliver):
            known.ghosts += 1
            lease = Lease(known, position, deliver.grant, mark, None, excused=True)
            known.leases.append(lease)

    def _check_grant(self, holder: Any, grant: int, mark: Mark) -> None:
        before = self.grants.setdefault(grant, (holder, mark))
        if before[0] is not holder or before[1].life != mark.life:
            raise Violation(f"grant {grant:#x} was given twice: in life {before[1].life} before")

    def _check_priorities(
        self, grant: int, found: list[tuple[int, Known, Any]], *, dead: bool
    ) -> None:
        """But for the last of a grant, which may go because they are the oldest."""
        highest, every = 100, EVERY
        if found and not dead:
            places = {place for _, known, _ in found for place in known.places}
            every = min(self.oldest_every.get(place, EVERY) for place in places)
        handed = self.handed.setdefault(grant, [])
        handed += [known.message.priority for _, known, _ in found]
        turns = len(handed) // every + 1
        for priority in handed[: len(handed) - turns]:
            if priority > highest:
                raise Violation(f"priority {priority} after {highest}: {[k for _, k, _ in found]}")
            highest = priority

    def pausing(self, queue: str) -> None:
        """A pause is asked for: it replaces the one before, which may have been longer."""
        self.pauses.pop(queue, None)
        self.closed.pop(queue, None)

    def closed_to(self, queue: str, until_ms: int, mark: Mark) -> None:
        """The queue takes nothing in until then: the broker said so at that moment."""
        self.closed[queue] = until_ms, mark

    def paused(self, queue: str, until_ms: int, mark: Mark) -> None:
        """The queue hands nothing out until then: the broker said so at that moment."""
        self.pauses[queue] = until_ms, mark

    def _check_paused(self, known: Known, mark: Mark) -> None:
        """What was decided before may still be on its way, if it waited for the disk."""
        until_ms, since = self.pauses.get(known.message.queue, (0, mark))
        if mark.wall_high < until_ms and mark.now > since.now + self.slack_us:
            raise Violation(f"{known} comes out of a queue that is paused until {until_ms}")

    def is_held(self, lease: Lease) -> bool:
        """Whether nothing has happened for which its holder may have lost it."""
        over = lease.excused or lease.asked or lease.done or lease.known.over != NO
        return (
            not over
            and lease.mark.life == self.world.life
            and not lease.holder.excused_since(lease.mark.tick)
        )

    def _check_alone(self, holder: Any, leases: list[Lease]) -> None:
        """Of a queue with one consumer at a time nobody else holds anything."""
        here = [lease for lease in leases if not lease.known.elsewhere]
        for queue in {lease.known.message.queue for lease in here} & self.single.keys():
            held = self.held_of.setdefault(queue, [])
            held[:] = [each for each in held if self.is_held(each)]
            # What was decided before the queue was so may have waited for the disk.
            is_so = leases[0].mark.now > self.single[queue].now + self.slack_us
            for lease in held:
                is_older = lease.grant < leases[0].grant  # what was on its way may come later
                if is_so and is_older and lease.holder is not holder:
                    raise Violation(f"two consumers of {queue}: the other one has {lease.known}")
            held += [each for each in here if each.known.message.queue == queue]

    def _check_alive(self, known: Known, mark: Mark, due_ms: int) -> None:
        if self._is_after(known, mark):
            raise Violation(f"{known} is back: {known.why_over} at tick {known.over_tick}")
        if known.over == YES and known.why_over == "purged":
            known.over = MAYBE  # it was on its way
        if mark.wall_high < due_ms - EARLY_MS:
            raise Violation(f"{known} comes {due_ms - mark.wall_high} ms before its time")

    def _is_after(self, known: Known, mark: Mark) -> bool:
        """Whether it was over when the broker decided what it sent then.

        What waits for the disk is sent a little later than it was decided, and others are
        told meanwhile that it was cancelled or purged. Nobody but its holder acks it.
        """
        if known.over != YES or mark.tick <= known.over_tick:
            return False
        return known.why_over in ENDS or mark.now > known.over_now + self.slack_us

    def _check_not_held(self, known: Known, grant: int, mark: Mark) -> None:
        """Whoever has it was given a reason to lose it."""
        for lease in known.leases:
            if lease.grant >= grant or lease.excused or lease.asked or lease.done:
                continue
            if lease.mark.life == mark.life and lease.mark.tick < mark.tick:
                if lease.holder.excused_since(lease.mark.tick):
                    lease.excused = True
                    continue
                raise Violation(f"{known} is handed out while {lease.holder.name} has it")

    def _check_counters(self, known: Known, counters: tuple[int, int, int] | None) -> None:
        deliveries, failures, crashes = counters or (1, 0, 0)
        for name, value, (least, most) in (
            ("failures", failures, known.failures),
            ("crashes", crashes, known.crashes),
        ):
            if not least <= value <= most:
                raise Violation(f"{known} says {value} {name}: {least} to {most} are true")
        seen = len(known.leases) + 1
        is_first_life = not known.replays and not known.message.parent
        if self.calm and deliveries != seen and is_first_life:
            raise Violation(f"{known} says {deliveries} deliveries: this is the {seen}.")

    def _is_ordered(self, known: Known) -> bool:
        """Whether its queue's order, or that of its ordering key, alone says when it goes."""
        is_plain = self.limits is None or self.limits.keeps_queue_order(known)
        return is_plain or bool(LaneKeys.unpack(known.message.keys).ordering)

    def _check_order(self, known: Known, position: int, grant: int, mark: Mark) -> None:
        message = known.message
        wants = LaneKeys.unpack(message.keys)
        # Tenants have an order each; an ordering key goes before that.
        whose = wants.ordering or f"tenant {wants.fair}"
        key = mark.life, message.queue, message.task * self.by_task, message.priority, whose
        rows = self.order.setdefault(key, [])
        row = grant, position
        at = bisect_left(rows, row)
        rows.insert(at, row)
        if at and rows[at - 1][1] > position:
            raise Violation(f"{known} comes after a later one of its queue and priority")
        if at + 1 < len(rows) and rows[at + 1][1] < position:
            raise Violation(f"{known} comes before an earlier one of its queue and priority")

    # Settlements.

    def ask_end(self, lease: Lease, why: str) -> None:
        """A settlement is on its way."""
        lease.asked = True
        known = lease.known
        if why in lease.whys:
            return
        lease.whys.add(why)
        if why in ENDS:
            known.over = max(known.over, MAYBE)
        if why in AGAIN:
            known.again = True
        if why in BURIES:
            known.may_be_dead = True
        if why.startswith("failed"):
            known.failures[1] += 1
        if why == "crashed":
            self.runs(lease)

    def runs(self, lease: Lease) -> None:
        """The broker is told that it runs: a lost worker counts as a crash from now on."""
        if not lease.running:
            lease.running = True
            lease.known.crashes[1] += 1
            lease.known.may_be_dead = True

    def settled(self, lease: Lease, why: str, mark: Mark, asked: Mark) -> None:
        """It was accepted."""
        known = lease.known
        for other in known.leases:
            newer = other.grant > lease.grant and other.mark.life == mark.life == asked.life
            if newer and other.mark.tick < asked.tick:
                raise Violation(f"an outdated token was accepted: {known}, {lease.grant:#x}")
        if self.gone(known, mark):
            return
        if lease.done:
            raise Violation(f"settled twice: {known}, grant {lease.grant:#x}")
        if known.over == YES and known.over_tick < asked.tick:
            raise Violation(f"{known} is {known.why_over}, and was settled as {why}")
        lease.done = True
        if why in ENDS:
            self.end(known, why, mark)
        elif known.replays:
            pass  # that it was counted may have been before a replay, which begins at nothing
        elif why.startswith("failed"):
            known.failures[0] += 1
            known.failures_dead += lease.dead
        elif why == "crashed":
            known.crashes[0] += 1
        if self.limits:
            self.limits.settled(lease, why, mark)

    def lost(self, lease: Lease, mark: Mark, asked: Mark) -> None:
        """It was refused: the lease was not the client's any more."""
        known = lease.known
        excuse = (
            lease.excused
            or lease.done
            or known.cancel_asked
            or known.may_rot
            or known.over != NO
            or lease.mark.life != mark.life
            or any(other.grant > lease.grant for other in known.leases)
            or lease.holder.excused_since(lease.mark.tick)
        )
        if not excuse:
            raise Violation(f"the lease of {known} by {lease.holder.name} was lost for no reason")
        lease.excused = lease.done = True

    def end(self, known: Known, why: str, mark: Mark) -> None:
        """It has ended for certain: the broker said so at that moment."""
        if self.gone(known, mark):
            known.over = max(known.over, MAYBE)
        elif known.over != YES:
            known.over, known.why_over = YES, why
            known.over_tick, known.over_now = mark.tick, mark.now

    # Questions.

    def told(self, known: Known, result: f.Result, mark: Mark, asked: Snapshot) -> None:
        """What the broker says became of a task."""
        state = State(result.state)
        self.world.sometimes[f"told {state.name}"] += 1
        if state is State.UNKNOWN:
            self._check_unknown(known, asked)
            return
        self.reveal(known)
        if state is State.SUCCESS:
            self._check_success(known, result, asked)
            self.end(known, "a success", mark)
        elif state is State.FAILURE:
            if not (known.may_be_dead or known.may_rot or self.flows.is_let_down(known)):
                raise Violation(f"FAILURE, and nothing has failed: {known}")
        elif state is State.REVOKED:
            expires = known.message.expires_ms
            expired = expires and expires <= mark.wall_high
            asked_for = known.cancel_asked or known.purge_asked
            if not (expired or asked_for or self.may_end_unasked(known)):
                raise Violation(f"REVOKED, and neither cancelled nor expired nor purged: {known}")
            self.end(known, "revoked", mark)
        elif known.over == YES and known.over_tick < asked.mark.tick:
            raise Violation(f"{state.name}, but {known} is over: {known.why_over}")

    def _check_unknown(self, known: Known, asked: Snapshot) -> None:
        there = asked.born == YES and known.over == NO and not known.relaxed and not known.may_rot
        there = there and not self.may_end_unasked(known)
        expires = known.message.expires_ms
        if there and not (expires and expires <= self.world.wall_high):
            raise Violation(f"UNKNOWN, but it was confirmed and has not ended: {known}")
        self._check_kept(known, asked)

    def _check_success(self, known: Known, result: f.Result, asked: Snapshot) -> None:
        if known.over == NO:
            raise Violation(f"SUCCESS, and nobody has acked it: {known}")
        if result.stored and result.raw not in known.results:
            raise Violation(f"a result that no worker sent: {known}, {result.raw[:60]!r}")
        if result.stored and known.kept is not None and result.raw != known.kept:
            raise Violation(f"the result of another run: {known}, {result.raw[:60]!r}")
        if not result.stored:
            self._check_kept(known, asked)

    def _check_kept(self, known: Known, asked: Snapshot) -> None:
        kept = asked.kept is not None and known.kept is not None and not known.relaxed
        kept = kept and not self.rotted
        if kept and self.results_max > len(self.known) and not known.forgotten:
            raise Violation(f"the result is gone before its time: {known}")

    def peeked(self, known: Known, position: int, mark: Mark, asked: Mark) -> None:
        """It was shown as waiting; bodies that had to be read first make that news old."""
        if self.gone(known, mark):
            return
        self.reveal(known)
        self._placed(known, position)
        if self._is_after(known, asked):
            raise Violation(f"{known} waits, but it is {known.why_over}")

    def may_be_in(self, queue: str) -> list[Known]:
        return [known for known in self.known.values() if queue in known.places]

    def moving(self, messages: list[Known], target: str) -> None:
        """A move is on its way, or was: they wait behind what waits there, or where they were."""
        for known in messages:
            known.elsewhere.add(target)
            known.plain_order = False
            if target in self.limited:
                known.may_overflow = known.may_be_dead = True

    def purging(self, queue: str) -> list[Known]:
        """A purge is on its way, or was: the messages it may have ended."""
        found = self.may_be_in(queue)
        for known in found:
            known.purge_asked = True
            known.over = max(known.over, MAYBE)
        return found

    def keeps(self, known: Known, result: bytes, mark: Mark) -> None:
        """An ack with a result was confirmed."""
        if self.gone(known, mark):
            return
        known.kept = result

    # What happens to machines.

    def power_lost(self) -> None:
        """What was only written may be gone, and what was only written to have ended be back."""
        self.lost_tick = self.world.tick
        if self.limits:
            self.limits.power_lost()
        for known in self.known.values():
            if not known.relaxed:
                continue
            if not known.synced:
                known.born = min(known.born, MAYBE)
                known.position = 0
            known.over = min(known.over, MAYBE)
            known.failures[0] = known.crashes[0] = 0
            known.kept = None
            known.begun = 0
            for lease in known.leases:
                lease.done = False

    def ended_a_life(self) -> None:
        """Leases that nobody claims will end; those that were good may be claimed."""
        for known in self.known.values():
            for lease in known.leases:
                if not lease.excused and not lease.done and lease.holder is not None:
                    lease.survived = not lease.asked and not lease.holder.excused_since(
                        lease.mark.tick
                    )
                lease.excused = True

    def rots(self, first: int, last: int) -> None:
        """Batches that may be lost on disk: who is in them may be set aside.

        So may be those that nobody was told the place of, and those that go on behind.
        """
        self.rotted = True
        for known in self.known.values():
            batch = known.position >> SLOT_BITS
            if first <= batch <= last or not batch or (batch < first and not known.plain_order):
                known.may_rot = True

    def set_aside(self, positions: Iterable[int]) -> None:
        """The broker has these in quarantine: they have ended, and nobody will get them."""
        by_position = {each.position: each for each in self.known.values() if each.position}
        found = [by_position.get(position) for position in positions]
        if None in found:  # of which nobody was told the place
            found += [each for each in self.known.values() if each.may_rot and not each.position]
        for known in filter(None, found):
            if not known.may_rot:
                raise Violation(f"{known} is set aside, and its bytes are whole")
            known.over = max(known.over, MAYBE)

    def claim_refused(self, lease: Lease, mark: Mark, *, in_time: bool) -> None:
        """A worker came back, said that it runs this, and was told that it does not."""
        known = lease.known
        good = lease.survived and mark.life == lease.mark.life + 1 and in_time
        expires = known.message.expires_ms
        # Where the grant was lost with the crash, the message waits, and its time may be over.
        touched = known.over != NO or known.cancel_asked or known.relaxed or lease.asked
        touched = touched or known.may_rot or bool(expires and expires <= mark.wall_high)
        if good and not touched:
            raise Violation(f"{known} was running, and is taken away after a restart")
        lease.done = True

    def may_end_unasked(self, known: Known) -> bool:
        """Whether it may end by what becomes of others, or because dead letters do not stay."""
        return (
            self.burials.may_fade(known)
            or self.keys.may_be_replaced(known)
            or self.flows.is_let_down(known)
        )

    def still(self) -> list[Known]:
        """What must be there: it has not ended, and its time is not over either."""
        for mean in self.underway:
            mean()
        now = self.world.wall_high
        return [
            known
            for known in self.known.values()
            if known.born == YES
            and known.over == NO
            and not self.may_end_unasked(known)
            and not (known.message.expires_ms and known.message.expires_ms <= now)
        ]
