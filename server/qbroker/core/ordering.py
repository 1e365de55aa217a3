"""Ordering keys: of the messages of a queue with the same key one is out at a time, in order.

           handed out            over: settled, cancelled, dead
    free -----------------> out --------------------------------> free
                             ^ '-- failed, released, returned, crashed: it waits again
                             '---- and is the only one that may be handed out

So a message that waits for its retry keeps its key. Among those that were never handed out the
highest priority goes first, then the oldest, whatever their tasks: one that cannot go for another
reason (a limit, a pause, no worker that knows its task) keeps the others waiting.
"""

from typing import TYPE_CHECKING

from qbroker.core.gates import Gate, Place, attach
from qbroker.core.moment import Now

if TYPE_CHECKING:
    from qbroker.core.lanes import Lane
    from qbroker.core.runs import Run


class Ordering(Gate):
    """One ordering key of one queue. Durable: who holds it, and where that waits."""

    __slots__ = ("_hidden", "is_ready", "lanes", "position", "run")
    reason = "ordering_key"

    def __init__(self) -> None:
        super().__init__()
        self.lanes: tuple[Lane, ...] = ()
        """Those with this key, one for each task and its other keys."""
        self.position = 0
        """The message that holds the key; 0 if it is free."""
        self.run: Run | None = None
        """Where the holder waits; None while it is out."""
        self.is_ready = False
        """The holder waits in its run, not for its time."""
        self._hidden: tuple[Run, ...] = ()
        """Runs that came up before their turn, and are in no list. Volatile."""

    def join(self, lane: "Lane") -> None:
        """A new lane has this key."""
        self.lanes += (lane,)
        lane.ordering = self
        attach(lane, (self, *lane.gates))

    def leave(self, lane: "Lane") -> None:
        """A lane is closed: nothing of it waits or is out."""
        self.lanes = tuple(each for each in self.lanes if each is not lane)

    # Whose turn it is.

    @property
    def is_free(self) -> bool:
        """Nobody holds the key. A holder that waited and was purged does not."""
        return not self.position or (self.run is not None and self.run.is_purged)

    def next_run(self) -> "Run | None":
        """The run that the next message comes from; None if none may go now."""
        if not self.is_free:
            return self.run if self.is_ready else None
        found = (run for lane in self.lanes for run in lane.runs if run.size)
        return min(found, key=lambda run: (-run.priority, run.turn()), default=None)

    def take(self, run: "Run") -> list[tuple[int, int]]:
        """The next message out of the run that it comes from: it is out now."""
        if self.is_free:
            taken = run.take(1)
            self.goes_out(taken[0][0])
        else:
            taken = [(self.position, 1)]
            run.remove(self.position, 1)
            self.goes_out(self.position)
        return taken

    def hide(self, run: "Run") -> None:
        """Another run of the same lane goes first: this one is out of the lists until then."""
        run.key = -1
        self._hidden += (run,)

    # Who holds it.

    def goes_out(self, position: int) -> None:
        """The message was leased."""
        self.position, self.run, self.is_ready = position, None, False

    def waits(self, run: "Run", position: int, *, is_ready: bool) -> None:
        """It was given back, and goes next: now, or when its time comes."""
        self.position, self.run, self.is_ready = position, run, is_ready
        self.open()

    def is_due(self, run: "Run", position: int) -> None:
        """Its time has come: it goes next if it holds the key. One that was moved here does not."""
        if position == self.position:
            self.waits(run, position, is_ready=True)

    def is_left(self, position: int) -> None:
        """A message with this key that waited is over, or waits in another queue."""
        if position == self.position:
            self.goes_out(0)
        self.open()

    # As a gate.

    def room(self, lane: "Lane", _now: Now) -> int:
        """One, for the lane of the next message."""
        run = self.next_run()
        return int(run is not None and run.lane is lane)

    def charge(self, lane: "Lane", count: int, wall_ms: int) -> None:
        """Nothing: ``goes_out`` says which message it is."""

    def credit(self, _lane: "Lane", _count: int) -> None:
        """The key is free, unless the next thing that is said is that the message waits again."""
        self.goes_out(0)
        self.open()

    def park(self, _place: Place) -> None:
        """A lane waits here; perhaps with something new that goes before all others."""
        self.open()

    def open(self) -> None:
        """The lane whose turn it is, if it waits here, goes on."""
        hidden, self._hidden = self._hidden, ()
        for each in hidden:
            if each.size and each.key < 0 and each.lane.parked is None and not each.is_purged:
                each.lane.queue.offer(each, 0)
                each.lane.queue.stir()
        run = self.next_run()
        if run and run.lane.parked is self:
            run.lane.unpark()
