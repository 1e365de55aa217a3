"""What a hand-out takes: in turns of tenants, and within a round of turns by age.

A turn is some messages in a row of the tenant who has spent least, for a turn costs more than a
message. Turns of tenants who have spent the same, as far as one turn goes, and whose messages are
known to be short, are a round. What goes in a round goes by age: nobody is passed by more than a
turn, and messages that were published one behind the other are still neighbours when they are
handed out, read and acknowledged.
"""

from operator import itemgetter

from qbroker.core.runs import Run
from qbroker.core.tenants import TURN_US, Tenant

Entry = tuple[Run, int, int]
"""(run, first position, count)"""
_POSITION = itemgetter(1)


class Rounds:
    """Messages on their way out of the runs, in the order in which they are handed out."""

    __slots__ = ("_begun", "_is_alone", "_last", "_priority", "_spent", "_turns", "out")

    def __init__(self) -> None:
        self.out: list[Entry] = []
        """True once ``end`` was called."""
        self._begun = self._turns = 0
        self._priority = self._spent = 0
        self._is_alone = False
        """The turn is a round by itself."""
        self._last: dict[Run, int] = {}
        """Where the runs of the round are: each goes in its own order, whatever its positions."""

    def turn(self, run: Run, tenant: Tenant) -> None:
        """It is the turn of the tenant, whose run it is."""
        apart_us = abs(tenant.spent - self._spent)
        was_alone = self._is_alone
        self._is_alone = not tenant.cost_us or run.lane.ordering is not None
        if was_alone or self._is_alone or run.priority != self._priority or apart_us > TURN_US:
            self.end()
            self._priority, self._spent = run.priority, tenant.spent
        self._turns += 1

    def add(self, run: Run, first: int, count: int) -> None:
        """These go next of the run."""
        out = self.out
        if out and out[-1][0] is run and out[-1][1] + out[-1][2] == first:
            out[-1] = run, out[-1][1], out[-1][2] + count
            return
        if self._turns:
            if first < self._last.get(run, 0):
                self.end()
            self._last[run] = first
        out.append((run, first, count))

    def end(self) -> None:
        """The round is over."""
        if self._turns > 1:
            self.out[self._begun :] = sorted(self.out[self._begun :], key=_POSITION)
        self._begun, self._turns, self._last = len(self.out), 0, {}
