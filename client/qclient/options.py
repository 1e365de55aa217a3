"""Options of tasks and of single calls: each once, with its check and where it may stand.

Rule 1. An unknown option is a TypeError where it is written, with what was probably meant.
Rule 2. A call's option beats a route's (where to, and priority), which beats the task's, which
        beats the setting's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from qclient.preview import PreviewRepr
from qclient.serialization import CONTENTS
from qprotocol.ids import pack_id
from qprotocol.lanekeys import LANE_KEY_BYTES_MAX, WEIGHT_MAX
from qprotocol.limitrules import AMOUNT_MAX, LimitRule, parse_rate
from qprotocol.limits import (
    NAME_BYTES_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    TASK_BYTES_MAX,
    TOPIC_BYTES_MAX,
)
from qprotocol.options import RETRIES_FOREVER, RetryPolicy
from qprotocol.uniquekeys import CONFLICTS, HOLD_MS_MAX, SCOPES, UNIQUE_KEY_BYTES_MAX

if TYPE_CHECKING:
    from qclient.canvas.steps import Step

PREVIEW_CHARS_MAX = 4_096
"""Of a preview: with four bytes each it fits into the headers, and leaves room for others."""

Exceptions = type[BaseException] | tuple[type[BaseException], ...] | list[type[BaseException]]


class RetryOptions(TypedDict, total=False):
    """When a task that failed runs again; also for one call."""

    max_retries: int | None
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    default_retry_delay: float


class KeyOptions(TypedDict, total=False):
    """What a message is limited, ordered and shared out by; also of ``self.retry``."""

    limit_key: str
    ordering_key: str
    fair_key: str
    weight: int


class UniqueOptions(TypedDict, total=False):
    """Which other tasks a task may not be there with, and publishes that are one."""

    unique_key: bool | str | Callable[..., str | None] | None
    unique_scope: Literal["queue", "task", "global"]
    unique_until: Literal["started", "finished"] | float | timedelta
    unique_conflict: Literal["return", "reject", "replace", "redelay"]
    idempotency_key: bool | str | Callable[..., str | None] | None
    idempotency_window: float | timedelta


class SendOptions(RetryOptions, KeyOptions, UniqueOptions, total=False):
    """What a task declares and a call may say otherwise."""

    queue: str
    exchange: str
    routing_key: str
    mandatory: bool
    priority: int
    expires: float | timedelta | datetime
    ignore_result: bool
    acks: Literal["late", "early"]
    time_limit: float | None
    soft_time_limit: float | None
    serializer: Literal["msgpack", "json"]
    preview_chars: int


class TaskOptions(SendOptions, total=False):
    """What ``@app.task`` takes, besides ``bind``."""

    name: str
    rate_limit: str | float | None
    concurrency_limit: int | None
    autoretry_for: Exceptions
    dont_autoretry_for: Exceptions
    preview_repr: PreviewRepr | None


class CallOptions(SendOptions, total=False):
    """What ``apply_async`` and its kin take, besides arguments."""

    countdown: float | timedelta
    eta: datetime
    task_id: str
    headers: Mapping[str, Any]
    argsrepr: str
    kwargsrepr: str
    link: "Step | Sequence[Step]"
    link_error: "Step | Sequence[Step]"


class ReplaceOptions(KeyOptions, total=False):
    """What ``self.retry`` may change of the message, besides its arguments."""

    queue: str
    priority: int
    expires: float | timedelta | datetime
    ignore_result: bool
    time_limit: float | None
    soft_time_limit: float | None
    serializer: Literal["msgpack", "json"]
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One row: what its values look like in words, and a check."""

    wants: str
    accepts: Callable[[Any], bool]


def is_number(value: Any, least: float = 0) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= least


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value.encode()) <= NAME_BYTES_MAX


