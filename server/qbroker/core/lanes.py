"""A lane: the messages of one task with the same keys in one queue."""

from typing import TYPE_CHECKING

from qbroker.core.runs import Run
from qprotocol import wire
from qprotocol.lanekeys import NO_KEYS, LaneKeys

if TYPE_CHECKING:
    from qbroker.core.gates import Gate
    from qbroker.core.ordering import Ordering
    from qbroker.core.queues import Queue

LANE_NUMBERS = 1 << 24
"""Numbers that lanes may have: with the priority they are a run's, which is 32 bits."""


def kind_of(task: str) -> int:
    """A message is a task's call, or plain."""
    return wire.KIND_TASK if task else wire.KIND_PLAIN


def read_keys(keys: bytes) -> LaneKeys:
    """The keys of a lane. Logs from before they had a form hold others, which say nothing."""
    try:
        return LaneKeys.unpack(keys) if keys else NO_KEYS
    except ValueError:
        return NO_KEYS


class Lane:
    """Its runs by priority, how many of its messages are leased, what limits it.

    There may be a million: what most of them do not have is one empty object for all.
    """

    __slots__ = (
        "_runs",
        "fair",
        "gates",
        "keys",
        "kind",
        "leased",
        "life",
        "number",
        "ordering",
        "parked",
        "queue",
        "scheduled",
        "shelf",
        "weight",
    )

    def __init__(self, number: int, queue: "Queue", task: str, keys: bytes) -> None:
        # Durable.
        self.number = number
        self.queue = queue
        self.shelf = queue.shelf_of(task)
        """What waits of its task in its queue."""
        self.keys = keys
        """Packed: see qprotocol/lanekeys.py."""
        wants = self.wants
        self.weight = wants.weight
        """What one of its messages takes of a limit."""
        self.fair = wants.fair
        """The tenant whose its messages are, by key."""
        if self.fair and queue.shares is None:
            queue.share_out()
        self.kind = kind_of(task)
        """Its messages are of this kind."""
        self._runs: tuple[Run, ...] = ()
        self.life = queue.life
        """The life of its queue that the runs belong to."""
        self.leased = 0
        self.scheduled = 0
        """Messages that wait for their time, of its queue's life."""
        # Follows from the rules, and from what is leased.
        self.ordering: Ordering | None = None
        """Of its ordering key, one of its gates."""
        self.gates: tuple[Gate, ...] = ()
        """Its own; those of its shelf and its queue count, too. Set by gates.attach alone."""
        # Volatile.
        self.parked: Gate | None = None
        """The gate that keeps its messages; nobody is handed one until it opens."""

    @property
    def task(self) -> str:
        """The task's name; empty for plain messages."""
        return self.shelf.task

    @property
    def wants(self) -> LaneKeys:
        """What its messages are limited, ordered and shared out by. Costs a microsecond."""
        return read_keys(self.keys)

    @property
    def runs(self) -> tuple[Run, ...]:
        """One for each priority that it has had; none that was purged."""
        return self._runs if self.life == self.queue.life else ()

    def run(self, priority: int) -> Run:
        """The lane's run at ``priority``, made on first use."""
        if self.life != self.queue.life:
            self.retire()
        for run in self._runs:
            if run.priority == priority:
                return run
        made = Run(self, priority)
        self._runs += (made,)
        return made

    def retire(self) -> None:
        """Runs that were purged are no more the lane's, but what is left to be swept."""
        if self.life != self.queue.life:
            self.queue.retire(self._runs)
            self._runs, self.life, self.parked = (), self.queue.life, None
            self.scheduled = 0

    def delay(self, count: int) -> None:
        """So many more of its messages wait for their time."""
        self.retire()
        self.scheduled += count

    def undelay(self, position: int) -> None:
        """A message of it does not wait for its time any more."""
        self.queue.delayed.discard(position)
        self.queue.scheduled -= 1
        self.scheduled -= 1

    # Parked.

    @property
    def waiting(self) -> int:
        """Messages that wait, ready to be handed out."""
        return sum(run.size for run in self.runs)

    def rank(self) -> tuple[int, int]:
        """Priority, highest first, and head of its best run. Only when messages wait."""
        return min((-run.priority, run.turn()) for run in self.runs if run.size)

    def park(self, gate: "Gate") -> None:
        """Its messages are out of sight. They leave the lists when they come up there."""
        self.queue.hide(self, gate)

    def unpark(self) -> None:
        """Its messages may be handed out again."""
        gate, self.parked = self.parked, None
        if gate:
            self.queue.show(self, gate)
