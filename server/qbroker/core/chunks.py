"""What each producer has sent: chunks are known again by their sequence."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qbroker.core.refusals import RefusedError
from qbroker.core.settings import ANSWERS_MAX
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
    answers: dict[int, list[list[Any]] | None] = field(default_factory=dict)
    """Chunk to what stands for messages of it that were not stored (records.Keyed.existing);
    None of one of which that is not remembered any more."""

    def remember(self, sequence: int, existing: list[list[Any]]) -> None:
        """What stands for messages of the chunk."""
        answers, oldest = self.answers, self.highest - PRODUCER_WINDOW
        for known in [each for each in answers if each <= oldest]:
            del answers[known]
        answers[sequence] = existing
        count = sum(map(len, filter(None, answers.values())))
        older = sorted(answers.keys() - {sequence}, reverse=True)
        while older and count > ANSWERS_MAX:
            known = older.pop()
            count -= len(answers[known] or ())
            answers[known] = None


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
    if known.answers.get(sequence, ()) is None:
        raise RefusedError(
            "SEQUENCE_TOO_OLD",
            f"chunk {sequence} was here, and others stand for messages of it: which ones is "
            f"remembered of {ANSWERS_MAX} messages, so nobody can tell any more",
        )
    return bool(known.window >> (known.highest - sequence) & 1)


def answer_to(state: "BrokerState", producer: int, sequence: int) -> list[list[Any]]:
    """What stands for messages of a chunk that was seen before."""
    known = state.producers.get(producer)
    return (known.answers.get(sequence) or []) if known else []


def note_chunk(
    state: "BrokerState",
    producer: int,
    sequence: int,
    wall_ms: int,
    existing: list[list[Any]] | None = None,
) -> None:
    """Remember that the chunk is in, and what stands for messages of it."""
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
    if existing:
        known.remember(sequence, existing)


_WINDOW_MASK = (1 << PRODUCER_WINDOW) - 1
