"""Queues of dead letters that hold too many, or too old ones: an alarm begins, and it ends.

    alarm_length, alarm_age_ms reached --> begun --> an eighth less than both --> ended

It is looked for once a second, so many queues and letters a time. All of it follows from what is
there, so it is volatile: after a start an alarm begins anew.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from qbroker.core.letters import Letters
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.settings import (
    ALARM_LETTERS_MAX,
    ALARM_NEWS_MAX,
    ALARM_QUEUES_MAX,
    LOOK_MS,
)


class Alarm(NamedTuple):
    """One that has begun."""

    queue: str
    why: str
    """Which option it is about, with the values."""
    since_ms: int


class News(NamedTuple):
    """It has begun, or it is over."""

    alarm: Alarm
    begins: bool


class Alarms:
    """Which queues have one now. Numbers are those of queues."""

    __slots__ = (
        *("_at", "_filled", "_found", "_missing", "_next_ms", "_turn"),
        *("begun", "boxes", "news", "oldest", "seen_ms"),
    )

    def __init__(self) -> None:
        self.boxes: dict[int, Queue] = {}
        """The queues of dead letters."""
        self.begun: dict[int, Alarm] = {}
        self.news: deque[News] = deque(maxlen=ALARM_NEWS_MAX)
        """Not told yet."""
        self.oldest: dict[int, int] = {}
        """When the oldest dead letter of each died, as the last walk over all of them found."""
        self.seen_ms = 0
        """Wall clock at the last look."""
        self._next_ms = 0
        self._turn: list[int] = []
        """Queues that this round has not come to."""
        self._filled: set[int] = set()
        """Queues that had messages when they were looked at."""
        # A walk over the letters, the first that died first: no more than until each queue has one.
        self._at = 0
        self._found: dict[int, int] = {}
        self._missing: set[int] = set()

    def note(self, queue: Queue) -> None:
        """The queue is there."""
        if queue.holds_letters:
            self.boxes[queue.number] = queue

    def drop(self, number: int) -> None:
        """The queue is no more."""
        self.boxes.pop(number, None)
        self.oldest.pop(number, None)
        self._filled.discard(number)
        self._end(number)

    def age_ms(self, number: int) -> int:
        """For how long the queue's oldest dead letter had been dead at the last look."""
        return max(0, self.seen_ms - self.oldest.get(number, self.seen_ms))

    def look(self, now: Now, letters: Letters, lies_in: Callable[[int], Queue | None]) -> None:
        """Look again if it is time. ``lies_in`` says in which queue the letter at a place is."""
        if now.mono_ms < self._next_ms:
            return
        self._next_ms, self.seen_ms = now.mono_ms + LOOK_MS, now.wall_ms
        looked = self._next_queues()
        for queue in looked:
            (self._filled.add if queue.messages else self._filled.discard)(queue.number)
        self._walk(letters, lies_in)
        for queue in looked:
            self._judge(queue)

    def _next_queues(self) -> list[Queue]:
        """Those whose turn it is."""
        self._turn = self._turn or list(self.boxes)
        numbers = self._turn[:ALARM_QUEUES_MAX]
        del self._turn[:ALARM_QUEUES_MAX]
        return [self.boxes[number] for number in numbers if number in self.boxes]

    def _walk(self, letters: Letters, lies_in: Callable[[int], Queue | None]) -> None:
        """Go on with the walk; what it found counts once it is over."""
        if not self._at:
            self._found, self._missing = {}, set(self._filled)
        left = ALARM_LETTERS_MAX
        for number, position, letter in letters.after(self._at) if self._missing else ():
            if not left:
                return
            left, self._at = left - 1, number
            queue = lies_in(position) if letter and letter.died_ms else None
            if letter and queue and queue.number not in self._found:
                self._found[queue.number] = letter.died_ms
                self._missing.discard(queue.number)
                if not self._missing:
                    break
        self.oldest, self._at = self._found, 0

    def _judge(self, queue: Queue) -> None:
        """Whether it has an alarm follows from its options."""
        before = self.begun.get(queue.number)
        why = self._why(queue, is_begun=before is not None)
        if not why:
            self._end(queue.number)
            return
        alarm = Alarm(queue.name, why, before.since_ms if before else self.seen_ms)
        self.begun[queue.number] = alarm
        if not before:
            self.news.append(News(alarm, begins=True))

    def _why(self, queue: Queue, *, is_begun: bool) -> str:
        """The options that ask for an alarm, with the values; empty if none does."""
        age_ms, options = self.age_ms(queue.number), queue.options
        said = []
        for value, limit, text in (
            (queue.messages, options.alarm_length, "{} messages, and alarm_length is {}"),
            (age_ms, options.alarm_age_ms, "one dead for {} ms, and alarm_age_ms is {}"),
        ):
            if limit and value >= limit - (limit // 8 if is_begun else 0):
                said.append(text.format(value, limit))
        return "; ".join(said)

    def _end(self, number: int) -> None:
        before = self.begun.pop(number, None)
        if before:
            self.news.append(News(before, begins=False))
