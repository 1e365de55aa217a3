"""How many deliveries a runner asks for: enough that it never waits, no more than it soon runs.

Credit is what the broker may leave unsettled with us. The rule is a time, not a number:
``TARGET_S`` of work in hand, by the recent run time. So tasks of 20 µs come a thousand at
once, tasks of 10 ms a handful, and tasks of a second one at a time.

Rule 1. It starts small and at most doubles for as many tasks as it was: one lucky short task
        does not make a hoarder.
Rule 2. The mean follows a longer task at once and shorter ones slowly: where one task in a
        hundred takes a second, a hundred in hand are a second of waiting for the last.
Rule 3. What was over-estimated is not lost: the parent recalls it when another runner idles.
"""

TARGET_S = 0.075
"""Several round trips to a far broker, and less than a person notices."""
START = 2
MAX = 1000
"""A frame of deliveries. Beyond it nothing is saved."""
ALONE_S = 1.0
"""From this mean on nothing waits in hand: the next task is fetched when the last has ended."""
RISE = 0.5
FALL = 0.05
"""Weights of a new run time above and below the mean."""
LEEWAY = 0.25
"""Changes smaller than this part of the credit are not worth a frame."""


class Credit:
    """One runner's credit. Fed with every run time; ``wanted`` is what to tell the broker."""

    __slots__ = ("_earned", "_mean_s", "_since", "granted", "limit")

    def __init__(self, limit: int = MAX) -> None:
        self.limit = limit
        self.granted = 0
        """What the broker was last told."""
        self._mean_s = 0.0
        self._earned = START
        self._since = 0

    @property
    def mean_s(self) -> float:
        """The recent run time in seconds; 0 before the first."""
        return self._mean_s

    def ran(self, seconds: float) -> None:
        """A task took that long."""
        mean = self._mean_s
        self._mean_s = mean + (seconds - mean) * (RISE if seconds > mean else FALL)
        self._since += 1
        if self._since >= self._earned:
            self._earned = min(self._earned * 2, self.limit)
            self._since = 0

    def wanted(self) -> int:
        """The credit that fits the recent run time."""
        mean = self._mean_s
        if mean >= ALONE_S:
            return 1
        by_time = self.limit if mean * self.limit <= TARGET_S else int(TARGET_S / mean)
        return max(START, min(by_time, self._earned, self.limit))

    def change(self) -> int:
        """The credit to tell the broker now, 0 if what it was told will do."""
        wanted, granted = self.wanted(), self.granted
        if wanted == granted or abs(wanted - granted) < LEEWAY * granted:
            return 0
        return wanted

    def shrink(self) -> None:
        """The task that runs turned out long: start small again."""
        self._earned = START
        self._since = 0
