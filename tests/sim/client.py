"""A small honest client: one connection at a time, requests and their answers, no policy.

The conversation is the client library's own (``qclient.dialogue``, which has no socket).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from qclient.dialogue import Dialogue
from qclient.exceptions import RefusedError
from qprotocol import frames as f
from qprotocol.errors import ProtocolError
from sim.net import Net, Wire
from sim.oracle import Oracle
from sim.swarm import Swarm
from sim.world import MS, Mark, S, Violation, World

Then = Callable[[f.Frame | None, Mark | None], None]
"""Gets the answer, or None when the connection ended without one: unknown."""
HANDSHAKE_US = 3 * S


class Client:
    """Connects, and connects again. Actors override the ``on_`` methods."""

    role = "producer"
    patience_us = 8 * S
    """A request that waits longer ends the connection: the other end may be gone."""

    def __init__(self, name: str, world: World, net: Net, swarm: Swarm, oracle: Oracle) -> None:
        self.name = name
        self.world = world
        self.net = net
        self.swarm = swarm
        self.oracle = oracle
        self.rng: Random = world.rng(name)
        self.wire: Wire | None = None
        self.dialogue: Dialogue | None = None
        self.waiting: dict[int, tuple[int, Then]] = {}
        self.session = b""
        self.member = 0
        self.alive = True
        self.silent = False
        """Stalled: hears, and says nothing."""
        self.heard_at = 0
        self.storms = False
        """Comes back at once."""
        self._asked = 2
        self._connecting = False
        self._generation = 0

    # Connecting.

    def connect(self) -> None:
        if self.alive and self.wire is None and not self._connecting:
            self._connecting = True
            self.net.connect(self)

    def connected(self, wire: Wire) -> None:
        self._connecting = False
        if not self.alive:
            wire.reset("nobody there", tell_client=False)
            return
        self.wire = wire
        self._asked = 2
        self._generation += 1
        self.heard_at = self.world.now
        heartbeat = 0 if self.role == "producer" else self.swarm.config["heartbeat_ms"]
        self.dialogue = Dialogue(
            f.Hello(
                protocol=1,
                role=self.role,
                client_id=self.name,
                session=self.session,
                member=self.member,
                heartbeat_ms=heartbeat,
            )
        )
        self.world.after(HANDSHAKE_US, self._hurry, self._generation)

    def _hurry(self, generation: int) -> None:
        if generation == self._generation and self.wire and not self.open:
            self.hang_up("no welcome")

    def lost(self, wire: Wire | None, why: str) -> None:
        """The connection is over, or never was."""
        if wire is not None and wire is not self.wire:
            return
        self._connecting = False
        was_open = self.open
        self.wire = self.dialogue = None
        waiting, self.waiting = self.waiting, {}
        if was_open:
            self.world.note(self.name, "connection lost: %s", why)
            self.on_lost(excused=wire is None or bool(wire.broken_at))
        for _, then in waiting.values():
            then(None, None)
        if self.alive:
            pause = (
                self.rng.randint(1, 20 * MS) if self.storms else self.rng.randint(5 * MS, 400 * MS)
            )
            self.world.after(pause, self.connect)

    def hang_up(self, why: str) -> None:
        """End the connection without a word."""
        wire = self.wire
        if wire is not None:
            wire.reset(why, tell_client=False)
            self.lost(wire, why)

    @property
    def open(self) -> bool:
        return self.dialogue is not None and self.dialogue.open

    # Frames.

    def received(self, data: bytes, mark: Mark) -> None:
        dialogue = self.dialogue
        if dialogue is None:
            return
        self.heard_at = self.world.now
        try:
            frames = dialogue.feed(data)
        except ProtocolError as error:
            raise Violation(f"{self.name} cannot read what the broker sent: {error}") from error
        for index, frame in enumerate(frames):
            if self.dialogue is not dialogue:
                self._haunted_by(frames[index:], mark)
                return
            self._take(dialogue, frame, mark)

    def _take(self, dialogue: Dialogue, frame: f.Frame, mark: Mark) -> None:
        if not dialogue.open:
            if isinstance(frame, f.Ok):
                dialogue.hello.raw = self.tokens()
            try:
                answer = dialogue.reply(frame)
            except RefusedError as error:
                self.on_refused(str(error))
                self.hang_up(str(error))
                return
            if answer is not None:
                self._write(answer)
            else:
                self.world.note(self.name, "is welcome")
                assert isinstance(frame, f.Welcome)
                self.on_welcome(frame, mark)
            return
        if frame.correlation and frame.correlation in self.waiting:
            _, then = self.waiting.pop(frame.correlation)
            then(frame, mark)
            self.oracle.answered(frame)
        elif isinstance(frame, f.Error):
            if frame.correlation:
                raise Violation(f"an answer to nothing that {self.name} asked: {frame}")
            self.on_refused(frame.message)
            self.hang_up(frame.message)
        elif not isinstance(frame, f.Heartbeat):
            self.on_push(frame, mark)

    def ghost(self, data: bytes, mark: Mark) -> None:
        """What the broker said and nobody hears. Only the books are told."""
        dialogue = self.dialogue
        if dialogue is None or not dialogue.open:
            return
        try:
            self._haunted_by(dialogue.feed(data), mark)
        except ProtocolError as error:
            raise Violation(f"{self.name} was sent what nobody can read: {error}") from error

    def _haunted_by(self, frames: list[f.Frame], mark: Mark) -> None:
        for frame in frames:
            if isinstance(frame, f.Deliver):
                self.oracle.ghost(frame, mark)

    def _write(self, *frames: f.Frame) -> None:
        assert self.dialogue is not None
        assert self.wire is not None
        self.wire.up.write(self.dialogue.encode(*frames), None)

    def say(self, frame: f.Frame) -> None:
        """No answer is expected."""
        if self.open and not self.silent:
            self._write(frame)

    def ask(self, frame: f.Frame, then: Then, parts: list[bytes] | None = None) -> bool:
        """Send a request; False if there is no conversation. ``parts`` go before it."""
        if not self.open:
            return False
        self._asked += 1
        frame.correlation = self._asked
        for index, raw in enumerate(parts or ()):
            part = f.Part(index=index, of=frame.TYPE, raw=raw, correlation=frame.correlation)
            self._write(part)
        self._write(frame)
        self.waiting[frame.correlation] = self.world.now, then
        self.world.after(self.patience_us, self._patience, self._generation, frame.correlation)
        return True

    def _patience(self, generation: int, correlation: int) -> None:
        if generation == self._generation and correlation in self.waiting:
            self.world.sometimes["a request was given up"] += 1
            self.hang_up("no answer in time")

    # For actors.

    def tokens(self) -> bytes:
        """What this client still runs."""
        return b""

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None: ...

    def on_lost(self, *, excused: bool) -> None: ...

    def on_refused(self, why: str) -> None:
        self.world.note(self.name, "refused: %s", why)

    def on_push(self, frame: f.Frame, mark: Mark) -> None:
        kind: Any = type(frame)
        assert kind in (f.Goaway, f.Blocked, f.Unblocked, f.Revoke, f.Recall), frame
        self.world.note(self.name, "hears %s", kind.__name__)
