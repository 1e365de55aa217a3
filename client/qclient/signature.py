"""A call as a value: which task, with what, and how to send it.

add.s(1, 2)          may get arguments in front when it is sent: add.s(2).delay(1)
add.si(1, 2)         is complete, and checked by the type checker
app.signature("shop.add", (1, 2))     by name alone
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from qclient.canvas.steps import NO_OPTIONS, Step
from qclient.options import CALL, CallOptions, check
from qclient.result import AsyncResult

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.recipe import Callee

R_co = TypeVar("R_co", covariant=True)


class Signature(Step, Generic[R_co]):
    """One call that is not made yet. Never changes: ``set`` gives a new one."""

    __slots__ = ("args", "callee", "errors", "immutable", "kwargs", "links", "options")

    def __init__(
        self,
        callee: "Callee",
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any] = NO_OPTIONS,
        immutable: bool = False,
        *,
        links: tuple[Step, ...] = (),
        errors: tuple[Step, ...] = (),
    ) -> None:
        self.callee = callee
        self.args = args
        self.kwargs = kwargs
        self.options = options
        self.immutable = immutable
        self.links = links
        self.errors = errors

    @property
    def task(self) -> str:
        """The task's name."""
        return self.callee.name

    @property
    def app(self) -> "App":
        return self.callee.app

    def __repr__(self) -> str:
        shown = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task}({', '.join(shown)})"

    def with_these(
        self, options: Mapping[str, Any], links: tuple[Step, ...], errors: tuple[Step, ...]
    ) -> "Signature[R_co]":
        return Signature(
            self.callee,
            self.args,
            self.kwargs,
            options,
            self.immutable,
            links=links,
            errors=errors,
        )

    def completed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> "Signature[R_co]":
        """The call with more arguments in front, kwargs and options over its own.

        One made by ``si`` keeps its arguments as they are.
        """
        if not args and not kwargs and not options:
            return self
        if self.immutable:
            args, kwargs = (), {}
        return Signature(
            self.callee,
            (*args, *self.args),
            {**self.kwargs, **kwargs},
            {**self.options, **options},
            self.immutable,
            links=self.links,
            errors=self.errors,
        )

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """The call is sent, and on disk at the broker. ``args`` go in front of its own."""
        return self.app.send(self.completed(args, kwargs, NO_OPTIONS))

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Like ``delay``, with options."""
        check(options, CALL, self.task)
        return self.app.send(self.completed(args, kwargs or {}, NO_OPTIONS).with_options(options))

    async def delay_async(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Like ``delay``, from asyncio."""
        return await self.app.send_async(self.completed(args, kwargs, NO_OPTIONS))

    async def apply_async_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Like ``apply_async``, from asyncio."""
        check(options, CALL, self.task)
        called = self.completed(args, kwargs or {}, NO_OPTIONS).with_options(options)
        return await self.app.send_async(called)
