"""What the keys of a frame's messages come to: taken, or held by another that stands for it.

    return    the message is not stored, the answer has the id of the one that holds the key
    reject    the frame is refused
    replace   the one that holds the key goes, if nobody was ever handed it; else as return
    redelay   the one that holds the key is due when this one would be, if nobody was ever handed
              it; in any case as return

Of messages in one frame the first takes the key; with replace and redelay the last does, whole.

Rule 1. A record says what came of it: replay looks at no key of a message.
Rule 2. What is not stored is answered, also when the frame is sent again: its producer's chunk is
        remembered together with the answer.
Rule 3. What follows on an outcome is never refused: there reject is return.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from qbroker.core import records as r
from qbroker.core.keys import (
    IDEMPOTENCY,
    TIME,
    Holder,
    Mark,
    Rule,
    begin_held,
    pack_held,
    unpack_held,
)
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError, bad
from qbroker.core.runs import Run
from qbroker.core.settings import RETRY_AFTER_MS
from qbroker.core.state import BrokerState
from qprotocol import wire
from qprotocol.frames import Published
from qprotocol.ids import unpack_id
from qprotocol.message import unpack_route
from qprotocol.uniquekeys import (
    KEY_AT,
    SCOPES,
    UNIQUE_KEY_BYTES_MAX,
    UNTILS,
    IdempotencyKey,
    UniqueKey,
    pack_existing,
)

ROUTES_KNOWN_MAX = 1_000
"""Routes of messages with keys that are remembered, as what the keys are keys of."""
_CHOSEN, _MINTED = bytes((0,)), bytes((wire.ID_MINTED,))
"""How the id of a Holder begins."""
NOWHERE = -1
"""In the place of an index: the holder is no message of the batch."""


@dataclass(slots=True)
class Claim:
    """A key that is to be taken: whose it is then, and until when."""

    who: Mark | Holder
    until: int
    until_ms: int


@dataclass(slots=True)
class Keying:
    """The keys of one frame's messages."""

    state: BrokerState
    now: Now
    following: bool = False
    ending: int = 0
    """A message that is over when those of the batch come: its key is free then."""
    synced: bool = False
    """Whether one that stands for another is in a queue whose confirms wait for the disk."""
    redelayed: dict[int, list[Any]] = field(default_factory=dict)
    """By position, an entry of r.Redelayed."""
    before: dict[bytes, Holder] = field(default_factory=dict)
    """Keys that messages of earlier batches of the frame take."""
    # Of the batch that is looked at.
    taken: dict[bytes, Claim] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    """Position to run number."""

    def decide(self, marks: list[Mark]) -> r.Keyed:
        """What the keys come to; ``dropped`` are the indexes of what is not to be stored.

        Raises RefusedError.
        """
        for key, claim in self.taken.items():
            self.before[key] = Holder(0, last(claim.who).id, claim.until, claim.until_ms)
        self.taken, self.replaced = {}, {}
        if self.are_free(marks):
            self.check_room(len(marks), 0)
            return r.Keyed([self.fresh(mark) for mark in marks])
        for mark in marks:
            self.look(mark)
        fresh = [key[0] == IDEMPOTENCY for key in self.taken if key not in self.state.keys.held]
        self.check_room(len(fresh) - sum(fresh), sum(fresh))
        taken = [self.row(key, claim) for key, claim in self.taken.items()]
        left_out = [mark for mark in marks if mark.stands]
        return r.Keyed(
            taken,
            [[mark.number, *stands_for(mark)] for mark in left_out],
            [[position, run] for position, run in self.replaced.items()],
            sorted(index for mark in left_out for index in (mark.index, *mark.others)),
        )

    def are_free(self, marks: list[Mark]) -> bool:
        """Whether each takes one key that nobody has, for as long as it is there: most do.

        Not where more batches follow in the frame: they would have to know of these.
        """
        wanted = {mark.key for mark in marks if mark.rule and not mark.done_as}
        alone = len(wanted) == len(marks) and not self.following
        return alone and self.state.keys.held.keys().isdisjoint(wanted)

    def fresh(self, mark: Mark) -> list[Any]:
        """An entry of Keyed.taken for a key that is free."""
        assert mark.rule is not None
        return [mark.index, mark.key, mark.rule.until, self.until_ms(mark.rule), mark.id, 0]

    def until_ms(self, rule: Rule) -> int:
        """When a key that is taken now is free by its time."""
        return self.now.wall_ms + rule.for_ms if rule.until == TIME else 0

    def look(self, mark: Mark) -> None:
        """The message takes its keys, or another one stands for it."""
        key, rule, done_as, met = mark.key, mark.rule, mark.done_as, "idempotency"
        found = self.find(done_as) if done_as else None
        if found is None and rule:
            found, met = self.find(key), rule.conflict
            if found is not None and self.gives_way(mark, found, key, met):
                found = None
            if found is None:
                self.taken[key] = Claim(mark, rule.until, self.until_ms(rule))
        if done_as and self.find(done_as) is None:
            window_ms = mark.window_ms or self.state.settings.idempotency_window_ms
            self.taken[done_as] = Claim(found or mark, TIME, self.now.wall_ms + window_ms)
        if found is not None:
            mark.stands = found
            self.state.keys.met[met] += 1
            if isinstance(found, Holder):
                self.synced = self.synced or self.is_synced(found)

    def is_synced(self, holder: Holder) -> bool:
        """Whether an answer that tells of the message waits for stable storage.

        It does for a key that outlives its message: the number of its lane may be another's now.
        """
        if holder.until == TIME:
            return True
        lane = self.state.lane_numbered(holder.run >> 8) if holder.run else None
        return lane.queue.synced if lane else self.state.synced

    def find(self, key: bytes) -> Holder | Mark | None:
        """Who has the key: a message before this one in the frame, or one that was there."""
        claim = self.taken.get(key)
        if claim is not None:
            return claim.who
        holder = self.before.get(key) or self.state.keys.get(key, self.now)
        return None if holder is None or self.is_over(holder) else holder

    def is_over(self, holder: Holder) -> bool:
        """Whether the message ends before those of the batch come, or was purged unseen."""
        state, position = self.state, holder.position
        if holder.until == TIME or not position:
            return False
        if position == self.ending:
            return True
        if not state.remains or position in state.leases:
            return False
        attempts = state.attempts.get(position)
        if attempts:
            return attempts.run is None or attempts.run.is_purged
        return not state.is_waiting(state.run_numbered(holder.run), position, holder.due_ms)

    def gives_way(self, mark: Mark, found: Holder | Mark, key: bytes, rule: str) -> bool:
        """Whether the key is the new message's after all. Raises RefusedError."""
        if rule == "reject" and not self.following:
            raise not_unique(mark, found)
        if rule not in ("replace", "redelay"):
            return False
        if isinstance(found, Mark):
            found.stands = mark
            return True
        spot = waiting(self.state, found)
        if spot is None:
            return False
        run, before_ms = spot
        check_orders(self.state, run)
        position = found.position
        if rule == "replace":
            self.redelayed.pop(position, None)
            self.replaced[position] = run.number
            return True
        where = run.lane.number, run.priority, position
        self.redelayed[position] = [*where, before_ms, mark.due_ms, key]
        return False

    def row(self, key: bytes, claim: Claim) -> list[Any]:
        """An entry of Keyed.taken."""
        who = last(claim.who)
        position, index = (0, who.index) if isinstance(who, Mark) else (who.position, NOWHERE)
        return [index, key, claim.until, claim.until_ms, who.id, position]

    def redelays(self) -> list[r.Record]:
        """The record for messages that are due at another time because of those of the frame."""
        entries = [entry for entry in self.redelayed.values() if entry[3] != entry[4]]
        return [r.Redelayed(entries)] if entries else []

    def check_room(self, uniques: int, windows: int) -> None:
        """Raise RefusedError if there is no room for so many more keys."""
        keys, settings = self.state.keys, self.state.settings
        most, most_windows = settings.unique_keys_max, settings.idempotency_keys_max
        if uniques and len(keys.held) - keys.windows + uniques > most:
            raise full("unique_keys_max", most)
        if windows and keys.windows + windows > most_windows:
            raise full("idempotency_keys_max", most_windows)


