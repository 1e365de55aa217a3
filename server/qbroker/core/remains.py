"""What was purged and is not swept yet."""

from dataclasses import dataclass

from qbroker.core.queues import Queue
from qbroker.core.timers import Tree


@dataclass(slots=True)
class Remains:
    """What a purge has left to be swept. All volatile."""

    queue: Queue
    trees: list[Tree]
    delayed: set[int]
    lane: int = 0
    """Lanes before this one have been walked."""
