"""Who publishes, and which of its chunks are in: so that one sent again is recognised."""

from dataclasses import dataclass


@dataclass(slots=True)
class Producer:
    """Which chunks of a producer are in the log: the highest, and a window below it."""

    highest: int = 0
    window: int = 0
    """Bit i: chunk ``highest - i`` is in."""
    seen_ms: int = 0
