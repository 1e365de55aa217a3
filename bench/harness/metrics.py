"""How long the broker's turns took, as its metrics say."""

from __future__ import annotations

import re
import urllib.request

from harness.processes import free_port

_BUCKET = re.compile(r'^qbroker_turn_seconds_bucket\{le="(.+)"\} (.+)$', re.MULTILINE)


class Turns:
    """The turns of a broker whose metrics are at `listen`, from `begin` on."""

    def __init__(self) -> None:
        self.listen = f"127.0.0.1:{free_port()}"
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """What was until now does not count."""
        self._before = self._buckets()

    def share_over(self, seconds: float) -> float:
        """Which share of all turns took longer; one of the metric's own limits."""
        now = self._buckets()
        counts = {limit: now[limit] - self._before.get(limit, 0) for limit in now}
        return 1 - counts[str(seconds)] / counts["+Inf"]

    def _buckets(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://{self.listen}/metrics") as answer:
            text = answer.read().decode()
        return {limit: float(count) for limit, count in _BUCKET.findall(text)}
