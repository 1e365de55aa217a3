"""Records of the log to rows of the archive: what a message's end says of it.

    Granted ------> who has it, and since when          Acked -----> SUCCESS, nothing to keep
    Settled ------> SUCCESS, FAILURE, or another try    Removed ---> REVOKED
    Returned -----> nobody has it any more              Purged ----> no row: they never ran
    Forgotten ----> its row goes                        Advanced --> as a node before it

No I/O here: records come in, changes to the archive's tables come out. What is needed
of a message itself (id, task, queue) is read through ``messages``, in runs of neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from qbroker.archive import deadletters, nodes
from qbroker.archive.changes import COLUMNS, Changes, Row
from qbroker.archive.columns import failure_of, meta_of, overlaps
from qbroker.archive.known import Grant, Known, Lane, Queue
from qbroker.archive.messages import Messages
from qbroker.archive.unpacking import unpacked
from qbroker.core import records as r
from qbroker.log.format import StoredRecord
from qprotocol import wire
from qprotocol.message import unpack_route
from qprotocol.options import is_dead_queue
from qprotocol.preview import preview_of
from qprotocol.states import State

ROUTES_MAX = 100_000
"""Packed routes remembered; beyond it they are worked out again."""
_FIXED = wire.MESSAGE.size
_SUCCESS, _FAILURE, _REVOKED = int(State.SUCCESS), int(State.FAILURE), int(State.REVOKED)


class Follower:
    """Follows the log, batch by batch. ``known`` and ``changes`` are saved together."""

    def __init__(self, known: Known, messages: Messages, preview_bytes_max: int = 0) -> None:
        """``preview_bytes_max`` of what a client shows of the arguments is kept."""
        self.known = known
        self.changes = Changes()
        self.is_shedding = False
        """Successes without a result get no row for now."""
        self.messages = messages
        self._preview_bytes_max = preview_bytes_max
        self._routes: dict[bytes, tuple[int | None, int]] = {}

    def start_anew(self) -> None:
        """What changed until now is saved."""
        self.changes = Changes()
        self.known.saved()

    def take(self, stored: Iterable[StoredRecord]) -> None:
        """Go on by a batch."""
        for each in stored:
            rule = RULES.get(each.type)
            if rule is not None:
                rule(self, each)
        self.messages.shrink()

    # Queues and lanes.

    def queue_opened(self, stored: StoredRecord) -> None:
        record = unpacked(stored, r.QueueOpened)
        history = str(record.options.get("history", ""))
        self.known.queues[record.number] = Queue(record.name, history)
        self.known.new_queues.add(record.number)

    def history_set(self, stored: StoredRecord) -> None:
        """By an operator or a policy, since the queue was declared."""
        record = unpacked(stored, r.HistorySet)
        if record.queue in self.known.queues:
            self.known.queues[record.queue].history = record.history
            self.known.new_queues.add(record.queue)

    def lane_opened(self, stored: StoredRecord) -> None:
        record = unpacked(stored, r.LaneOpened)
        self.known.lanes[record.number] = Lane(record.queue, record.task)
        self.known.new_lanes.add(record.number)

    def history(self, lane: int) -> str:
        """Of what in that lane the archive keeps a row: all, failures or none."""
        found = self.known.lanes.get(lane)
        if found is None:
            return "all"
        queue = self.known.queues.get(found.queue)
        return (queue.history if queue else "") or ("all" if found.task else "none")

    # Who has what.

    def passes(self, stored: StoredRecord) -> None:
        """Messages, which will be asked for when they are settled."""
        self.messages.note(stored)

    def granted(self, stored: StoredRecord) -> None:
        record = cast("r.Granted | r.GrantedExactly", r.unpack(stored.type, stored.body))
        entries = [(lane, first, count) for lane, _, first, count in record.entries]
        if record.adopted:
            claimed = [p for _, first, count in entries for p in range(first, first + count)]
            for position, number in list(self.known.holders(claimed)):
                self.known.end(number, 1, back=position)
        name = f"{record.session.hex()}/{record.member}" if record.session else ""
        worker = self.known.number(name) if name else None
        left = sum(count for _, _, count in entries)
        self.known.open_grant(record.grant, Grant(worker, stored.wall_ms, left, entries))

    def returned(self, stored: StoredRecord) -> None:
        record = unpacked(stored, r.Returned)
        for position, number in list(self.known.holders(record.positions)):
            self.known.end(number, 1, back=position)

    # Ends.

    def acked(self, stored: StoredRecord) -> None:
        for number, first, count in unpacked(stored, r.Acked).runs:
            grant = self.known.end(number, count)
            for lane, start, length in overlaps(grant, first, count):
                if self.history(lane) != "all":
                    self._drop_tries(start, length)
                elif self.is_shedding:
                    self.changes.shed += length
                    self._drop_tries(start, length)
                else:
                    self._rows_of(start, length, grant, stored.wall_ms)

    def _drop_tries(self, first: int, count: int) -> None:
        if self.known.tries:
            for position in range(first, first + count):
                if self.known.forget(position):
                    self.changes.unlearn(position)

    def _rows_of(self, first: int, count: int, grant: Grant | None, finished_ms: int) -> None:
        """Rows of acked neighbours."""
        worker, started = (grant.worker, grant.granted_ms) if grant else (None, None)
        rest = (worker, _SUCCESS, 0, started, finished_ms, *_NOTHING_KEPT)
        rows = [head + rest for head in self.heads(first, count)]
        if self.known.tries:
            for position in range(first, first + count):
                if position in self.known.tries:
                    times = started, finished_ms
                    self.changes.learn(position, LAST, worker, *times, "succeeded", None, None)
            rows = [self.with_tries(row) for row in rows]
        self.changes.acked += rows

    def heads(self, first: int, count: int) -> Iterator[Row]:
        """The first columns of each message's row, from its own bytes.

        Every task comes through this loop once.
        """
        unpack, routes = wire.MESSAGE.unpack_from, self._routes
        bytes_max = self._preview_bytes_max
        for passed, index, taken in self.messages.runs(first, count):
            if passed is None:
                for position in range(index, index + taken):
                    yield position, *_NO_HEAD
                continue
            raw, published = passed.body.raw, passed.wall_ms
            position = passed.body.first + index
            for at in passed.body.starts()[index : index + taken]:
                _, _, _, _, flags, _, _, n_route, n_id, _, n_meta, n_head = unpack(raw, at)
                start = at + _FIXED
                middle = start + n_route
                end = middle + n_id
                route = raw[start:middle]
                task, queue = routes.get(route) or self._route(route)
                name = raw[middle:end]
                root, parent = meta_of(raw[end : end + n_meta]) if n_meta else (None, None)
                shown = None
                if n_head and bytes_max:
                    end += n_meta
                    shown = preview_of(raw[end : end + n_head], bytes_max) or None
                chosen = name if flags & wire.ID_MINTED else name.decode() or None
                yield position, chosen, task, queue, root, parent, shown, published
                position += 1

    def _route(self, route: bytes) -> tuple[int | None, int]:
        """Task and queue of a packed route, by number."""
        _, queue, task, _ = unpack_route(route)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        number = self.known.number
        found = self._routes[route] = number(task) if task else None, number(queue)
        return found

    def with_tries(self, row: Row) -> Row:
        """The row with what is known of earlier tries, which are over."""
        tries = self.known.forget(row[0])
        if tries is None:
            return row
        patched = list(row)
        patched[_PUBLISHED] = tries.published_ms or row[_PUBLISHED]
        patched[_FAILURES] = tries.failures
        return tuple(patched)

    def settled(self, stored: StoredRecord) -> None:
        record = unpacked(stored, r.Settled)
        if record.follow_on.count:
            self.messages.note(stored)
        over = record.change == r.SUCCEEDED
        grant = self.known.end(record.grant, 1, back=0 if over else record.position)
        lane = grant.lane_of(record.position) if grant else -1
        if record.change in OUTCOMES or record.position in self.known.tries:
            self._learn(record, stored.position, grant)
        if over:
            self._succeeded(record, grant, lane)
        elif record.change in r.DEAD:
            self._failed(record, grant, lane)
        else:
            self._goes_on(record, stored.position, lane)

    def _learn(self, record: r.Settled, at: int, grant: Grant | None) -> None:
        """An attempt that was not the only one, or will not be."""
        if record.change == r.RELEASED:
            return
        outcome = OUTCOMES.get(record.change, "succeeded")
        failure = failure_of(record.result) if record.change in OUTCOMES else (None, None)
        worker, granted = (grant.worker, grant.granted_ms) if grant else (None, None)
        started = record.finished_ms - record.run_ms if record.run_ms else granted
        times = started, record.finished_ms
        self.changes.learn(record.position, at, worker, *times, outcome, *failure)

    def _succeeded(self, record: r.Settled, grant: Grant | None, lane: int) -> None:
        is_brief = self.history(lane) != "all"
        if not record.keep_until_ms and (is_brief or self.is_shedding):
            self.changes.shed += not is_brief
            self.known.forget(record.position)
            return
        if record.keep_until_ms:
            about = (None, None, None, record.content)
            row = self._row(record, grant, is_brief, about)
            self.changes.keep(record.position, row, record.result)
        else:
            self.changes.acked.append(self._row(record, grant, is_brief, (None,) * 4))
        self.known.forget(record.position)

    def _failed(self, record: r.Settled, grant: Grant | None, lane: int) -> None:
        """A dead letter: a row, and the message lives on under its counters."""
        tries = self.known.tried(record.position, record.lane)
        tries.failures += record.change == r.FAILED
        about = (record.reason or None, *failure_of(record.result), record.content)
        is_brief = self.history(lane) == "none"
        row = self._row(record, grant, is_brief, about)
        self.changes.keep(record.position, row, record.result)

    def _row(self, record: r.Settled, grant: Grant | None, is_brief: bool, about: Row) -> Row:
        """The row of a settled message; ``about``: reason, error, message, content."""
        head = next(self.heads(record.position, 1))
        tries = self.known.tries.get(record.position)
        started = record.finished_ms - record.run_ms if record.run_ms else None
        if started is None and grant:
            started = grant.granted_ms
        return (
            *(*head[:_PUBLISHED], (tries.published_ms if tries else 0) or head[_PUBLISHED]),
            *(grant.worker if grant else None, record.state, tries.failures if tries else 0),
            *(started, record.finished_ms, record.run_ms, record.keep_until_ms, int(is_brief)),
            *about,
        )

    def _goes_on(self, record: r.Settled, at: int, lane: int) -> None:
        """It waits for another try, it or what takes its place."""
        failed = record.change == r.RETRIED
        if not (failed or record.replaced or record.position in self.known.tries):
            return
        tries = self.known.tried(record.position, lane)
        tries.failures += failed
        if record.replaced:
            batch = record.follow_on  # of a graph it is the last node that takes its place
            place, run = (at + batch.count, -1) if batch.woven else (at + 1, 0)
            self.changes.rename(record.position, place)
            first_ms = tries.published_ms or next(self.heads(record.position, 1))[_PUBLISHED]
            self.known.forget(record.position)
            after = self.known.tried(place, batch.runs[run][0])
            after.failures, after.published_ms = tries.failures, first_ms or 0

    def removed(self, stored: StoredRecord) -> None:
        """Cancelled or expired, wherever they were."""
        record = unpacked(stored, r.Removed)
        if record.reason == "purged":  # while they waited: they never ran
            for position, _, _ in record.positions:
                self.known.forget(position)
            return
        lanes = {position: lane for position, lane, _ in record.positions}
        holders = dict(self.known.holders(lanes))
        for position, lane in lanes.items():
            number = holders.get(position)
            grant = self.known.end(number, 1) if number else None
            worker, started = (grant.worker, grant.granted_ms) if grant else (None, None)
            brief = int(self.history(lane) == "none")
            row: Row = (
                *next(self.heads(position, 1)),
                *(worker, _REVOKED, 0, started, record.finished_ms, None),
                *(record.keep_until_ms, brief, record.reason, None, None, None),
            )
            self.changes.settled[position] = self.with_tries(row)
            if self.is_dead(lane):
                deadletters.happened(self, position, stored, record.reason, None)

    def moved(self, stored: StoredRecord) -> None:
        """What is known of earlier tries goes along: a purge of the old queue is not about it."""
        record = unpacked(stored, r.Moved)
        runs = [(lane, to, first, count) for lane, _, to, first, count in record.ready]
        runs += [(lane, to, position, 1) for lane, _, to, position, _ in record.scheduled]
        runs += [(lane, to, position, 1) for lane, _, to, position in record.held]
        for lane, to, first, count in runs:
            revived = self.is_dead(lane) and not self.is_dead(to)
            for position in range(first, first + count) if revived or self.known.tries else ():
                if revived:
                    self.changes.forget((position,))
                if position in self.known.tries:
                    self.known.tried(position, to)

    def is_dead(self, lane: int) -> bool:
        """Whether the lane is one of dead letters."""
        found = self.known.lanes.get(lane)
        queue = self.known.queues.get(found.queue) if found else None
        return queue is not None and is_dead_queue(queue.name)

    def quarantined(self, stored: StoredRecord) -> None:
        """Damaged on disk: nobody can read what they were, not even their ids."""
        record = unpacked(stored, r.Quarantined)
        for position in record.positions:
            number = dict(self.known.holders({position: -1})).get(position)
            grant = self.known.end(number, 1) if number else None
            self.known.forget(position)
            worker, started = (grant.worker, grant.granted_ms) if grant else (None, None)
            row: Row = (
                *(position, *_NO_HEAD),
                *(worker, _FAILURE, 0, started, record.finished_ms, None),
                *(record.keep_until_ms, 0, f"quarantined: {record.why}", None, None, None),
            )
            self.changes.settled[position] = row

    def purged(self, stored: StoredRecord) -> None:
        self.known.purge(unpacked(stored, r.Purged).queue)

    def queue_deleted(self, stored: StoredRecord) -> None:
        """As a purge is, of what is known here."""
        self.known.purge(unpacked(stored, r.QueueDeleted).queue)

    def forgotten(self, stored: StoredRecord) -> None:
        positions = unpacked(stored, r.Forgotten).positions
        self.changes.forget(positions)
        for position in positions:
            self.changes.unlearn(position)


OUTCOMES = {
    r.RETRIED: "failed",
    r.FAILED: "failed",
    r.CRASHED: "crashed",
    r.POISONED: "crashed",
    r.REJECTED: "rejected",
}
"""What the history of attempts calls an end that was no success."""
LAST = 2**63 - 1
"""In the place of a record: behind all others."""
_PUBLISHED, _FAILURES = COLUMNS.index("published_ms"), COLUMNS.index("failures")
_NO_HEAD = (None,) * _PUBLISHED
"""All before the worker but the position, of a message that cannot be read any more."""
_NOTHING_KEPT = (None, 0, 0, None, None, None, None)
"""run_ms, keep_until_ms, brief, reason, error, message, content of an acked message."""

RULES: dict[int, Callable[[Follower, StoredRecord], None]] = {
    r.QueueOpened.TYPE: Follower.queue_opened,
    r.HistorySet.TYPE: Follower.history_set,
    r.LaneOpened.TYPE: Follower.lane_opened,
    r.Published.TYPE: Follower.passes,
    r.PartStored.TYPE: Follower.passes,
    r.Granted.TYPE: Follower.granted,
    r.GrantedExactly.TYPE: Follower.granted,
    r.Acked.TYPE: Follower.acked,
    r.Settled.TYPE: Follower.settled,
    r.Returned.TYPE: Follower.returned,
    r.Removed.TYPE: Follower.removed,
    r.Moved.TYPE: Follower.moved,
    r.Quarantined.TYPE: Follower.quarantined,
    r.Overflowed.TYPE: deadletters.overflowed,
    r.Replayed.TYPE: deadletters.replayed,
    r.LetterEdited.TYPE: deadletters.edited,
    r.LettersDropped.TYPE: deadletters.dropped,
    r.Purged.TYPE: Follower.purged,
    r.QueueDeleted.TYPE: Follower.queue_deleted,
    r.Forgotten.TYPE: Follower.forgotten,
    r.Advanced.TYPE: nodes.advanced,
    r.NodesSwept.TYPE: nodes.swept,
}
"""Records that say nothing here are left out: the log has more of them than these."""
