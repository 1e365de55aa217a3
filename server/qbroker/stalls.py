"""Time in which no worker could be heard: the process stood still, or the disk does.

While a sync hangs, a worker that has come back waits for its Welcome and may not say a word; one
that is here is heard, and loses nothing by the patience.
"""

import logging

logger = logging.getLogger("qbroker.engine")


class Stalls:
    """Looks at the clock once a turn."""

    def __init__(self, heartbeat_ms: int, mono_ms: int) -> None:
        self._patience_ms = heartbeat_ms // 2 + 1_000
        self._last_ms = mono_ms
        self._busy_ms: int | None = None
        """Since when the disk has been at the batch that it works on; None if at none."""
        self._hung = False

    def disk(self, busy_ms: int | None) -> None:
        """The disk has begun with a batch, or is done with it (None)."""
        self._busy_ms = busy_ms

    def missed_ms(self, mono_ms: int) -> int:
        """How much of the time since the last turn counts for nobody."""
        passed, was_hung = mono_ms - self._last_ms, self._hung
        busy_ms = 0 if self._busy_ms is None else mono_ms - self._busy_ms
        self._last_ms, self._hung = mono_ms, busy_ms > self._patience_ms
        if passed > self._patience_ms:
            logger.warning("the broker stood still for %d ms: leases are extended", passed)
        elif self._hung and not was_hung:
            logger.warning("the disk has not answered for %d ms: leases are extended", busy_ms)
        return passed if self._hung or was_hung or passed > self._patience_ms else 0
