"""Limit rules: which messages one covers, how many at once, and how many in a time.

    concurrency   so much weight is out with workers at any moment
    rate          in any interval of T ms at most ``burst + rate * T / window_ms`` begins

A message takes its lane's ``weight`` of both, 1 for most. People write a rate as 10/s, 100/5m.
"""

import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Self

from qprotocol.limits import LIMIT_NAME_BYTES_MAX, TASK_BYTES_MAX
from qprotocol.names import check_queue_name

AMOUNT_MAX = 2**32 - 1
"""Slots, tokens and a burst: 32 bits each."""
WINDOW_MS_MAX = 366 * 86_400_000
"""The longest window of a rate, in milliseconds: a year."""
OPERATOR, CODE = "operator", "code"
ORIGINS = (OPERATOR, CODE)
"""Who says a rule: a person, or a worker for a task it knows. The person's is in force."""
UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATE = re.compile(r"(\d{1,10}(?:\.\d{1,6})?)(?:/(\d{0,8})(ms|s|m|h|d))?", re.ASCII)
_AMOUNTS = {"concurrency": 0, "rate": 0, "burst": 1, "window_ms": 1}
"""Fields that are numbers, to the least they may be."""


@dataclass(frozen=True, slots=True)
class LimitRule:
    """What SetLimit takes by name. One with neither concurrency nor rate limits nothing."""

    queue: str = ""
    """The queue whose messages it covers; empty is all."""
    task: str = ""
    """The task whose messages it covers; empty is all, plain messages too."""
    per_key: bool = False
    """A bucket for each limit_key, and none for messages without; else one for all it covers."""
    concurrency: int = 0
    """Slots: the weight that may be out with workers at once; 0 is no limit."""
    rate: int = 0
    """Tokens that come back each ``window_ms``; 0 is no limit."""
    window_ms: int = 1_000
    """Milliseconds in which ``rate`` tokens come back, evenly."""
    burst: int = 1
    """Tokens a full bucket holds: the weight that may begin at once after a rest."""

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Self:
        """The rule in ``given``. Raises ValueError naming what is wrong and what was meant."""
        known = {f.name: f.type for f in fields(cls)}
        for name, value in given.items():
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"unknown field {name!r} of a limit: {hint}")
            if name in _AMOUNTS:
                most = WINDOW_MS_MAX if name == "window_ms" else AMOUNT_MAX
                if type(value) is not int or not _AMOUNTS[name] <= value <= most:
                    raise ValueError(
                        f"{name} is {value!r}: a whole number from {_AMOUNTS[name]} to {most}"
                    )
            elif type(value) is not (bool if name == "per_key" else str):
                raise ValueError(f"{name} is {value!r}: {known[name]}")
        rule = cls(**given)
        if rule.queue:
            check_queue_name(rule.queue)
        if len(rule.task.encode(errors="replace")) > TASK_BYTES_MAX:
            raise ValueError(f"task {rule.task!r:.80} has over {TASK_BYTES_MAX} bytes")
        if not rule.concurrency and not rule.rate:
            raise ValueError("neither concurrency nor rate is given: the rule would limit nothing")
        return rule

    def as_dict(self) -> dict[str, Any]:
        """Every field by name, as ``parse`` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def scope(self) -> tuple[str, str, bool]:
        """Which messages it counts, and whether apart by key."""
        return self.queue, self.task, self.per_key

    def covers(self, queue: str, task: str, key: str) -> bool:
        """Whether it counts such messages."""
        return (
            self.queue in ("", queue) and self.task in ("", task) and bool(key or not self.per_key)
        )

    def refuses(self, weight: int) -> str:
        """Why no message of that weight could ever begin; empty if it can."""
        if self.concurrency and weight > self.concurrency:
            return f"weight {weight} is over concurrency {self.concurrency}"
        if self.rate and weight > self.burst:
            return f"weight {weight} is over burst {self.burst}"
        return ""

    @property
    def shown_rate(self) -> str:
        """The rate as people write it; empty for none."""
        return show_rate(self.rate, self.window_ms) if self.rate else ""


def check_limit_name(name: str) -> None:
    """The name is one that a rule may have. Raises ValueError saying why it is not."""
    size = len(name.encode(errors="replace"))
    if not 1 <= size <= LIMIT_NAME_BYTES_MAX or not name.isprintable():
        raise ValueError(
            f"the limit's name {name!r:.80} has {size} bytes: 1 to {LIMIT_NAME_BYTES_MAX} "
            "that can be printed, such as a task's name"
        )


def parse_rate(text: str) -> tuple[int, int]:
    """Tokens and the ms in which they come back: 10/s, 100/5m, 0.5/s; 10 alone is a second's.

    Raises ValueError for anything else, also for a rate of 0.
    """
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"the rate {text!r} is not understood: write a number and a time such as 10/s, "
            "100/m, 1000/h or 100/5m"
        )
    number, times, unit = found[1], found[2] or "1", found[3] or "s"
    tokens, window_ms = Fraction(number), int(times) * UNITS[unit]
    window_ms *= tokens.denominator
    if not 1 <= tokens.numerator <= AMOUNT_MAX or not 1 <= window_ms <= WINDOW_MS_MAX:
        raise ValueError(
            f"the rate {text!r} is {tokens.numerator} in {window_ms} ms: 1 to {AMOUNT_MAX} in 1 to "
            f"{WINDOW_MS_MAX} ms; who wants nothing to run pauses the queue"
        )
    return tokens.numerator, window_ms


def show_rate(tokens: int, window_ms: int) -> str:
    """Like 10/s or 100/5m, as ``parse_rate`` reads it."""
    unit = next(name for name in reversed(UNITS) if window_ms % UNITS[name] == 0)
    times = window_ms // UNITS[unit]
    return f"{tokens}/{times if times > 1 else ''}{unit}"
