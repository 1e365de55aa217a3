"""Python's collector of cyclic garbage, without the pauses that grow with what the broker holds.

    made --> looked at with its generation --> looked at once with all that is new --> frozen

The collector looks at all objects each time a quarter has come to them: at a million results that
is a tenth of a second in which nobody is served. Here each object is looked at until some ten
thousand others are younger, and never again. The price: what becomes a circle of garbage after
that stays in memory. So long-lived things break their circles when they end: connections do.
"""

import gc
from typing import Any

THRESHOLDS = (700, 10, 3)
"""Objects made before the youngest are looked at (50 us), those looks before the young ones are
(0.5 ms), and those before all that are not frozen are (2 ms)."""


def spare_the_old() -> None:
    """From now on no look of the collector is long. For the broker's process: it is global."""
    gc.set_threshold(*THRESHOLDS)
    gc.freeze()
    if _freeze not in gc.callbacks:
        gc.callbacks.append(_freeze)


def _freeze(phase: str, info: dict[str, Any]) -> None:
    """What came through a look at all is old."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()
