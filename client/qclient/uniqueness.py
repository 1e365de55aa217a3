"""Unique keys and idempotency keys of calls, from what their options say.

    unique_key=True                  the same task with the same arguments
    unique_key="user-{user_id}"      of a task: a template over the call's arguments
    unique_key="user-7"              of a call: the key itself
    unique_key=lambda user_id: ...   a function of the call's arguments; None is no key

Rule 1. A key is text of 1 to 255 bytes. What the broker compares is that text, in its scope.
Rule 2. True means the arguments as they are bound, defaults filled in: add(1), add(a=1) and
        add(1, b=2), if 2 is the default, are one.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from qclient.options import milliseconds
from qclient.serialization import encode_call
from qprotocol import wire
from qprotocol.message import pack_fields
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey

if TYPE_CHECKING:
    from qclient.recipe import Callee

Key = bool | str | Callable[..., str | None] | None
"""What ``unique_key`` and ``idempotency_key`` take."""
KEY_OF = {
    "unique_scope": "unique_key",
    "unique_until": "unique_key",
    "unique_conflict": "unique_key",
    "idempotency_window": "idempotency_key",
}
"""Options that say something of a key, and the option that says the key."""


def has_keys(options: Mapping[str, Any]) -> bool:
    """Whether these options say a key of calls."""
    unique, window = options.get("unique_key"), options.get("idempotency_key")
    return not ((unique is None or unique is False) and (window is None or window is False))


def are_keyed(callee: "Callee", options: Mapping[str, Any]) -> bool:
    """Whether calls with these options have keys. Raises ValueError if they have none, and say
    something of one; None is said on purpose.
    """
    if callee.is_keyed or (options and has_keys(options)):
        return True
    for name in options:
        if name in KEY_OF and KEY_OF[name] not in options:
            raise ValueError(
                f"{name} of {callee.name} without {KEY_OF[name]}: there is no key that it could be "
                f"about; say {KEY_OF[name]}, on the task or on the call, or leave {name} out"
            )
    return False


def own_keys(
    callee: "Callee",
    options: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[str | None, str | None]:
    """The call's unique and idempotency keys. Raises what a function that makes one raises."""
    if callee.is_keyed or "idempotency_key" in options:
        window = key_of(callee, "idempotency_key", options, args, kwargs)
    else:
        window, unique = None, options.get("unique_key")
        if isinstance(unique, str):
            return unique, window
    return key_of(callee, "unique_key", options, args, kwargs), window


def fields_of(unique: str | None, window: str | None, said: Mapping[str, Any]) -> bytes:
    """The meta fields with these keys, packed; a unique key is the end if it is the only one.

    ``said`` are the options of the task and of the call. Raises ValueError for a key that is none.
    """
    fields = {}
    if unique is not None:
        until = said.get("unique_until", "finished")
        for_ms = 0 if isinstance(until, str) else max(1, milliseconds(until))
        fields[wire.UNIQUE] = UniqueKey(
            unique,
            said.get("unique_scope", "task"),
            until if isinstance(until, str) else "time",
            said.get("unique_conflict", "return"),
            for_ms,
        ).pack()
    if window is not None:
        lasts: float | timedelta | None = said.get("idempotency_window")
        window_ms = 0 if lasts is None else max(1, milliseconds(lasts))
        fields[wire.IDEMPOTENCY] = IdempotencyKey(window, window_ms).pack()
    return pack_fields(fields)


def key_of(
    callee: "Callee",
    name: str,
    options: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str | None:
    """The key that the call's option says, else the task's; None for none."""
    is_template = name not in options
    value: Key = callee.options.get(name) if is_template else options[name]
    if isinstance(value, str):
        return filled_in(callee, name, value, args, kwargs) if is_template else value
    if value is None or value is False:
        return None
    if value is True:
        return digest(callee, args, kwargs)
    assert callable(value)
    made = value(*args, **kwargs)
    if made is not None and not isinstance(made, str):
        raise TypeError(f"{name} of {callee.name} gave {made!r:.80}: a text is needed, or None")
    return made


def filled_in(
    callee: "Callee", name: str, template: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """The template with the call's arguments in it."""
    try:
        return template.format(*args, **bound(callee, args, kwargs))
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} of {callee.name} is {template!r:.80}, which these arguments do not fill in: "
            f"{type(error).__name__}: {error}"
        ) from error


def bound(callee: "Callee", args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by name; of a task known by name alone, those that were named."""
    if callee.signature is None:
        return dict(kwargs)
    found = callee.signature.bind(*args, **kwargs)
    found.apply_defaults()
    return dict(found.arguments)


def digest(callee: "Callee", args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """32 digits that are the same for the same arguments. Costs a look at each of them."""
    named = bound(callee, args, kwargs)
    rest = list(args) if callee.signature is None else []
    body = encode_call(callee.name, [ordered(rest), ordered(named)], {})
    return blake2b(body, digest_size=16).hexdigest()


def ordered(value: Any) -> Any:
    """The value with maps as lists of pairs, ordered by their keys: equal ones are the same."""
    if isinstance(value, dict):
        return [[key, ordered(value[key])] for key in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [ordered(each) for each in value]
    return value
