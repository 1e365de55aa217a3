"""A look at all queues, so much a turn: what statistics are made of.

Each queue's row is true at one moment, two queues' rows are not of the same one.
"""

from collections import Counter
from dataclasses import dataclass, field

from qbroker.core import binding, quarantine, why
from qbroker.core.queues import Queue
from qbroker.core.settings import CENSUS_QUEUE_WEIGHT, CENSUS_WORK_MAX
from qbroker.core.shelves import Shelf
from qbroker.core.state import BrokerState
from qbroker.core.statistics import QueueStatistics, Statistics


@dataclass(slots=True)
class Tally:
    """A queue that is looked at, shelf by shelf."""

    queue: Queue
    shelves: list[Shelf]
    oldest: int = 0
    waiting: Counter[str] = field(default_factory=Counter)

    def look(self, state: BrokerState, most: int) -> None:
        """The next shelves are in it, so many at most."""
        shelves = [self.shelves.pop() for _ in range(min(most, len(self.shelves)))]
        found = [each for each in (self.oldest, self.queue.oldest(shelves)) if each]
        self.oldest = min(found, default=0)
        self.waiting += why.by_reason(state, self.queue, shelves)


class Census:
    """One look at all queues that are there when it begins."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self._queues = list(state.queues.values())
        self._queues.reverse()
        self._tally: Tally | None = None
        self._quarantined = Counter(
            state.lanes[row[0]].queue.number for row in state.quarantined.values()
        )
        self.rows: list[QueueStatistics] = []
        """Those that are done, in the order in which the queues were made."""

    @property
    def is_over(self) -> bool:
        """Whether every queue has its row."""
        return not self._queues and self._tally is None

    def step(self) -> None:
        """Some more rows; a queue of many tasks takes several steps."""
        room = CENSUS_WORK_MAX
        while room > 0 and not self.is_over:
            if self._tally is None:
                queue = self._queues.pop()
                if queue.terms.deleted:
                    continue
                self._tally = Tally(queue, list(queue.shelves.values()))
                room -= CENSUS_QUEUE_WEIGHT
            before = len(self._tally.shelves)
            self._tally.look(self._state, max(1, room))
            room -= before - len(self._tally.shelves)
            if not self._tally.shelves:
                self.rows.append(self._row(self._tally))
                self._tally = None

    def _row(self, tally: Tally) -> QueueStatistics:
        state, queue = self._state, tally.queue
        alarms = state.catalogue.alarms
        alarm = alarms.begun.get(queue.number)
        return QueueStatistics(
            queue.name,
            queue.ready,
            queue.scheduled,
            queue.leased,
            len(state.listening[queue.number]),
            self._quarantined[queue.number],
            tally.oldest,
            0,
            dict(queue.counts),
            state.pauses.of(queue.number),
            dict(why.outside(queue) + tally.waiting),
            alarms.age_ms(queue.number),
            alarm.why if alarm else "",
            queue.nodes,
        )

    def statistics(self) -> Statistics:
        """All that may be looked at; the queues as they are in ``rows``, the rest as it is now."""
        state = self._state
        return Statistics(
            tuple(self.rows),
            dict(Counter(state.roles.values())),
            len(state.sessions),
            len(state.leases),
            len(state.results.finished),
            state.results.dropped,
            state.lease_lost,
            state.duplicates,
            len(state.uploads),
            len(state.producers),
            quarantine.quarantined_messages(state),
            exchanges=binding.exchange_statistics(state),
            routed=dict(state.exchanges.counts),
            keys=state.keys.counts(),
            keys_met=dict(state.keys.met),
            notices=len(state.notices.ids),
        )
