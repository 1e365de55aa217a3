"""``@app.task`` and ``@shared_task``: one set of types and checks for both.

@app.task                        a function as it is
@app.task(queue="mail")          with options
@app.task(bind=True)             its first parameter is the task
"""

from collections.abc import Callable
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from qclient.options import FLAG, TASK, TaskOptions, check
from qclient.task import Task

P = ParamSpec("P")
R = TypeVar("R")


class Register(Protocol):
    """Makes a task of a function and keeps it."""

    def __call__(
        self, function: Callable[..., Any], bind: bool, options: dict[str, Any]
    ) -> Task[Any, Any]: ...


class TaskDecorator:
    """What stands behind the @."""

    def __init__(self, register: Register) -> None:
        self._register = register

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def __call__(
        self, *, bind: Literal[True], **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...

    @overload
    def __call__(
        self, *, bind: Literal[False] = False, **options: Unpack[TaskOptions]
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def __call__(self, *functions: Any, bind: bool = False, **options: Any) -> Any:
        """The function as a task.

        Raises TypeError for an unknown option, ValueError for a value that is not one.
        """
        check(options, TASK, "a task", also=("bind",))
        check({"bind": bind}, {"bind": FLAG}, "a task")
        if not functions:
            return lambda function: self._register(function, bind, options)
        if len(functions) != 1 or not callable(functions[0]):
            raise TypeError(
                f"@task stands before a function, not {functions!r}: a name is given by name="
            )
        return self._register(functions[0], bind, options)
