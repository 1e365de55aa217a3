"""What grants, messages and failures say, as a row's columns have it."""

from collections.abc import Iterator

from qbroker.archive.known import Grant
from qprotocol.failure import Failure
from qprotocol.message import unpack_meta

MESSAGE_CHARS_MAX = 500
"""What a row says of an error's message; the whole failure is in the results."""


def overlaps(grant: Grant | None, first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """The run by lanes: lane, first position, how many. Lane -1 where the grant is not known."""
    if grant is None:
        yield -1, first, count
        return
    for lane, start, length in grant.entries:
        begin, end = max(first, start), min(first + count, start + length)
        if begin < end:
            yield lane, begin, end - begin


def meta_of(meta: bytes) -> tuple[str | None, str | None]:
    """Root and parent of a message's meta section."""
    root, parent, *_ = unpack_meta(meta)
    return root or None, parent or None


def failure_of(raw: bytes) -> tuple[str | None, str | None]:
    """A packed failure's kind and how its message begins; text that is none, as it is."""
    try:
        failure = Failure.unpack(raw)
    except ValueError:
        return None, raw.decode("utf-8", "replace")[:MESSAGE_CHARS_MAX] or None
    return failure.kind, failure.message[:MESSAGE_CHARS_MAX]