def last(who: Mark | Holder) -> Mark | Holder:
    """Who it comes to, of messages that stand for one another."""
    while isinstance(who, Mark) and who.stands is not None:
        who = who.stands
    return who


def stands_for(mark: Mark) -> tuple[int, bytes]:
    """Position, as far as it is known, and id of the message that stands for one."""
    who = last(mark)
    return (0 if isinstance(who, Mark) else who.position), who.id


def waiting(state: BrokerState, holder: Holder) -> tuple[Run, int] | None:
    """Where the holder waits and until when, 0 if it is ready; None if somebody was handed it."""
    position = holder.position
    attempts = state.attempts.get(position)
    if position in state.leases or not holder.run:
        return None
    if attempts is None:
        run = state.run_numbered(holder.run)
        if position in run:
            return run, 0
        return (run, holder.due_ms) if state.is_waiting(run, position, holder.due_ms) else None
    if attempts.deliveries or attempts.reason or attempts.run is None or attempts.run.is_purged:
        return None
    return attempts.run, holder.due_ms if attempts.waits else 0


def check_orders(state: BrokerState, run: Run) -> None:
    """Raise RefusedError while an order walks the queue: it might pass by what moves now."""
    queue = run.lane.queue
    if any(queue in order.picked.queues for order in state.orders):
        raise RefusedError(
            "RESOURCE_EXHAUSTED",
            f"a large order is under way in queue {queue.name!r}, and a message that waits there "
            "would have to go now: try again",
            retry_after_ms=RETRY_AFTER_MS,
        )


def not_unique(mark: Mark, found: Holder | Mark) -> RefusedError:
    """Another message holds the key, and the new one says that this is an error."""
    key, who = unpack_held(mark.key)[2], last(found)
    name = unpack_id(who.id[1:], minted=bool(who.id[0]))
    whose = f"task {name!r}" if name else "a message without an id"
    return RefusedError(
        "NOT_UNIQUE",
        f"message {mark.number}: the unique key {key!r} is held by {whose}: nothing of "
        "the frame was stored",
        index=mark.number,
        key=key,
        id=name,
        position=0 if isinstance(who, Mark) else who.position,
    )


