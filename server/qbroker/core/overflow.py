"""Queues over their limits: what is too much becomes a dead letter.

    dead_letter_oldest    the oldest ready messages go; what came, where none is ready
    reject                what came goes: it followed on an outcome, for publishes are refused
    a dead-letter queue   the same, and it goes for good

This is seen to in the turn in which the messages came, before anybody could look: a record of
its own, in the same batch. Of what is over by more than OVERFLOW_MESSAGES_MAX, for a limit was
lowered or tens of thousands came at once, so many go a turn.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from qbroker.core import records as r
from qbroker.core.burying import buried
from qbroker.core.elders import Elders
from qbroker.core.leases import UNSEEN
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.results import Finished
from qbroker.core.runs import Run
from qbroker.core.settings import CROWDED_MAX, OVERFLOW_LATER_MAX, OVERFLOW_MESSAGES_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey
from qbroker.core.uploads import Upload
from qprotocol.states import State

Append = Callable[[r.Record], object]
NOWHERE = -1


@dataclass(slots=True)
class Excess:
    """By how much a queue is over its limits."""

    messages: int
    bytes: int

    @classmethod
    def of(cls, state: BrokerState, queue: Queue) -> "Excess":
        """As it is now."""
        options, weights = queue.options, state.catalogue.weights.get(queue.number)
        over = queue.messages - options.max_length if options.max_length else 0
        return cls(max(0, over), max(0, weights.bytes - options.max_bytes) if weights else 0)

    def __bool__(self) -> bool:
        return bool(self.messages or self.bytes)


@dataclass(slots=True)
class Victims:
    """Messages that have to go, as far as that has been worked out."""

    state: BrokerState
    queue: Queue
    left: Excess
    found: dict[int, tuple[Run, int]] = field(default_factory=dict)
    """By position: where it waits, and for which time, or 0."""

    def add(self, run: Run, position: int, due_ms: int = 0) -> bool:
        """The message goes; whether that is enough."""
        if position not in self.found:
            self.found[position] = run, due_ms
            weights = self.state.catalogue.weights.get(self.queue.number)
            self.left.messages = max(0, self.left.messages - 1)
            self.left.bytes = max(0, self.left.bytes - (weights.of(position) if weights else 0))
        return not self.left

    def add_oldest(self, elders: Elders, most: int) -> None:
        """The oldest go, so many at most."""
        with closing(elders.oldest()) as oldest:
            any(self.add(run, position) for run, position in islice(oldest, most))


def relieve(state: BrokerState, now: Now, append: Append) -> None:
    """No queue is over its limits by what came since the last call."""
    catalogue = state.catalogue
    while catalogue.arrived:
        arrived, catalogue.arrived = catalogue.arrived, []
        news: dict[Queue, list[tuple[Run, Sequence[int], int]]] = {}
        for each in arrived:
            news.setdefault(each[0].lane.queue, []).append(each)
        for queue, came in news.items():
            excess = Excess.of(state, queue)
            if excess:
                take_out(state, now, append, Victims(state, queue, excess), came)


def relieve_more(state: BrokerState, now: Now, append: Append) -> None:
    """The next piece of what is over limits that were lowered, or came by tens of thousands."""
    crowded, elders = state.catalogue.crowded, state.catalogue.elders
    for number in list(islice(crowded, CROWDED_MAX)):
        queue = state.numbered[number]
        excess = Excess.of(state, queue)
        if not excess or not queue.ready or number not in elders:
            crowded.discard(number)
        else:
            take_out(state, now, append, Victims(state, queue, excess), [])
            return


def take_out(
    state: BrokerState,
    now: Now,
    append: Append,
    victims: Victims,
    came: list[tuple[Run, Sequence[int], int]],
) -> None:
    """Make the messages that have to go dead letters: so many of the oldest at most, and what
    came, where none is ready or the queue refuses. What is left is for the next turns.
    """
    queue = victims.queue
    last = queue.holds_letters
    reason = reason_of(victims)
    elders = state.catalogue.elders.get(queue.number)
    if elders and not elders.is_complete:
        elders.list_more()
        state.catalogue.crowded.add(queue.number)
        return
    most = OVERFLOW_MESSAGES_MAX if came else OVERFLOW_LATER_MAX
    if elders:
        victims.add_oldest(elders, most)
    if victims.left and (not elders or len(victims.found) < most):
        any(victims.add(*each) for each in newest(came))
    if victims.left:
        state.catalogue.crowded.add(queue.number)
    survey = Survey(state, now)
    entries = []
    for run, first, count, due_ms in spans(victims.found):
        to = NOWHERE if last else survey.dead_lane(run.lane)
        entries.append([run.lane.number, run.priority, first, count, to, due_ms])
    for record in survey.opened:
        append(record)
    until = now.wall_ms + state.settings.result_ttl_ms
    append(r.Overflowed(entries, reason, now.wall_ms, until))


def reason_of(victims: Victims) -> str:
    """Which limit it is."""
    options = victims.queue.options
    name = "max_length" if victims.left.messages else "max_bytes"
    return f"overflow: {name} is {getattr(options, name)}"


def newest(came: list[tuple[Run, Sequence[int], int]]) -> Iterator[tuple[Run, int, int]]:
    """What came, the last first."""
    for run, positions, due_ms in reversed(came):
        yield from ((run, position, due_ms) for position in reversed(positions))


def spans(found: dict[int, tuple[Run, int]]) -> list[tuple[Run, int, int, int]]:
    """The messages as neighbours of one run, oldest first: (run, first, count, due_ms)."""
    out: list[tuple[Run, int, int, int]] = []
    for position in sorted(found):
        run, due_ms = found[position]
        last = out[-1] if out else (None, 0, 0, 0)
        if last[0] is run and last[1] + last[2] == position and last[3] == due_ms:
            out[-1] = run, last[1], last[2] + 1, due_ms
        else:
            out.append((run, position, 1, due_ms))
    return out


def apply_overflowed(state: BrokerState, position: int, record: r.Overflowed) -> None:
    """These messages are dead letters, or over if they were."""
    for number, priority, first, count, lane, due_ms in record.entries:
        run = state.lanes[number].run(priority)
        queue = run.lane.queue
        queue.counts["overflowed"] += count
        target = None if lane == NOWHERE else state.lanes[lane].run(priority)
        if target is not None:
            queue.counts["dead_lettered"] += count
        for each in range(first, first + count):
            state.withdraw(run, each, due_ms)
            entry = ended(state, each, position, record, dead=target is not None)
            if target is not None:
                known = state.attempts.get(each, UNSEEN)
                state.attempts[each] = known._replace(reason=record.reason, run=target, waits=False)
                buried(state, run, each, record.finished_ms)
            state.finish(each, entry, keep=target is not None, synced=queue.synced)
            if target is None:
                state.catalogue.gone(queue, each)
                state.forget(each)


def ended(
    state: BrokerState, each: int, position: int, record: r.Overflowed, *, dead: bool
) -> Finished:
    """What became of one of them: a FAILURE as a dead letter, else it was thrown away."""
    failures = state.attempts.get(each, UNSEEN).failures
    return Finished(
        State.FAILURE if dead else State.REVOKED,
        0,
        0,
        record.finished_ms,
        0,
        record.keep_until_ms,
        failures,
        record.reason,
        settled=position,
    )


def note_arrivals(state: BrokerState, first: int, batch: r.MessageBatch) -> None:
    """What the batch brings into queues with limits came, with its sizes."""
    at = first
    for number, priority, count, due_ms in batch.runs:
        lane = state.lanes[number]
        if lane.queue.options.is_bounded and due_ms != r.HELD:
            state.catalogue.arrived.append((lane.run(priority), range(at, at + count), due_ms))
        at += count
    for queue, position, packed in weighed(state, first, batch):
        weigh(state, queue, position, packed)


def weighed(
    state: BrokerState, first: int, batch: r.MessageBatch
) -> Iterator[tuple[int, int, bytes]]:
    """(queue number, first position, sizes as u32) of those of the batch that have a size."""
    ends, end = [], 0
    for run in batch.runs:
        end += run[2]
        ends.append(end)
    for index, packed in batch.sizes:
        lane = batch.runs[bisect_right(ends, index)][0]
        yield state.lanes[lane].queue.number, first + index, packed


def weigh(state: BrokerState, number: int, first: int, packed: bytes) -> None:
    """The sizes of neighbours in the queue with that number; they may be for nothing by now."""
    weights = state.catalogue.weights.get(number)
    if weights is not None:
        weights.add(first, array("I", packed))


def note_upload(state: BrokerState, upload: Upload) -> None:
    """What the upload brings into queues with limits came, with its sizes."""
    arrived = state.catalogue.arrived
    for due_ms, position, number in upload.timers.entries():
        run = state.run_numbered(number)
        if run.lane.queue.options.is_bounded:
            arrived.append((run, (position,), due_ms))
    for (number, priority), positions in upload.staged.items():
        lane = state.lanes[number]
        if lane.queue.options.is_bounded:
            arrived.append((lane.run(priority), positions[:], 0))
    for each in upload.weighed:
        weigh(state, *each)
