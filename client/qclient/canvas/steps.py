"""Steps: calls put together, as values.

    chain(a, b, c) or a | b | c     one after the other, each with the result of the one before
    group(a, b, c)                  side by side; gives the list of their results, in order
    chord(group, body)              the body, with that list; a | b is one if a is a group

Each takes any steps, in any depth. What a step gives is what plain Python would give::

    chain(f, g)(x)      g(f(x))
    group(f, g)(x)      [f(x), g(x)]
    chord([f, g], h)(x) h([f(x), g(x)])

A group is a list of as many results as it has members, also of one, also of none.

Rule 1. Steps never change: what changes one gives a new one.
Rule 2. All that is published is one atomic publish; see plan.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

from qclient.options import CALL, CallOptions, check

if TYPE_CHECKING:
    from qclient.app import App

NO_OPTIONS: Mapping[str, Any] = {}


class Step(ABC):
    """A call, or some put together."""

    __slots__ = ()
    options: Mapping[str, Any]
    links: "tuple[Step, ...]"
    """What runs behind it once it has succeeded, with its result in front."""
    errors: "tuple[Step, ...]"
    """What runs once it has failed, with the failure in front."""

    @property
    @abstractmethod
    def app(self) -> "App":
        """The App that sends it."""

    @abstractmethod
    def completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "Step":
        """The same with more arguments in front of those that it begins with, and options."""

    @abstractmethod
    def with_these(
        self, options: Mapping[str, Any], links: "tuple[Step, ...]", errors: "tuple[Step, ...]"
    ) -> Self:
        """A copy with these in the place of its own."""

    def set(self, **options: Unpack[CallOptions]) -> Self:
        """The same with these options over its own."""
        check(options, CALL, f"{self!r:.80}")
        return self.with_options(options)

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The same with these options over its own, which were checked."""
        merged = {**self.options, **options}
        links, errors = (in_list(merged.pop(name, ())) for name in ("link", "link_error"))
        return self.with_these(merged, (*self.links, *links), (*self.errors, *errors))

    def as_dict(self) -> dict[str, Any]:
        """It as plain data; ``app.step`` makes it anew. See stored.py."""
        from qclient.canvas.stored import as_dict  # noqa: PLC0415  # it imports this

        return as_dict(self)

    def clone(self) -> Self:
        """Itself: it never changes."""
        return self

    def link(self, *steps: "Step") -> Self:
        """The same, and these run behind it once it has succeeded, with its result in front.

        Those of a group run behind each member.
        """
        return self.with_these(self.options, (*self.links, *map(step_of, steps)), self.errors)

    def link_error(self, *steps: "Step") -> Self:
        """The same, and these run once it has failed, with the failure in front."""
        return self.with_these(self.options, self.links, (*self.errors, *map(step_of, steps)))

    on_error = link_error

    def __or__(self, other: "Step | Iterable[Step]") -> "chain":
        """This, and then the other."""
        following = other if isinstance(other, Step) else group(other)
        return chain(*steps_of(self), *steps_of(following))


class Several(Step):
    """Steps put together."""

    __slots__ = ("errors", "links", "options", "steps")

    def __init__(self, steps: "tuple[Step, ...]") -> None:
        self.steps = steps
        self.options = NO_OPTIONS
        self.links: tuple[Step, ...] = ()
        self.errors: tuple[Step, ...] = ()

    def with_these(
        self, options: Mapping[str, Any], links: tuple[Step, ...], errors: tuple[Step, ...]
    ) -> Self:
        made = object.__new__(type(self))
        made.steps, made.options, made.links, made.errors = self.steps, options, links, errors
        return made

    def of(self, steps: "tuple[Step, ...]") -> Self:
        """A copy of other steps."""
        made = self.with_these(self.options, self.links, self.errors)
        made.steps = steps
        return made

    @property
    def app(self) -> "App":
        found = next((step.app for step in self.steps), None)
        if found is not None:
            return found
        from qclient.shared import current_app  # noqa: PLC0415  # it imports App

        return current_app()

    # Sending.

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """All of it is on disk at the broker, or none; its handle.

        ``args`` go in front of those of the steps that begin. The handle of a chain is that of
        its last step, of a chord that of its body, and of a group a GroupResult.
        """
        return self.app.send_steps(self.completed(args, kwargs, NO_OPTIONS))

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Like ``delay``, with options: of each step that does not say otherwise.

        ``countdown`` and ``eta`` are of those that begin, ``task_id`` of the one that ends.
        """
        check(options, CALL, f"a {type(self).__name__}")
        return self.app.send_steps(self.completed(args, kwargs or {}, options))

    async def delay_async(self, *args: Any, **kwargs: Any) -> Any:
        """Like ``delay``, from asyncio."""
        return await self.app.send_steps_async(self.completed(args, kwargs, NO_OPTIONS))

    async def apply_async_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Like ``apply_async``, from asyncio."""
        check(options, CALL, f"a {type(self).__name__}")
        return await self.app.send_steps_async(self.completed(args, kwargs or {}, options))

    # As what it is made of.

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.steps))})"


