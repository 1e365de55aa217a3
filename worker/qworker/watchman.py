"""A thread of each child that minds the network while user code runs long.

Between tasks the runner minds its own network. While one task runs for more than a few
milliseconds, nobody would: outcomes of tasks before it would wait for it, deliveries on their
way would be out of the parent's sight (it recalls only what is in the slot), and the broker
would go on sending. Then the watchman does, every TICK_S: it sends what is pending, takes in
what has arrived, and lowers the credit to 1.

Rule 1. It sleeps, at no cost, unless a runner runs a task with more behind it: pending, in hand,
        or allowed by the credit and perhaps on its way. The runner wakes it (``wake``); it goes
        back to sleep by itself.
Rule 2. It needs the interpreter's lock like any thread. While C code holds that for seconds,
        settlements already pending wait, at worst as long as the C code; leases do not suffer,
        for the parent heartbeats, and what was in the slot the parent recalls. If the child dies
        then, the parent acknowledges those that had nothing to keep (slots.Remains.finished)
        and the others run again.
"""

import os
import select
import threading
import time

from qworker.member import Member
from qworker.slots import RING, STARTED_NS, TAKEN, UNENDED

TICK_S = 0.01
SLOW_TICK_S = 0.1
LONG_S = 0.02
"""A task that runs longer than this has nothing waiting behind it that it need not have."""
QUIET_TICKS = 5
"""Ticks without anything to do after which it sleeps."""


class Watchman:
    """Minds the members of one process."""

    def __init__(self, members: list[Member], stop_fd: int) -> None:
        self.members = members
        self.awake = False
        """Read by runners before ``wake``; a stale False costs one byte in a pipe."""
        self.stopping = False
        self._stop_fd = stop_fd
        self._bell, self._rope = os.pipe()
        self._thread = threading.Thread(target=self._run, name="watchman", daemon=True)

    def start(self) -> None:
        """It minds the members until the process ends."""
        self._thread.start()

    def wake(self) -> None:
        """A runner begins a task with more to do behind it."""
        self.awake = True
        os.write(self._rope, b"!")

    def _run(self) -> None:
        while True:
            self._wait(None)
            self._mind()

    def _wait(self, seconds: float | None) -> None:
        """That long (None: until a runner rings), or until the process is to stop."""
        poll = select.poll()
        if seconds is None:
            poll.register(self._bell, select.POLLIN)
        if not self.stopping:
            poll.register(self._stop_fd, select.POLLIN)
        for fd, _ in poll.poll(None if seconds is None else seconds * 1000):
            if fd == self._bell:
                os.read(self._bell, 64)
            else:
                self.stopping = True

    def _mind(self) -> None:
        quiet, tick_s = 0, TICK_S
        while quiet < QUIET_TICKS or self.stopping:
            self._wait(tick_s)
            paces = [self._tend(member) for member in self.members]
            quiet = 0 if any(paces) else quiet + 1
            # Where all that runs is long, everything has been sent: what is left is to listen.
            tick_s = min((pace for pace in paces if pace), default=TICK_S)
        # Invariant: whoever began a task after this line sees False and wakes us; whoever
        # began before is seen below. The interpreter's lock orders the two.
        self.awake = False
        if any(self._works(member) for member in self.members):
            self.wake()

    @staticmethod
    def _works(member: Member) -> bool:
        """Whether a task runs with more behind it."""
        taken = member.words[TAKEN]
        runs = taken > 0 and member.hand.slot.ends[(taken - 1) % RING] == UNENDED
        return runs and member.has_more

    def _tend(self, member: Member) -> float:
        """Does for the member what is due. Seconds until it is due again; 0 if nothing runs."""
        if not self._works(member) and not self.stopping:
            return 0.0
        ran_s = (time.monotonic_ns() - member.words[STARTED_NS]) / 1e9
        if ran_s < TICK_S / 2 or not member.network.acquire(blocking=False):
            return TICK_S
        try:
            if not self._works(member) and not self.stopping:
                return 0.0  # it ended meanwhile: the runner minds its network, perhaps in a wait
            if self.stopping:
                member.quiesce()
            if ran_s > LONG_S:
                member.reconnect()
                member.shrink()
                member.receive()
            member.flush()
        finally:
            member.network.release()
        return SLOW_TICK_S if ran_s > LONG_S else TICK_S
