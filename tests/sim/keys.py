"""What unique and idempotency keys promise, held against what publishes were answered.

    one      of a unique key, in its scope, one message is there at a time: until it is over, or is
             handed out, or for a time, whatever becomes of it
    free     nobody stands for another because of a key that it holds no more
    reject   a chunk is refused for a key only while another message may hold it
    replace  who holds the key, and was never handed out, is over; the new one is stored
    redelay  who holds the key, and was never handed out, comes when the new one would, not before
    answer   a message that is not stored is answered with the id of one that was there, with a key
             of its; the same chunk always with the same ids
    once     an idempotency key means one message, over restarts, too

Only what is certain is held against the broker: a message is there from when that was confirmed,
until its end was asked for or may have come by itself; it waits for certain only while its time
has not come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from qprotocol import wire
from qprotocol.frames import Published
from qprotocol.message import Message, pack_fields
from qprotocol.uniquekeys import HOLD_MS_MAX, Existing, IdempotencyKey, UniqueKey, unpack_existing
from sim.world import Mark, Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Oracle

NO, YES = 0, 2
"""As in the oracle: nobody has sent it; certain."""
MOVES = ("replace", "redelay")
"""Conflicts that do something to who holds the key."""
CERTAIN_MS = 2_000
"""Clocks are read a little earlier or later than what comes of it is seen."""
NAMES = ("u1", "u2", "u3")
WINDOWS = tuple(f"i{nth}" for nth in range(12))


@dataclass(eq=False)
class Keyed:
    """A message's keys, and since when it is certain that it holds them."""

    unique: tuple[str, str, str] | None
    """Its scope, the name of that, and the key."""
    window: tuple[str, str] | None
    since: Mark | None = None
    until: str = "finished"
    for_ms: int = 0
    conflict: str = "return"
    sent: int = 0
    """The tick at which it was sent for the first time, known once that was confirmed."""
    sent_ms: int = 0
    held_ms: int = 0
    """The wall clock then, and when it was confirmed."""
    done: Mark | None = None
    """When it was confirmed, stored or not: it does nothing more after that."""
    moved: list[tuple[int, Mark, int]] = field(default_factory=list)
    """Redelays that reached it, if it was never handed out: sent, confirmed, and to when."""


