"""What the parent looks after every TICK_S: limits, hoarders, memory, and what has begun.

Rule 1. Everything is read from the slots; no process is asked.
Rule 2. A limit is acted on within a tick of passing, and to the millisecond once its task has
        been seen: ``look`` says when it wants to look again.
"""

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from qworker.children import Child, Verdict, call_of, kill_running, released
from qworker.logs import note
from qworker.pools import Pool
from qworker.session import Session
from qworker.slots import (
    CANCELLED,
    HARD_MS,
    IDLE,
    MEAN_US,
    READY,
    SIGNALLED,
    SOFT_MS,
    STARTED_NS,
    Running,
    Slot,
    Slots,
    Token,
)

TICK_S = 0.2
STUCK_NS = 100_000_000
"""A task that runs longer holds up what is in hand behind it."""
KEPT_US = 100_000
"""Work that a busy runner may keep in hand while another idles."""
MEMORY_EVERY_S = 1.0
REVOKED_MAX = 10_000
"""Revoked tokens remembered: each may yet begin, in a child that has not heard of it."""
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(slots=True)
class Revoked:
    """What is to be done about a delivery that is void."""

    terminate: bool
    grace_ns: int
    asked_ns: int = 0
    """When it was asked to stop, monotonic; 0 before."""


class Watch:
    """The parent's eye on its children."""

    def __init__(
        self,
        pool: Pool,
        session: Session,
        *,
        hard_ms: int,
        soft_ms: int,
        memory_max_kib: int,
    ) -> None:
        self.pool, self.session = pool, session
        self.hard_ms, self.soft_ms = hard_ms, soft_ms
        """For tasks that say nothing; 0 is none."""
        self.memory_max_kib = memory_max_kib
        self._told: dict[int, int] = {}
        """By slot, the number of the token that the broker knows to run."""
        self._next_memory = 0.0
        self._warned = False
        self._revoked: dict[Token, Revoked] = {}
        """Tokens that were revoked; the newest of them."""

    def look(self, children: list[Child], slots: Slots) -> float:
        """One tick. Seconds until the next one is due, at most TICK_S."""
        begun: list[tuple[int, int]] = []
        next_ns = int(TICK_S * 1e9)
        now = time.monotonic_ns()
        for child in children:
            for number in child.slots:
                slot = slots[number]
                running = slot.running() if child.pid else None
                if running is None:
                    continue
                ran_ns = now - running.started_ns
                if ran_ns > TICK_S * 1e9 and self._told.get(number) != running.index:
                    self._told[number] = running.index
                    begun.append(running.token)
                if running.token in self._revoked:
                    next_ns = min(next_ns, self._end_revoked(child, slot, running))
                next_ns = min(next_ns, self._limits(child, slot, running, ran_ns))
        if begun:
            self.session.has_begun(begun)
        self._share(children, slots)
        if self.memory_max_kib and time.monotonic() >= self._next_memory:
            self._next_memory = time.monotonic() + MEMORY_EVERY_S
            self._weigh(children)
        return max(next_ns / 1e9, 0.001)

    def revoke(self, tokens: list[Token], terminate: bool, grace_ms: int = 0) -> None:
        """Those tokens are void. What is in hand the members drop; what runs is seen to by look."""
        for token in tokens:
            self._revoked[token] = Revoked(terminate, grace_ms * 1_000_000)
        while len(self._revoked) > REVOKED_MAX:
            del self._revoked[next(iter(self._revoked))]

    def _end_revoked(self, child: Child, slot: Slot, running: Running) -> int:
        """Nanoseconds until there is more to do about it: it is asked first, then killed."""
        order, tick = self._revoked[running.token], int(TICK_S * 1e9)
        if order.terminate and self.pool.can_kill:
            now = time.monotonic_ns()
            if order.grace_ns and not order.asked_ns:
                order.asked_ns = now
                slot.words[CANCELLED] = running.index + 1
                grace_s = order.grace_ns / 1e9
                note(
                    logging.INFO, f"{call_of(running)} was revoked, asked to stop", grace_s=grace_s
                )
                child.signal(signal.SIGUSR1)
            left = order.asked_ns + order.grace_ns - now
            if left > 0:
                return min(left, tick)
            if kill_running(child, slot, running, Verdict.REVOKED):
                del self._revoked[running.token]
            return tick
        del self._revoked[running.token]
        why = f"; the {self.pool.name} pool cannot end one task" if order.terminate else ""
        note(logging.WARNING, f"{call_of(running)} was revoked and runs on{why}")
        return tick

    def forget(self, child: Child) -> None:
        """The child's slots begin anew."""
        for number in child.slots:
            self._told.pop(number, None)

    def _limits(self, child: Child, slot: Slot, running: Running, ran_ns: int) -> int:
        """Nanoseconds until this task's next limit; what has passed is enforced."""
        hard_ms = slot.words[HARD_MS] or self.hard_ms
        soft_ms = slot.words[SOFT_MS] or self.soft_ms
        wait = int(TICK_S * 1e9)
        if soft_ms and slot.words[SIGNALLED] != running.index + 1:
            left = soft_ms * 1_000_000 - ran_ns
            if left <= 0 and "--soft-time-limit" in self.pool.honours:
                slot.words[SIGNALLED] = running.index + 1
                note(logging.WARNING, f"soft time limit of {call_of(running)}", limit_ms=soft_ms)
                child.signal(signal.SIGUSR1)
            elif left <= 0:
                self._cannot(running)
            else:
                wait = min(wait, left)
        if hard_ms:
            left = hard_ms * 1_000_000 - ran_ns
            if left <= 0 and "--time-limit" in self.pool.honours:
                kill_running(child, slot, running, Verdict.TIME_LIMIT)
            elif left <= 0:
                self._cannot(running)
            else:
                wait = min(wait, left)
        return wait

    def _cannot(self, running: Running) -> None:
        if not self._warned:
            self._warned = True
            note(
                logging.WARNING,
                f"{call_of(running)} was sent with a time limit that the {self.pool.name} pool "
                f"cannot enforce; it goes on. Said once.",
            )

    def _share(self, children: list[Child], slots: Slots) -> None:
        """What waits behind a busy runner goes back, while another one idles."""
        ready = [slots[n] for child in children if child.pid for n in child.slots]
        ready = [slot for slot in ready if slot.words[READY]]
        if not any(slot.words[IDLE] and not slot.in_hand() for slot in ready):
            return
        now = time.monotonic_ns()
        for slot in ready:
            waiting = slot.in_hand()
            if not waiting or slot.words[IDLE]:
                continue
            mean_us = slot.words[MEAN_US]
            if now - slot.words[STARTED_NS] > STUCK_NS:
                keep = 0
            elif waiting * mean_us > 2 * KEPT_US:
                keep = max(1, KEPT_US // mean_us)
            else:
                continue
            self.recall(slot, keep)

    def recall(self, slot: Slot, keep: int = 0) -> int:
        """What the runner had not begun goes back to the queue, but for the first ``keep``."""
        tokens = slot.recall(keep)
        if tokens:
            note(logging.DEBUG, "recalled from a busy child", count=len(tokens))
            self.session.settle([], [released(token) for token in tokens])
        return len(tokens)

    def recall_tokens(self, slots: Slots, tokens: list[Token]) -> None:
        """Those tokens go back unless they have begun, with what waits behind them."""
        for slot in slots:
            places = [at for at, token in enumerate(slot.waiting()) if token in tokens]
            if places:
                self.recall(slot, keep=places[0])

    def _weigh(self, children: list[Child]) -> None:
        for child in children:
            if not child.pid or child.leaving:
                continue
            used = resident_kib(child.pid)
            if used > self.memory_max_kib:
                note(
                    logging.INFO,
                    f"{child.label} uses {used} KiB, over {self.memory_max_kib}: "
                    f"it ends after its task, and another takes its place",
                )
                child.leave()


def resident_kib(pid: int) -> int:
    """The process's resident memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB
    except (OSError, IndexError, ValueError):
        return 0
