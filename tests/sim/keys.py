"""What unique and idempotency keys promise, held against what publishes were answered.

    one      of a unique key, in its scope, one message is there at a time, until it is over
    reject   a chunk is refused for a key only while another message may hold it
    answer   a message that is not stored is answered with the id of one that was there, with a key
             of its; the same chunk always with the same ids
    once     an idempotency key means one message, over restarts, too

Only what is certain is held against the broker: a message is there from when that was confirmed,
until its end was asked for or may have come by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from qprotocol import wire
from qprotocol.frames import Published
from qprotocol.message import Message, pack_fields
from qprotocol.uniquekeys import HOLD_MS_MAX, Existing, IdempotencyKey, UniqueKey, unpack_existing
from sim.world import Mark, Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Oracle

YES = 2
"""As in the oracle: certain."""
NAMES = ("u1", "u2", "u3")
WINDOWS = tuple(f"i{nth}" for nth in range(12))


@dataclass(eq=False)
class Keyed:
    """A message's keys, and since when it is certain that it holds them."""

    unique: tuple[str, str, str] | None
    """Its scope, the name of that, and the key."""
    window: tuple[str, str] | None
    since: Mark | None = None
    rejects: bool = False
    """Its chunk is refused if another one holds the unique key."""


class Keys:
    """The books of keys."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.of: dict[int, Keyed] = {}
        """By number of the message."""
        self.holding: dict[tuple[str, str, str], list[Known]] = {}
        """Unique key to the messages that were stored with it."""
        self.means: dict[tuple[str, str], str] = {}
        """Idempotency key to the id it means."""

    def choose(self, rng: Random, message: Message, uid: int) -> None:
        """Give a new message keys."""
        fields, keyed = {}, Keyed(None, None)
        if rng.random() < 0.7:
            scope, name = rng.choice(("queue", "task", "global")), rng.choice(NAMES)
            conflict = rng.choice(("return", "return", "reject"))
            fields[wire.UNIQUE] = UniqueKey(name, scope, conflict=conflict).pack()
            where = {"queue": message.queue, "task": message.task, "global": ""}[scope]
            keyed.unique, keyed.rejects = (scope, where, name), conflict == "reject"
        if not fields or rng.random() < 0.3:
            name = rng.choice(WINDOWS)
            fields[wire.IDEMPOTENCY] = IdempotencyKey(name, HOLD_MS_MAX).pack()
            keyed.window = message.task, name
        message.fields, message.flags = pack_fields(fields), message.flags | wire.MARKED
        self.of[uid] = keyed

    def inherit(self, new: Known, old: Known) -> None:
        """``new`` is to replace ``old``, and has its unique key from then on."""
        keyed = self.of.get(old.uid)
        if keyed is not None and keyed.unique:
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
        for known, row in found.items():
            self.stands(chunk, known, row)
        stored = [known for known in chunk.messages if known not in found]
        for known in chunk.messages:
            keyed = self.of.get(known.uid)
            if keyed is None:
                continue
            if keyed.window:
                self.once(known, keyed.window, found[known].id if known in found else known.id)
            if keyed.unique and known not in found:
                self.alone(chunk, known, keyed.unique)
                keyed.since = mark
                self.holding.setdefault(keyed.unique, []).append(known)
        return stored

    def stands(self, chunk: Any, known: Known, row: Existing) -> None:
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
            if all(each.over == YES and each.over_tick < chunk.first_tick for each in others):
                raise Violation(
                    f"{others[0]} stands for {known}, and was {others[0].why_over} before"
                )
        self.oracle.reveal(others[0])
        known.refused = True
        self.oracle.world.sometimes["another stood for a message"] += 1

    def rejected(self, chunk: Any) -> None:
        """The chunk was refused because of a unique key: somebody may hold it."""
        for known in chunk.messages:
            mine = self.of.get(known.uid)
            if mine is None or not mine.rejects:
                continue
            for other in self.oracle.known.values():
                theirs = self.of.get(other.uid)
                is_other = other is not known and theirs and theirs.unique == mine.unique
                was_over = other.over == YES and other.over_tick < chunk.asked_at.tick
                if is_other and other.born and not (was_over or other.refused):
                    self.oracle.world.sometimes["a chunk was rejected for a key"] += 1
                    return
        raise Violation(f"refused as not unique, and nobody can hold a key of it: {chunk}")

    def alone(self, chunk: Any, known: Known, key: tuple[str, str, str]) -> None:
        """Nobody else with the key is there for certain."""
        for other in self.holding.get(key, ()):
            keyed = self.of[other.uid]
            if keyed.since and keyed.since.tick < chunk.first_tick and self.is_there(other):
                raise Violation(f"{known} was stored, and {other} with the same key is there")

    def is_there(self, known: Known) -> bool:
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
