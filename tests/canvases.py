"""Canvases by chance, and what plain Python makes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from qclient import Signature, chain, chord, group
from qclient.canvas.steps import Step


class Failed(Exception):
    """A step failed: what may be said to be the reason."""

    def __init__(self, why: set[str]) -> None:
        super().__init__(why)
        self.why = why


@dataclass
class Plain:
    """An evaluation: tasks named boom fail, others give what they were given behind their name."""

    calls: Counter[str] = field(default_factory=Counter)
    """What ran, with which arguments."""

    def value(self, step: Step, *given: Any) -> Any:
        """What the step gives. Raises Failed."""
        if isinstance(step, Signature):
            args = step.args if step.immutable else (*given, *step.args)
            self.calls[call(step.task, args)] += 1
            if step.task.endswith("boom"):
                raise Failed({repr(args)})
            return ["f", *args]
        if isinstance(step, chain):
            found = given
            for each in step.steps:
                found = (self.value(each, *found),)
            return found[0]
        if isinstance(step, group):
            return self.all_of(step, *given)
        assert isinstance(step, chord)
        return self.value(step.body, self.value(step.header, *given))

    def all_of(self, step: group, *given: Any) -> list[Any]:
        """What all members give."""
        values, why = [], set[str]()
        for each in step.steps:
            try:
                values.append(self.value(each, *given))
            except Failed as failed:
                why |= failed.why
        if why:
            raise Failed(why)
        return values


def call(task: str, args: tuple[Any, ...]) -> str:
    """A run of a task, as the books have it."""
    return repr((task.rpartition(".")[2], args))


def canvas(rng: Random, calls: list[Signature[Any]], depth: int = 5, width: int = 8) -> Step:
    """A tree of steps by chance, of these calls."""
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(calls)
    kind = rng.choice((chain, group, chord))
    count = rng.randint(0 if kind is group else 1, rng.choice((1, 2, 2, 3, width)))
    inner = [canvas(rng, calls, depth - 1, width) for _ in range(count)]
    if kind is chord:
        return chord(inner[1:], inner[0])
    return kind(inner)
