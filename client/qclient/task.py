"""A task: a function that stays one, and can be sent to run elsewhere.

    @app.task(retry_backoff=True, max_retries=5)
    def send_email(user_id: int) -> str: ...

    send_email(42)                 runs it here, as if it were not a task
    send_email.delay(42)           sends it; the checker knows its arguments
    send_email.s(42)               a call as a value

With ``bind=True`` the function's first parameter is the task, whose ``request`` is the call
that runs and whose ``retry`` gives up this run.
"""

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, Unpack

from qclient.canvas.steps import NO_OPTIONS
from qclient.context import Context, current_request
from qclient.options import (
    CALL,
    REPLACE,
    CallOptions,
    ReplaceOptions,
    check,
    milliseconds,
    moment_ms,
    retry_policy,
)
from qclient.recipe import Callee
from qclient.result import AsyncResult
from qclient.signature import Signature
from qclient.verdicts import MaxRetriesExceededError, Replaced, Retry
from qprotocol.options import RetryPolicy

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.canvas.steps import Step, group

P = ParamSpec("P")
R = TypeVar("R")

DIRECT = Context(called_directly=True)
"""The request of a task that was called as a function."""


class Task(Generic[P, R]):
    """A registered function. Made by ``@app.task`` or ``@shared_task``."""

    __name__: str

    def __init__(
        self,
        function: Callable[..., R],
        name: str,
        options: Mapping[str, Any],
        bind: bool,
        app: "App | None",
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        """What was decorated."""
        self.name = name
        self.bind = bind
        self.options = options
        """What the decorator was told."""
        self.signature_of_call = visible_signature(function, bind)
        self._app = app
        self._callee = None if app is None else self.callee_for(app)

    def callee_for(self, app: "App") -> Callee:
        """The task as ``app`` sends it."""
        return Callee(app, self.name, self.options, self.signature_of_call)

    @property
    def app(self) -> "App":
        """The App it belongs to; a shared task's is the current one."""
        return self.callee.app

    @property
    def callee(self) -> Callee:
        """What sends it."""
        if self._callee is not None:
            return self._callee
        from qclient.shared import current_app  # noqa: PLC0415  # it imports App

        return current_app().callee_of(self)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's own result, here and now."""
        if self.bind:
            return self.function(self, *args, **kwargs)
        return self.function(*args, **kwargs)

    run = __call__

    # Sending.

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """The task is sent, and on disk at the broker (or as its queue's fsync says).

        Raises TypeError at once if the task cannot be called so or an argument cannot be
        sent; NotDone or OutcomeUnknown within ``app.conf.broker_timeout_s``.
        One round trip and one sync of the broker's disk.
        """
        callee = self._callee or self.callee
        return callee.app.send(Signature(callee, args, kwargs))

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R]:
        """Like ``delay``, with options: see options.py."""
        check(options, CALL, self.name)
        callee = self._callee or self.callee
        return callee.app.send(called(callee, args, kwargs, options))

    def delay_async(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, AsyncResult[R]]:
        """Like ``delay``, from asyncio: ``await send_email.delay_async(42)``."""
        callee = self._callee or self.callee
        return callee.app.send_async(Signature(callee, args, kwargs))

    def apply_async_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Coroutine[Any, Any, AsyncResult[R]]:
        """Like ``apply_async``, from asyncio."""
        check(options, CALL, self.name)
        callee = self._callee or self.callee
        return callee.app.send_async(called(callee, args, kwargs, options))

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call as a value; more arguments may come in front when it is sent."""
        return Signature(self._callee or self.callee, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """The call as a value, complete: arguments are checked by types now, kept for ever."""
        return Signature(self._callee or self.callee, args, kwargs, NO_OPTIONS, True)

    def signature(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        immutable: bool = False,
        **options: Unpack[CallOptions],
    ) -> Signature[R]:
        """The call as a value, with options."""
        check(options, CALL, self.name)
        callee = self._callee or self.callee
        return Signature(callee, tuple(args), kwargs or {}, options, immutable)

    def map(self, arguments: Iterable[Any]) -> Signature[list[R]]:
        """A call that runs the task once for each, in one message; gives the list of results."""
        return builtin(self.app, "run_map", self.name, arguments)

    def starmap(self, arguments: Iterable[Iterable[Any]]) -> Signature[list[R]]:
        """The same, each with several arguments."""
        return builtin(self.app, "run_starmap", self.name, map(tuple, arguments))

    def chunks(self, arguments: Iterable[Iterable[Any]], size: int) -> "group":
        """A group of ``starmap``, of ``size`` each; gives a list of lists of results.

        Raises ValueError unless ``size`` is 1 or more.
        """
        if size < 1:
            raise ValueError(f"chunks of {size}: 1 or more")
        from qclient.canvas.steps import group  # noqa: PLC0415  # it imports this

        return group(self.starmap(each) for each in batched(arguments, size))

    # What the task says of itself: read by the worker, and by the task.

    @property
    def request(self) -> Context:
        """The call that runs; one with ``called_directly`` if it was called as a function."""
        current = current_request.get()
        return current if current is not None and current.task == self.name else DIRECT

    @property
    def max_retries(self) -> int | None:
        """Retries after the first failure; None is no end."""
        found: int | None = self.options.get("max_retries", 3)
        return found

    @property
    def ignore_result(self) -> bool:
        return bool(self.options.get("ignore_result", self.app.conf.task_ignore_result))

    @property
    def acks(self) -> str:
        """late: a lost worker's task runs again. early: it never runs twice."""
        return str(self.options.get("acks", self.app.conf.task_acks))

    @property
    def time_limit(self) -> float | None:
        """Seconds until the worker kills the process; a request's own goes before it."""
        found: float | None = self.options.get("time_limit", self.app.conf.task_time_limit)
        return found

    @property
    def soft_time_limit(self) -> float | None:
        """Seconds until SoftTimeLimitExceeded is raised inside; a request's goes before it."""
        conf = self.app.conf
        found: float | None = self.options.get("soft_time_limit", conf.task_soft_time_limit)
        return found

    @property
    def retry_policy(self) -> RetryPolicy:
        """When a failed run is followed by another; a request's own goes before it."""
        return retry_policy(self.options)

    def retries_on(self, error: BaseException) -> bool:
        """Whether a run that raised ``error`` is retried without having asked for it.

        By ``autoretry_for`` less ``dont_autoretry_for``; ``retry_backoff`` alone means any
        Exception.
        """
        default = (Exception,) if self.options.get("retry_backoff") else ()
        kinds = as_tuple(self.options.get("autoretry_for", default))
        never = as_tuple(self.options.get("dont_autoretry_for", ()))
        return isinstance(error, kinds) and not isinstance(error, never)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        *,
        countdown: float | timedelta | None = None,
        eta: datetime | None = None,
        max_retries: int | None = None,
        **options: Unpack[ReplaceOptions],
    ) -> NoReturn:
        """This run ends here and the task runs again later: write ``raise self.retry(...)``.

        Without ``countdown`` or ``eta`` the task's policy decides when. New ``args``,
        ``kwargs`` or options (queue, priority ...) go into the same task, under its id.
        Raises Retry; or, if it had all its retries, ``exc`` or MaxRetriesExceededError. In a
        task that was called as a function, raises ``exc``, if there is one.
        """
        request = self.request
        check(options, REPLACE, f"{self.name}.retry", also=("countdown", "eta", "max_retries"))
        if request.called_directly and exc is not None:
            raise exc
        policy = request.retry_policy or self.retry_policy
        if max_retries is not None:
            check({"max_retries": max_retries}, CALL, f"{self.name}.retry")
            policy = replace(policy, retries_max=max_retries)
        if not policy.allows(request.retries + 1):
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(
                f"{self.name}[{request.id}] has had its {policy.retries_max} retries"
            )
        raise Retry(
            f"{self.name}[{request.id}]: {exc!r}" if exc is not None else "asked for by the task",
            exc=exc,
            delay_ms=self._delay_ms(countdown, eta),
            policy=policy,
            replacement=self._replacement(request, args, kwargs, options),
        )

    def replace(self, step: "Step") -> NoReturn:
        """This run ends here, and the step goes on in its place: write ``raise self.replace(...)``.

        The last task of the step has this one's id: its result is this one's, and whatever waits
        for this one waits for it. Of a group that is the list of its results. Published with the
        end of this run, all or nothing. Raises Replaced, RuntimeError where no worker runs it, or
        ValueError for a step of which nothing can be the last.
        """
        request = self.request
        if request.called_directly:
            raise RuntimeError(f"{self.name}.replace: it was called as a function, so it has no id")
        from qclient.canvas.replacing import replacement  # noqa: PLC0415  # it imports this

        raise Replaced(replacement(self.app, step, request))

    def _delay_ms(self, countdown: float | timedelta | None, eta: datetime | None) -> int | None:
        if eta is not None:
            check({"eta": eta}, CALL, self.name)
            return max(0, moment_ms(eta, 0) - round(datetime.now(eta.tzinfo).timestamp() * 1000))
        return None if countdown is None else milliseconds(countdown)

    def _replacement(
        self,
        request: Context,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> bytes | None:
        """The task's new message, if anything of it changes."""
        if args is None and kwargs is None and not options:
            return None
        new_args = request.args if args is None else tuple(args)
        new_kwargs = request.kwargs if kwargs is None else kwargs
        self.callee.check(new_args, new_kwargs)
        from qclient.canvas.replacing import another_try  # noqa: PLC0415  # it imports this

        return another_try(self.callee, request, new_args, new_kwargs, options)


def called(
    callee: Callee,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Signature[Any]:
    """A call with options, which were checked."""
    if "link" not in options and "link_error" not in options:
        return Signature(callee, tuple(args), kwargs or {}, options)
    return Signature[Any](callee, tuple(args), kwargs or {}).with_options(options)


def builtin(app: "App", name: str, task: str, arguments: Iterable[Any]) -> Signature[Any]:
    """A call of a task that every worker has, about another one."""
    from qclient.canvas import builtins  # noqa: PLC0415  # it imports this

    return Signature(app.callee_of(getattr(builtins, name)), (task, list(arguments)), {})


def batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """So many at a time."""
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def visible_signature(function: Callable[..., Any], bind: bool) -> inspect.Signature:
    """The parameters a caller fills in. Raises TypeError for a bound one without ``self``."""
    found = inspect.signature(function)
    if not bind:
        return found
    first, *others = found.parameters.values() or (None,)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{function.__qualname__} has bind=True: its first parameter is the task")
    return found.replace(parameters=others)


def as_tuple(kinds: Any) -> tuple[type[BaseException], ...]:
    return tuple(kinds) if isinstance(kinds, (tuple, list)) else (kinds,)
