"""The network side of one runner: deliveries in, settlements out. Runs no user code.

    broker --Deliver--> hand --take--> (runner) --Ended--> settlements --> broker

A runner's own thread calls this between tasks; while a task runs long, the process's watchman
(watchman.py) calls it instead. ``network`` is the lock between the two.

Rule 1. Outcomes wait in ``settlements.pending`` for company; the runner decides how long
        (runner.py, rule 2).
Rule 2. The connection may be gone at any time. Work in hand goes on; the next Hello says what
        is held, and what was not answered is sent again.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from qclient.exceptions import ConnectError, ConnectionLost, RefusedError
from qclient.link import Link
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.errors import ProtocolError
from qprotocol.message import Outcome
from qworker.backoff import Backoff
from qworker.credit import Credit
from qworker.hand import Hand, Parcel
from qworker.inputs import Given
from qworker.logs import note
from qworker.settlements import Ended, Settlements
from qworker.slots import MEAN_US, READY
from qworker.terms import Terms
from qworker.topology import unpacked

SUBSCRIPTION = 1
CONNECT_S = 5.0
CONSUME_AGAIN_S = 5.0
"""After the broker refused to serve the worker's queues, as one that is another's alone."""
LEAVE_S = 5.0
"""How long a leaving member waits for the broker's word on its last settlements."""


