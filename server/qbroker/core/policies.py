"""Policies: options for all queues whose names fit a pattern, and what a queue's options are.

    an operator's word on the queue   ("set")            the last one, but for
    an operators' policy                                 bounds what it names
    the queue's declaration           ("declaration")
    the policy that fits it
    the default

Of the policies that fit a queue one counts, and of those of operators one: the highest
priority, then the first by name. A dead-letter queue fits only patterns that end as its name does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from qprotocol.options import OPTIONS, QueueOptions, Value, is_dead_queue

DECLARATION, SET, DEFAULT = "declaration", "set", "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """Options by a pattern: ``*`` is any characters, ``?`` one, ``[abc]`` one of these."""

    name: str
    pattern: str
    priority: int
    operator: bool
    """It bounds declarations, where the other kind only fills what they leave open."""
    options: Mapping[str, Any]

    def fits(self, queue: str) -> bool:
        """Whether it is for the queue with that name."""
        if is_dead_queue(queue) and not is_dead_queue(self.pattern):
            return False
        return fnmatchcase(queue, self.pattern)


NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class Terms:
    """What was said of one queue. Durable."""

    declared: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """The options that its declaration names."""
    changed: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Those that an operator has set for it."""
    owner: bytes = b""
    """Whose it is alone: a session's id, or a connection of one epoch; see owners.py."""
    deleted: str = ""
    """Why it is no more; its number stays taken."""


class Given(NamedTuple):
    """The value of an option, and where it came from."""

    value: Value
    source: str
    """default, declaration, set, or the policy's kind and name."""


def chosen(policies: Iterable[Policy], queue: str, *, operator: bool) -> Policy | None:
    """The policy of that kind that counts for the queue."""
    fitting = [each for each in policies if each.operator is operator and each.fits(queue)]
    return min(fitting, key=lambda each: (-each.priority, each.name), default=None)


def layered(
    queue: str,
    declared: Mapping[str, Any],
    changed: Mapping[str, Any],
    policies: Iterable[Policy],
) -> dict[str, Given]:
    """Every option of the queue: its value, and where it came from."""
    out = {name: Given(row.default, DEFAULT) for name, row in OPTIONS.items()}
    policies = list(policies)
    policy = chosen(policies, queue, operator=False)
    if policy:
        out |= {n: Given(value, f"policy {policy.name}") for n, value in policy.options.items()}
    out |= {name: Given(value, DECLARATION) for name, value in declared.items()}
    out |= {name: Given(value, SET) for name, value in changed.items()}
    bound = chosen(policies, queue, operator=True)
    for name, value in bound.options.items() if bound else ():
        before = out[name].value
        if not OPTIONS[name].bounds or not before or before > value:
            out[name] = Given(value, f"operator policy {bound.name}")  # type: ignore[union-attr]
    return out


def options_of(given: Mapping[str, Given]) -> QueueOptions:
    """The options alone. Queues with the same ones share them."""
    return _shared(tuple(each.value for each in given.values()))


@lru_cache(maxsize=1_000)
def _shared(values: tuple[Value, ...]) -> QueueOptions:
    return QueueOptions(*values)  # type: ignore[arg-type]
