"""Which of its queues a consumer is handed messages of next: strictly, or by weights.

    strict      none of a queue while one that the consumer named before it has any for it
    weighted    queues that have messages for it share its hand-outs by their weights

A queue that has nothing it may be handed now, for whatever reason, keeps nobody waiting. All of
it is volatile: a subscription begins even.

A consumer may listen to thousands of queues, and settles thousands of messages a second: neither
a settlement nor a hand-out walks its queues. Those that may have something are in its contest,
which a queue joins when something happens to it, and leaves when its turn comes for nothing.
"""

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
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

    @property
    def is_strict(self) -> bool:
        """Whether a queue keeps its turn for as long as it has something."""
        return not self._weights

    def key(self, number: int) -> int:
        """The queue with the lowest one is the next."""
        return max(self._spent.get(number, 0), self._now) if self._weights else self._places[number]

    def most(self, limit: int, room: int, number: int, lead: int) -> int:
        """Messages of it, up to ``limit``, until the next queue's turn, which is ``lead`` behind.

        Turns are longer for a consumer with much ``room``, so that grants are few.
        """
        weight = self._weights[number]
        turn = max(weight, room * weight // self._total)
        return min(limit, turn + lead * weight // _MESSAGE)

    def spend(self, number: int, count: int) -> None:
        """So many of it were handed out."""
        weight = self._weights.get(number)
        if weight:
            self._now = self.key(number)
            self._spent[number] = self._now + count * _MESSAGE // weight


class Contest:
    """The queues that may have something for a consumer, the next to be served first."""

    __slots__ = ("_heap", "_listed", "order")

    def __init__(self, order: QueueOrder) -> None:
        self.order = order
        self._heap: list[tuple[int, int]] = []
        """(key, number). Keys stay true: whoever is served had the lowest, and the others' do not
        depend on it."""
        self._listed: set[int] = set()

    @property
    def first(self) -> int:
        """The queue whose turn it is; -1 if none has anything."""
        return self._heap[0][1] if self._heap else -1

    def add(self, number: int) -> None:
        """The queue may have something."""
        if number not in self._listed:
            self._listed.add(number)
            heappush(self._heap, (self.order.key(number), number))

    def most(self, limit: int, room: int, is_able: Callable[[int], bool]) -> int:
        """How many messages of the first may be handed out now, up to ``limit``.

        ``room`` is the consumer's. Others that have nothing any more drop out.
        """
        if self.order.is_strict:
            return limit
        heap = self._heap
        key, number = first = heappop(heap)
        while heap and not is_able(self.first):
            self.drop()
        if heap:
            limit = self.order.most(limit, room, number, heap[0][0] - key)
        heappush(heap, first)
        return limit

    def took(self, count: int) -> None:
        """So many of the first were handed out."""
        number = self.first
        self.order.spend(number, count)
        heapreplace(self._heap, (self.order.key(number), number))

    def drop(self) -> None:
        """The first has nothing more for the consumer."""
        self._listed.discard(heappop(self._heap)[1])

    def forget(self, number: int) -> None:
        """The queue is no more. Costs a step for each that is left."""
        self._listed.discard(number)
        self._heap = [each for each in self._heap if each[1] != number]
        heapify(self._heap)


def contest_of(frame: Consume, names: list[str], numbers: list[int]) -> Contest | None:
    """By the order that the consumer chose; None if it has one queue. Raises RefusedError."""
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
    weights = [] if frame.order == STRICT else [given.get(name, 1) for name in names]
    return Contest(QueueOrder(numbers, weights))
