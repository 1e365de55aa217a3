"""The parent's conversation with the broker: it keeps the session, and all leases with it.

A thread of its own, so that a broker that hangs delays no time limit, and a busy parent delays
no heartbeat. It never looks at a process; what concerns those it hands to the parent's loop.

    connecting --Welcome--> open --(lost, Goaway)--> connecting ... for ever, with backoff
    open --say_goodbye--> Bye, Ok --> closed

Rule 1. Heartbeats go out every ``heartbeat_ms`` of the Welcome, carrying the running tokens.
Rule 2. A settlement is kept until it is answered and sent again after a reconnect; then its
        ``done`` is called, in the parent's loop.
Rule 3. Nothing here waits for the parent's loop.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qclient.exceptions import ConnectError, ConnectionLost, RefusedError
from qclient.link import Link
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.errors import ProtocolError
from qprotocol.limits import ACK_RUNS_MAX, OUTCOMES_MAX
from qprotocol.message import Outcome
from qworker.backoff import Backoff
from qworker.declaring import Declared
from qworker.declaring import declare as declare_limits
from qworker.logs import note
from qworker.slots import Token
from qworker.terms import Terms
from qworker.topology import declare as declare_topology

CONNECT_S = 10.0
GOODBYE_S = 5.0
Event = tuple[str, object]
"""What the parent's loop is told: "open", "recall", "revoke", "control" or "done", and of what."""


@dataclass(slots=True)
class Request:
    """Frames that are answered one by one; ``done`` is called after the last answer."""

    frames: list[f.Frame]
    done: Callable[[], None] | None
    left: int


