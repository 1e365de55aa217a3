"""How often a figure fell between which bounds."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily


class Histogram:
    """One distribution. Belongs to the loop: prometheus_client's own, made for threads, takes
    two locks and five times as long, and each confirmed batch observes three.
    """

    __slots__ = ("_bounds", "_counts", "_sum", "count", "help", "last", "name")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:  # noqa: A002
        self.name = name
        self.help = help
        self.count = 0
        """How often it was told something."""
        self.last = 0.0
        """What came last."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float, /) -> None:
        """One more; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount
        self.count += 1
        self.last = amount

    def family(self) -> HistogramMetricFamily:
        """All so far, as Prometheus has it."""
        names = [*(repr(bound) for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=self._sum)
