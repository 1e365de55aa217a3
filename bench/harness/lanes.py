"""Messages with tasks and keys, and the rules that hold them back."""

from __future__ import annotations

from collections.abc import Iterator

from harness.raw import Connection, Load, consume, publish
from qprotocol.frames import Ok, SetLimit
from qprotocol.ids import mint, unpack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message

BATCH = 100
SLICE = 1_000_000
"""Messages packed at once before they are sent: what the client holds in memory."""
WIDE = 1_000_000
"""Of a limit that is looked at for each message and stops none."""


def set_limit(port: int, name: str, **rule: int | str | bool) -> None:
    """The rule is in force."""
    connection = Connection(port, "admin")
    connection.send(SetLimit(name=name, rule=dict(rule), correlation=4))
    connection.next(Ok)
    connection.close()


def set_wide_limits(port: int, queue: str) -> None:
    """A number of slots and a rate are counted for the queue's messages, and hold none back."""
    set_limit(port, "slots", queue=queue, concurrency=WIDE)
    set_limit(port, "rate", queue=queue, rate=WIDE, burst=WIDE)


def packed(queue: str, size: int, *, task: str = "", key: str = "") -> bytes:
    """A message; a task's all have one id, which the broker does not mind."""
    name = unpack_id(mint(1, 1), minted=True) if task else ""
    keys = LaneKeys(limit=key).pack()
    return Message(queue, b"x" * size, id=name, task=task, keys=keys).pack()


def pour(port: int, count: int, messages: list[bytes]) -> float:
    """Seconds until `count` messages, of these by turns, are queued; packing left out."""
    took, left = 0.0, count
    while left > 0:
        step = min(left, SLICE)
        load = Load("", 1, BATCH, 0, step, messages)
        took += step / publish(port, load)
        left -= step
    return took


def drain(port: int, count: int, queues: list[str], *tasks: str) -> float:
    """Seconds until so many were taken and acknowledged by one who knows these tasks, or all."""
    return count / consume(port, Load("", 1, BATCH, 0, count, (), queues, tasks))


def named(prefix: str, count: int) -> Iterator[str]:
    """So many names."""
    return (f"{prefix}{number:06}" for number in range(count))