class Session:
    """The worker's session, from the parent's side."""

    def __init__(
        self,
        terms: Terms,
        running: Callable[[], list[Token]],
        tell: Callable[[Event], None],
        topology: Collection[f.Frame] = (),
        limits: Declared | None = None,
    ) -> None:
        self.terms = terms
        self._topology = topology
        """Exchanges and queues that are declared before anything is consumed."""
        self._limits = limits
        """Limits to be declared before anything is consumed; None once that is done."""
        self._running = running
        """The tokens that run now; called in this thread."""
        self._tell = tell
        """Takes an event to the parent's loop; called in this thread."""
        self.open = False
        self._link: Link | None = None
        self._outbox: deque[Request] = deque()
        self._notices: deque[list[Token]] = deque()
        self._unanswered: dict[int, Request] = {}
        self._correlation = 10
        self._bell, self._rope = os.pipe()
        self._leaving = False
        self._bye = 0
        self._backoff = Backoff()
        self._heartbeat_s, self._silence_s, self._heard = 10.0, 30.0, 0.0
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)

    # Called from the parent's loop.

    def start(self) -> None:
        """The session connects, and "open" is told each time it has."""
        self._thread.start()

    def settle(
        self,
        acks: list[Token],
        outcomes: list[Outcome],
        done: Callable[[], None] | None = None,
    ) -> None:
        """These will be settled as soon as there is a connection; then ``done`` is called."""
        frames: list[f.Frame] = []
        for at in range(0, len(acks), ACK_RUNS_MAX):
            runs = acks[at : at + ACK_RUNS_MAX]
            raw = b"".join(wire.ACK_RUN.pack(grant, position, 1) for position, grant in runs)
            frames.append(f.Ack(raw=raw))
        for at in range(0, len(outcomes), OUTCOMES_MAX):
            part = outcomes[at : at + OUTCOMES_MAX]
            raw = b"".join(outcome.pack() for outcome in part)
            frames.append(f.Settle(count=len(part), raw=raw))
        self._outbox.append(Request(frames, done, len(frames)))
        self._ring()

    def has_begun(self, tokens: list[Token]) -> None:
        """The broker learns that these run: if we are lost, that counts as their crash."""
        self._notices.append(tokens)
        self._ring()

    def say_goodbye(self, timeout_s: float = GOODBYE_S) -> bool:
        """Everything still leased to this session was returned; False if nobody answered."""
        self._leaving = True
        self._ring()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._bye < 0

    def _ring(self) -> None:
        os.write(self._rope, b"!")

    # The thread.

    def _run(self) -> None:
        while not (self._leaving and self._bye < 0):
            try:
                link = self._connect()
                self._converse(link)
            except (ConnectError, ConnectionLost, RefusedError, ProtocolError) as error:
                self.open = False
                if self._link is not None:
                    self._link.close()
                    self._link = None
                if self._leaving:
                    return
                delay_s = self._backoff.next_s()
                level = logging.DEBUG if self._backoff.failures > 1 else logging.WARNING
                note(level, "no session", reason=error, next_try_s=round(delay_s, 1))
                self._rest(delay_s)

    def _rest(self, seconds: float) -> None:
        """That long, or until the worker ends."""
        deadline = time.monotonic() + seconds
        while not self._leaving and (left := deadline - time.monotonic()) > 0:
            if select.select([self._bell], [], [], left)[0]:
                os.read(self._bell, 4096)
                time.sleep(min(0.05, left))

    def _connect(self) -> Link:
        raw = b"".join(wire.TOKEN.pack(*token) for token in self._running())
        hello = self.terms.hello("worker", 0, os.getpid(), raw)
        link = self._link = Link.open(self.terms.address, hello, timeout_s=CONNECT_S)
        welcome = link.welcome
        declare_topology(link, self._topology)
        if self._limits is not None:
            declare_limits(link, self._limits)
            self._limits = None
        self._heartbeat_s = max(0.2, welcome.heartbeat_ms / 1000)
        if welcome.raw:
            lost = len(welcome.raw) // wire.TOKEN.size
            note(logging.WARNING, "leases lost while there was no session", count=lost)
        again = self._backoff.failures
        self._backoff.reset()
        note(logging.INFO if again else logging.DEBUG, "session open", broker=self.terms.broker)
        resent = list({id(request): request for request in self._unanswered.values()}.values())
        self._unanswered.clear()
        self._outbox.extendleft(reversed(resent))
        self._heard = time.monotonic()
        self._silence_s = max(1.0, welcome.session_timeout_ms / 1000)
        self.open = True
        self._tell(("open", None))
        return link

    def _converse(self, link: Link) -> None:
        next_beat = 0.0
        while not (self._leaving and self._bye < 0):
            now = time.monotonic()
            if now >= next_beat:
                tokens = b"".join(wire.TOKEN.pack(*token) for token in self._running())
                link.send(f.Heartbeat(sent_ms=time.time_ns() // 1_000_000, raw=tokens))
                next_beat = now + self._heartbeat_s
            self._send_waiting(link)
            heard = link.fileno()
            ready = select.select([heard, self._bell], [], [], max(0.0, next_beat - now))[0]
            if self._bell in ready:
                os.read(self._bell, 4096)
            if heard in ready:
                self._heard = time.monotonic()
                for frame in link.receive(0):
                    self._handle(frame)
            elif now - self._heard > self._silence_s:
                raise ConnectionLost(f"the broker was silent for {self._silence_s:g} s")

    def _send_waiting(self, link: Link) -> None:
        while self._notices:
            tokens = self._notices.popleft()
            link.send(f.Running(raw=b"".join(wire.TOKEN.pack(*token) for token in tokens)))
        while self._outbox:
            self._send(self._outbox.popleft())
        if self._leaving and not self._bye and not self._unanswered:
            self._correlation += 1
            self._bye = self._correlation
            link.send(f.Bye(correlation=self._bye))

    def _send(self, request: Request) -> None:
        if not request.frames:
            self._finish(request)
            return
        for frame in request.frames:
            self._correlation += 1
            frame.correlation = self._correlation
            self._unanswered[frame.correlation] = request
        request.left = len(request.frames)
        assert self._link is not None
        self._link.send(*request.frames)

    def _handle(self, frame: f.Frame) -> None:
        if isinstance(frame, (f.Settled, f.Ok, f.Error)) and frame.correlation:
            if frame.correlation == self._bye:
                self._bye = -1
                return
            if isinstance(frame, f.Error):
                note(logging.ERROR, "settlement refused", code=frame.code, message=frame.message)
            request = self._unanswered.pop(frame.correlation, None)
            if request is not None:
                request.left -= 1
                if not request.left:
                    self._finish(request)
        elif isinstance(frame, f.Error):
            raise ConnectionLost(f"{frame.code}: {frame.message}")
        elif isinstance(frame, f.Recall):
            self._tell(("recall", list(wire.TOKEN.iter_unpack(frame.raw))))
        elif isinstance(frame, f.Revoke):
            tokens = list(wire.TOKEN.iter_unpack(frame.raw))
            self._tell(("revoke", (tokens, frame.terminate, frame.grace_ms)))
        elif isinstance(frame, f.Control):
            self._tell(("control", (frame.verb, frame.arguments or {})))
        elif isinstance(frame, f.Goaway):
            note(logging.INFO, "the broker is going away", reason=frame.reason)

    def _finish(self, request: Request) -> None:
        if request.done is not None:
            self._tell(("done", request.done))
