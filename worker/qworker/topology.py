"""The exchanges and queues that an application declares, as its worker says them to the broker.

The parent never sees the application: what ``app.conf.task_queues`` says comes from the import
process as packed frames. A queue of ``Broadcast`` is the worker's own: of its exchange's name and
its session's, bound for as long as the worker is there, and deleted when it has gone.
"""

import logging
import time
from collections.abc import Collection, Iterator
from typing import Any

from qclient.exceptions import ConnectionLost
from qclient.link import Link, left_s
from qclient.topology import Broadcast, declarations
from qprotocol import frames as f
from qprotocol.codec import Decoder, encode
from qworker.logs import note

ANSWER_S = 10.0
NAME_MAX = 180
"""Of an exchange's name in that of a worker's own queue: room for the session's."""


def declared(app: Any) -> dict[str, list[str]]:
    """What the application declares, as JSON takes it. Called in the import process."""
    things = list(app.conf.task_queues)
    return {
        "declared": [encode(frame).hex() for frame in declarations(things)],
        "broadcasts": [each.name for each in things if isinstance(each, Broadcast)],
    }


def own_queue(broadcast: str, session: str) -> str:
    """The queue in which the worker with that session gets its copies."""
    return f"{broadcast[:NAME_MAX]}.{session[:12]}"


def frames(packed: Collection[str], broadcasts: Collection[str], session: str) -> list[f.Frame]:
    """What is said to the broker: the declarations, and the worker's own queues."""
    return [*unpacked(packed), *own(broadcasts, session)]


def unpacked(packed: Collection[str]) -> Iterator[f.Frame]:
    decoder = Decoder()
    for each in packed:
        yield from decoder.feed(bytes.fromhex(each))


def own(broadcasts: Collection[str], session: str) -> Iterator[f.Frame]:
    for name in broadcasts:
        queue = own_queue(name, session)
        yield f.Declare(queue=queue, options={"auto_delete": True})
        yield f.Bind(exchange=name, key="", destination=queue)


def declare(link: Link, wanted: Collection[f.Frame]) -> None:
    """The broker has all of them, or has refused one, which is logged.

    Raises ConnectionLost, also if it does not answer in time. One round trip, none for nothing.
    """
    waiting: dict[int, str] = {}
    for correlation, frame in enumerate(wanted, start=1):
        frame.correlation = correlation
        waiting[correlation] = type(frame).__name__
    if waiting:
        link.send(*wanted)
    deadline = time.monotonic() + ANSWER_S
    while waiting:
        if time.monotonic() >= deadline:
            raise ConnectionLost("the broker did not say which exchanges and queues it has")
        for answer in link.receive(left_s(deadline)):
            what = waiting.pop(answer.correlation, "")
            if isinstance(answer, f.Error) and not what:
                raise ConnectionLost(f"{answer.code}: {answer.message}")
            if isinstance(answer, f.Error):
                note(logging.WARNING, "declaration refused", what=what, reason=answer.message)
