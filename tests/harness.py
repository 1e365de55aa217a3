"""The scenarios' language, one small method a verb, above the Machine (machine.py); see VERBS.

    publish q=mail in=500ms hello world      two messages, one frame
    consume c=A q=mail credit=10             every line names its connection, "A" by default
    fail c=A hello delay=1s                  outcomes name a delivery by its body
    crash                                    power is cut; the log is replayed

A connection that was not heard of says Hello as a consumer first. An answer says, a line
each, what went into the log (`log`), what was sent to whom, and who was hung up on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from machine import Machine, Peer
from qbroker.core.declaring import described
from qbroker.core.limiting import limit_table
from qbroker.core.settings import Settings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.graphs import KINDS, Link, Node
from qprotocol.lanekeys import KEY_OPTIONS, LaneKeys
from qprotocol.limitrules import parse_rate, show_rate
from qprotocol.message import Message, Outcome, meta_fields, pack_fields, unpack_message, walk
from qprotocol.names import pack_task_names
from qprotocol.options import RetryPolicy
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey, unpack_existing
from transcript import (
    inputs,
    peeked,
    read_grant,
    read_position,
    shown_archived,
    shown_fields,
    shown_grant,
    shown_position,
    shown_record,
    shown_report,
    shown_result,
    shown_token,
    shown_value,
)

MESSAGE_FLAGS = {"early": wire.ACK_EARLY, "ignored": wire.IGNORE_RESULT, "maydrop": wire.MAY_DROP}


OBVIOUS = ("no_consumer", "paused", "due", "consumers_full")
"""Why messages wait: left out of the figures, since it is in the scenario."""


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


def headers_of(text: str) -> bytes:
    """`kind:paid,gift:` as a client packs them; `hex:c1` as they are."""
    name, _, digits = text.partition(":")
    if name == "hex" or not text:
        return bytes.fromhex(digits)
    pairs = (pair.split(":") for pair in text.split(","))
    return bytes(msgpack.packb({"user": {key: value or None for key, value in pairs}}))


def weights_of(text: str) -> dict[str, int]:
    """`high:5,low:1` as a map."""
    pairs = (pair.split(":") for pair in text.split(",") if pair)
    return {name: int(weight) for name, weight in pairs}


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
            grace_ms = getattr(frame, "grace_ms", 0)
            end += f" after {grace_ms} ms" if grace_ms else ""
            return kind + (f" {word}={','.join(tokens)}" if tokens else "") + end
        if isinstance(frame, f.Inputs):
            of = f"{shown_position(frame.position)} {frame.first}+{frame.count} of {frame.total}"
            return f"Inputs {of}: {', '.join(inputs(frame))}"
        if isinstance(frame, f.Report):
            return f"Report {shown_report(raw)}"
        values = shown_fields(frame, ("correlation", "raw"))
        if isinstance(frame, f.Published):
            for number, other, position in unpack_existing(raw):
                at = f"@{shown_position(position)}" if position else ""
                values += f" {number}={other}{at}"
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
            is_node = wire.NODE in meta_fields(message.fields)
            via = " by {}:{}".format(*message.origin) if message.fields and not is_node else ""
            items.append(f"{body}@{at_}{via}" + (f" ({note})" if note else ""))
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

    def message(self, words: Words, body: str, among: Sequence[str] = ()) -> bytes:
        """A packed message; with links, one of the nodes that have the bodies ``among``."""
        size = words.number("size")
        packed = Message(
            words.text("key", words.text("q", "q")),
            body.encode().ljust(size, b"."),
            id=name_of(words, body, among),
            task=words.text("task"),
            exchange=words.text("exchange"),
            priority=words.number("priority"),
            due_ms=self.at(words, "in"),
            expires_ms=self.at(words, "expires"),
            keys=self.lane_keys(words),
            flags=sum(MESSAGE_FLAGS[name] for name in words.text("flags").split(",") if name),
            fields=bytes.fromhex(words.text("fields")) or meta_of(words, body, among),
            root=words.text("root"),
            headers=headers_of(words.text("headers")),
        )
        return packed.pack()

    def lane_keys(self, words: Words) -> bytes:
        *texts, weight = KEY_OPTIONS.values()
        raw = words.text("keys").encode()
        return raw or LaneKeys(*map(words.text, texts), words.number(weight, 1)).pack()

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

    def clock(self, words: Words) -> None:
        """The wall clock is set forward, or back; time itself goes on as ever."""
        self.machine.wall_ms += duration_ms(words.plain[0])

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
            + "".join(
                f" {why}={count}" for why, count in sorted(q.waiting.items()) if why not in OBVIOUS
            )
            + (f" paused={','.join(q.paused)}" if q.paused else "")
            for q in found.queues
        ]
        return f"results={found.results} sessions={found.sessions} " + ", ".join(rows)

    def alarms(self, _words: Words) -> list[str]:
        """Which began or ended since the last time, and those there are."""
        core = self.machine.core
        out = [f"{'begins' if n.begins else 'ends'}: {n.alarm.queue}" for n in core.take_news()]
        return out + [f"{each.queue}: {each.why}" for each in core.alarms()] or ["(none)"]

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
        """Messages; with `links=a-b>c,c>d:error` a graph: from a and those up to b to c, from c
        to d. `later=c:5s` has c wait once it is let go.
        """
        raw = b"".join(self.message(words, body, words.plain) for body in words.plain)
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
            subscription=words.number("s", 1),
            queues=queues,
            credit=words.number("credit", 10),
            order=words.text("order", "weighted"),
            weights=weights_of(words.text("weights")),
        )
        known = words.text("knows").split(",") if "knows" in words.options else []
        frame.raw = bytes.fromhex(words.text("raw")) or pack_task_names(known)
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
        bodies = [each for each in words.text("then").split(",") if each]
        if "instead" in words.options:
            flags |= wire.HAS_REPLACEMENT
            bodies.insert(len(bodies) if "links" in words.options else 0, words.text("instead"))
        then = [self.message(words, each, bodies) for each in bodies]
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

    def inputs(self, words: Words) -> None:
        """`inputs join first=2`: what a node that was delivered is given, from the third on."""
        position, grant = self.token(words.text("c", "A"), words.plain[0])
        first = words.number("first")
        self.ask(words, f.FetchInputs(position=position, grant=grant, first=first))

    def running(self, words: Words) -> None:
        self.ask(words, f.Running(raw=self.tokens(words, words.plain)))

    def heartbeat(self, words: Words) -> None:
        self.ask(words, f.Heartbeat(raw=self.tokens(words, words.plain)))

    # Verbs: limits.

    def limit(self, words: Words) -> None:
        """A rule: `limit NAME q=q task=t rate=10/s burst=2 concurrency=3 per_key origin=code`."""
        rule: dict[str, Any] = {
            "queue": words.text("q"),
            "task": words.text("task"),
            "per_key": "per_key" in words.plain,
        }
        for name in ("concurrency", "burst"):
            if name in words.options:
                rule[name] = words.number(name)
        if "rate" in words.options:
            rule["rate"], rule["window_ms"] = parse_rate(words.text("rate"))
        origin = words.text("origin", "operator")
        self.ask(words, f.SetLimit(name=words.plain[0], rule=rule, origin=origin))

    def unlimit(self, words: Words) -> None:
        self.ask(words, f.DropLimit(name=words.plain[0], origin=words.text("origin")))

    def limits(self, words: Words) -> list[str]:
        """What the table of limits says."""
        left_out = ("declared", "window_ms", "rate", "burst")
        rows = limit_table(self.machine.core.state, self.machine.now)
        return [
            f"limit {shown_fields(row, left_out)}"
            + (f" rate={show_rate(row.rate, row.window_ms)} burst={row.burst}" if row.rate else "")
            for row in rows
        ]

    # Verbs: keys.

    def keys(self, words: Words) -> list[str]:
        """What the table of keys says; of one, `keys NAME`."""
        rows = self.machine.core.keys(self.machine.now, "".join(words.plain))
        return [
            "key   " + " ".join(f"{k}={shown_value(k, v)}" for k, v in row.items() if v)
            for row in rows
        ]

    def free(self, words: Words) -> None:
        """An operator frees a key: `free KEY kind=unique scope=task name=t`."""
        rest = {
            name: words.options[name] for name in ("kind", "scope", "name") if name in words.options
        }
        self.ask(words, f.ForgetKey(key=words.plain[0], **rest))

    # Verbs: asking.

    def watch(self, words: Words) -> None:
        self.ask(words, self.about(f.Watch, words, wait_ms=words.duration("wait")))

    def cancel(self, words: Words) -> None:
        terminate, grace_ms = "terminate" in words.plain, words.duration("grace")
        self.ask(words, self.about(f.Cancel, words, terminate=terminate, grace_ms=grace_ms))

    def forget(self, words: Words) -> None:
        self.ask(words, self.about(f.Forget, words))

    def about(self, kind: Callable[..., f.Frame], words: Words, **more: Any) -> f.Frame:
        position = read_position(words.text("at")) if "at" in words.options else 0
        return kind(id=words.text("id"), position=position, **more)

    def declare(self, words: Words) -> None:
        self.ask(words, f.Declare(queue=words.text("q"), options=queue_options(words)))

    def set(self, words: Words) -> None:
        """An operator sets options of a queue; `name=none` takes one back."""
        self.ask(words, f.ChangeQueue(queue=words.text("q", "q"), options=queue_options(words)))

    def delete(self, words: Words) -> None:
        """A queue is deleted: `empty`, `unused` only if it is."""
        empty, unused = (word in words.plain for word in ("empty", "unused"))
        self.ask(words, f.DeleteQueue(queue=words.text("q", "q"), if_empty=empty, if_unused=unused))

    def policy(self, words: Words) -> None:
        """A policy for names like `for`; with `drop` it goes, `operator` is of those."""
        self.ask(
            words,
            f.SetPolicy(
                name=words.text("name", "p"),
                pattern=words.text("for"),
                priority=words.number("priority"),
                operator="operator" in words.plain,
                options=queue_options(words),
                drop="drop" in words.plain,
            ),
        )

    def show(self, words: Words) -> list[str]:
        """The options of a queue that are not as by default, and where they came from."""
        state = self.machine.core.state
        rows = described(state, state.queues[words.text("q", "q")])
        shown = [
            " ".join([f"{name}={row['value']}", f"({row['source']})", *left_over(row)])
            for name, row in rows.items()
            if row["source"] != "default"
        ]
        return [", ".join(shown) or "(defaults)"]

    def purge(self, words: Words) -> None:
        self.ask(words, f.Purge(queue=words.text("q", "q")))

    def pause(self, words: Words) -> None:
        """`pause intake dispatch for=10m why=broken by=ana`"""
        frame = f.PauseQueue(
            queue=words.text("q", "q"),
            reason=words.text("why"),
            author=words.text("by"),
            for_ms=words.duration("for"),
            **dict.fromkeys(words.plain, True),
        )
        self.ask(words, frame)

    def cancel_many(self, words: Words) -> None:
        """`cancel_many q=mail task=t key=k states=ready,started older=1h purge dry terminate`"""
        frame = f.CancelMany(
            queue=words.text("q"),
            task=words.text("task"),
            key=words.text("key"),
            states=words.text("states"),
            older_ms=words.duration("older"),
            purge="purge" in words.plain,
            terminate="terminate" in words.plain,
            grace_ms=words.duration("grace"),
            dry_run="dry" in words.plain,
        )
        self.ask(words, frame)

    def cancel_graph(self, words: Words) -> None:
        """`cancel_graph id=a dry terminate`"""
        terminate, dry_run = "terminate" in words.plain, "dry" in words.plain
        self.ask(words, self.about(f.CancelGraph, words, terminate=terminate, dry_run=dry_run))

    def why(self, words: Words) -> None:
        self.ask(words, self.about(f.Why, words))

    def move(self, words: Words) -> None:
        """`move q=mail to=slow`, and what `cancel_many` says, or an id"""
        frame = f.Move(
            queue=words.text("q", "q"),
            to=words.text("to"),
            id=words.text("id"),
            task=words.text("task"),
            key=words.text("key"),
            states=words.text("states"),
            older_ms=words.duration("older"),
            dry_run="dry" in words.plain,
        )
        self.ask(words, frame)

    def resume(self, words: Words) -> None:
        halves = dict.fromkeys(words.plain, True)
        self.ask(words, f.ResumeQueue(queue=words.text("q", "q"), **halves))

    def exchange(self, words: Words) -> None:
        """`exchange e topic alternate=a unroutable=drop`"""
        name, kind = words.plain
        options = {k: v for k, v in words.options.items() if k not in ("c", "as")}
        self.ask(words, f.DeclareExchange(exchange=name, kind=kind, options=options))

    def drop_exchange(self, words: Words) -> None:
        name, *unused = words.plain
        self.ask(words, f.DeleteExchange(exchange=name, if_unused=bool(unused)))

    def bind(self, words: Words, kind: type[f.Bind | f.Unbind] = f.Bind) -> None:
        """`bind e key=orders.# q=audit`, `bind e to=other kind=paid`; others are arguments."""
        known = ("c", "as", "key", "q", "to")
        arguments = {k: v or None for k, v in words.options.items() if k not in known}
        frame = kind(
            exchange=words.plain[0],
            key=words.text("key"),
            destination=words.text("to") or words.text("q", "q"),
            to_exchange="to" in words.options,
            arguments=arguments,
        )
        self.ask(words, frame)

    def unbind(self, words: Words) -> None:
        self.bind(words, f.Unbind)

    def dead(self, words: Words) -> None:
        """`dead q=mail cause=failed error=boom task=t older=1h after=3 limit=2 detail=0 id=a`"""
        frame = self.about(
            f.DeadLetters,
            words,
            queue=words.text("q"),
            older_ms=words.duration("older"),
            **{name: words.text(name) for name in ("task", "cause", "error", "worker")},
            after=words.number("after"),
            limit=words.number("limit", 100),
            detail=words.number("detail", 1),
        )
        self.ask(words, frame)

    def letters(self, words: Words) -> bytes:
        """Dead letters as they are shown: `2:2#1`, position and number."""
        handles = (word.split("#") for word in words.plain)
        return b"".join(wire.LETTER.pack(read_position(at), int(no)) for at, no in handles)

    def replay(self, words: Words) -> None:
        """`replay 2:2#1 q=other in=5s by=ana`"""
        frame = f.ReplayDead(queue=words.text("q"), author=words.text("by"))
        frame.due_ms, frame.raw = self.at(words, "in"), self.letters(words)
        self.ask(words, frame)

    def edit(self, words: Words) -> None:
        """`edit 2:2#1 body=new q=q id=a`: another message in its place."""
        ((at, number),) = (word.split("#") for word in words.plain)
        frame = f.EditDead(position=read_position(at), number=int(number), author=words.text("by"))
        frame.raw = b"".join(self.message(words, body) for body in words.text("body").split(","))
        self.ask(words, frame)

    def drop_dead(self, words: Words) -> None:
        self.ask(words, f.DropDead(author=words.text("by"), raw=self.letters(words)))

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
    "clock": Harness.clock,
    "crash": Harness.crash,
    "archive": Harness.archive,
    "closed": Harness.closed,
    "rots": Harness.rots,
    "stats": Harness.stats,
    "alarms": Harness.alarms,
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
    "inputs": Harness.inputs,
    "running": Harness.running,
    "heartbeat": Harness.heartbeat,
    "limit": Harness.limit,
    "unlimit": Harness.unlimit,
    "limits": Harness.limits,
    "keys": Harness.keys,
    "free": Harness.free,
    "watch": Harness.watch,
    "cancel": Harness.cancel,
    "forget": Harness.forget,
    "declare": Harness.declare,
    "set": Harness.set,
    "delete": Harness.delete,
    "policy": Harness.policy,
    "show": Harness.show,
    "purge": Harness.purge,
    "peek": Harness.peek,
    "dead": Harness.dead,
    "replay": Harness.replay,
    "edit": Harness.edit,
    "drop_dead": Harness.drop_dead,
    "pause": Harness.pause,
    "resume": Harness.resume,
    "exchange": Harness.exchange,
    "drop": Harness.drop_exchange,
    "bind": Harness.bind,
    "unbind": Harness.unbind,
    "cancel_many": Harness.cancel_many,
    "cancel_graph": Harness.cancel_graph,
    "move": Harness.move,
    "why": Harness.why,
} | dict.fromkeys(OUTCOMES, Harness.one_outcome)


def name_of(words: Words, body: str, among: Sequence[str]) -> str:
    """The id that is said; of nodes that of the last one, others have their bodies."""
    if "links" not in words.options:
        return words.text("id")
    return words.text("id", body) if body == among[-1] else body


def node_of(words: Words, body: str, among: Sequence[str]) -> Node:
    """The place of the node with that body: `links=a-b>c:after,...` and `later=body:5s`."""
    links = []
    for each in words.text("links").split(","):
        way, _, kind = each.partition(":")
        (first, last), (target, end) = (
            (side.split("-")[0], side.split("-")[-1]) for side in way.split(">")
        )
        if first == body:
            at, to = among.index(target), among.index(end)
            sources = among.index(last) - among.index(first) + 1
            links.append(Link(KINDS[kind or "success"], at, sources, to - at + 1))
    name, _, later = words.text("later").partition(":")
    return Node(tuple(links), duration_ms(later) if name == body else 0)


def meta_of(words: Words, body: str, among: Sequence[str]) -> bytes:
    """The meta fields of `unique=KEY scope= until= held= conflict=` and `idem=KEY window=`, in
    which % is the body; and of `links=`.
    """
    fields = {}
    if "links" in words.options:
        fields[wire.NODE] = node_of(words, body, among).pack()
    if "unique" in words.options:
        until = "time" if "held" in words.options else words.text("until", "finished")
        unique = UniqueKey(
            words.text("unique").replace("%", body),
            words.text("scope", "task"),
            until,
            words.text("conflict", "return"),
            words.duration("held"),
        )
        fields[wire.UNIQUE] = unique.pack()
    if "idem" in words.options:
        key = words.text("idem").replace("%", body)
        fields[wire.IDEMPOTENCY] = IdempotencyKey(key, words.duration("window")).pack()
    return pack_fields(fields)


def left_over(row: dict[str, Any]) -> list[str]:
    """What was said of an option beside what counts."""
    return [f"{name}={row[name]}" for name in ("declared", "set") if name in row]


def queue_options(words: Words) -> dict[str, Any]:
    """The options that the line names."""
    special = {"true": True, "false": False, "none": None}
    given = {k: v for k, v in words.options.items() if k not in HARNESS_WORDS}
    return {k: int(v) if re.fullmatch(r"-?\d+", v) else special.get(v, v) for k, v in given.items()}


HARNESS_WORDS = ("q", "c", "name", "for", "priority", "as")


def cut(words: Words, raw: bytes) -> bytes:
    if "cut" not in words.options:
        return raw
    first, last = words.text("cut").split(":")
    return raw[int(first or 0) : int(last) if last else None]
