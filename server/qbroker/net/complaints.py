"""What peers did wrong: every time counted by its code, a line in the log now and then.

Rule 1. A peer can make us count, never make us write: at most one line a code in
        LINE_EVERY_S, which says how many it stands for.
Rule 2. Bytes of a peer never reach the log but through ``printable``.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

LINE_EVERY_S = 10.0
TEXT_MAX = 200

_log = logging.getLogger("qbroker.net")


class Complaints:
    """Counts by code, and the rate limit of their lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        """Since the start. Codes are those of qprotocol.errors, and INTERNAL."""
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self._written: Counter[str] = Counter()

    def add(self, code: str, peer: str, message: str, trouble: BaseException | None = None) -> None:
        """Count one, and log it unless a line with that code was written just now.

        With ``trouble``, its traceback follows the line.
        """
        self.counts[code] += 1
        now = self._clock()
        if now < self._quiet_until.get(code, 0.0):
            return
        self._quiet_until[code] = now + LINE_EVERY_S
        others = self.counts[code] - self._written[code] - 1
        self._written[code] = self.counts[code]
        more = f" (and {others} more since the last such line)" if others else ""
        _log.warning("%s from %s: %s%s", code, peer, printable(message), more, exc_info=trouble)


def printable(text: str) -> str:
    """``text`` on one line, without control characters, cut at TEXT_MAX."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:TEXT_MAX])
    return shown + ("..." if len(text) > TEXT_MAX else "")
