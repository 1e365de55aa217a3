"""What parent and child both see of a child's work, in shared memory: one slot a runner.

A *runner* is what runs one task at a time: a prefork child, or a thread of the threads pool.
It keeps the tokens of all it was delivered in a ring; tokens are counted from 0 for ever and
never reset while the runner lives. Three of its words divide the ring::

    confirmed          taken                limit         received
       |  ended, perhaps |   in hand          |  recalled    |
       |  one running    |   (not begun)      |  by parent   |
    ---+-----------------+--------------------+--------------+--->  token number

    take     runner: taken < limit             taken += 1, and the work begins
    recall   parent: limit := taken + keep     tokens from limit to received are the parent's
    receive  runner: recalled ones are dropped (received := limit, limit := NO_LIMIT),
             then the new tokens are written and received += n

Rule 1. ``taken``, ``limit`` and ``received`` are read and changed under the slot's lock only.
        It is a POSIX semaphore: acquire and release are atomic, full barriers, and no system
        call unless the two meet. Hence every take is wholly before or wholly after every
        recall, on any processor: before, and the parent sees it in ``taken`` and leaves the
        token alone; after, and the runner sees the lowered ``limit`` and does not begin. No
        token is ever both begun and recalled, and none is neither.
Rule 2. Only runner and parent ever hold the lock. A runner that dies holding it is reported by
        the kernel to the parent, which then is alone: it reads without the lock and makes the
        lock new before the slot is used again. A parent that dies takes its children along.
        A runner stopped (SIGSTOP) while holding it costs the parent LOCK_WAIT_S and one recall.
Rule 3. The other words have one writer and are hints (times, limits, figures): whoever acts on
        them checks under the lock that the same task still runs.
Rule 4. The runner's side of the three moves is in hand.py, the parent's in this file. Neither
        knows what a token means to the broker, or tells it anything.
"""

import _multiprocessing  # type: ignore[import-not-found]
import mmap
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qprotocol import wire
from qprotocol.ids import unpack_id
from qprotocol.message import unpack_route

# The semaphores under multiprocessing.Lock, without its resource tracker, which is a process
# of its own. Private by name, the same since Python 3.4. Typeshed does not know it.
SemLock: Any = _multiprocessing.SemLock
sem_unlink: Callable[[str], None] = _multiprocessing.sem_unlink

RING = 4096
"""Tokens a slot remembers. Four times the largest credit: unconfirmed ones stay known."""
HEAD_BYTES = 1024
"""The start of the running message: envelope, route and id, at most 32 + 714 + 255 bytes."""
NO_LIMIT = 2**63
LOCK_WAIT_S = 0.05

(
    READY,
    RECEIVED,
    TAKEN,
    LIMIT,
    CONFIRMED,
    STARTED_NS,
    SOFT_MS,
    HARD_MS,
    SIGNALLED,
    MEAN_US,
    FINISHED,
    IDLE,
    HEAD_SIZE,
    CANCELLED,
) = range(14)
_WORDS = 16
POSITIONS_AT = _WORDS
GRANTS_AT = POSITIONS_AT + RING
_ENDS = (GRANTS_AT + RING) * 8
_HEAD = _ENDS + RING
SLOT_BYTES = _HEAD + HEAD_BYTES

UNENDED, ENDED_PLAIN, ENDED_OTHER = 0, 1, 2
"""How a taken token ended: not yet; with nothing to keep; with a result, failure or delay."""

Token = tuple[int, int]
"""Position and grant."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a runner was doing at one moment."""

    index: int
    token: Token
    started_ns: int
    head: bytes
    """The first bytes of the packed message; ``describe`` reads them."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What a dead runner leaves behind. Together all tokens that may still be leased to it."""

    running: Running | None
    finished: list[Token]
    """Ended with nothing to keep, but the broker's word for it is not in."""
    unsent: list[Token]
    """Ended with an outcome that died with the runner, unless it was on its way."""
    unbegun: list[Token]


