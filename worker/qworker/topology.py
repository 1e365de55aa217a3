"""The exchanges and queues that an application declares, as its worker says them to the broker.

The parent never sees the application: what ``app.conf.task_queues`` says comes from the import
process as packed frames. A queue of ``Broadcast`` is the worker's own: of its exchange's name and
its session's, bound for as long as the worker is there, and deleted when it has gone.
"""

import logging
from collections.abc import Collection, Iterator
from typing import Any

from qclient.link import Link
from qclient.topology import Broadcast, declarations
from qprotocol import frames as f
from qprotocol.codec import Decoder, encode
from qworker.asking import ask
from qworker.logs import note

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
    answers = ask(link, wanted, "which exchanges and queues it has")
    for frame, answer in zip(wanted, answers, strict=True):
        if isinstance(answer, f.Error):
            what = type(frame).__name__
            note(logging.WARNING, "declaration refused", what=what, reason=answer.message)