def full(name: str, most: int) -> RefusedError:
    """There is no room for more keys."""
    return RefusedError(
        "LIMIT_REACHED",
        f"{name} is {most} and reached: nothing was stored; raise it, or hold keys for a "
        "shorter time",
    )


def tell_existing(reply: Published, existing: list[list[Any]]) -> None:
    """Say in the answer what stands for messages that were not stored."""
    reply.existing = len(existing)
    rows = ((number, position, bool(name[0]), name[1:]) for number, position, name in existing)
    reply.raw = pack_existing(rows)


# In the walk.


def mark_of(
    index: int, fields: Mapping[int, bytes], route: bytes, flags: int, raw_id: bytes
) -> Mark | None:
    """What a message's meta fields say of keys; None if nothing. Raises RefusedError."""
    unique, window = fields.get(wire.UNIQUE), fields.get(wire.IDEMPOTENCY)
    if unique is None and window is None:
        return None
    key, rule, done_as, window_ms = b"", None, b"", 0
    try:
        if unique is not None:
            key, rule = key_in(unique, route)
        if window is not None:
            done = IdempotencyKey.unpack(window)
            done_as, window_ms = (
                pack_held(IDEMPOTENCY, named_by(route)[1], done.key),
                done.window_ms,
            )
    except ValueError as error:
        raise bad(index, str(error)) from error
    name = (_MINTED if flags & wire.ID_MINTED else _CHOSEN) + raw_id
    return Mark(index, index, name, key, rule, done_as, window_ms)


def key_in(unique: bytes, route: bytes) -> tuple[bytes, Rule]:
    """The key in a field UNIQUE, as the table has it, and its rule. Raises ValueError.

    It stays bytes all the way: what is looked at is what ``UniqueKey.unpack`` would.
    """
    key = unique[KEY_AT:]
    if not (key.isascii() and 0 < len(key) <= UNIQUE_KEY_BYTES_MAX):
        UniqueKey.unpack(unique)
    rule = rule_of(unique[:KEY_AT], route)
    return rule.begins + key, rule


@lru_cache(ROUTES_KNOWN_MAX)
def rule_of(said: bytes, route: bytes) -> Rule:
    """What a field UNIQUE of a message with that route says before its key. Raises ValueError."""
    unique = UniqueKey.unpack(said + b"k")
    place, task = named_by(route)
    begins = begin_held(SCOPES[unique.scope], place, task)
    return Rule(begins, unique.conflict, UNTILS[unique.until], unique.for_ms)


@lru_cache(ROUTES_KNOWN_MAX)
def named_by(route: bytes) -> tuple[str, str]:
    """What the keys of messages with that route are keys of: queue or exchange, and task."""
    exchange, key, task, _ = unpack_route(route)
    return f"{exchange}/{key}" if exchange else key, task


def note_dues(batch: r.MessageBatch) -> None:
    """The marks of a batch know when their messages are due."""
    index, marks = 0, iter(batch.marks)
    mark = next(marks, None)
    for _, _, count, due_ms in batch.runs:
        index += count
        while mark and mark.index < index:
            mark.due_ms, mark = due_ms, next(marks, None)


def without(batch: r.MessageBatch, keyed: r.Keyed) -> r.MessageBatch:
    """The batch without what was dropped; rows name what is left by its new index."""
    dropped, starts = set(keyed.dropped), batch.offsets
    assert starts is not None
    ends = [*starts[1:], len(batch.raw)]
    made = r.MessageBatch(offsets=array("I"), keys=batch.keys, keyed=keyed)
    assert made.offsets is not None
    pieces, index, at, after = list[bytes](), 0, 0, dict[int, int]()
    for number, priority, count, due_ms in batch.runs:
        left = [each for each in range(index, index + count) if each not in dropped]
        for each in left:
            after[each] = len(pieces)
            made.offsets.append(at)
            pieces.append(batch.raw[starts[each] : ends[each]])
            at += len(pieces[-1])
        if left:
            made.runs.append([number, priority, len(left), due_ms])
        index += count
    made.raw, made.count = b"".join(pieces), len(pieces)
    made.expiring = [[after[each], ms] for each, ms in batch.expiring if each in after]
    made.named = [[after[each], name] for each, name in batch.named if each in after]
    keyed.taken = [[after.get(row[0], NOWHERE), *row[1:]] for row in keyed.taken]
    keyed.dropped = []
    return made


# What the records do.


def hold(state: BrokerState, keyed: r.Keyed, places: Sequence[tuple[int, int, int]]) -> None:
    """The keys are held, and what was replaced is to go. By index: (position, run, due_ms)."""
    keys = state.keys
    keys.doomed.update((position, (run, "replaced")) for position, run in keyed.replaced)
    for index, key, until, until_ms, raw_id, position in keyed.taken:
        where = places[index] if index != NOWHERE else (position, 0, 0)
        keys.take(key, Holder(where[0], raw_id, until, until_ms, *where[1:]))
