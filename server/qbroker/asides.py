"""Frames that the core never sees: questions about the broker as a whole, and events.

Rule 1. What an answer shows of the core waits until it is durable, as all does: it is an effect.
        What the archive or an event says waits for nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from qbroker.core import effects as e
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.statistics import Statistics
from qbroker.events import Connection, Events
from qbroker.inspecting import inspected
from qbroker.log.log import Log
from qbroker.searching import Searches
from qprotocol import frames as f

Rule = Callable[[Connection, Any], list[e.Effect]]


class Engine(Protocol):
    """What is needed of the engine."""

    def statistics(self) -> Statistics: ...
    def now(self) -> Now: ...
    def answer(self, connection: int, answer: f.Frame) -> None: ...


class Asides:
    """``rules`` by type of frame; each gives effects that wait for the log, or none."""

    def __init__(
        self, engine: Engine, core: Broker, log: Log, searches: Searches, events_buffer_bytes: int
    ) -> None:
        self._engine = engine
        self._core = core
        self._log = log
        self._searches = searches
        self.events = Events(events_buffer_bytes)
        self.rules: Mapping[type[f.Frame], Rule] = {
            f.Inspect: self._inspect,
            f.Search: self._search,
            f.Listen: self._listen,
            f.Notify: self._notify,
        }

    def with_events(self, found: Statistics) -> Statistics:
        """The core's figures, and those of events."""
        return replace(found, events=dict(self.events.counts), listeners=self.events.listeners)

    def _inspect(self, connection: Connection, frame: f.Inspect) -> list[e.Effect]:
        answer = inspected(
            self._engine.statistics, self._log, frame, self._core, self._engine.now()
        )
        return [e.Send(connection.number, answer)]

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
