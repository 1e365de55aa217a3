"""Which queues are paused: who takes nothing in, who hands nothing out, and for whose reason."""

from dataclasses import astuple, dataclass
from heapq import heappop, heappush

from qbroker.core.columns import pack_columns, unpack_columns

INTAKE, DISPATCH = "intake", "dispatch"
HALVES = (INTAKE, DISPATCH)


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a half of a queue is paused."""

    reason: str
    author: str
    since_ms: int
    until_ms: int
    """When it is over by itself; 0 is never."""

    def told(self, queue: str, half: str) -> str:
        """For people, as far as the time does not matter."""
        by = f" by {self.author}" if self.author else ""
        why = f": {self.reason}" if self.reason else ""
        return f"the {half} of queue {queue!r} is paused{by}{why}"


class Pauses:
    """By queue number. All of it is durable; when they end follows from the rest."""

    __slots__ = ("_ends", "dispatch", "intake")

    def __init__(self) -> None:
        self.intake: dict[int, Pause] = {}
        self.dispatch: dict[int, Pause] = {}
        self._ends: list[tuple[int, int, str]] = []
        """A heap of (until_ms, queue, half); what is not true any more is passed over."""

    def half(self, half: str) -> dict[int, Pause]:
        """The pauses of one half."""
        return self.intake if half == INTAKE else self.dispatch

    def of(self, queue: int) -> dict[str, Pause]:
        """What of the queue is paused, by half."""
        found = {half: self.half(half).get(queue) for half in HALVES}
        return {half: pause for half, pause in found.items() if pause}

    def set(self, queue: int, half: str, pause: Pause) -> None:
        """The half is paused; what was said of it before is forgotten."""
        self.half(half)[queue] = pause
        if pause.until_ms:
            heappush(self._ends, (pause.until_ms, queue, half))

    def next_ms(self) -> int:
        """When a pause is over by itself; 0 is never."""
        ends = self._ends
        while ends:
            until_ms, queue, half = ends[0]
            pause = self.half(half).get(queue)
            if pause and pause.until_ms == until_ms:
                return until_ms
            heappop(ends)
        return 0

    def over(self, wall_ms: int, limit: int) -> list[tuple[int, str]]:
        """Queues and halves, at most ``limit``, whose time is over. They are told of once."""
        found: dict[tuple[int, str], None] = {}  # a pause may have been set twice to one end
        while len(found) < limit and 0 < self.next_ms() <= wall_ms:
            found[heappop(self._ends)[1:]] = None
        return list(found)

    def saved(self) -> bytes:
        """A row a queue and half."""
        halves = [(half, number, p) for half in HALVES for number, p in self.half(half).items()]
        return pack_columns([(half, number, *astuple(p)) for half, number, p in halves])

    @classmethod
    def restored(cls, block: bytes | memoryview) -> "Pauses":
        """The same pauses."""
        pauses = cls()
        for half, number, *row in unpack_columns(block)[0]:
            pauses.set(number, half, Pause(*row))
        return pauses
