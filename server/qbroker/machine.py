"""What the engine has of its machine, clocks and threads. A simulation brings others."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from qbroker.writer import Writer


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def mono_ms() -> int:
    """Milliseconds of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def readers() -> Executor:
    """A thread that reads what is not in memory."""
    return ThreadPoolExecutor(1, "qbroker-read")


@dataclass(frozen=True, slots=True)
class Machine:
    """Ways to ask for the time, and makers of what works beside the loop."""

    wall_ms: Callable[[], int] = wall_ms
    mono_ms: Callable[[], int] = mono_ms
    seconds: Callable[[], float] = time.perf_counter
    """For how long something took: the finest clock there is, from no particular moment."""
    writer: Callable[[], Writer] = Writer
    readers: Callable[[], Executor] = readers
