"""The broker without sockets, threads and clocks: for scenarios, for the model, for you.

`Machine` turns the real core, log, bodies, group commit and frame builder as engine.py
does, on a SimDisk, with a clock of its own. `Harness` is the scenarios' language above it:
one small method a verb, whose arguments are the words of the line; see VERBS.

    publish q=mail in=500ms hello world      two messages, one frame
    consume c=A q=mail credit=10             every line names its connection, "A" by default
    fail c=A hello delay=1s                  outcomes name a delivery by its body
    crash                                    power is cut; the log is replayed

A connection that was not heard of says Hello as a consumer first. An answer says, a line
each, what went into the log (`log`), what was sent to whom, and who was hung up on.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
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
from qprotocol import wire
from qprotocol.codec import Assembler, Decoder
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome, unpack_message, walk
from qprotocol.options import RetryPolicy
from qprotocol.states import State
from simdisk import Choose, SimDisk, lose_all

START_MS = 1_700_000_000_000
MESSAGE_FLAGS = {"early": wire.ACK_EARLY, "ignored": wire.IGNORE_RESULT}


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
        self.bodies = Bodies(self.log, self.window_bytes)
        self.peers: dict[int, Peer] = {}
        self.delivery = PatientDelivery(
            self.bodies,
            self.peers,
            None,  # type: ignore[arg-type]
            self.archive.questions if self.archive else None,
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
            out += self.core.dispatch(append)
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

    def commit(self, commit: Commit, *, sync: bool) -> None:
        epoch = self.core.state.epoch
        self.log.commit(
            commit.batch, sync=sync, wall_ms=self.wall_ms, epoch=epoch, keys=commit.keys
        )
        self.ages.note(commit.batch.number, self.wall_ms)

    def release(self) -> None:
        effects = self.group.released()
        for effect in effects:
            if isinstance(effect, e.Lookup):
                here = self.delivery.find_here(effect)
                if not here.messages or len(here.messages) < len(effect.positions):
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


# The language.


@dataclass
class Words:
    """The words of a line: `name=value` options, and the others in order."""

    verb: str
    plain: list[str]
    options: dict[str, str]

    @classmethod
    def of(cls, line: str) -> Words:
        verb, *rest = line.split()
        options = dict(word.split("=", 1) for word in rest if "=" in word)
        return cls(verb, [word for word in rest if "=" not in word], options)

    def text(self, name: str, default: str = "") -> str:
        return self.options.get(name, default)

    def number(self, name: str, default: int = 0) -> int:
        return int(self.options.get(name, default))

    def duration(self, name: str, default: int = 0) -> int:
        return duration_ms(self.options[name]) if name in self.options else default


def duration_ms(text: str) -> int:
    """`500ms`, `2s`, `3m`, `1h` as milliseconds."""
    number, unit = re.fullmatch(r"(-?\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}[unit]


class Harness:
    """The scenarios' language. `run` carries out a line and tells what came of it."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.machine = Machine(settings=settings or Settings())
        self.machine.noted.clear()
        self.named: dict[str, Peer] = {}
        self.held: dict[tuple[str, str], tuple[int, int]] = {}
        """(connection, body) to the token it got with it last."""
        self.correlations = 1_000

    def run(self, line: str) -> list[str]:
        words = Words.of(line)
        before = list(self.named.items())
        extra = VERBS[words.verb](self, words) or []
        if words.verb not in ("wait", "broker"):
            self.machine.settle()
        told = [*extra, *self.logged()]
        for name, peer in {**dict(before), **self.named}.items():
            told += self.got(name, peer)
        return told or ["(nothing)"]

    # What came of it.

    def logged(self) -> Iterator[str]:
        for position, record in self.machine.noted:
            yield f"log   {shown_position(position)} {shown_record(record)}".rstrip()
        self.machine.noted.clear()

    def got(self, name: str, peer: Peer) -> Iterator[str]:
        for frame in peer.received:
            yield f"{name:5} {self.shown(name, frame)}"
        peer.received.clear()
        if not peer.is_open and self.named.get(name) is peer:
            yield f"{name:5} (closed)"
            del self.named[name]

    def shown(self, name: str, frame: f.Frame) -> str:
        kind = type(frame).__name__
        if isinstance(frame, f.Deliver):
            return f"Deliver {self.delivered(name, frame)}"
        if isinstance(frame, f.Result):
            return f"Result {shown_result(frame)}"
        if isinstance(frame, f.Peeked):
            return f"Peeked {', '.join(peeked(frame.raw)) or '(nothing)'}"
        if isinstance(frame, f.Error):
            again = f" (again in {frame.retry_after_ms} ms)" if frame.retry_after_ms else ""
            archive = self.machine.archive
            folder = str(archive.path.parent) if archive else "(no folder)"
            return f"Error {frame.code}: {frame.message}{again}".replace(folder, "...")
        raw = frame.raw
        if isinstance(frame, f.Settled):
            lost = [shown_position(at) for (at,) in wire.POSITION.iter_unpack(raw)]
            return f"Settled {frame.durability}" + (f" lost={','.join(lost)}" if lost else "")
        if isinstance(frame, f.Welcome | f.Revoke | f.Recall):
            word = "lost" if isinstance(frame, f.Welcome) else "tokens"
            tokens = [shown_token(*token) for token in wire.TOKEN.iter_unpack(raw)]
            end = " terminate" if getattr(frame, "terminate", False) else ""
            return kind + (f" {word}={','.join(tokens)}" if tokens else "") + end
        values = shown_fields(frame, ("correlation", "raw"))
        return f"{kind} {values}".rstrip()

    def delivered(self, name: str, frame: f.Deliver) -> str:
        """One item a message, and the tokens remembered."""
        positions, at = [], 0
        for _ in range(frame.runs):
            first, count = wire.RUN.unpack_from(frame.raw, at)
            positions += range(first, first + count)
            at += wire.RUN.size
        touched = {}
        for _ in range(frame.touched):
            index, *counters = wire.TOUCHED.unpack_from(frame.raw, at)
            touched[index] = counters
            at += wire.TOUCHED.size
        items = []
        for index, (start, _) in enumerate(walk(frame.raw, at)):
            message = unpack_message(frame.raw, start)
            body = message.body.decode() if len(message.body) < 50 else f"{len(message.body)} bytes"
            self.held[name, body] = positions[index], frame.grant
            names = ("deliveries", "failures", "crashes")
            counts = zip(names, touched.get(index, ()), strict=False)
            note = " ".join(f"{key}={value}" for key, value in counts if value)
            at_ = shown_position(positions[index])
            items.append(f"{body}@{at_}" + (f" ({note})" if note else ""))
        assert len(items) == frame.count
        return f"grant={shown_grant(frame.grant)} {', '.join(items)}"

    # Help for the verbs.

    def peer(self, words: Words, default: str = "A") -> Peer:
        """The connection the line is about; made, greeted and welcomed if it is new."""
        name = words.text("c", default)
        if name not in self.named:
            peer = self.named[name] = self.machine.connect()
            self.machine.submit(peer, self.hello_frame(Words("", [], {})))
            self.machine.settle()
            peer.received.clear()
        return self.named[name]

    def ask(self, words: Words, frame: f.Frame) -> None:
        peer = self.peer(words)
        if type(frame) not in (f.Credit, f.Running, f.Heartbeat, f.Part):
            self.correlations += 1
            frame.correlation = words.number("as", self.correlations)
        pieces, size = words.number("parts"), len(frame.raw)
        for index in range(pieces):
            raw = frame.raw[size * index // (pieces + 1) : size * (index + 1) // (pieces + 1)]
            part = f.Part(index=index, of=frame.TYPE, correlation=frame.correlation, raw=raw)
            self.machine.submit(peer, part)
        if pieces:
            frame = replace(frame, raw=frame.raw[size * pieces // (pieces + 1) :])
        self.machine.submit(peer, frame)

    def token(self, name: str, body: str) -> tuple[int, int]:
        """The delivery of `body` to connection `name`; `POSITION#GRANT` as shown is one, too."""
        if "#" in body:
            at, grant = body.split("#")
            return read_position(at), read_grant(grant)
        return self.held[name, body]

    def tokens(self, words: Words, of: list[str]) -> bytes:
        name = words.text("of", words.text("c", "A"))
        return b"".join(wire.TOKEN.pack(*self.token(name, body)) for body in of)

    def hello_frame(self, words: Words, raw: bytes = b"") -> f.Hello:
        session = words.text("session").encode().ljust(16, b"-") if words.text("session") else b""
        default = "consumer" if not session else "member" if "member" in words.options else "worker"
        return f.Hello(
            correlation=1,
            protocol=words.number("protocol", 1),
            role=words.text("role", default),
            client_id="test",
            session=session,
            member=words.number("member"),
            heartbeat_ms=words.duration("heartbeat"),
            raw=raw,
        )

    def message(self, words: Words, body: str) -> bytes:
        size = words.number("size")
        packed = Message(
            words.text("q", "q"),
            body.encode().ljust(size, b"."),
            id=words.text("id"),
            task=words.text("task"),
            exchange=words.text("exchange"),
            priority=words.number("priority"),
            due_ms=self.at(words, "in"),
            expires_ms=self.at(words, "expires"),
            keys=words.text("keys").encode(),
            flags=sum(MESSAGE_FLAGS[name] for name in words.text("flags").split(",") if name),
        )
        return packed.pack()

    def at(self, words: Words, name: str) -> int:
        return self.machine.wall_ms + words.duration(name) if name in words.options else 0

    # Verbs: the broker itself.

    def broker(self, words: Words) -> None:
        """Start anew with these settings."""
        given = {k: int(v) if v.isdigit() else v for k, v in words.options.items()}
        self.__init__(Settings(**given))  # type: ignore[misc]

    def wait(self, words: Words) -> None:
        """Time passes. Connections named in `alive` send a heartbeat every second."""
        left = duration_ms(words.plain[0])
        alive = [self.named[name] for name in words.text("alive").split(",") if name]
        while left > 0:
            for peer in alive:
                self.machine.submit(peer, f.Heartbeat())
            step = min(left, 1_000) if alive else left
            self.machine.wait(step)
            left -= step

    def crash(self, words: Words) -> list[str]:
        """Power is cut, unsynced sectors are lost; or with `kill` the process dies."""
        self.machine.kill() if "kill" in words.plain else self.machine.crash()
        self.named.clear()
        self.machine.noted.clear()
        return ["recovered " + self.figures()]

    def archive(self, words: Words) -> list[str]:
        """The archive goes on to the end of the log; its rows. `damaged`: cannot be read."""
        machine = self.machine
        if "damaged" in words.plain:
            assert machine.archive
            machine.archive.damage()
            return []
        machine.archive_all()
        return [f"row   {shown_archived(row)}" for row in machine.archive.rows()]  # type: ignore[union-attr]

    def closed(self, words: Words) -> None:
        """Nothing new is taken in for this reason; without one, it is again."""
        self.machine.core.close_to_publishes(" ".join(words.plain))

    def rots(self, words: Words) -> None:
        """The bytes of these, which are being delivered, are found to be damaged."""
        machine = self.machine
        positions = [self.token(words.text("c", "A"), body)[0] for body in words.plain]
        machine.group.hold(
            machine.core.quarantine(machine.now, machine.append, positions, "bad CRC", "1.bin")
        )

    def stats(self, words: Words) -> list[str]:
        """What statistics() tells of the queues, and the books of one."""
        if "q" not in words.options:
            return [self.figures()]
        (queue,) = [q for q in self.machine.core.statistics().queues if q.name == words.text("q")]
        return [" ".join(f"{name}={count}" for name, count in sorted(queue.counts.items()))]

    def figures(self) -> str:
        found = self.machine.core.statistics()
        rows = [
            f"{q.name}: ready={q.ready} scheduled={q.scheduled} leased={q.leased}"
            + (f" quarantined={q.quarantined}" if q.quarantined else "")
            for q in found.queues
        ]
        return f"results={found.results} sessions={found.sessions} " + ", ".join(rows)

    # Verbs: connections.

    def hello(self, words: Words) -> None:
        """Hello with the tokens of these deliveries, got by this connection or `of` another."""
        name = words.text("c", "A")
        raw = self.tokens(words, words.plain)
        peer = self.named[name] = self.machine.connect()
        self.machine.submit(peer, self.hello_frame(words, raw))

    def disconnect(self, words: Words) -> None:
        self.machine.disconnect(self.named.pop(words.text("c", "A")))

    def bye(self, words: Words) -> None:
        self.ask(words, f.Bye())

    def stalls(self, words: Words) -> None:
        """The connection takes no more bytes for now, or `no` more stalls."""
        self.machine.core.writable(self.peer(words).number, is_writable="no" in words.plain)

    # Verbs: publishing.

    def publish(self, words: Words) -> None:
        raw = b"".join(self.message(words, body) for body in words.plain)
        self.ask(words, self.publish_frame(words, raw))

    def publish_frame(self, words: Words, raw: bytes) -> f.Publish:
        return f.Publish(
            producer=words.number("producer"),
            sequence=words.number("sequence"),
            count=words.number("count", len(words.plain)),
            raw=raw,
        )

    def part(self, words: Words) -> None:
        """A part: of a publish, or with `of=settle` of a settlement. `cut=a:b` is of its bytes."""
        raw = b"".join(self.message(words, body) for body in words.plain)
        number = {"publish": f.Publish.TYPE, "settle": f.Settle.TYPE}[words.text("of", "publish")]
        index, correlation = words.number("index"), words.number("as")
        frame = f.Part(index=index, of=number, correlation=correlation, raw=cut(words, raw))
        self.machine.submit(self.peer(words), frame)

    def end(self, words: Words) -> None:
        """The Publish that ends parts: its own bytes as in `part`, `count` for them all."""
        raw = b"".join(self.message(words, body) for body in words.plain)
        self.ask(words, self.publish_frame(words, cut(words, raw)))

    # Verbs: consuming and settling.

    def consume(self, words: Words) -> None:
        queues = words.text("q", "q").split(",")
        frame = f.Consume(
            subscription=words.number("s", 1), queues=queues, credit=words.number("credit", 10)
        )
        self.ask(words, frame)

    def credit(self, words: Words) -> None:
        number = words.number("s", 1)
        self.ask(words, f.Credit(subscription=number, credit=int(words.plain[0])))

    def unsubscribe(self, words: Words) -> None:
        self.ask(words, f.Unsubscribe(subscription=words.number("s", 1)))

    def ack(self, words: Words) -> None:
        """Plain acks, a run each; `count=n` makes the run longer."""
        name = words.text("of", words.text("c", "A"))
        runs = []
        for body in words.plain:
            position, grant = self.token(name, body)
            runs.append(wire.ACK_RUN.pack(grant, position, words.number("count", 1)))
        self.ask(words, f.Ack(raw=b"".join(runs)))

    def settle(self, words: Words) -> None:
        """Several outcomes in one frame: `settle done:a fail:b`."""
        outcomes = []
        for word in words.plain:
            verb, body = word.split(":", 1)
            outcomes.append(self.outcome(replace(words, verb=verb), body))
        self.ask(words, f.Settle(count=len(outcomes), raw=b"".join(outcomes)))

    def one_outcome(self, words: Words) -> None:
        """A Settle with this outcome for each body: done, fail, release, reject, crashed ..."""
        raw = b"".join(self.outcome(words, body) for body in words.plain)
        self.ask(words, f.Settle(count=words.number("count", len(words.plain)), raw=raw))

    def outcome(self, words: Words, body: str) -> bytes:
        kind = OUTCOMES[words.verb]
        position, grant = self.token(words.text("of", words.text("c", "A")), body)
        flags, result, policy = 0, words.text("result").encode(), b""
        if kind == wire.ACK and "result" in words.options:
            flags |= wire.HAS_RESULT
        if kind in (wire.FAIL, wire.CRASH):
            result = Failure("Oops", words.text("error", "it broke")).pack()
        if words.text("retry") == "no":
            flags |= wire.NO_RETRY
        elif "retries" in words.options:
            backoff = words.duration("backoff", 1_000)
            policy = RetryPolicy(words.number("retries"), backoff, jitter=False).pack()
        then = [self.message(words, each) for each in words.text("then").split(",") if each]
        if "instead" in words.options:
            flags |= wire.HAS_REPLACEMENT
            then.insert(0, self.message(words, words.text("instead")))
        delay = words.duration("delay", wire.DELAY_BY_POLICY)
        packed = Outcome(
            kind,
            position,
            grant,
            words.number("run_ms"),
            delay,
            result.ljust(words.number("bytes"), b"."),
            flags,
            policy=policy,
            follow_on=tuple(then),
        )
        return packed.pack()

    def running(self, words: Words) -> None:
        self.ask(words, f.Running(raw=self.tokens(words, words.plain)))

    def heartbeat(self, words: Words) -> None:
        self.ask(words, f.Heartbeat(raw=self.tokens(words, words.plain)))

    # Verbs: asking.

    def watch(self, words: Words) -> None:
        self.ask(words, self.about(f.Watch, words, wait_ms=words.duration("wait")))

    def cancel(self, words: Words) -> None:
        self.ask(words, self.about(f.Cancel, words, terminate="terminate" in words.plain))

    def forget(self, words: Words) -> None:
        self.ask(words, self.about(f.Forget, words))

    def about(self, kind: Callable[..., f.Frame], words: Words, **more: Any) -> f.Frame:
        position = read_position(words.text("at")) if "at" in words.options else 0
        return kind(id=words.text("id"), position=position, **more)

    def declare(self, words: Words) -> None:
        given = {k: v for k, v in words.options.items() if k not in ("q", "c")}
        options = {k: int(v) if v.isdigit() else v for k, v in given.items()}
        self.ask(words, f.Declare(queue=words.text("q"), options=options))

    def purge(self, words: Words) -> None:
        self.ask(words, f.Purge(queue=words.text("q", "q")))

    def peek(self, words: Words) -> None:
        self.ask(words, f.Peek(queue=words.text("q", "q"), count=words.number("count", 10)))


OUTCOMES = {
    "done": wire.ACK,
    "release": wire.RELEASE,
    "fail": wire.FAIL,
    "reject": wire.REJECT,
    "extend": wire.EXTEND,
    "progress": wire.PROGRESS,
    "start": wire.START,
    "crashed": wire.CRASH,
}
VERBS: dict[str, Callable[[Harness, Words], list[str] | None]] = {
    "broker": Harness.broker,
    "wait": Harness.wait,
    "crash": Harness.crash,
    "archive": Harness.archive,
    "closed": Harness.closed,
    "rots": Harness.rots,
    "stats": Harness.stats,
    "hello": Harness.hello,
    "disconnect": Harness.disconnect,
    "bye": Harness.bye,
    "stalls": Harness.stalls,
    "publish": Harness.publish,
    "part": Harness.part,
    "end": Harness.end,
    "consume": Harness.consume,
    "credit": Harness.credit,
    "unsubscribe": Harness.unsubscribe,
    "ack": Harness.ack,
    "settle": Harness.settle,
    "running": Harness.running,
    "heartbeat": Harness.heartbeat,
    "watch": Harness.watch,
    "cancel": Harness.cancel,
    "forget": Harness.forget,
    "declare": Harness.declare,
    "purge": Harness.purge,
    "peek": Harness.peek,
} | dict.fromkeys(OUTCOMES, Harness.one_outcome)


# How things look in a transcript.


def cut(words: Words, raw: bytes) -> bytes:
    if "cut" not in words.options:
        return raw
    first, last = words.text("cut").split(":")
    return raw[int(first or 0) : int(last) if last else None]


def shown_position(position: int) -> str:
    """batch:slot"""
    return f"{wire.batch_of(position)}:{position & ((1 << wire.SLOT_BITS) - 1)}"


def read_position(text: str) -> int:
    batch, slot = text.split(":")
    return int(batch) << wire.SLOT_BITS | int(slot)


def shown_grant(grant: int) -> str:
    """epoch.counter"""
    return f"{wire.grant_epoch(grant)}.{grant & ((1 << wire.EPOCH_SHIFT) - 1)}"


def read_grant(text: str) -> int:
    epoch, counter = text.split(".")
    return int(epoch) << wire.EPOCH_SHIFT | int(counter)


def shown_token(position: int, grant: int) -> str:
    return f"{shown_position(position)}#{shown_grant(grant)}"


def shown_value(name: str, value: Any) -> str:
    if name.endswith("_ms") and isinstance(value, int) and value > START_MS // 2:
        return f"+{value - START_MS}"
    if name in ("position", "first"):
        return shown_position(value)
    if name == "positions":
        rows = [v if isinstance(v, list) else [v] for v in value]
        return ",".join(":".join([shown_position(row[0]), *map(str, row[1:])]) for row in rows)
    if name == "grant":
        return shown_grant(value)
    if name in ("result", "raw"):
        return shown_bytes(value)
    if isinstance(value, r.MessageBatch):
        return shown_batch(value)
    if isinstance(value, bytes):
        return value.rstrip(b"-").decode(errors="backslashreplace")
    return str(value)


def shown_batch(batch: r.MessageBatch) -> str:
    """lane/priority×count+due of each run, then what expires and what is named."""
    runs = [
        f"lane{lane}"
        + (f"/{priority}" if priority else "")
        + f"×{count}"
        + (f"@{shown_value('due_ms', due)}" if due else "")
        for lane, priority, count, due in batch.runs
    ]
    expiring = [f"expires[{i}]={shown_value('expires_ms', ms)}" for i, ms in batch.expiring]
    named = [f"id[{i}]={name.decode()}" for i, name in batch.named]
    return " ".join([*runs, *expiring, *named])


def shown_bytes(raw: bytes) -> str:
    if len(raw) > 60:
        return f"{len(raw)} bytes"
    try:
        failure = Failure.unpack(raw)
    except ValueError:
        return raw.decode(errors="backslashreplace")
    return f"{failure.kind}({failure.message})"


def shown_fields(value: Any, left_out: tuple[str, ...]) -> str:
    """The fields that are not empty."""
    items = []
    for each in fields(value):
        found = getattr(value, each.name)
        if each.name not in left_out and found not in (0, "", b"", [], None, False):
            items.append(f"{each.name}={shown_value(each.name, found)}")
    return " ".join(items)


CHANGE_NAMES = {
    value: name.lower()
    for name, value in vars(r).items()
    if name.isupper() and isinstance(value, int)
}


def shown_record(record: r.Record) -> str:
    kind = type(record).__name__
    if isinstance(record, r.Published | r.PartStored):
        return f"{kind} {shown_batch(record.batch)} {shown_fields(record, ('batch', 'wall_ms'))}"
    if isinstance(record, r.LaneOpened):
        rest = shown_fields(record, ("number", "queue"))
        return f"{kind} number={record.number} queue={record.queue} {rest}".rstrip()
    if isinstance(record, r.Granted):
        runs = [
            f"lane{lane}"
            + (f"/{priority}" if priority else "")
            + f":{shown_position(first)}×{count}"
            for lane, priority, first, count in record.entries
        ]
        return f"{kind} {shown_fields(record, ('entries',))} {' '.join(runs)}"
    if isinstance(record, r.Acked):
        runs = [f"{shown_token(first, grant)}×{count}" for grant, first, count in record.runs]
        return f"{kind} {' '.join(runs)}"
    if isinstance(record, r.Settled):
        left_out = ("change", "state", "finished_ms", "follow_on", "keep_until_ms")
        then = f" then {shown_batch(record.follow_on)}" if record.follow_on.count else ""
        name = CHANGE_NAMES[record.change]
        return f"{kind} {name} {shown_fields(record, left_out)}{then}"
    if isinstance(record, r.QueueOpened):
        given = {k: v for k, v in record.options.items() if v and v not in (1_000, 600_000)}
        extra = " ".join(f"{k}={v}" for k, v in given.items())
        return f"{kind} number={record.number} name={record.name} {extra}".rstrip()
    return f"{kind} {shown_fields(record, ('finished_ms', 'keep_until_ms', 'wall_ms'))}"


def shown_archived(row: dict[str, Any]) -> str:
    """Position, state and names; then what else there is, less what a test cannot foresee."""
    left_out = ("position", "state", "published_ms", "started_ms", "finished_ms")
    rest = [f"{name}={row[name]}" for name in row if name not in left_out and row[name]]
    return " ".join([shown_position(row["position"]), row["state"], *rest])


def shown_result(frame: f.Result) -> str:
    about = shown_fields(frame, ("correlation", "raw", "state", "finished_ms"))
    raw = f" raw={shown_bytes(frame.raw)}" if frame.raw else ""
    return f"{State(frame.state).name} {about}{raw}"


def peeked(raw: bytes) -> Iterator[str]:
    at, size = 0, wire.PEEKED.size
    while at < len(raw):
        position, _, *counters, state, n_reason, n_error = wire.PEEKED.unpack_from(raw, at)
        at += size
        reason, error = raw[at : at + n_reason], raw[at + n_reason : at + n_reason + n_error]
        at += n_reason + n_error
        message = unpack_message(raw[at:])
        at += 4 + int.from_bytes(raw[at : at + 4], "little")
        note = " ".join(str(count) for count in counters) if any(counters) else ""
        words = [f"{message.body.decode()}@{shown_position(position)}", State(state).name, note]
        words += [reason.decode(), shown_bytes(error) if error else ""]
        yield " ".join(word for word in words if word)
