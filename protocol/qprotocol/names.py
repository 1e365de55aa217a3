"""Names of queues and exchanges: what they may be, and the sentence that says why not. And names
of tasks, as a Consume lists them.

A name is 1 to 200 of the ASCII letters, digits and ``. _ : -``. So it can stand in a file's
name, a URL, a metric's label and a terminal without quoting; "/" is kept for namespaces.
"""

from collections.abc import Iterable
from re import compile as pattern

from qprotocol.limits import (
    NAME_BYTES_MAX,
    TASK_BYTES_MAX,
    TASK_NAMES_BYTES_MAX,
    TASKS_KNOWN_MAX,
)

_NAME = pattern(f"[A-Za-z0-9._:-]{{1,{NAME_BYTES_MAX}}}")
_WRONG = pattern("[^A-Za-z0-9._:-]")


def encoded(what: str, text: str, bytes_max: int) -> bytes:
    """``text`` as UTF-8. Raises ValueError for one that is too long, or no text."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {text!r:.80} cannot be written as UTF-8: {error}") from error
    if len(raw) > bytes_max:
        raise ValueError(f"{what} has {len(raw)} bytes: at most {bytes_max}")
    return raw


def check_queue_name(name: str) -> None:
    """The name is one a queue may have. Raises ValueError saying why it is not."""
    _check("queue", name)


def check_exchange_name(name: str) -> None:
    """The name is one an exchange may have; empty is the one that routes by queue name.

    Raises ValueError saying why it is not.
    """
    if name:
        _check("exchange", name)


def _check(noun: str, name: str) -> None:
    if _NAME.fullmatch(name):
        return
    if not name:
        fault = "is empty"
    elif wrong := _WRONG.search(name):
        fault = f"holds {wrong[0]!r} at character {wrong.start() + 1}"
    else:
        fault = f"has {len(name)} characters"
    raise ValueError(
        f"the {noun} name {name!r:.80} {fault}: nothing can be kept under it; "
        f"use 1 to {NAME_BYTES_MAX} of the letters A-Z a-z, digits and . _ : -"
    )


def pack_task_names(names: Iterable[str]) -> bytes:
    """Each behind its length in one byte. Raises ValueError for one too long, or too many."""
    packed = []
    for name in names:
        raw = name.encode()
        if len(raw) > TASK_BYTES_MAX:
            raise ValueError(
                f"the task {name!r:.80} has {len(raw)} bytes: at most {TASK_BYTES_MAX}"
            )
        packed.append(bytes((len(raw),)) + raw)
    found = b"".join(packed)
    check_task_names(len(packed), len(found))
    return found


def unpack_task_names(raw: bytes) -> list[str]:
    """The names in ``raw``. Raises ValueError if they cannot be read, or are too many."""
    names: list[str] = []
    at = 0
    check_task_names(0, len(raw))
    while at < len(raw):
        end = at + 1 + raw[at]
        if end > len(raw):
            raise ValueError(f"the names of tasks end inside one, behind {len(names)}")
        try:
            names.append(raw[at + 1 : end].decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"the name of task {len(names)} is no UTF-8: {error}") from error
        at = end
    check_task_names(len(names), 0)
    return names


def check_task_names(count: int, size: int) -> None:
    """Raise ValueError for more than one Consume may list."""
    if count > TASKS_KNOWN_MAX or size > TASK_NAMES_BYTES_MAX:
        raise ValueError(
            f"{count or 'the'} names of tasks with {size} bytes: at most {TASKS_KNOWN_MAX} of "
            f"{TASK_NAMES_BYTES_MAX}; name none, and know all"
        )