class Member:
    """One member of the worker's session."""

    def __init__(
        self, terms: Terms, number: int, hand: Hand, stop_fd: int, *, known: bytes = b""
    ) -> None:
        self.terms, self.number, self.hand = terms, number, hand
        self.known = known
        """The tasks that it runs, as a Consume lists them; none are all."""
        self.words = hand.slot.words
        self.stop_fd = stop_fd
        """Becomes readable when the process is to stop; ends every wait."""
        self.network = threading.RLock()
        self.settlements = Settlements(self.words, self._next)
        self.pending = self.settlements.pending
        self.void = self.settlements.void
        self.credit = Credit()
        self.given = Given()
        self.link: Link | None = None
        self.closing = False
        self._poll = select.poll()
        self._poll.register(stop_fd, select.POLLIN)
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._heard, self._silence_s = 0.0, 30.0
        self._correlation = 10
        self._waiting: set[int] = set()
        self._consuming = 0
        """The correlation of the last Consume, until it is answered."""
        self._consume_at, self._refusal = 0.0, ""
        """When to ask again, if it was refused, and what was said; 0 and nothing if not."""
        self._on: dict[type[f.Frame], Callable[[f.Frame], object]] = {
            f.Deliver: self._on_deliver,
            f.Inputs: self._on_inputs,
            f.Settled: self._on_settled,
            f.Error: self._on_error,
            f.Ok: self._on_ok,
            f.Revoke: self._on_revoke,
            f.QueueGone: self._on_queue_gone,
        }

    @property
    def has_more(self) -> bool:
        """Whether something waits behind the running task, or may be on its way here."""
        return bool(self.pending or self.hand.parcels or self.credit.granted > 1)

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
        if self._consume_at:
            timeout_s = min(timeout_s, self._consume_again())
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
        tokens = [token for token in self.hand.outstanding() if token not in self.void]
        raw = b"".join(wire.TOKEN.pack(*token) for token in tokens)
        hello = self.terms.hello("member", self.number, os.getpid(), raw)
        link = Link.open(self.terms.address, hello, timeout_s=CONNECT_S)
        lost = set(wire.TOKEN.iter_unpack(link.welcome.raw))
        self.void.update(lost)
        self.void.intersection_update(self.hand.slot.waiting())
        if lost:
            note(logging.WARNING, "leases lost while there was no connection", count=len(lost))
        self.link = link
        self._heard = time.monotonic()
        self._silence_s = max(1.0, link.welcome.session_timeout_ms / 1000)
        self._poll = select.poll()
        self._poll.register(self.stop_fd, select.POLLIN)
        self._poll.register(link.fileno(), select.POLLIN)
        resent = self.settlements.again()
        try:
            link.send(*resent, self._consume())
        except (ConnectionLost, ProtocolError):
            self._drop_link()
            raise
        self.words[READY] = 1

    def _consume(self) -> f.Frame:
        """What listens to the worker's queues."""
        credit = self.credit.granted = 0 if self.closing else self.credit.wanted()
        frame = f.Consume(subscription=SUBSCRIPTION, queues=self.terms.queues, credit=credit)
        frame.order, frame.weights = self.terms.queue_order, self.terms.queue_weights
        frame.correlation, frame.raw = self._next(), self.known
        self._consuming, self._consume_at = frame.correlation, 0.0
        return frame

    def _consume_again(self) -> float:
        """The broker was asked again to serve the queues, if it is time; seconds until it is."""
        with self.network:
            left_s = self._consume_at - time.monotonic()
            if left_s <= 0 and self.link is not None and not self.closing:
                self._send([self._consume()])
            return max(0.0, left_s) or CONSUME_AGAIN_S

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
            frames = self.settlements.frames()
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

    def confirm(self, entry: Ended) -> bool:
        """``entry`` is durable with the broker; False if its lease was lost. Waits for it.

        Sends what is pending first. Reconnects for as long as it takes.
        """
        self.flush()
        with self.network:
            frame = self.settlements.settle([entry])
            self._send([frame])
        while self.settlements.awaits(entry):
            self.wait_for_answer(1.0)
        denied = entry.token in self.settlements.denied
        self.settlements.denied.discard(entry.token)
        return not denied

    def start_early(self, outcome: Outcome, what: str) -> bool:
        """The broker has it on disk that the task begins; False if it may not any more."""
        return self.confirm(Ended(-1, outcome.position, outcome.grant, outcome, what))

    def inputs_of(self, parcel: Parcel) -> list[tuple[int, int, bytes]] | None:
        """State, content and bytes of what the message is given; None if its lease was lost.

        Asks for what has not come yet, and reconnects for as long as it takes.
        """
        page = self.given.of(parcel.token)
        while page is not None and not page.is_whole:
            if self.link is None:
                self.wait_for_answer(1.0)
                continue
            known, link = len(page.rows), self.link
            more = f.FetchInputs(position=parcel.position, grant=parcel.grant, first=known)
            self._ask(more)
            if len(page.rows) == known and self.link is link:
                return None
        self.given.drop(parcel.token)
        return page.rows if page else []

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
        if self.given:
            self.given.keep({parcel.token for parcel in self.hand.parcels})

    def _on_inputs(self, frame: f.Frame) -> None:
        assert isinstance(frame, f.Inputs)
        self._waiting.discard(frame.correlation)
        self.given.receive(frame)

    def _on_settled(self, frame: f.Frame) -> None:
        assert isinstance(frame, f.Settled)
        self.settlements.settled(frame)

    def _on_error(self, frame: f.Frame) -> None:
        assert isinstance(frame, f.Error)
        if frame.correlation == 0:
            raise ConnectionLost(f"{frame.code}: {frame.message}")
        self._waiting.discard(frame.correlation)
        if frame.correlation == self._consuming:
            self._not_consuming(frame)
        self._send(self.settlements.refused(frame))

    def _not_consuming(self, error: f.Error) -> None:
        """The broker does not serve the queues. That may change: it is asked again."""
        level = logging.DEBUG if error.message == self._refusal else logging.ERROR
        queues = ",".join(self.terms.queues)
        note(
            level,
            "consumes nothing",
            queues=queues,
            code=error.code,
            reason=error.message,
            next_try_s=CONSUME_AGAIN_S,
        )
        self._refusal, self._consuming = error.message, 0
        self._consume_at = time.monotonic() + CONSUME_AGAIN_S

    def _on_ok(self, frame: f.Frame) -> None:
        self._waiting.discard(frame.correlation)
        if frame.correlation == self._consuming:
            self._consuming = 0
            if self._refusal:
                self._refusal = ""
                note(logging.INFO, "consumes again", queues=",".join(self.terms.queues))

    def _on_queue_gone(self, frame: f.Frame) -> None:
        """Somebody deleted a queue of ours: it is made anew, as the application declares it.

        What is refused of that is for the parent to say when it connects: others may have been
        faster, with a queue without options.
        """
        assert isinstance(frame, f.QueueGone)
        note(logging.WARNING, "queue deleted, and made anew", queue=frame.queue, why=frame.why)
        if not self.closing:
            wanted = [*unpacked(self.terms.topology), f.Unsubscribe(subscription=SUBSCRIPTION)]
            for each in wanted:
                each.correlation = self._next()
            self._send([*wanted, self._consume()])

    def _on_revoke(self, frame: f.Frame) -> None:
        revoked = set(wire.TOKEN.iter_unpack(frame.raw))
        self.void.update(revoked.intersection(self.hand.slot.waiting()))

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
        while self.settlements.unanswered and time.monotonic() < deadline:
            self.wait_for_answer(0.5)
        if self.link is not None:
            self._ask(f.Bye(), timeout_s=max(0.1, deadline - time.monotonic()))
        self._drop_link()
