"""Which of its queues a consumer is handed messages of next: strictly, or by weights.

    strict      none of a queue while one that the consumer named before it has any for it
    weighted    queues that have messages for it share its hand-outs by their weights

A queue that has nothing it may be handed now, for whatever reason, keeps nobody waiting. All of
it is volatile: a subscription begins even.
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Any

from qbroker.core.refusals import RefusedError
from qprotocol.frames import Consume
from qprotocol.limits import QUEUE_WEIGHT_MAX
from qprotocol.options import QUEUE_ORDERS, STRICT

_MESSAGE = 1 << 20
"""What a message costs a queue of weight 1."""


class QueueOrder:
    """How a consumer of several queues goes from one to the next."""

    __slots__ = ("_now", "_places", "_spent", "_total", "_weights")

    def __init__(self, queues: list[int], weights: list[int]) -> None:
        self._places = {number: place for place, number in enumerate(queues)}
        self._weights = dict(zip(queues, weights, strict=False))
        """By queue number; none if the order is strict."""
        self._total = sum(weights)
        self._spent: dict[int, int] = {}
        """What was handed out of a queue, divided by its weight."""
        self._now = 0
        """What the queue had spent that was served last: who comes back begins there."""

    def key(self, number: int) -> int:
        """The queue with the lowest one is the next."""
        return max(self._spent.get(number, 0), self._now) if self._weights else self._places[number]

    def most(self, limit: int, room: int, number: int, lead: int) -> int:
        """Messages of it, up to ``limit``, until the next queue's turn, which is ``lead`` behind.

        Turns are longer for a consumer with much ``room``, so that grants are few.
        """
        weight = self._weights.get(number)
        if weight is None:
            return limit
        turn = max(weight, room * weight // self._total)
        return min(limit, turn + lead * weight // _MESSAGE)

    def spend(self, number: int, count: int) -> None:
        """So many of it were handed out."""
        weight = self._weights.get(number)
        if weight:
            self._now = self.key(number)
            self._spent[number] = self._now + count * _MESSAGE // weight


class Contest:
    """The queues that have something for a consumer, in one turn, the next to be served first."""

    __slots__ = ("_heap", "_order")

    def __init__(self, order: QueueOrder, queues: Iterable[int]) -> None:
        self._order = order
        self._heap = [(order.key(number), number) for number in queues]
        heapify(self._heap)

    @property
    def queues(self) -> list[int]:
        """Those that are left."""
        return [number for _, number in self._heap]

    @property
    def first(self) -> int:
        """The queue whose turn it is; -1 if none has anything."""
        return self._heap[0][1] if self._heap else -1

    def most(self, limit: int, room: int) -> int:
        """How many messages of the first may be handed out now, up to ``limit``.

        ``room`` is the consumer's.
        """
        heap = self._heap
        if len(heap) == 1:
            return limit
        return self._order.most(limit, room, heap[0][1], min(heap[1:3])[0] - heap[0][0])

    def took(self, count: int) -> None:
        """So many of the first were handed out."""
        number = self.first
        self._order.spend(number, count)
        heapreplace(self._heap, (self._order.key(number), number))

    def drop(self) -> None:
        """The first has nothing more for the consumer in this turn."""
        heappop(self._heap)


def order_of(frame: Consume, names: list[str], numbers: list[int]) -> QueueOrder | None:
    """What the consumer chose; None if it has one queue. Raises RefusedError."""
    given: Mapping[str, Any] = frame.weights or {}
    if frame.order not in QUEUE_ORDERS:
        raise RefusedError("BAD_REQUEST", f"order {frame.order!r}: {' or '.join(QUEUE_ORDERS)}")
    if frame.order == STRICT and given:
        raise RefusedError("BAD_REQUEST", f"order {STRICT!r} with weights: name one of the two")
    for name, weight in given.items():
        if name not in names:
            raise RefusedError("BAD_REQUEST", f"a weight of {name!r}, which is not consumed")
        if type(weight) is not int or not 1 <= weight <= QUEUE_WEIGHT_MAX:
            raise RefusedError(
                "BAD_REQUEST", f"the weight of {name!r} is {weight!r}: 1 to {QUEUE_WEIGHT_MAX}"
            )
    if len(numbers) == 1:
        return None
    return QueueOrder(
        numbers, [] if frame.order == STRICT else [given.get(name, 1) for name in names]
    )