class Keys:
    """The books of keys."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.of: dict[int, Keyed] = {}
        """By number of the message."""
        self.holding: dict[tuple[str, str, str], list[Known]] = {}
        """Unique key to the messages that were stored with it."""
        self.moving: dict[tuple[str, tuple[str, str, str]], list[Known]] = {}
        """Conflict and unique key to the messages that do that to who holds it."""
        self.means: dict[tuple[str, str], str] = {}
        """Idempotency key to the id it means."""

    def choose(self, rng: Random, message: Message, uid: int, has: Callable[[str], bool]) -> None:
        """Give a new message keys."""
        fields, keyed = {}, Keyed(None, None)
        if rng.random() < 0.7:
            scope, name = rng.choice(("queue", "task", "global")), rng.choice(NAMES)
            keyed.conflict = rng.choice(("return", "return", "reject"))
            if has("key conflicts") and rng.random() < 0.7:
                keyed.conflict = rng.choice(MOVES)
                if keyed.conflict == "redelay" and rng.random() < 0.7:
                    message.due_ms = self.oracle.world.wall_ms() + rng.choice((800, 3_000, 8_000))
            if has("untils of keys"):
                keyed.until = rng.choice(("finished", "started", "started", "time"))
                keyed.for_ms = rng.choice((500, 5_000, 60_000)) if keyed.until == "time" else 0
            fields[wire.UNIQUE] = UniqueKey(
                name, scope, keyed.until, keyed.conflict, keyed.for_ms
            ).pack()
            where = {"queue": message.queue, "task": message.task, "global": ""}[scope]
            keyed.unique = scope, where, name
        if not fields or rng.random() < 0.3:
            name = rng.choice(WINDOWS)
            fields[wire.IDEMPOTENCY] = IdempotencyKey(name, HOLD_MS_MAX).pack()
            keyed.window = message.task, name
        message.fields, message.flags = pack_fields(fields), message.flags | wire.MARKED
        self.of[uid] = keyed

    def added(self, known: Known) -> None:
        """Somebody is about to publish it."""
        keyed = self.of.get(known.uid)
        if keyed is not None and keyed.unique and keyed.conflict in MOVES:
            self.moving.setdefault((keyed.conflict, keyed.unique), []).append(known)

    def inherit(self, new: Known, old: Known) -> None:
        """``new`` is to replace ``old``, and has its unique key from then on."""
        keyed = self.of.get(old.uid)
        if keyed is not None and keyed.unique and keyed.until == "finished":
            self.of[new.uid] = Keyed(keyed.unique, None)

    def replaced(self, new: Known, mark: Mark) -> None:
        """It is there for certain, in the place of the one with its key."""
        keyed = self.of.get(new.uid)
        if keyed is not None and keyed.unique and keyed.since is None:
            keyed.since = mark
            self.holding.setdefault(keyed.unique, []).append(new)
            self.oracle.world.sometimes["a replacement held a key"] += 1

    def rows(self, chunk: Any, reply: Published) -> dict[Known, Existing]:
        """Messages of the chunk that were not stored, and what stands for each."""
        framed = [known for known in chunk.messages if known.sent]
        rows = list(unpack_existing(reply.raw))
        if len(rows) != reply.existing:
            raise Violation(f"{len(rows)} rows where {reply.existing} were announced: {chunk}")
        if chunk.rows is not None and chunk.rows != rows:
            raise Violation(f"answered with other ids than before: {chunk}")
        chunk.rows = rows
        return {framed[row.number]: row for row in rows}

    def published(self, chunk: Any, reply: Published, mark: Mark) -> list[Known]:
        """The chunk was confirmed for the first time; those of its messages that are stored."""
        found = self.rows(chunk, reply)
        for known in chunk.messages:
            keyed = self.of.get(known.uid)
            if keyed is not None:
                keyed.sent, keyed.sent_ms = chunk.first_tick, chunk.first_ms
                keyed.held_ms, keyed.done = mark.wall_high, mark
        for known, row in found.items():
            self.stands(chunk, known, row, mark)
        stored = [known for known in chunk.messages if known not in found]
        for known in chunk.messages:
            keyed = self.of.get(known.uid)
            if keyed is None:
                continue
            if keyed.window:
                self.once(known, keyed.window, found[known].id if known in found else known.id)
            if keyed.unique and known not in found:
                self.alone(chunk, known, keyed, mark)
                keyed.since = mark
                self.holding.setdefault(keyed.unique, []).append(known)
        return stored

    def stands(self, chunk: Any, known: Known, row: Existing, mark: Mark) -> None:
        """Another message stands for this one, which is not stored and never will be."""
        keyed = self.of.get(known.uid)
        others = [each for each in self.oracle.by_id.get(row.id, ()) if each is not known]
        if keyed is None or not others:
            raise Violation(f"{row.id!r} stands for {known}, and nobody knows why")
        if known.born == YES:
            raise Violation(f"{known} is said not to be stored, and was seen")
        theirs = [self.of[each.uid] for each in others if each.uid in self.of]
        # Whose answer was lost may have brought the key its meaning.
        by_window = keyed.window and self.means.get(keyed.window, row.id) == row.id
        if not by_window:
            if keyed.unique is None or keyed.unique not in [each.unique for each in theirs]:
                raise Violation(f"{others[0]} stands for {known}, with other keys")
            if not any(self.may_hold(each, chunk) for each in others):
                raise Violation(
                    f"{others[0]} stands for {known}, and held the key no more: it was "
                    f"{others[0].why_over or 'handed out, or its time was over'}"
                )
        if not keyed.window and len(others) == 1 and others[0] not in chunk.messages:
            self.reached(chunk, known, others[0], mark)
        self.oracle.reveal(others[0])
        known.refused = True
        self.oracle.world.sometimes["another stood for a message"] += 1

    def reached(self, chunk: Any, known: Known, holder: Known, mark: Mark) -> None:
        """The message did to the holder of its key what it says."""
        mine, theirs = self.of[known.uid], self.of[holder.uid]
        is_older = theirs.since is not None and theirs.since.tick < chunk.first_tick
        if mine.conflict == "replace" and is_older and self.waits(holder, known):
            raise Violation(f"{known} was to replace {holder}, which waits, and did not")
        if mine.conflict == "redelay":
            theirs.moved.append((chunk.first_tick, mark, known.message.due_ms))
            self.oracle.world.sometimes["a message was to be redelayed"] += 1

    def rejected(self, chunk: Any) -> None:
        """The chunk was refused because of a unique key: somebody may hold it."""
        for known in chunk.messages:
            mine = self.of.get(known.uid)
            if mine is None or mine.unique is None or mine.conflict != "reject":
                continue
            for other in self.oracle.known.values():
                theirs = self.of.get(other.uid)
                is_other = other is not known and theirs and theirs.unique == mine.unique
                if is_other and other.born and not other.refused and self.may_hold(other, chunk):
                    self.oracle.world.sometimes["a chunk was rejected for a key"] += 1
                    return
        raise Violation(f"refused as not unique, and nobody can hold a key of it: {chunk}")

    def may_hold(self, other: Known, chunk: Any) -> bool:
        """Whether it may have held its unique key when the chunk was sent or later."""
        theirs = self.of.get(other.uid)
        # Sent again, it may have been answered as it was the first time.
        tick = chunk.first_tick
        if theirs is not None and theirs.until == "time":
            is_lapsed = theirs.held_ms + theirs.for_ms + CERTAIN_MS < chunk.first_ms
            return not (theirs.done and is_lapsed and self.is_steady)
        is_free = theirs is not None and theirs.until == "started"
        if is_free and any(lease.mark.tick < tick for lease in other.leases):
            return False
        return not (other.over == YES and other.over_tick < tick)

    def alone(self, chunk: Any, known: Known, keyed: Keyed, mark: Mark) -> None:
        """Nobody else with the key is there for certain, or else it is over now."""
        assert keyed.unique is not None
        for other in self.holding.get(keyed.unique, ()):
            theirs = self.of[other.uid]
            if not theirs.since or theirs.since.tick >= chunk.first_tick:
                continue
            if not self.holds(other, theirs, known):
                continue
            was_out = any(lease.mark.tick < chunk.first_tick for lease in other.leases)
            was_over = other.over == YES and other.over_tick < chunk.first_tick
            if keyed.conflict != "replace" or was_out or was_over or other.message.parent:
                raise Violation(f"{known} was stored, and {other} with the same key is there")
            self.oracle.end(other, "replaced", mark)
            self.oracle.world.sometimes["a message was replaced by its key"] += 1

    def holds(self, other: Known, theirs: Keyed, known: Known) -> bool:
        """Whether it has held its key for certain up to now, but for what ``known`` does."""
        if any(each is not known for each in self.movers("replace", other)):
            return False
        if theirs.until == "time":
            ends_ms = theirs.sent_ms + theirs.for_ms
            return self.is_steady and self.oracle.world.wall_high + CERTAIN_MS < ends_ms
        if theirs.until == "started":
            return self.waits(other, known)
        return self.is_left_alone(other)

    @property
    def is_steady(self) -> bool:
        """Whether the wall clock went on as time did."""
        return not self.oracle.world.faults["wall jump"]

    def movers(self, conflict: str, known: Known) -> Iterator[Known]:
        """Messages that may have replaced or redelayed it."""
        keyed = self.of.get(known.uid)
        if keyed is None or keyed.unique is None:
            return
        for other in self.moving.get((conflict, keyed.unique), ()):
            theirs = self.of[other.uid]
            if other is known or other.born == NO:
                continue
            if theirs.done is not None:
                was_out = any(lease.mark.tick < theirs.sent for lease in known.leases)
                if was_out or theirs.done.tick < keyed.sent:
                    continue
            yield other

    def may_be_replaced(self, known: Known) -> bool:
        """Whether another may have taken its place."""
        return any(True for _ in self.movers("replace", known))

    def may_move(self, known: Known) -> bool:
        """Whether another may have taken its place, or moved its time."""
        return any(True for each in MOVES for _ in self.movers(each, known))

    def due_ms(self, known: Known, *, at: Mark, is_first: bool) -> int:
        """From when on it may be handed out; ``is_first``: it never was before, at that moment."""
        moves = [(self.of[each.uid], each.message.due_ms) for each in self.movers("redelay", known)]
        if not moves:
            return known.message.due_ms
        slack_us = self.oracle.slack_us
        sure = [row for row in self.of[known.uid].moved if row[1].now + slack_us < at.now]
        if not sure or not is_first or known.leases:
            return min(known.message.due_ms, *(due_ms for _, due_ms in moves))
        last, _, _ = max(sure)
        later = [due for each, due in moves if each.done is None or each.done.tick >= last]
        self.oracle.world.sometimes["a redelayed message came"] += 1
        return min(later)

    def waits(self, known: Known, but: Known | None = None) -> bool:
        """Whether its time has not come, for certain, so that nobody was ever handed it."""
        dues = [known.message.due_ms]
        dues += [each.message.due_ms for each in self.movers("redelay", known)]
        was_out = known.leases or known.ghosts or known.message.parent or known.replays
        is_early = min(dues) > self.oracle.world.wall_high + CERTAIN_MS
        is_mine = all(each is but for each in self.movers("replace", known))
        return is_early and is_mine and not was_out and self.is_left_alone(known)

    def is_left_alone(self, known: Known) -> bool:
        """Whether nothing has happened by which it may have ended, up to now."""
        expires_ms = known.message.expires_ms
        may_be_over = (
            known.over
            or known.may_be_dead
            or known.cancel_asked
            or known.purge_asked
            or known.may_rot
            or (expires_ms and expires_ms <= self.oracle.world.wall_high)
        )
        return not may_be_over

    def once(self, known: Known, key: tuple[str, str], name: str) -> None:
        """Whoever publishes with the key is answered with the same id."""
        if self.means.setdefault(key, name) != name:
            raise Violation(f"{known}: its idempotency key meant {self.means[key]!r}, now {name!r}")