def is_key(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return 4 * len(value) <= LANE_KEY_BYTES_MAX or len(value.encode()) <= LANE_KEY_BYTES_MAX


def is_exceptions(value: Any) -> bool:
    kinds = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


def is_task_id(value: Any) -> bool:
    try:
        pack_id(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def is_rate(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    try:
        parse_rate(str(value))
    except ValueError:
        return False
    return True


def is_span(value: Any) -> bool:
    if not (is_number(value) or isinstance(value, timedelta)):
        return False
    return 0 < milliseconds(value) <= HOLD_MS_MAX


def is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def is_steps(value: Any) -> bool:
    from qclient.canvas.steps import Step  # noqa: PLC0415  # it imports this

    several = value if isinstance(value, (list, tuple)) else (value,)
    return all(isinstance(each, Step) for each in several)


SECONDS = Option("seconds, 0 or more", is_number)
SECONDS_OR_NONE = Option("seconds above 0, or None", lambda v: v is None or is_number(v, 0.001))
TEXT = Option("a string", lambda v: isinstance(v, str))
REPR = Option(
    "a function of args and kwargs that gives a string, or None",
    lambda v: v is None or callable(v),
)
FLAG = Option("True or False", lambda v: isinstance(v, bool))
STEPS = Option("a call such as add.s(1), a canvas, or a list of them", is_steps)

RETRY: dict[str, Option] = {
    "max_retries": Option(
        f"a number of retries up to {RETRIES_FOREVER - 1}, or None for no end",
        lambda v: v is None or (type(v) is int and 0 <= v < RETRIES_FOREVER),
    ),
    "retry_backoff": Option(
        "True, False or the first delay in seconds",
        lambda v: isinstance(v, bool) or is_number(v, 0.001),
    ),
    "retry_backoff_max": SECONDS,
    "retry_jitter": FLAG,
    "default_retry_delay": SECONDS,
}
KEY = Option(f"a string of up to {LANE_KEY_BYTES_MAX} bytes; empty for none", is_key)
KEYS: dict[str, Option] = {
    "limit_key": KEY,
    "ordering_key": KEY,
    "fair_key": KEY,
    "weight": Option(
        f"a whole number from 1 to {WEIGHT_MAX}: what it takes of a limit",
        lambda v: type(v) is int and 1 <= v <= WEIGHT_MAX,
    ),
}
UNIQUE_KEY = Option(
    f"True for the task with its arguments, a text of up to {UNIQUE_KEY_BYTES_MAX} bytes, a "
    "function of the call's arguments, or None",
    lambda v: isinstance(v, (str, bool)) or v is None or callable(v),
)
UNIQUE: dict[str, Option] = {
    "unique_key": UNIQUE_KEY,
    "unique_scope": Option(" or ".join(map(repr, SCOPES)), lambda v: v in SCOPES),
    "unique_until": Option(
        '"started", "finished", or seconds above 0 or a timedelta, up to a year',
        lambda v: v in ("started", "finished") or is_span(v),
    ),
    "unique_conflict": Option(" or ".join(map(repr, CONFLICTS)), lambda v: v in CONFLICTS),
    "idempotency_key": UNIQUE_KEY,
    "idempotency_window": Option("seconds above 0 or a timedelta, up to a year", is_span),
}
SEND: dict[str, Option] = (
    RETRY
    | KEYS
    | UNIQUE
    | {
        "queue": Option(f"the name of a queue, up to {NAME_BYTES_MAX} bytes", is_name),
        "exchange": Option(
            f"the name of an exchange, up to {NAME_BYTES_MAX} bytes; empty routes by queue name",
            lambda v: v == "" or is_name(v),
        ),
        "routing_key": Option(
            f"a string of up to {TOPIC_BYTES_MAX} bytes",
            lambda v: isinstance(v, str) and len(v.encode()) <= TOPIC_BYTES_MAX,
        ),
        "mandatory": Option(
            "True or False: whether it is an error that no queue gets it",
            lambda v: isinstance(v, bool),
        ),
        "priority": Option(
            f"a whole number from {PRIORITY_MIN} to {PRIORITY_MAX}, higher is sooner",
            lambda v: type(v) is int and PRIORITY_MIN <= v <= PRIORITY_MAX,
        ),
        "expires": Option(
            "seconds, a timedelta, or a datetime with a time zone",
            lambda v: is_number(v) or isinstance(v, timedelta) or is_moment(v),
        ),
        "ignore_result": FLAG,
        "acks": Option('"late" or "early"', lambda v: v in ("late", "early")),
        "time_limit": SECONDS_OR_NONE,
        "soft_time_limit": SECONDS_OR_NONE,
        "serializer": Option(" or ".join(map(repr, CONTENTS)), lambda v: v in CONTENTS),
        "preview_chars": Option(
            f"a whole number from 0, which is none, to {PREVIEW_CHARS_MAX}",
            lambda v: type(v) is int and 0 <= v <= PREVIEW_CHARS_MAX,
        ),
    }
)
TASK: dict[str, Option] = SEND | {
    "name": Option(
        f"a string of up to {TASK_BYTES_MAX} bytes",
        lambda v: isinstance(v, str) and 1 <= len(v.encode()) <= TASK_BYTES_MAX,
    ),
    "rate_limit": Option(
        'how many begin in a time, over all workers: "10/s", "100/m", "1000/h", "100/5m", or None',
        lambda v: v is None or is_rate(v),
    ),
    "concurrency_limit": Option(
        f"how many run at once, over all workers: 1 to {AMOUNT_MAX}, or None",
        lambda v: v is None or (type(v) is int and 1 <= v <= AMOUNT_MAX),
    ),
    "autoretry_for": Option("an exception class or a tuple of them", is_exceptions),
    "dont_autoretry_for": Option("an exception class or a tuple of them", is_exceptions),
    "preview_repr": REPR,
}
CALL: dict[str, Option] = SEND | {
    "countdown": Option(
        "seconds, 0 or more, or a timedelta", lambda v: is_number(v) or isinstance(v, timedelta)
    ),
    "eta": Option(
        "a datetime with a time zone, such as datetime.now(timezone.utc) + timedelta(hours=1)",
        is_moment,
    ),
    "task_id": Option("a string of 1 to 255 bytes", is_task_id),
    "headers": Option(
        "a dict keyed by strings",
        lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v),
    ),
    "argsrepr": TEXT,
    "kwargsrepr": TEXT,
    "link": STEPS,
    "link_error": STEPS,
}
REPLACE: dict[str, Option] = {
    name: CALL[name] for kind in (KeyOptions, ReplaceOptions) for name in kind.__annotations__
}


def check(
    given: Mapping[str, Any], table: Mapping[str, Option], what: str, also: tuple[str, ...] = ()
) -> None:
    """Nothing, if every option of ``given`` is in ``table`` with a value of its kind.

    Raises TypeError for an unknown option, ValueError for a bad value.
    """
    for name, value in given.items():
        option = table.get(name)
        if option is None:
            raise TypeError(f"{what} has no option {name!r}: {meant(name, [*table, *also])}")
        if not option.accepts(value):
            raise ValueError(f"{name} of {what} is {value!r}: {option.wants}")


def meant(name: str, known: list[str]) -> str:
    """A suggestion in words."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(sorted(known))}"


def retry_policy(options: Mapping[str, Any]) -> RetryPolicy:
    """The policy that retry options, Celery's defaults filled in, amount to.

    Without ``retry_backoff`` the delay is ``default_retry_delay`` each time; with it, it
    doubles from one second (or the seconds given) up to ``retry_backoff_max``.
    """
    retries = options.get("max_retries", 3)
    backoff = options.get("retry_backoff", False)
    doubling = backoff is not False
    first_s = float(backoff) if doubling else options.get("default_retry_delay", 180)
    longest_s = options.get("retry_backoff_max", 600) if doubling else first_s
    return RetryPolicy(
        retries_max=RETRIES_FOREVER if retries is None else retries,
        backoff_ms=milliseconds(first_s),
        backoff_max_ms=milliseconds(longest_s),
        factor=2.0 if doubling else 1.0,
        jitter=doubling and options.get("retry_jitter", True),
    )


def limit_rule(name: str, options: Mapping[str, Any]) -> LimitRule | None:
    """The limit that task ``name`` declares for itself; None if it declares none."""
    rate, concurrency = options.get("rate_limit"), options.get("concurrency_limit")
    if rate is None and concurrency is None:
        return None
    tokens, window_ms = (0, 1_000) if rate is None else parse_rate(str(rate))
    return LimitRule(task=name, concurrency=concurrency or 0, rate=tokens, window_ms=window_ms)


def milliseconds(delay: float | timedelta) -> int:
    """A delay as people write it, as the wire has it."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    return max(0, round(seconds * 1000))


def moment_ms(when: float | timedelta | datetime, now_ms: int) -> int:
    """Broker wall milliseconds of a moment, or of a delay from ``now_ms``."""
    if isinstance(when, datetime):
        return max(1, round(when.timestamp() * 1000))
    return now_ms + milliseconds(when)