class Slot:
    """One runner's slot, seen from either side."""

    def __init__(self, memory: memoryview, lock: Any) -> None:
        self.words = memory[:_ENDS].cast("Q")
        self.ends = memory[_ENDS:_HEAD]
        self.head = memory[_HEAD:SLOT_BYTES]
        self.lock = lock

    def recall(self, keep: int = 0) -> list[Token]:
        """Tokens the runner will not begin any more; up to ``keep`` stay in its hand.

        Empty if there are none, or if the runner was stopped while holding the lock.
        """
        words = self.words
        if not self.lock.acquire(True, LOCK_WAIT_S):
            return []
        end = min(words[RECEIVED], words[LIMIT])
        floor = min(words[TAKEN] + keep, end)
        tokens = self.tokens(floor, end)
        if tokens:
            words[LIMIT] = floor
        self.lock.release()
        return tokens

    def running(self) -> Running | None:
        """What runs now. A snapshot: true of one moment, unless the runner is stopped."""
        if not self.lock.acquire(True, LOCK_WAIT_S):
            return None
        found = self.running_unlocked()
        self.lock.release()
        return found

    def running_unlocked(self) -> Running | None:
        """As ``running``, for who holds the lock already or knows the runner dead."""
        index = self.words[TAKEN] - 1
        if index < 0 or self.ends[index % RING] != UNENDED:
            return None
        head = bytes(self.head[: self.words[HEAD_SIZE]])
        return Running(index, self.token(index), self.words[STARTED_NS], head)

    def waiting(self) -> list[Token]:
        """Tokens received and not begun, in order."""
        with self.lock:
            words = self.words
            return self.tokens(words[TAKEN], min(words[RECEIVED], words[LIMIT]))

    def in_hand(self) -> int:
        """Tokens received and not begun."""
        words = self.words
        return max(0, min(words[RECEIVED], words[LIMIT]) - words[TAKEN])

    def token(self, index: int) -> Token:
        at = index % RING
        return self.words[POSITIONS_AT + at], self.words[GRANTS_AT + at]

    def tokens(self, start: int, end: int) -> list[Token]:
        return [self.token(index) for index in range(start, end)]

    def remains(self) -> Remains:
        """What the runner left. Only once it is dead: takes no lock."""
        words = self.words
        taken, end = words[TAKEN], min(words[RECEIVED], words[LIMIT])
        running = self.running_unlocked()
        ended = taken if running is None else taken - 1
        finished: list[Token] = []
        unsent: list[Token] = []
        for index in range(max(words[CONFIRMED], end - RING, 0), ended):
            kept = self.ends[index % RING] != ENDED_PLAIN
            (unsent if kept else finished).append(self.token(index))
        return Remains(running, finished, unsent, self.tokens(taken, end))

    def renew(self) -> None:
        """The slot is empty and its lock free. Only while no runner uses it."""
        self.words[:_WORDS] = memoryview(array("Q", bytes(_WORDS * 8)))
        self.words[LIMIT] = NO_LIMIT
        while self.lock.acquire(False):
            pass
        self.lock.release()


class Slots:
    """All slots of a worker: memory without a name, and a semaphore each.

    The parent makes them; a process it starts opens the same ones from ``fd`` and ``names``.
    Once the parent has called ``seal``, nothing of them is left in the system but by use.
    """

    def __init__(self, fd: int, locks: list[Any]) -> None:
        self.fd = fd
        self.names = [str(lock.name) for lock in locks]
        self._map = mmap.mmap(fd, len(locks) * SLOT_BYTES)
        view = memoryview(self._map)
        self._slots = [
            Slot(view[i * SLOT_BYTES : (i + 1) * SLOT_BYTES], lock) for i, lock in enumerate(locks)
        ]
        view.release()

    @classmethod
    def make(cls, count: int) -> "Slots":
        """New, empty slots. Raises OSError if the system has no room for shared memory."""
        fd = anonymous_file()
        os.ftruncate(fd, count * SLOT_BYTES)
        stem = f"/qworker-{os.getpid()}-{os.urandom(4).hex()}"
        slots = cls(fd, [SemLock(1, 1, 1, f"{stem}-{i}", False) for i in range(count)])
        for slot in slots:
            slot.renew()
        return slots

    @classmethod
    def open(cls, fd: int, names: list[str]) -> "Slots":
        """The slots that another process made."""
        slots = cls(fd, [SemLock._rebuild(0, 1, 1, name) for name in names])  # noqa: SLF001
        os.close(fd)
        return slots

    def seal(self) -> None:
        """Nobody can open them any more; who has them keeps them. They end with the last."""
        for name in self.names:
            sem_unlink(name)
        os.close(self.fd)

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)


def anonymous_file() -> int:
    """A file without a name: memory on Linux, an unlinked temporary file elsewhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("qworker-slots")
    import tempfile  # noqa: PLC0415 - not needed on Linux

    fd, path = tempfile.mkstemp(prefix="qworker-slots-")
    Path(path).unlink()
    return fd


def describe(head: bytes) -> tuple[str, str, str]:
    """Task, id and queue of the message that begins with ``head``; empty where it is cut."""
    if len(head) < wire.MESSAGE.size:
        return "", "", ""
    fields = wire.MESSAGE.unpack_from(head)
    flags, n_route, n_id = fields[4], fields[7], fields[8]
    at = wire.MESSAGE.size
    _, queue, task, _ = unpack_route(head[at : at + n_route])
    at += n_route
    raw_id = head[at : at + n_id]
    return task, unpack_id(raw_id, minted=bool(flags & wire.ID_MINTED)) if raw_id else "", queue
