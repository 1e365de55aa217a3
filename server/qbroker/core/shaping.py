"""What the options of queues say of messages that come: priorities, expiry, room.

Only queues with such options are looked at, and only when there are any. Nodes of a graph that
are held are not in their queues yet: of these it is seen to when they are let go.

A publish that does not fit is refused whole, whatever queues it is for. What follows on an
outcome never is: there it is overflow.py that sees to the limits.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from qbroker.core import records as r
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import RETRY_AFTER_MS
from qbroker.core.state import BrokerState
from qbroker.core.uploads import Upload
from qprotocol import wire
from qprotocol.options import REJECT, QueueOptions


@dataclass(slots=True)
class Coming:
    """What a frame brings into one queue."""

    name: str
    options: QueueOptions
    queue: Queue | None
    """None if it will be made."""
    count: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Shape:
    """What a walk brings into queues whose options say something of it."""

    state: BrokerState
    now: Now
    homes: Mapping[int, str]
    """Lanes that will be opened, to their queues' names; the walk adds to it."""
    following: bool = False
    """It follows on an outcome: nothing of it is refused."""
    coming: dict[str, Coming] = field(default_factory=dict)

    def of_lane(self, number: int) -> Coming:
        """What comes into the lane's queue."""
        lane = self.state.lane_numbered(number)
        if lane:
            queue = lane.queue
            found = self.coming.get(queue.name)
            return found or self._begin(Coming(queue.name, queue.options, queue))
        name = self.homes[number]
        known = self.state.queues.get(name)
        if known:
            return self.of_queue(known)
        options = self.state.catalogue.options_for(name)
        return self.coming.get(name) or self._begin(Coming(name, options, None))

    def of_queue(self, queue: Queue) -> Coming:
        """What comes into the queue."""
        found = self.coming.get(queue.name)
        return found or self._begin(Coming(queue.name, queue.options, queue))

    def _begin(self, coming: Coming) -> Coming:
        self.coming[coming.name] = coming
        return coming

    def take(self, batch: r.MessageBatch) -> None:
        """The batch has what the options make of it. Raises RefusedError for a priority."""
        expiring = {row[0]: row[1] for row in batch.expiring}
        index = 0
        for number, priority, count, due_ms in batch.runs:
            is_held = due_ms == r.HELD
            coming = self.of_lane(number)
            options = coming.options
            if not self.following:
                check_priority(coming.name, options, index, priority)
            if options.message_ttl_ms and not is_held:
                latest = (due_ms or self.now.wall_ms) + options.message_ttl_ms
                for each in range(index, index + count):
                    expiring[each] = min(expiring.get(each, latest), latest)
            coming.count += 0 if is_held else count
            if options.max_bytes:
                assert batch.offsets is not None
                sizes = array("I", (size(batch.raw, at) for at in batch.offsets[index:][:count]))
                if is_held:
                    assert batch.woven is not None
                    batch.woven.sizes.append([index, sizes.tobytes()])
                else:
                    coming.bytes += sum(sizes)
                    batch.sizes.append([index, sizes.tobytes()])
            index += count
        batch.expiring = [[each, expires_ms] for each, expires_ms in expiring.items()]

    def add_staged(self, upload: Upload) -> None:
        """What came in parts before comes, too."""
        state = self.state
        for (number, _), positions in upload.staged.items():
            self.of_lane(number).count += len(positions)
        for number, count in upload.timers.counts():
            self.of_queue(state.numbered[number]).count += count
        for number, _, sizes in upload.weighed:
            self.of_queue(state.numbered[number]).bytes += sum(array("I", sizes))

    def check_room(self) -> None:
        """Raise RefusedError if a queue that refuses what is too much has no room for it."""
        for coming in self.coming.values():
            if coming.options.overflow == REJECT:
                queue, options = coming.queue, coming.options
                there = queue.messages if queue else 0
                weights = self.state.catalogue.weights.get(queue.number) if queue else None
                check(coming, "max_length", options.max_length, there, coming.count)
                held = weights.bytes if weights else 0
                check(coming, "max_bytes", options.max_bytes, held, coming.bytes)


def size(raw: bytes, at: int) -> int:
    """Of the packed message at ``at``, whether or not all of it is there."""
    return 4 + int(wire.SIZE.unpack_from(raw, at)[0])


def check_priority(name: str, options: QueueOptions, index: int, priority: int) -> None:
    """Raise RefusedError for one that the queue does not take."""
    low, high = options.min_priority, options.max_priority
    if not low <= priority <= high:
        raise RefusedError(
            "BAD_MESSAGE",
            f"message {index}: priority {priority}, and queue {name!r} takes {low} to {high} "
            "(min_priority, max_priority): nothing was published",
            index=index,
            queue=name,
        )


def check(coming: Coming, limit: str, most: int, there: int, more: int) -> None:
    """Raise RefusedError if that is too much."""
    if not most or there + more <= most:
        return
    unit = "messages" if limit == "max_length" else "bytes"
    raise RefusedError(
        "QUEUE_FULL",
        f"queue {coming.name!r} has {there} {unit} and {limit} is {most}: {more} more do not fit, "
        "and nothing was published; try again when some of it is done, or have it raised: "
        f"qbroker queue set {coming.name} {limit}={there + more}",
        retry_after_ms=RETRY_AFTER_MS,
        queue=coming.name,
        limit=limit,
        most=most,
        there=there,
        more=more,
    )


def check_deleted(state: BrokerState, upload: Upload) -> None:
    """Raise RefusedError if a queue is no more for which earlier parts brought messages."""
    staged = (state.lanes[number].queue for number, _ in upload.staged)
    timed = (state.numbered[number] for number, _ in upload.timers.counts())
    for queue in chain(staged, timed):
        if queue.terms.deleted:
            raise RefusedError(
                "NO_QUEUE",
                f"queue {queue.name!r} was deleted while the parts came: nothing was published, "
                "and all of it may be sent again",
                queue=queue.name,
            )
