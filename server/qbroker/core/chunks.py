"""What each producer has sent: chunks are known again by their sequence."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbroker.core.refusals import RefusedError
from qprotocol.limits import PRODUCER_WINDOW

if TYPE_CHECKING:
    from qbroker.core.state import BrokerState


@dataclass(slots=True)
class Producer:
    """Which chunks of a producer are in the log: the highest, and a window below it."""

    highest: int = 0
    window: int = 0
    """Bit i: chunk ``highest - i`` is in."""
    seen_ms: int = 0


def seen_before(state: "BrokerState", producer: int, sequence: int) -> bool:
    """Whether the chunk is in. Raises RefusedError if it is too old to tell."""
    known = state.producers.get(producer)
    if known is None or sequence > known.highest:
        return False
    if known.highest - sequence >= PRODUCER_WINDOW:
        raise RefusedError(
            "SEQUENCE_TOO_OLD",
            f"chunk {sequence} is {known.highest - sequence} behind the newest of its producer: "
            f"the last {PRODUCER_WINDOW} are remembered, so nobody can tell if it was done",
        )
    return bool(known.window >> (known.highest - sequence) & 1)


def note_chunk(state: "BrokerState", producer: int, sequence: int, wall_ms: int) -> None:
    """Remember that the chunk is in."""
    if not producer:
        return
    known = state.producers.get(producer)
    if known is None:
        known = state.producers[producer] = Producer()
    known.seen_ms = wall_ms
    ahead = sequence - known.highest
    if ahead > 0:
        known.window = (known.window << min(ahead, PRODUCER_WINDOW) | 1) & _WINDOW_MASK
        known.highest = sequence
    else:
        known.window |= 1 << -ahead


_WINDOW_MASK = (1 << PRODUCER_WINDOW) - 1
