"""The preview of a call's arguments: what those see who look through settled tasks.

Rule 1. There is none unless somebody asked for it: ``preview_chars`` of the call, the task, or
        ``app.conf.task_preview_chars``.
Rule 2. What a call says of itself (``argsrepr``, ``kwargsrepr``) is all that is shown of it;
        else ``preview_repr`` makes the text; else it is the arguments as Python writes them.
Rule 3. It is cut to ``preview_chars`` characters, and costs no more than these, however much
        is sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qclient.serialization import MSGPACK, SCALARS

SIZED = {str, bytes, bytearray}
BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}
DEPTH_MAX = 20
"""What is nested deeper is shown as dots."""
MORE = "…"

PreviewRepr = Callable[[tuple[Any, ...], dict[str, Any]], str]
"""Makes the text of a call's arguments, and leaves out what nobody may see."""


def preview_of_call(
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    """The preview of a call with these options; empty where ``preview_chars`` is 0.

    Raises TypeError if ``preview_repr`` gives no text, and what it raises itself.
    """
    chars_max, make = options["preview_chars"], options["preview_repr"]
    if not chars_max:
        return ""
    said = [options[name] for name in ("argsrepr", "kwargsrepr") if name in options]
    if said:
        return cut(iter((" ".join(said),)), chars_max)
    if make is None:
        return cut(written(args, kwargs, chars_max), chars_max)
    text = make(tuple(args), dict(kwargs))
    if not isinstance(text, str):
        raise TypeError(f"preview_repr of {task} gave {text!r:.80}: a text is needed")
    return cut(iter((text,)), chars_max)


def cut(pieces: Iterator[str], chars_max: int) -> str:
    """The pieces as one text of at most so many characters. Takes no more than it needs."""
    text = ""
    for piece in pieces:
        text += piece
        if len(text) > chars_max:
            text = text[: chars_max - 1] + MORE
            break
    return text.encode("utf-8", "backslashreplace").decode()


def written(args: Sequence[Any], kwargs: Mapping[str, Any], chars_max: int) -> Iterator[str]:
    """``(1, 'a') {'key': 2}``, piece by piece."""
    yield from literal(tuple(args), chars_max)
    if kwargs:
        yield " "
        yield from literal({**kwargs}, chars_max)


def literal(value: Any, chars_max: int, depth: int = 0) -> Iterator[str]:
    """The value as Python writes it, piece by piece. Runs no code of the caller's."""
    kind = type(value)
    if kind in SIZED:
        yield repr(value[:chars_max])
    elif depth > DEPTH_MAX:
        yield MORE
    elif kind is dict:
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from literal(key, chars_max, depth + 1)
            yield ": "
            yield from literal(item, chars_max, depth + 1)
        yield "}"
    elif kind in BRACKETS and value:
        first, last = BRACKETS[kind]
        yield first
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from literal(item, chars_max, depth + 1)
        yield f",{last}" if kind is tuple and len(value) == 1 else last
    elif kind is frozenset:
        yield "frozenset("
        yield from literal(set(value), chars_max, depth)
        yield ")"
    else:
        yield scalar(value)


def scalar(value: Any) -> str:
    """What has no parts; of a class that cannot be sent, its name alone."""
    if type(value) not in SCALARS[MSGPACK] and type(value) not in BRACKETS:
        return f"<{type(value).__name__}>"
    try:
        return repr(value)
    except ValueError:  # more digits than Python writes
        return f"<{type(value).__name__}>"
