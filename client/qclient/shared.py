"""Tasks of reusable packages: ``@shared_task`` needs no App until it is sent.

A shared task is in ``app.tasks`` of every App, whenever either was made, and is sent by the
current one: the App made last, or the one ``set_current`` was called on.

Rule 1. Importing a module with shared tasks opens no connection and makes no App.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qclient.decorator import TaskDecorator
from qclient.task import Task

if TYPE_CHECKING:
    from qclient.app import App

shared: dict[str, Task[Any, Any]] = {}
"""Every shared task of the process by name."""
_current: "list[App]" = []


def register(function: Callable[..., Any], bind: bool, options: dict[str, Any]) -> Task[Any, Any]:
    """A shared task, known to all Apps. Raises ValueError if another has its name."""
    name = options.pop("name", None) or f"{function.__module__}.{function.__name__}"
    task: Task[Any, Any] = Task(function, name, options, bind, None)
    refuse_another(shared.get(name), task)
    shared[name] = task
    return task


shared_task = TaskDecorator(register)
"""Like ``@app.task``, bound to whichever App is current when it is sent."""


def current_app() -> "App":
    """The App that shared tasks are sent by. Raises RuntimeError if there is none."""
    if not _current:
        raise RuntimeError(
            "there is no App yet: make one, app = App('name', broker='qbroker://localhost'), "
            "before a shared task is sent"
        )
    return _current[-1]


def set_current(app: "App") -> None:
    """``app`` is the current one from now on."""
    _current[:] = [app]


def refuse_another(known: Task[Any, Any] | None, task: Task[Any, Any]) -> None:
    """Two functions cannot have one name; the same one, imported again, may."""
    if known is None:
        return
    old, new = known.function, task.function
    if (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
        raise ValueError(
            f"two tasks are named {task.name}: {old.__module__}.{old.__qualname__} and "
            f"{new.__module__}.{new.__qualname__}; give one another name="
        )