class chain(Several):  # noqa: N801  # Celery's names
    """Steps one after the other."""

    __slots__ = ()

    def __init__(self, *steps: Step | Iterable[Step]) -> None:
        """``chain(a, b)``, or ``chain(steps)``. Raises ValueError for none."""
        found = members(steps)
        if not found:
            raise ValueError("a chain of no steps: what would its result be?")
        super().__init__(found)

    def completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "chain":
        first, *others = self.steps
        made = self.of((first.completed(args, kwargs, NO_OPTIONS), *others))
        return made.with_options(options)


class group(Several):  # noqa: N801
    """Steps side by side. Its result is a list, in their order."""

    __slots__ = ()

    def __init__(self, *steps: Step | Iterable[Step]) -> None:
        """``group(a, b)``, or ``group(steps)``, of any iterable; it is taken whole."""
        super().__init__(members(steps))

    def completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "group":
        made = self.of(tuple(step.completed(args, kwargs, NO_OPTIONS) for step in self.steps))
        return made.with_options(options)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> "group":
        """The same, its members ``step`` seconds apart: ``start``, ``start + step``, ...

        At ``stop`` they begin with ``start`` again.
        """
        made, at = [], start
        for each in self.steps:
            made.append(each.set(countdown=at))
            at += step
            if stop is not None and at >= stop:
                at = start
        return self.of(tuple(made))


class chord(Several):  # noqa: N801
    """A body, with the results of a group. Its steps are these two."""

    __slots__ = ()

    def __init__(self, header: Step | Iterable[Step], body: Step | None = None) -> None:
        """``chord(header, body)``. Without a body it is to be called with one."""
        made = header if isinstance(header, group) else group(header)
        super().__init__((made,) if body is None else (made, step_of(body)))

    @property
    def header(self) -> group:
        """Those whose results the body is given."""
        found = self.steps[0]
        assert isinstance(found, group)
        return found

    @property
    def body(self) -> Step:
        """What is given the results. Raises ValueError if it was not said."""
        if len(self.steps) == 1:
            raise ValueError(f"{self!r} has no body: chord(header, body), or chord(header)(body)")
        return self.steps[1]

    def __call__(self, body: Step) -> Any:
        """Send it with this body: Celery's ``chord(header)(body)``. The body's handle."""
        made = chord(self.header, body)
        return made.with_these(self.options, self.links, self.errors).delay()

    def completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "chord":
        made = self.of((self.header.completed(args, kwargs, NO_OPTIONS), self.body))
        return made.with_options(options)


def in_list(steps: "Step | Sequence[Step]") -> "Sequence[Step]":
    """One step, or several, as several."""
    return (steps,) if isinstance(steps, Step) else steps


def step_of(value: Any) -> Step:
    """The step. Raises TypeError for anything else."""
    if not isinstance(value, Step):
        raise TypeError(
            f"{value!r:.80} is no step: steps are calls such as add.s(1, 2), and chain, group and "
            "chord of steps"
        )
    return value


def members(steps: Sequence[Step | Iterable[Step]]) -> tuple[Step, ...]:
    """Those that were given one by one, or in one iterable."""
    if len(steps) == 1 and not isinstance(steps[0], Step):
        return tuple(map(step_of, steps[0]))
    return tuple(map(step_of, steps))


def steps_of(step: Step) -> tuple[Step, ...]:
    """Those of a chain with nothing of its own; else the step itself."""
    if isinstance(step, chain) and not (step.options or step.links or step.errors):
        return step.steps
    return (step,)
