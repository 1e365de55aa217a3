"""Frames that the core never sees: questions about the broker as a whole, and events.

Rule 1. What an answer shows of the core waits until it is durable, as all does: it is an effect.
        What the archive or an event says waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from qbroker.ages import Ages
from qbroker.bodies import Bodies
from qbroker.config import Config
from qbroker.core import effects as e
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.statistics import QueueStatistics, Statistics
from qbroker.events import Connection, Events
from qbroker.inspecting import COUNTED, Inspection, inspected
from qbroker.log.log import Log
from qbroker.searching import Searches
from qprotocol import frames as f

Rule = Callable[[Connection, Any], list[e.Effect]]


class Engine(Protocol):
    """What is needed of the engine."""

    def now(self) -> Now: ...
    def answer(self, connection: int, answer: f.Frame) -> None: ...


class Shown(NamedTuple):
    """What else is looked at for statistics."""

    log: Log
    bodies: Bodies
    ages: Ages


class Asides:
    """``rules`` by type of frame; each gives effects that wait for the log, or none."""

    def __init__(
        self,
        engine: Engine,
        core: Broker,
        shown: Shown,
        searches: Searches,
        config: Config,
    ) -> None:
        self._engine = engine
        self._core = core
        self._log, self._bodies, self._ages = shown
        self._searches = searches
        self.events = Events(config.events_buffer_bytes)
        self.inspections: deque[Inspection] = deque()
        """Questions that are being answered, the next to go on first."""
        self.rules: Mapping[type[f.Frame], Rule] = {
            f.Inspect: self._inspect,
            f.Search: self._search,
            f.Listen: self._listen,
            f.Notify: self._notify,
        }

    async def statistics(self) -> Statistics:
        """What may be looked at, as it is from now on; taken in steps, between turns."""
        census = self._core.census()
        rows: list[QueueStatistics] = []
        while not census.is_over:
            census.step()
            rows += map(self._aged, census.rows[len(rows) :])
            await asyncio.sleep(0)
        return replace(self._whole(census.statistics()), queues=tuple(rows))

    def _aged(self, row: QueueStatistics) -> QueueStatistics:
        """The row with the age of its oldest message."""
        if not row.oldest_ready:
            return row
        age_ms = self._ages.age_ms(row.oldest_ready, self._engine.now().wall_ms)
        return replace(row, oldest_ready_ms=age_ms)

    def _whole(self, found: Statistics) -> Statistics:
        """The core's figures, and those of the engine."""
        return replace(
            found,
            events=dict(self.events.counts),
            listeners=self.events.listeners,
            window_bytes=self._bodies.bytes,
        )

    def _inspect(self, connection: Connection, frame: f.Inspect) -> list[e.Effect]:
        if frame.what in COUNTED:
            self.inspections.append(Inspection(connection.number, frame, self._core.census()))
            return self.carry_on()
        return [e.Send(connection.number, inspected(frame, self._core, self._engine.now()))]

    def carry_on(self) -> list[e.Effect]:
        """The next step of the question whose turn it is; its answer, if that was the last."""
        each = self.inspections.popleft()
        answer = each.step(self._aged, self._whole, self._log)
        if answer is None:
            self.inspections.append(each)
            return []
        return [e.Send(each.connection, answer)]

    def _search(self, connection: Connection, frame: f.Search) -> list[e.Effect]:
        self._searches.ask(connection.number, frame, self._core.is_forgotten, self._engine.answer)
        return []

    def _listen(self, connection: Connection, frame: f.Listen) -> list[e.Effect]:
        self._engine.answer(connection.number, self.events.listen(connection, frame))
        return []

    def _notify(self, connection: Connection, frame: f.Notify) -> list[e.Effect]:
        in_parts = self._core.had_parts(connection.number, frame.correlation)
        self._engine.answer(connection.number, self.events.notify(frame, in_parts=in_parts))
        return []
