"""``app.conf``: the settings of an application, each once, with its default and reason.

Rule 1. An unknown setting is an AttributeError that says what was probably meant; one that
        Celery has and the broker decides here says where it is decided.
Rule 2. A value is checked where it is set, not where it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from qclient.options import FLAG, REPR, SECONDS_OR_NONE, SEND, Option, is_number, meant
from qclient.preview import PreviewRepr
from qclient.topology import Broadcast, Exchange, Queue

T = TypeVar("T")

ELSEWHERE = {
    "broker_url": 'it is App("name", broker="qbroker://host")',
    "result_backend": "the broker keeps results; there is nothing to set",
    "result_expires": "the broker decides it: qbroker serve --result-ttl-ms 1d",
    "task_acks_late": 'it is task_acks = "late", which is the default, or "early"',
    "task_reject_on_worker_lost": "a lost worker's tasks always return; see poison_max",
    "broker_connection_timeout": "it is broker_timeout_s, for a whole call",
    "accept_content": "bodies are decoded without running code; there is nothing to allow",
    "worker_prefetch_multiplier": "the worker adapts its credit by itself",
    "timezone": "times carry their own zone; naive ones are refused",
    "enable_utc": "times carry their own zone; naive ones are refused",
}
"""Settings people bring along, and what to do instead."""


def setting(default: T, option: Option, why: str) -> T:
    metadata = {"option": option, "why": why}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def is_routes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) for k in value)
    return callable(value) or (isinstance(value, (list, tuple)) and all(map(is_routes, value)))


def is_queues(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(each, Queue | Exchange | Broadcast) for each in value
    )


@dataclass(slots=True)
class Settings:
    """The settings of one App: ``app.conf.task_default_queue = "mail"``."""

    # fmt: off
    broker_timeout_s: float = setting(
        10.0, Option("seconds above 0", lambda v: is_number(v, 0.001)),
        "How long a call may take in all, reconnecting included, before it fails.")
    task_default_queue: str = setting("default", SEND["queue"],
        "Where a task goes that neither call, route nor task sends elsewhere.")
    task_default_priority: int = setting(0, SEND["priority"],
        "From -100 to 100, higher is sooner.")
    task_routes: Any = setting({}, Option(
        "a dict of task names or patterns to queues, a router function, or a list of those",
        is_routes), "Queues by task name; see routes.py.")
    task_queues: Any = setting((), Option(
        "a list of Queue, Exchange and Broadcast", is_queues),
        "Exchanges and queues that are declared by app.declare() and by workers.")
    task_serializer: str = setting("msgpack", SEND["serializer"],
        "How arguments are encoded.")
    task_ignore_result: bool = setting(False, FLAG,
        "Keep no results but failures, for tasks that do not say.")
    task_acks: str = setting("late", SEND["acks"],
        "late: a lost worker's task runs again; early: it never runs twice.")
    task_time_limit: float | None = setting(None, SECONDS_OR_NONE,
        "Seconds after which the worker kills the process that runs a task.")
    task_soft_time_limit: float | None = setting(None, SECONDS_OR_NONE,
        "Seconds after which SoftTimeLimitExceeded is raised inside a task.")
    task_preview_chars: int = setting(0, SEND["preview_chars"],
        "Characters of arguments that are shown to those who look through tasks; 0: none.")
    task_preview_repr: PreviewRepr | None = setting(None, REPR,
        "Makes that text of args and kwargs, and leaves out what nobody may see.")
    # fmt: on
    changed: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called after each change; the App's own."""

    if not TYPE_CHECKING:  # a checker finds unknown settings by itself, and is not to be told

        def __setattr__(self, name: str, value: Any) -> None:
            row = TABLE.get(name)
            if row is not None:
                if not row.accepts(value):
                    raise ValueError(f"app.conf.{name} is {value!r}: {row.wants}")
            elif name != "changed":
                raise AttributeError(unknown(name))
            object.__setattr__(self, name, value)
            if row is not None and hasattr(self, "changed"):
                self.changed()

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(unknown(name))

    def update(self, given: Mapping[str, Any] | None = None, **settings: Any) -> None:
        """Several settings at once. All names are checked before any is set."""
        wanted = {**(given or {}), **settings}
        for name in wanted:
            if name not in TABLE:
                raise AttributeError(unknown(name))
        for name, value in wanted.items():
            setattr(self, name, value)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name."""
        return {name: getattr(self, name) for name in TABLE}


TABLE: dict[str, Option] = {
    f.name: f.metadata["option"] for f in fields(Settings) if "option" in f.metadata
}


def unknown(name: str) -> str:
    """Why there is no such setting."""
    elsewhere = ELSEWHERE.get(name)
    return f"app.conf has no setting {name!r}: {elsewhere or meant(name, list(TABLE))}"
