"""The broker without sockets, threads and clocks: for scenarios, for the model, for you.

`Machine` turns the real core, log, bodies, group commit and frame builder as engine.py
does, on a SimDisk, with a clock of its own. Nothing happens but by its methods.
"""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import Any

from archives import Archive
from qbroker.ages import Ages
from qbroker.bodies import Bodies
from qbroker.core import effects as e
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.moment import Now
from qbroker.core.results import Found
from qbroker.core.settings import Settings
from qbroker.core.snapshot import decode, encode, tidy
from qbroker.delivery import Delivery
from qbroker.groupcommit import Commit, GroupCommit
from qbroker.log.log import Log, LogSettings
from qbroker.replaying import follow
from qprotocol import frames as f
from qprotocol.codec import Assembler, Decoder
from simdisk import Choose, SimDisk, lose_all

START_MS = 1_700_000_000_000


class Peer:
    """The far end of a connection: what the broker sent it, as frames."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.received: list[f.Frame] = []
        self.is_open = True
        self._decoder = Decoder()
        self._assembler = Assembler(1 << 26)

    def send(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if isinstance(frame, f.Part):
                self._assembler.add(frame)
            else:
                self.received.append(self._assembler.complete(frame))

    def close(self) -> None:
        self.is_open = False

    def welcomed(self) -> None:
        """Of interest to sockets only."""

    def refused(self) -> None:
        """Of interest to sockets only."""


class PatientDelivery(Delivery):
    """Reads what is cold at once, in this thread."""

    def _load(self, number: int, effect: e.Effect) -> None:
        self.cold = [*getattr(self, "cold", ()), (number, effect)]

    def send(self, effects: Any) -> None:
        super().send(effects)
        cold, self.cold = getattr(self, "cold", []), []
        for number, effect in cold:
            missing = self._bodies.missing(self._outgoing.needs(effect))
            self._bodies.keep(self._bodies.load(missing))
            self.send(self._waiting.pop(number))


class Machine:
    """A broker from start to crash, and again. `turn` is the engine's; nothing else moves it."""

    def __init__(
        self,
        disk: SimDisk | None = None,
        settings: Settings | None = None,
        *,
        log_settings: LogSettings | None = None,
        window_bytes: int = 1 << 20,
        claims_ms: int = 0,
    ) -> None:
        self.disk = disk or SimDisk()
        self.settings = settings or Settings()
        self.log_settings = log_settings
        self.window_bytes = window_bytes
        self.archive: Archive | None = None
        self.claims_ms = claims_ms
        self.wall_ms = START_MS
        self.mono_ms = 1_000
        self.connections = 0
        self.noted: list[tuple[int, r.Record]] = []
        """Records appended since somebody looked."""
        self.snapshot: tuple[int, dict[str, bytes]] | None = None
        """A batch and the durable state behind it: starts go on from there."""
        self.start()

    @property
    def now(self) -> Now:
        return Now(self.wall_ms, self.mono_ms)

    # Its life.

    def start(self) -> None:
        """The log is opened and replayed, a new epoch is durable."""
        settings = self.settings
        self.log = Log.open(self.disk, self.log_settings or LogSettings(segment_bytes=1 << 20))
        if self.archive:
            self.archive.kill()
        self.ages = Ages()
        self.core = self.rebuilt(self.log)
        self.bodies = Bodies(self.log, self.window_bytes, lambda: self.mono_ms)
        self.peers: dict[int, Peer] = {}
        self.delivery = PatientDelivery(
            self.bodies,
            self.peers,
            None,  # type: ignore[arg-type]
            self.archive.questions if self.archive else None,
            self.ages,
        )
        self.group = GroupCommit(
            self.log, self.bodies, fsync=settings.fsync, interval_ms=1_000, batch_bytes_max=8 << 20
        )
        self.inbox: deque[tuple[int, f.Frame | None]] = deque()
        self.found: deque[tuple[int, f.Frame, Found]] = deque()
        self.writing: Commit | None = None
        self.claims_until_ms = 0 if self.log.clean else self.mono_ms + self.claims_ms
        self.core.boot(self.now, "test", self.append)
        self.writing = self.group.take(sync=True)
        self.write()

    def rebuilt(self, log: Log, upto: int = 1 << 44) -> Broker:
        """What the log says up to a batch, by the snapshot if there is one."""
        last, sections = self.snapshot or (0, {})
        state = decode(self.settings, sections) if last else None
        core = Broker(self.settings, state)
        behind = takewhile(lambda batch: batch[0].number <= upto, log.replay(last + 1))
        follow(behind, core, self.ages, lambda done: None)
        return core

    def save(self) -> None:
        """A snapshot of what is durable, as one makes it who has only the log."""
        twin = self.disk.copy()
        twin.kill()
        core = self.rebuilt(Log.open(twin, self.log_settings), self.log.durable)
        tidy(core.state, self.wall_ms)
        self.snapshot = self.log.durable, dict(encode(core.state))

    def crash(self, choose: Choose = lose_all) -> None:
        """Power is cut, as SimDisk.crash says, and the broker starts again."""
        self.disk.crash(choose)
        self.start()

    def kill(self) -> None:
        """The process dies and starts again; all that was written can be read."""
        self.disk.kill()
        self.start()

    # From outside.

    def connect(self) -> Peer:
        self.connections += 1
        peer = self.peers[self.connections] = Peer(self.connections)
        return peer

    def submit(self, peer: Peer, frame: f.Frame) -> None:
        self.inbox.append((peer.number, frame))
        self.core.heard(peer.number, self.mono_ms)

    def archive_all(self) -> None:
        """The archive, made if there is none, tells of all that is durable."""
        if self.archive is None:
            self.archive = Archive(self.disk)
            self.delivery._archive = self.archive.questions
        self.archive.wall_ms = self.wall_ms
        self.core.archived(self.archive.advance(self.log.durable))

    def disconnect(self, peer: Peer) -> None:
        peer.close()
        self.peers.pop(peer.number, None)
        self.delivery.drop(peer.number)
        self.inbox.append((peer.number, None))

    # A turn, step by step as in engine.py.

    def turn(self) -> None:
        """Decide what has arrived, hand out, send what the log allows. Writes nothing."""
        now, append = self.now, self.append
        out = []
        while self.found:
            number, frame, found = self.found.popleft()
            if number in self.peers:
                out += self.core.execute(number, frame, now, append, found)
        while self.inbox:
            number, arrived = self.inbox.popleft()
            if arrived is None:
                out += self.core.disconnected(number, now, append)
            else:
                out += self.core.execute(number, arrived, now, append)
        out += self.core.due(now, append)
        if not self.claiming:
            out += self.core.dispatch(now, append)
        self.group.hold(out)
        self.release()

    @property
    def claiming(self) -> bool:
        return self.mono_ms < self.claims_until_ms

    def begin_write(self) -> None:
        """The batch that is due, if one is, is on its way to the disk."""
        if self.writing is None:
            self.writing = self.group.due(self.mono_ms)

    def write(self) -> None:
        """The batch on its way arrives."""
        commit, self.writing = self.writing, None
        if commit is not None:
            self.commit(commit, sync=commit.sync)
            self.group.committed(self.mono_ms)
            self.release()

    def write_all(self) -> None:
        """All that was decided is durable, awaited or not."""
        self.write()
        if not self.group.empty:
            self.writing = self.group.take(sync=True)
            self.write()

    def commit(self, commit: Commit, *, sync: bool) -> None:
        epoch = self.core.state.epoch
        self.log.commit(commit.batch, sync=sync, wall_ms=self.wall_ms, epoch=epoch)
        self.ages.note(commit.batch.number, self.wall_ms)

    def release(self) -> None:
        effects = self.group.released()
        for effect in effects:
            if isinstance(effect, e.Lookup):
                here = self.delivery.find_here(effect)
                complete = here.messages and len(here.messages) == len(effect.positions)
                if not complete and here.before is None:
                    here = self.delivery.finder(effect, here)()
                self.found.append((effect.connection, effect.frame, here))
        self.delivery.send(effects)
        for number, peer in list(self.peers.items()):
            if not peer.is_open:
                del self.peers[number]
                self.inbox.append((number, None))

    def append(self, record: r.Record) -> int:
        position = self.group.append(record)
        self.noted.append((position, record))
        return position

    def settle(self) -> None:
        """Turns and writes until nothing more happens by itself at this time."""
        for _ in range(1_000):
            self.turn()
            self.begin_write()
            busy = self.writing is not None
            self.write()
            has_more = self.core.has_more and not self.claiming
            if not (busy or self.found or self.inbox or has_more):
                return
        raise AssertionError("the broker does not come to rest")

    def wait(self, wait_ms: int) -> None:
        """Time passes; whatever comes due happens at its time."""
        end = self.mono_ms + wait_ms
        while True:
            self.settle()
            left = end - self.mono_ms
            if left <= 0:
                return
            step = min(left, max(1, min(self.core.next_due_ms(self.now), self.group.wait_ms())))
            self.wall_ms += step
            self.mono_ms += step
