"""How long to wait before trying again: longer each time, and never in step with others."""

import random

FIRST_S = 0.1
MAX_S = 1.0
"""Well within the time that a broker which crashed waits for claims (claims_ms)."""


class Backoff:
    """Delays with decorrelated jitter: each a random point up to three times the one before."""

    def __init__(self, first_s: float = FIRST_S, max_s: float = MAX_S) -> None:
        self.first_s, self.max_s = first_s, max_s
        self._last_s = first_s
        self.failures = 0
        """In a row."""

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        self.failures += 1
        span = min(self.max_s, self._last_s * 3)
        self._last_s = random.uniform(self.first_s, max(self.first_s, span))  # noqa: S311
        return self._last_s

    def reset(self) -> None:
        """It worked: the next delay is a first one."""
        self._last_s = self.first_s
        self.failures = 0
