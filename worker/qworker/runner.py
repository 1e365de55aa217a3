"""Runs tasks one at a time: a prefork child's main thread, or a thread of the threads pool.

    wait -> take -> execute -> end -> (flush) -> take ...

Rule 1. A task is begun by ``take`` and by nothing else: from there on it is this runner's.
Rule 2. Outcomes wait for company only while tasks are short and more of them are in hand:
        at most GATHER_S, at most GATHER_COUNT, and never while this runner idles. If the next
        task turns out long, the watchman sends them.
Rule 3. The runner ends when told to stop, or after ``tasks_max``; it finishes what it began,
        gives the rest back and says goodbye.
"""

import time

from qprotocol import wire
from qprotocol.message import Outcome
from qworker.execute import Executor
from qworker.hand import Parcel
from qworker.logs import TaskLog
from qworker.member import Member
from qworker.settlements import Ended
from qworker.slots import ENDED_OTHER, ENDED_PLAIN, FINISHED, IDLE, RING, TAKEN
from qworker.watchman import Watchman

GATHER_S = 0.003
GATHER_COUNT = 256
SHORT_S = 0.001
"""Tasks longer than this on average have their outcome sent at once: a frame costs a tenth."""


class Runner:
    """One runner: a member's network side, an executor, and the loop between them."""

    def __init__(
        self,
        member: Member,
        executor: Executor,
        watchman: Watchman,
        log: TaskLog,
        tasks_max: int = 0,
    ) -> None:
        self.member, self.executor, self.watchman, self.log = member, executor, watchman, log
        self.tasks_max = tasks_max
        self.stopping = False
        self._gathering_since = 0.0

    def run(self) -> None:
        """Tasks are run until told to stop; then everything is given back."""
        member, parcels, take = self.member, self.member.hand.parcels, self.member.hand.take
        words = member.words
        while not self.stopping:
            if not parcels:
                self.log.flush()
                words[IDLE] = 1
                member.wait()
                words[IDLE] = 0
                continue
            parcel = take()
            if parcel is not None:
                self._run_one(parcel)
        self.log.flush()
        member.leave()
        self.log.flush()

    def _run_one(self, parcel: Parcel) -> None:
        member, slot = self.member, self.member.hand.slot
        if not self.watchman.awake and member.has_more:
            self.watchman.wake()
        index = slot.words[TAKEN] - 1
        if member.void and parcel.token in member.void:
            member.void.discard(parcel.token)
            slot.ends[index % RING] = ENDED_OTHER
            release = Outcome(wire.RELEASE, *parcel.token, delay_ms=0)
            member.pending.append(Ended(index, *parcel.token, release))
            return
        started = time.monotonic()
        outcome, what = self.executor.execute(parcel, index)
        ended = time.monotonic()
        slot.ends[index % RING] = ENDED_PLAIN if outcome is None else ENDED_OTHER
        if not member.pending:
            self._gathering_since = ended
        member.pending.append(Ended(index, parcel.position, parcel.grant, outcome, what))
        member.credit.ran(ended - started)
        slot.words[FINISHED] += 1
        if self.tasks_max and slot.words[FINISHED] >= self.tasks_max:
            self.stopping = True
        if (
            ended - self._gathering_since > GATHER_S
            or not member.hand.parcels
            or len(member.pending) >= GATHER_COUNT
            or member.credit.mean_s > SHORT_S
        ):
            member.flush()
            self.log.flush()
            member.receive()
