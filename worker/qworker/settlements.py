"""A runner's outcomes on their way: pending, then sent and unanswered, then confirmed.

    ended --> pending --frames()--> unanswered --Settled--> confirmed
                                        |  `--Error--> again, one by one; the one at fault
                                        |              as a failure that says so
                                        `--(reconnect)--> sent again

Rule 1. Every token that was taken is settled, and what was sent is kept until it is answered.
        The broker knows a settlement that it has seen already, or whose lease is over: the
        token is not valid any more. A token that nobody settles could come to life again, for
        a broker that crashed may not know its end, and its message would wait for ever.
Rule 2. Outcomes with nothing to keep leave as runs of positions in one Ack, the others in
        Settles; both in the order in which tasks ended.
Rule 3. A lost lease is no error: that its outcome is void is a line in the log.
Rule 4. Not locked: the member's ``network`` lock is around everything but ``pending.append``,
        which is atomic.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.limits import ACK_RUNS_MAX, OUTCOMES_MAX
from qprotocol.message import Outcome
from qworker.logs import note
from qworker.slots import CONFIRMED, Token

SETTLE_BYTES = 512 * 1024
"""Outcomes gathered into one Settle; a larger one goes alone, in parts."""
PAUSE_MAX_S = 1.0
"""The longest wait before a retryable refusal is tried again."""


class Ended(NamedTuple):
    """One outcome on its way. ``outcome`` is None where there is nothing to keep."""

    number: int
    """The token's number in the slot; -1 if it was never taken, or goes on."""
    position: int
    grant: int
    outcome: Outcome | None = None
    what: str = ""
    """Task and id, for the log."""

    @property
    def token(self) -> Token:
        return self.position, self.grant


@dataclass(slots=True)
class Batch:
    """A settling frame that is not answered yet."""

    frame: f.Frame
    first: int
    """Every token before this number was in an earlier batch."""
    entries: list[Ended] = field(default_factory=list)
    """Empty for an Ack: nothing of it needs to be known again."""
    again: bool = False
    """Was sent on a connection that is gone."""


class Settlements:
    """All outcomes of one runner that the broker has not confirmed."""

    def __init__(self, words: memoryview, correlation: Callable[[], int]) -> None:
        self.pending: deque[Ended] = deque()
        self.void: set[Token] = set()
        """Leases that are gone, of messages that were not begun, and now are not to be.

        Tokens, not positions: the message may come again, under another grant.
        """
        self.denied: set[Token] = set()
        """Leases that were lost, or refused, when their task was about to begin (START)."""
        self.unanswered: dict[int, Batch] = {}
        self._words = words
        self._correlation = correlation
        self._through = 0
        """Every token before this number was sent, or dropped."""

    def frames(self) -> list[f.Frame]:
        """What is pending, ready to send, and from now on unanswered."""
        runs: list[bytes] = []
        kept: list[Ended] = []
        first = self._through
        grant = position = count = 0
        pending = self.pending
        while pending:
            entry = pending.popleft()
            if entry.number >= 0:
                self._through = entry.number + 1
            if entry.outcome is not None:
                kept.append(entry)
            elif entry.grant == grant and entry.position == position + count:
                count += 1
            else:
                if count:
                    runs.append(wire.ACK_RUN.pack(grant, position, count))
                grant, position, count = entry.grant, entry.position, 1
        if count:
            runs.append(wire.ACK_RUN.pack(grant, position, count))
        found: list[f.Frame] = []
        for at in range(0, len(runs), ACK_RUNS_MAX):
            raw = b"".join(runs[at : at + ACK_RUNS_MAX])
            ack = f.Ack(raw=raw, correlation=self._correlation())
            self.unanswered[ack.correlation] = Batch(ack, first)
            found.append(ack)
        return found + [self.settle(part, first) for part in portions(kept)]

    def settle(self, entries: list[Ended], first: int | None = None) -> f.Frame:
        """One Settle of these, from now on unanswered."""
        raw = b"".join(entry.outcome.pack() for entry in entries if entry.outcome)
        frame = f.Settle(count=len(entries), raw=raw, correlation=self._correlation())
        batch = Batch(frame, self._through if first is None else first, entries)
        self.unanswered[frame.correlation] = batch
        return frame

    def awaits(self, entry: Ended) -> bool:
        """Whether ``entry`` was sent, and the broker's word on it is not in."""
        return any(entry is each for batch in self.unanswered.values() for each in batch.entries)

    def again(self) -> list[f.Frame]:
        """What was sent on a connection that is gone, to be sent on a new one."""
        for batch in self.unanswered.values():
            batch.again = True
        return [batch.frame for batch in self.unanswered.values()]

    def settled(self, answer: f.Settled) -> None:
        """The broker's word on one frame is in. What it calls lost is told."""
        batch = self._answered(answer.correlation)
        if batch is None or not answer.raw:
            return
        names = {entry.position: entry.what for entry in batch.entries}
        going_on = {entry.position: entry.token for entry in batch.entries if entry.number < 0}
        for (position,) in wire.POSITION.iter_unpack(answer.raw):
            if position in going_on:
                self.denied.add(going_on[position])
            event = "settled before, or lease lost" if batch.again else "lease lost, outcome void"
            level = logging.INFO if batch.again else logging.WARNING
            note(level, event, task=names.get(position) or position)

    def refused(self, error: f.Error) -> list[f.Frame]:
        """The broker would not take one frame: what to send instead."""
        batch = self._answered(error.correlation)
        if batch is None:
            return []
        note(logging.ERROR, "settlement refused", code=error.code, message=error.message)
        if error.retryable:
            time.sleep(min(error.retry_after_ms / 1000 or 0.1, PAUSE_MAX_S))
            parts = [batch.entries]
        elif len(batch.entries) > 1:
            parts = [[entry] for entry in batch.entries]
        else:
            parts = [[failed(entry, error)] for entry in batch.entries if ends(entry)]
            self.denied.update(entry.token for entry in batch.entries if entry.number < 0)
        return [self.settle(part, batch.first) for part in parts if part]

    def _answered(self, correlation: int) -> Batch | None:
        batch = self.unanswered.pop(correlation, None)
        if batch is not None:
            left = self.unanswered
            self._words[CONFIRMED] = next(iter(left.values())).first if left else self._through
        return batch


def portions(entries: list[Ended]) -> list[list[Ended]]:
    """The entries in order, cut where a Settle would get too large."""
    found: list[list[Ended]] = []
    size = 0
    for entry in entries:
        outcome = entry.outcome
        assert outcome is not None
        adds = len(outcome.result) + sum(map(len, outcome.follow_on))
        if not found or size + adds > SETTLE_BYTES or len(found[-1]) >= OUTCOMES_MAX:
            found.append([])
            size = 0
        found[-1].append(entry)
        size += adds
    return found


def ends(entry: Ended) -> bool:
    """Whether the outcome ends the lease, and is not already the report of a refusal."""
    return entry.number >= 0 and not (entry.outcome and entry.outcome.flags & wire.NO_RETRY)


def failed(entry: Ended, error: f.Error) -> Ended:
    """The outcome that says why the broker would not take the task's own."""
    failure = Failure("SettlementRefused", f"{error.code}: {error.message}")
    outcome = Outcome(
        wire.FAIL, entry.position, entry.grant, result=failure.pack(), flags=wire.NO_RETRY
    )
    return entry._replace(outcome=outcome)
