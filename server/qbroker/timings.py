"""Where the engine's measurements go: anything that observes numbers, a histogram mostly."""

from dataclasses import dataclass
from typing import Protocol


class Observer(Protocol):
    """A histogram."""

    def observe(self, amount: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the engine's measurements go."""

    turn: Observer
    sync: Observer
    batch_records: Observer
