"""How a task's end reaches whoever asks: as data, never as an import by name.

A remote error is a ``TaskFailure`` with its kind, message and traceback as text. If its kind
is one of Python's own plain exceptions it is that too, so ``except ValueError`` works:

    try: div.delay(1, 0).get()
    except ZeroDivisionError as error: ...      # a TaskFailure whose kind is ZeroDivisionError

Rule 1. The classes are a closed list, made here; a kind outside of it is a TaskFailure alone.
"""

from traceback import format_exception

from qclient.exceptions import QBrokerError
from qprotocol.failure import Failure


class TaskFailure(QBrokerError):  # noqa: N818  # a task's end, not an error here
    """The task raised ``kind`` at the worker. ``traceback`` is the worker's, as text."""

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind

    def __reduce__(self) -> tuple[object, ...]:
        return task_failure, (self.kind, self.message, self.traceback)


class TaskRevoked(QBrokerError):  # noqa: N818  # a task's end, as Celery names it
    """The task was cancelled, or expired, before it was done."""


class ResultTimeout(QBrokerError, TimeoutError):  # noqa: N818  # beside Python's own
    """The task was not finished in time. It goes on; ask again, or revoke it."""


KINDS: dict[str, type[TaskFailure]] = {
    kind.__name__: type(f"Task{kind.__name__}", (TaskFailure, kind), {"__module__": __name__})
    for kind in (
        ArithmeticError,
        AssertionError,
        AttributeError,
        BufferError,
        ConnectionError,
        ConnectionAbortedError,
        ConnectionRefusedError,
        ConnectionResetError,
        BrokenPipeError,
        EOFError,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        ImportError,
        IndexError,
        InterruptedError,
        IsADirectoryError,
        KeyError,
        LookupError,
        MemoryError,
        ModuleNotFoundError,
        NameError,
        NotADirectoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        ProcessLookupError,
        RecursionError,
        ReferenceError,
        RuntimeError,
        SyntaxError,
        SystemError,
        TimeoutError,
        TypeError,
        UnboundLocalError,
        UnicodeError,
        ValueError,
        ZeroDivisionError,
    )
}
"""Python's exceptions that a message alone can make; others are TaskFailure and no more."""


def task_failure(kind: str, message: str, traceback: str = "") -> TaskFailure:
    """The exception for a remote error."""
    return KINDS.get(kind.removeprefix("builtins."), TaskFailure)(kind, message, traceback)


def raised(raw: bytes) -> TaskFailure:
    """The exception for a packed failure; one that says so if there is none in ``raw``."""
    try:
        failure = Failure.unpack(raw)
    except ValueError:
        return TaskFailure("UnknownError", "the broker has no details of this failure")
    return task_failure(failure.kind, failure.message, failure.traceback)


def failure_of(error: BaseException) -> Failure:
    """What travels of an exception: class name (with its module, unless built in), text, trace."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return Failure(name, describe(error), "".join(format_exception(error)))


def describe(error: BaseException) -> str:
    """``str(error)``, whatever the user's class makes of it."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  # user code
        return f"<its message cannot be shown: {type(broken).__name__}>"
