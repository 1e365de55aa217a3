"""Names of queues and exchanges: what they may be, and the sentence that says why not.

A name is 1 to 200 of the ASCII letters, digits and ``. _ : -``. So it can stand in a file's
name, a URL, a metric's label and a terminal without quoting; "/" is kept for namespaces.
"""

from re import compile as pattern

from qprotocol.limits import NAME_BYTES_MAX

_NAME = pattern(f"[A-Za-z0-9._:-]{{1,{NAME_BYTES_MAX}}}")
_WRONG = pattern("[^A-Za-z0-9._:-]")


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
