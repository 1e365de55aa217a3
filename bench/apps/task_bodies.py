"""What the benchmark's tasks do, the same lines for both sides.

Each `bench_app.py` registers these functions with its own library. They report through one small
file (`BENCH_MARKS`), because a file works the same whoever runs the task: a line is one
`os.write` of a word and a CLOCK_MONOTONIC reading, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time

_tally = 0
_marks_fd: int | None = None


def mark(word: str, value: int) -> None:
    """The marks file ends with the line `word value`."""
    global _marks_fd
    if _marks_fd is None:
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        _marks_fd = os.open(os.environ["BENCH_MARKS"], flags)
    os.write(_marks_fd, f"{word} {value}\n".encode())


def noop(_argument: int | str) -> None:
    """Nothing: what is left is the cost of the queue."""


def tick(last: int) -> None:
    """Counts the calls in this child; the first and the `last`-th leave their time."""
    global _tally
    _tally += 1
    if _tally == 1:
        mark("first", time.monotonic_ns())
    if _tally == last:
        mark("last", time.monotonic_ns())


def stamp(sent_ns: int) -> None:
    """Leaves how long ago the caller began to send this call."""
    mark("latency", time.monotonic_ns() - sent_ns)


def echo(number: int) -> int:
    """Its argument, as a result to wait for."""
    return number


def total(numbers: list[int]) -> int:
    """What a chord comes to."""
    return sum(numbers)


def report_pid(_number: int) -> None:
    """Leaves the id of the process that runs tasks."""
    mark("pid", os.getpid())
