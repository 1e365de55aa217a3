"""What the core asks of the log while it decides, and what the log turns out to have lost.

Lookup effect -- in memory? ----------> found --> the frame is decided again, in a coming turn
'-- no: a reader's thread --^
a delivery that is damaged on disk -------------> its messages are set aside, in a coming turn
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container
from concurrent.futures import Executor

from qbroker.core import effects as e
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.results import Found
from qbroker.delivery import Delivery
from qbroker.groupcommit import GroupCommit
from qprotocol import frames as f

logger = logging.getLogger("qbroker.engine")


class Lookups:
    """Belongs to the engine's loop. ``schedule`` brings a turn, ``fail`` ends the broker."""

    def __init__(
        self,
        delivery: Delivery,
        readers: Executor,
        schedule: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._delivery = delivery
        self._readers = readers
        self._schedule = schedule
        self._fail = fail
        self._found: deque[tuple[int, f.Frame, Found]] = deque()
        self._damaged: deque[tuple[list[int], str, str]] = deque()
        delivery.on_damaged, delivery.on_failed = self._set_aside, fail

    def look_up(self, lookup: e.Lookup) -> None:
        """Find what the core asked for; the frame is decided again with it."""
        found = self._delivery.find_here(lookup)
        here = found.messages and len(found.messages) == len(lookup.positions)
        if here or found.before is not None:
            self._found.append((lookup.connection, lookup.frame, found))
            self._schedule()
            return
        finder = self._delivery.finder(lookup, found)
        future = asyncio.get_running_loop().run_in_executor(self._readers, finder)

        def done(future: asyncio.Future[Found]) -> None:
            if future.cancelled():
                return
            if failure := future.exception():
                self._fail(failure)
                return
            self._found.append((lookup.connection, lookup.frame, future.result()))
            self._schedule()

        future.add_done_callback(done)

    def decided(
        self, core: Broker, now: Now, group: GroupCommit, connections: Container[int]
    ) -> list[e.Effect]:
        """The effects of what was found since the last turn, as far as the batch has room."""
        out: list[e.Effect] = []
        while self._found and not group.full:
            number, asked, found = self._found.popleft()
            if number in connections:
                out += core.execute(number, asked, now, group.append, found)
        while self._damaged:
            out += core.quarantine(now, group.append, *self._damaged.popleft())
        return out

    def _set_aside(self, positions: list[int], why: str, evidence: str) -> None:
        """Messages that were to be delivered are damaged on disk; the core knows in a turn."""
        logger.error("%d messages are set aside, see qbroker quarantine: %s", len(positions), why)
        self._damaged.append((positions, why, evidence))
        self._schedule()
