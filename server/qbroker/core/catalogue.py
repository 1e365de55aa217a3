"""Which policies there are, and which queues have options that somebody must look after.

All but the policies follows from the queues' options and from who is connected: it is volatile,
and made anew after a start.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qbroker.core.alarms import Alarms
from qbroker.core.elders import Elders
from qbroker.core.leases import Member, Session
from qbroker.core.policies import Given, Policy, layered, options_of
from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qbroker.core.weights import Weights
from qprotocol.limits import PRIORITY_MAX, PRIORITY_MIN
from qprotocol.options import DEAD_LETTER_OLDEST, QueueOptions


@dataclass(slots=True)
class Catalogue:
    """The policies, and queues by what is to be looked after. Numbers are those of queues."""

    policies: dict[str, Policy] = field(default_factory=dict)
    """Durable."""
    reached: int = -1
    """Queues from this number on are to follow a change of policies; -1: all have. What a
    checkpoint restores has followed."""
    weights: dict[int, Weights] = field(default_factory=dict)
    """Of the messages of queues with a limit to their bytes. Durable."""
    shaped: set[int] = field(default_factory=set)
    """What is published to these is looked at: priorities, expiry, room."""
    single: set[int] = field(default_factory=set)
    """These have one consumer at a time."""
    holders: dict[int, Member] = field(default_factory=dict)
    """Of those: who was handed something last."""
    waiting: set[int] = field(default_factory=set)
    """Those of them whose next consumer waits for what the last one holds."""
    owned: set[int] = field(default_factory=set)
    """Exclusive ones."""
    unused: dict[int, "Use"] = field(default_factory=dict)
    """Those that are deleted when nobody uses them."""
    left: dict[int, Session | None] = field(default_factory=dict)
    """Those that are deleted with their last consumer, which has gone: its session."""
    dying: set[int] = field(default_factory=set)
    """Deleted ones of which something is left."""
    crowded: set[int] = field(default_factory=set)
    """Those whose limits are new: what is over them is taken out, so much a turn."""
    elders: dict[int, Elders] = field(default_factory=dict)
    """Of those with limits that throw their oldest away."""
    told: dict[int, str] = field(default_factory=dict)
    """The option ``history`` of queues, as far as the log tells the archive; missing: the default.
    Of what a checkpoint restores it is told again."""
    untold: dict[int, str] = field(default_factory=dict)
    """Those of which it is another by now."""
    alarms: Alarms = field(default_factory=Alarms)
    """Of queues of dead letters."""
    arrived: list[tuple[Run, Sequence[int], int]] = field(default_factory=list)
    """What came into queues with limits since somebody looked, in order."""
    gone_lanes: int = 0
    """Lanes of deleted queues."""
    next_look_ms: int = 0
    """Monotonic: when queues nobody uses are looked for."""
    began_ms: int = 0
    """Monotonic: the first look after the start."""

    def gone(self, queue: Queue, first: int, count: int = 1) -> int:
        """These are not in the queue any more, for good; their bytes, if they are known."""
        weights = self.weights.get(queue.number)
        return weights.drop(first, count) if weights else 0

    def arrive(self, run: Run, position: int, size: int, due_ms: int) -> None:
        """A message came into a queue with limits, ready if ``due_ms`` is 0.

        ``size`` is 0 if nobody knows it.
        """
        self.arrived.append((run, (position,), due_ms))
        weights = self.weights.get(run.lane.queue.number)
        if weights is not None and size:
            weights.add(position, array("I", (size,)))

    def given(self, queue: Queue) -> dict[str, Given]:
        """Every option of the queue, and where it came from."""
        terms = queue.terms
        return layered(queue.name, terms.declared, terms.changed, self.policies.values())

    def options_for(self, name: str) -> QueueOptions:
        """The options of a queue that will be made on first use."""
        return options_of(layered(name, {}, {}, self.policies.values()))

    def note(self, queue: Queue) -> None:
        """The queue's options are new: who must look after it follows from them."""
        options, number = queue.options, queue.number
        levels = options.min_priority, options.max_priority
        for group, belongs in (
            (self.shaped, options.is_bounded or options.message_ttl_ms or levels != _ALL_LEVELS),
            (self.single, options.single_active_consumer),
            (self.owned, options.exclusive),
        ):
            if belongs:
                group.add(number)
            else:
                group.discard(number)
        self.alarms.note(queue)
        if options.is_bounded:
            self.crowded.add(number)  # the limit may be a lower one
        if not (options.is_bounded and makes_room(queue)):
            self.elders.pop(number, None)
        elif number not in self.elders:
            self.elders[number] = Elders(queue)
            self.elders[number].list_more()
        if options.history != self.told.get(number, ""):
            self.untold[number] = options.history
        else:
            self.untold.pop(number, None)
        if not options.max_bytes:
            self.weights.pop(number, None)
        elif number not in self.weights:
            self.weights[number] = Weights()
        if not options.expires_ms:
            self.unused.pop(number, None)
        elif number not in self.unused:
            self.unused[number] = Use()
        if not options.auto_delete:
            self.left.pop(number, None)

    def drop(self, queue: Queue) -> None:
        """The queue was deleted: nobody looks after it, but for what is left of it."""
        for group in (self.shaped, self.single, self.waiting, self.owned, self.crowded):
            group.discard(queue.number)
        tables: tuple[dict[int, Any], ...]
        tables = self.weights, self.holders, self.unused, self.left, self.elders
        tables += self.told, self.untold
        for table in tables:
            table.pop(queue.number, None)
        self.alarms.drop(queue.number)
        self.gone_lanes += len(queue.lanes)
        self.dying.add(queue.number)


def makes_room(queue: Queue) -> bool:
    """Whether the oldest go, and not what comes."""
    return queue.options.overflow == DEAD_LETTER_OLDEST or queue.holds_letters


_ALL_LEVELS = (PRIORITY_MIN, PRIORITY_MAX)


@dataclass(slots=True)
class Use:
    """When a queue was used last, as far as looks now and then can tell."""

    books: tuple[int, ...] = ()
    """What was counted at the last look; other counts now are a use."""
    used_ms: int = 0
    """Monotonic."""
