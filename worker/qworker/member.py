"""The network side of one runner: deliveries in, settlements out. Runs no user code.

    broker --Deliver--> hand --take--> (runner) --outcome--> pending --flush--> broker
                                                             unanswered <--Settled--

A runner's own thread calls this between tasks; while a task runs long, the process's watchman
(watchman.py) calls it instead. ``network`` is the lock between the two.

Rule 1. Outcomes wait in ``pending`` for company: those with nothing to keep leave as runs in
        one Ack, the others in one Settle. The runner decides when (runner.py, rule 2).
Rule 2. What was sent is kept until it is answered, and is sent again after a reconnect. The
        broker recognises a settlement it has seen: the token is not valid any more.
Rule 3. A lost lease is not an error: the outcome is dropped with a log line.
Rule 4. The connection may be gone at any time. Work in hand goes on; Hello says what is held.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from qclient.exceptions import ConnectError, ConnectionLost, RefusedError
from qclient.link import Link
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.errors import ProtocolError
from qprotocol.failure import Failure
from qprotocol.message import Outcome
from qworker.backoff import Backoff
from qworker.credit import Credit
from qworker.hand import Hand
from qworker.logs import note
from qworker.slots import CONFIRMED, MEAN_US, READY
from qworker.terms import Terms

SUBSCRIPTION = 1
CONNECT_S = 5.0
LEAVE_S = 5.0
"""How long a leaving member waits for the broker's word on its last settlements."""
SETTLE_BYTES = 512 * 1024
"""Outcomes gathered into one Settle; a larger one goes alone, in parts."""
SETTLE_COUNT = 1000


class Ended(NamedTuple):
    """One outcome on its way. ``outcome`` is None where there is nothing to keep."""

    number: int
    """The token's number in the slot; -1 if it was never taken, or goes on."""
    position: int
    grant: int
    outcome: Outcome | None = None
    what: str = ""
    """Task and id, for the log."""


@dataclass(slots=True)
class Batch:
    """A settling frame that was sent, or will be once there is a connection."""

    frame: f.Frame
    first: int
    """Every token before this number was in an earlier batch."""
    entries: list[Ended] = field(default_factory=list)
    """Empty for an Ack: nothing of it needs to be known again."""
    again: bool = False
    """Sent before, on a connection that is gone."""


