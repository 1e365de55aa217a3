"""The books of dead letters: what was shown of them, what was asked for, what was confirmed.

    shown    a dead letter that was shown is shown again, under its number, until something was
             asked for about it; queues that let theirs go after a time or by number are left out
    once     of one death there is one replay, edit or drop, however often it is asked for
    lives    a message dies once more than it was replayed, and no more

That what was replayed comes again, and what was dropped does not, is in the oracle's books.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.world import Mark, Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Oracle

Handle = tuple[int, int]
"""Position and number of a death."""
NO, MAYBE = range(2)
"""As in the oracle."""


@dataclass(slots=True)
class Buried:
    """A dead letter that was shown, and about which nothing was asked for since."""

    known: Known
    number: int
    mark: Mark


@dataclass(eq=False)
class Burials:
    """Of one story."""

    oracle: Oracle
    mortal: set[str] = field(default_factory=set)
    """Queues whose dead letters go by themselves."""
    few: bool = False
    """What is handed out may be a dead letter for having been handed out so often."""
    there: dict[int, Buried] = field(default_factory=dict)
    """By position."""
    asked_for: set[Handle] = field(default_factory=set)
    """Deaths about which something was asked for: that may reach the broker late."""
    over: dict[Handle, str] = field(default_factory=dict)
    """What became of deaths for certain."""
    deaths: dict[int, set[int]] = field(default_factory=dict)
    """Number of a message to the numbers under which it was shown."""

    def at(self, position: int) -> Known | None:
        """The message that was shown there; none if nobody was told what it is."""
        found = self.there.get(position)
        return found.known if found and found.known.position == position else None

    def may_fade(self, known: Known) -> bool:
        """Whether it may be a dead letter that goes by itself."""
        places = {known.message.queue, *known.elsewhere}
        return known.may_be_dead and bool(places & self.mortal)

    # Looking.

    def shown(self, position: int, number: int, mark: Mark, asked: Mark) -> None:
        """It was a dead letter when the broker said so; bodies that were read make that older."""
        found = [each for each in self.oracle.known.values() if each.position == position]
        if not found:
            return
        (known,) = found
        if self.oracle.gone(known, mark):
            return
        if not known.may_be_dead and not known.may_rot:
            raise Violation(f"shown as a dead letter, and nothing has killed it: {known}")
        if self.over.get((position, number)) and not known.relaxed:
            raise Violation(f"{known} was {self.over[position, number]} as {number}, and is there")
        self.oracle.peeked(known, position, mark, asked)
        numbers = self.deaths.setdefault(known.uid, set())
        numbers.add(number)
        if len(numbers) > 1 + known.replays and not known.relaxed:
            raise Violation(f"{known} was replayed {known.replays} times, and died as {numbers}")
        self.there[position] = Buried(known, number, mark)

    def all_were_shown(self, positions: set[int], began: Mark) -> None:
        """These, by a look through all that began then."""
        for position, each in list(self.there.items()):
            if position in positions or each.mark.tick >= began.tick:
                continue
            del self.there[position]
            known = each.known
            excused = (position, each.number) in self.asked_for
            excused = (
                excused or known.over != NO or known.relaxed or known.may_rot or known.cancel_asked
            )
            if not excused and not self.may_fade(known) and not self.oracle.rotted:
                raise Violation(f"{known} was a dead letter, {each.number}, and is not shown")

    # Orders.

    def asked(self, handles: list[Handle], done: str, queue: str) -> None:
        """They are to be replayed, to their own queue or that one, or dropped."""
        self.asked_for.update(handles)
        for position, _ in handles:
            known = self.there.pop(position).known
            if done == "dropped":
                known.over = max(known.over, MAYBE)
                continue
            known.replays += 1
            known.failures[0] = known.crashes[0] = known.begun = 0
            known.again, known.plain_order = True, False
            if queue:
                self.oracle.moving([known], queue)

    def editing(self, before: Known, after: Known) -> None:
        """``after`` is to take the place of ``before``, with all that is known of it."""
        del self.there[before.position]
        before.over = max(before.over, MAYBE)
        after.failures, after.crashes = list(before.failures), list(before.crashes)
        after.replays, after.may_be_dead, after.edited = before.replays, True, before
        after.elsewhere, after.plain_order = set(before.elsewhere), False
        after.cancel_asked = before.cancel_asked
        numbers = self.deaths.get(before.uid)
        if numbers:
            self.deaths[after.uid] = set(numbers)

    def done(self, handles: list[Handle], done: str, count: int, mark: Mark) -> None:
        """So many of them were, says the broker."""
        fresh = [each for each in handles if each not in self.over]
        if count > len(fresh):
            was = {each: self.over[each] for each in handles if each in self.over}
            raise Violation(f"{count} of {handles} were {done}, and before that {was}")
        if count == len(fresh):
            for handle in fresh:
                self.over[handle] = done
                if done != "replayed":
                    self.end(handle[0], done, mark)

    def end(self, position: int, done: str, mark: Mark) -> None:
        for known in self.oracle.known.values():
            if known.position == position:
                self.oracle.end(known, done, mark)