class Member:
    """One member of the worker's session."""

    def __init__(self, terms: Terms, number: int, hand: Hand, stop_fd: int) -> None:
        self.terms, self.number, self.hand = terms, number, hand
        self.words = hand.slot.words
        self.stop_fd = stop_fd
        """Becomes readable when the process is to stop; ends every wait."""
        self.network = threading.RLock()
        self.pending: deque[Ended] = deque()
        self.credit = Credit()
        self.void: set[int] = set()
        """Positions whose lease is gone: not to be begun, their outcome not to be sent."""
        self.link: Link | None = None
        self.closing = False
        self._poll = select.poll()
        self._poll.register(stop_fd, select.POLLIN)
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._heard, self._silence_s = 0.0, 30.0
        self._correlation = 10
        self._unanswered: dict[int, Batch] = {}
        self._waiting: set[int] = set()
        self._through = 0
        self._on: dict[type[f.Frame], Callable[[f.Frame], object]] = {
            f.Deliver: self._on_deliver,
            f.Settled: self._on_settled,
            f.Error: self._on_error,
            f.Ok: self._on_ok,
            f.Revoke: self._on_revoke,
        }

    # Waiting and connecting.

    def wait(self, timeout_s: float = 10.0) -> None:
        """Something came, or the process is to stop, or it is time to look again.

        Connects if there is no connection. Everything pending is sent before.
        """
        self.flush()
        if self.link is None and not self.reconnect():
            timeout_s = min(timeout_s, max(0.0, self._retry_at - time.monotonic()))
        if self.hand.parcels:
            return
        if self._poll.poll(timeout_s * 1000):
            self.receive()
        elif self.link and time.monotonic() - self._heard > self._silence_s:
            self._lost(ConnectionLost(f"the broker was silent for {self._silence_s:g} s"))

    def reconnect(self) -> bool:
        """Whether there is a connection now. Tries at most once, and not before it is time."""
        with self.network:
            if self.link is not None:
                return True
            if time.monotonic() < self._retry_at:
                return False
            try:
                self._connect()
            except (ConnectError, ConnectionLost, RefusedError, ProtocolError) as error:
                delay_s = self._backoff.next_s()
                self._retry_at = time.monotonic() + delay_s
                level = logging.DEBUG if self._backoff.failures > 1 else logging.WARNING
                note(level, "no connection", reason=error, next_try_s=round(delay_s, 1))
                return False
            self._backoff.reset()
            return True

    def _connect(self) -> None:
        tokens = [token for token in self.hand.outstanding() if token[0] not in self.void]
        raw = b"".join(wire.TOKEN.pack(*token) for token in tokens)
        hello = self.terms.hello("member", self.number, os.getpid(), raw)
        link = Link.open(self.terms.address, hello, timeout_s=CONNECT_S)
        lost = {position for position, _ in wire.TOKEN.iter_unpack(link.welcome.raw)}
        if lost:
            self.void |= lost
            note(logging.WARNING, "leases lost while there was no connection", count=len(lost))
        self.link = link
        self._heard = time.monotonic()
        self._silence_s = max(1.0, link.welcome.session_timeout_ms / 1000)
        self._poll = select.poll()
        self._poll.register(self.stop_fd, select.POLLIN)
        self._poll.register(link.fileno(), select.POLLIN)
        for batch in self._unanswered.values():
            batch.again = True
        resent = [batch.frame for batch in self._unanswered.values()]
        credit = 0 if self.closing else self.credit.wanted()
        consume = f.Consume(
            subscription=SUBSCRIPTION,
            queues=self.terms.queues,
            credit=credit,
            correlation=self._next(),
        )
        self.credit.granted = credit
        try:
            link.send(*resent, consume)
        except (ConnectionLost, ProtocolError):
            self._drop_link()
            raise
        self.words[READY] = 1

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None
        self._poll = select.poll()
        self._poll.register(self.stop_fd, select.POLLIN)
        self._waiting.clear()

    def _lost(self, error: Exception) -> None:
        self._drop_link()
        self._retry_at = time.monotonic() + self._backoff.next_s() / 3
        note(logging.WARNING, "connection lost; work in hand goes on", reason=error)

    def _next(self) -> int:
        self._correlation += 1
        return self._correlation

    # Frames out.

    def flush(self) -> None:
        """What is pending is with the kernel, if there is a connection; else it is kept."""
        if not self.pending:
            return
        with self.network:
            self._heard = time.monotonic()  # silence counts from the last time we were busy
            frames = self._pack()
            change = 0 if self.closing else self.credit.change()
            if change:
                frames.append(self._credit(change))
            self._send(frames)

    def _credit(self, credit: int) -> f.Frame:
        self.credit.granted = credit
        self.words[MEAN_US] = int(self.credit.mean_s * 1e6)
        return f.Credit(subscription=SUBSCRIPTION, credit=credit)

    def _send(self, frames: list[f.Frame]) -> None:
        if self.link is None or not frames:
            return
        try:
            self.link.send(*frames)
        except (ConnectionLost, ProtocolError) as error:
            self._lost(error)

    def _pack(self) -> list[f.Frame]:
        """Pending outcomes as frames, each noted as unanswered."""
        runs: list[bytes] = []
        kept: list[Ended] = []
        first = before = self._through
        grant = position = count = 0
        pending = self.pending
        while pending:
            entry = pending.popleft()
            if entry.number >= 0:
                before = entry.number + 1
            if entry.position in self.void and self._discard(entry):
                continue
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
        self._through = before
        frames: list[f.Frame] = []
        if runs:
            ack = f.Ack(raw=b"".join(runs), correlation=self._next())
            self._unanswered[ack.correlation] = Batch(ack, first)
            frames.append(ack)
        return frames + [self._settle(part, first) for part in portions(kept)]

    def _settle(self, entries: list[Ended], first: int) -> f.Frame:
        raw = b"".join(entry.outcome.pack() for entry in entries if entry.outcome)
        frame = f.Settle(count=len(entries), raw=raw, correlation=self._next())
        self._unanswered[frame.correlation] = Batch(frame, first, entries)
        return frame

    def _discard(self, entry: Ended) -> bool:
        self.void.discard(entry.position)
        note(logging.WARNING, "lease lost, outcome discarded", task=entry.what or entry.position)
        return True

    def confirm(self, entry: Ended) -> bool:
        """``entry`` is durable with the broker; False if its lease was lost. Waits for it.

        Sends what is pending first. Reconnects for as long as it takes.
        """
        self.flush()
        with self.network:
            frame = self._settle([entry], self._through)
            self._send([frame])
        while frame.correlation in self._unanswered:
            self.wait_for_answer(1.0)
        lost = entry.position in self.void
        self.void.discard(entry.position)
        return not lost

    def start_early(self, outcome: Outcome, what: str) -> bool:
        """The broker has it on disk that the task begins; False if it may not any more."""
        if self.confirm(Ended(-1, outcome.position, outcome.grant, outcome, what)):
            return True
        self.void.add(outcome.position)  # so that no outcome of it is sent
        return False

    def server_ms(self) -> int:
        """The broker's wall clock; ours while there is no connection."""
        link = self.link
        return link.server_ms() if link else time.time_ns() // 1_000_000

    def wait_for_answer(self, timeout_s: float) -> None:
        """Like ``wait``, with work in hand, and not ended by the wish to stop."""
        if self.link is None and not self.reconnect():
            time.sleep(max(0.0, min(timeout_s, self._retry_at - time.monotonic())))
            return
        link = self.link
        if link is not None:
            poll = select.poll()
            poll.register(link.fileno(), select.POLLIN)
            poll.poll(timeout_s * 1000)
        self.receive()

    # Frames in.

    def receive(self) -> None:
        """Everything that has arrived is dealt with. Waits for nothing."""
        with self.network:
            link = self.link
            if link is None:
                return
            try:
                self._heard = time.monotonic()
                for frame in link.receive(0):
                    handler = self._on.get(type(frame))
                    if handler is not None:
                        handler(frame)
            except (ConnectionLost, ProtocolError, ValueError) as error:
                self._lost(error)

    def _on_deliver(self, frame: f.Frame) -> None:
        assert isinstance(frame, f.Deliver)
        self.hand.receive(frame)

    def _on_settled(self, frame: f.Frame) -> None:
        batch = self._answered(frame.correlation)
        if batch is None or not frame.raw:
            return
        names = {entry.position: entry.what for entry in batch.entries}
        going_on = {entry.position for entry in batch.entries if entry.number < 0}
        for (position,) in wire.POSITION.iter_unpack(frame.raw):
            if position in going_on:
                self.void.add(position)
            event = "settled before, or lease lost" if batch.again else "lease lost, outcome void"
            level = logging.INFO if batch.again else logging.WARNING
            note(level, event, task=names.get(position) or position)

    def _answered(self, correlation: int) -> Batch | None:
        batch = self._unanswered.pop(correlation, None)
        if batch is not None:
            left = self._unanswered
            self.words[CONFIRMED] = next(iter(left.values())).first if left else self._through
        return batch

    def _on_error(self, frame: f.Frame) -> None:
        """A refused settlement goes again, outcome by outcome; the one at fault as a failure."""
        assert isinstance(frame, f.Error)
        if frame.correlation == 0:
            raise ConnectionLost(f"{frame.code}: {frame.message}")
        self._waiting.discard(frame.correlation)
        batch = self._answered(frame.correlation)
        if batch is None:
            return
        note(logging.ERROR, "settlement refused", code=frame.code, message=frame.message)
        if not frame.retryable:
            self.void |= {entry.position for entry in batch.entries if entry.number < 0}
        if frame.retryable:
            time.sleep(min(frame.retry_after_ms / 1000, 1.0) or 0.1)
            parts = [batch.entries]
        elif len(batch.entries) > 1:
            parts = [[entry] for entry in batch.entries]
        else:
            parts = [[failed(entry, frame)] for entry in batch.entries if final(entry)]
        self._send([self._settle(part, batch.first) for part in parts if part])

    def _on_ok(self, frame: f.Frame) -> None:
        self._waiting.discard(frame.correlation)

    def _on_revoke(self, frame: f.Frame) -> None:
        self.void |= {position for position, _ in wire.TOKEN.iter_unpack(frame.raw)}

    # While a task runs long, and at the end.

    def shrink(self) -> None:
        """The broker sends nothing more until the running task has ended."""
        with self.network:
            if self.credit.granted > 1 and self.link is not None and not self.closing:
                self.credit.shrink()
                self._send([self._credit(1)])

    def quiesce(self) -> None:
        """No delivery comes any more, and none is in hand; a running task goes on."""
        with self.network:
            if self.closing:
                return
            self.closing = True
            self._ask(f.Unsubscribe(subscription=SUBSCRIPTION))
            for position, grant in self.hand.give_back():
                outcome = Outcome(wire.RELEASE, position, grant, delay_ms=0)
                self.pending.append(Ended(-1, position, grant, outcome))
        self.flush()

    def _ask(self, request: f.Frame, timeout_s: float = LEAVE_S) -> None:
        """``request`` is answered, or the connection is gone, or it took too long."""
        request.correlation = self._next()
        self._waiting.add(request.correlation)
        self._send([request])
        deadline = time.monotonic() + timeout_s
        while self.link and request.correlation in self._waiting and time.monotonic() < deadline:
            self.wait_for_answer(deadline - time.monotonic())

    def leave(self) -> None:
        """Nothing is leased to this member any more, as far as the broker can be reached."""
        self.quiesce()
        deadline = time.monotonic() + LEAVE_S
        while self._unanswered and time.monotonic() < deadline:
            self.wait_for_answer(0.5)
        if self.link is not None:
            self._ask(f.Bye(), timeout_s=max(0.1, deadline - time.monotonic()))
        self._drop_link()


def portions(entries: list[Ended]) -> list[list[Ended]]:
    """The entries in order, cut where a Settle would get too large."""
    found: list[list[Ended]] = []
    size = SETTLE_BYTES
    for entry in entries:
        outcome = entry.outcome
        assert outcome is not None
        adds = len(outcome.result) + sum(map(len, outcome.follow_on))
        if size + adds > SETTLE_BYTES or len(found[-1]) >= SETTLE_COUNT:
            found.append([])
            size = 0
        found[-1].append(entry)
        size += adds
    return found


def final(entry: Ended) -> bool:
    """Whether the outcome ends the lease, and was not already the report of a refusal."""
    return entry.number >= 0 and not (entry.outcome and entry.outcome.flags & wire.NO_RETRY)


def failed(entry: Ended, error: f.Error) -> Ended:
    """The outcome that says why the broker would not take the task's own."""
    failure = Failure("qworker.SettlementRefused", f"{error.code}: {error.message}")
    outcome = Outcome(
        wire.FAIL, entry.position, entry.grant, result=failure.pack(), flags=wire.NO_RETRY
    )
    return entry._replace(outcome=outcome)
