"""A publisher: chunks with sequence numbers, sent again unchanged until they are answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qprotocol import frames as f
from qprotocol.limits import PRODUCER_WINDOW
from qprotocol.uniquekeys import Existing
from sim.client import Client
from sim.maker import Maker
from sim.oracle import Known
from sim.world import MS, Mark, Violation


@dataclass(eq=False)
class Chunk:
    """Messages that are published together."""

    producer: int
    sequence: int
    messages: list[Known]
    in_parts: bool
    wants_sync: bool
    attempts: int = 0
    confirmed: bool = False
    gave_up: bool = False
    asked: bool = False
    """An answer is awaited."""
    asked_at: Mark | None = None
    """When it was sent last."""
    first_tick: int = 0
    """When it was sent for the first time."""
    first_ms: int = 0
    """By the wall clock."""
    rows: list[Existing] | None = None
    """What stands for messages of it, once it was answered."""
    doubled: bool = False
    """It was sent again before it was answered: what is said of one is not said of the other."""

    @property
    def raw(self) -> bytes:
        return b"".join(known.sent for known in self.messages)

    @property
    def count(self) -> int:
        """Messages that are sent: copies of one are one."""
        return sum(bool(known.sent) for known in self.messages)

    def __str__(self) -> str:
        return f"chunk {self.sequence} of {self.producer:x}"


class Publisher(Client):
    """Publishes so many chunks, then is done."""

    def __init__(self, maker: Maker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maker = maker
        self.producer = self.rng.getrandbits(63)
        self.sequence = 0
        self.chunks: list[Chunk] = []
        self.unconfirmed: dict[int, Chunk] = {}
        """By sequence, in order."""
        self.left = self.swarm.chunks
        self.calm = False

    def begin(self) -> None:
        self.connect()
        self.world.after(self.rng.randint(0, self.swarm.think_us), self.think)

    @property
    def idle(self) -> bool:
        return not self.unconfirmed and (self.calm or not self.left)

    def think(self) -> None:
        if self.calm or not self.left:
            return
        self.world.after(self.rng.randint(1, 2 * self.swarm.think_us), self.think)
        if len(self.unconfirmed) >= 50:
            return
        self.left -= 1
        self.publish(self.new_chunk())
        if self.swarm.has("resend") and self.rng.random() < 0.2:
            self.send_old_one()

    def new_chunk(self) -> Chunk:
        rng, swarm = self.rng, self.swarm
        in_parts = swarm.has("uploads") and rng.random() < 0.3
        count = rng.randint(1, swarm.chunk_messages)
        messages = []
        if swarm.has("workflows") and rng.random() < 0.3:
            messages, count = self.maker.make_graph(rng, rng.randint(1, 9)), 0
        for _ in range(count):
            if self.maker.routes and rng.random() < 0.4:
                messages += self.maker.make_routed(rng, in_parts=in_parts)
            else:
                messages.append(self.maker.make(rng, in_parts=in_parts, keyed=True))
        if swarm.has("leap") and rng.random() < 0.1:
            self.sequence += rng.choice((1, PRODUCER_WINDOW - 2, PRODUCER_WINDOW - 1))
        self.sequence += 1
        wants_sync = any(not known.relaxed for known in messages)
        chunk = Chunk(self.producer, self.sequence, messages, in_parts, wants_sync)
        self.chunks.append(chunk)
        self.unconfirmed[chunk.sequence] = chunk
        return chunk

    def publish(self, chunk: Chunk) -> None:
        if not self.open or chunk.gave_up:
            return
        if chunk.in_parts and not self.calm and self.rng.random() < 0.1:
            self.break_off(chunk)
            return
        chunk.asked_at = self.world.mark()
        chunk.doubled, chunk.asked = chunk.doubled or chunk.asked, True
        raw, parts = chunk.raw, None
        if chunk.in_parts:
            parts, raw = self.cut(raw)
        frame = f.Publish(
            producer=chunk.producer, sequence=chunk.sequence, count=chunk.count, raw=raw
        )
        if not chunk.first_tick:
            chunk.first_tick, chunk.first_ms = self.world.mark().tick, self.world.wall_ms()
        chunk.attempts += 1
        self.oracle.sent(chunk.messages)
        self.world.note(
            self.name,
            "publishes chunk %d: %s%s",
            chunk.sequence,
            [known.uid for known in chunk.messages],
            " in parts" if parts else "",
        )
        self.ask(frame, lambda answer, mark: self.answered(chunk, answer, mark), parts)

    def break_off(self, chunk: Chunk) -> None:
        """Some parts come, and then no more: nothing of them may be left."""
        self.world.sometimes["a publish was broken off"] += 1
        self._asked += 1
        for index, raw in enumerate(self.cut(chunk.raw)[0]):
            self.say(f.Part(index=index, of=f.Publish.TYPE, raw=raw, correlation=self._asked))
        self.world.after(self.rng.randint(1, 50 * MS), self.hang_up, "a publish was broken off")

    def cut(self, raw: bytes) -> tuple[list[bytes], bytes]:
        pieces = []
        while len(raw) > 1 and len(pieces) < 6:
            at = self.rng.randint(1, len(raw) - 1)
            pieces.append(raw[:at])
            raw = raw[at:]
        return pieces, raw

    def answered(self, chunk: Chunk, answer: f.Frame | None, mark: Mark | None) -> None:
        chunk.asked = False
        if answer is None or mark is None:
            return  # unknown: it is sent again after the next Welcome
        if isinstance(answer, f.Published):
            self.world.note(
                self.name,
                "chunk %d confirmed: first %d%s",
                chunk.sequence,
                answer.first,
                ", a duplicate" if answer.duplicate else "",
            )
            if answer.duplicate:
                self.world.sometimes["a duplicate was recognised"] += 1
            self.unconfirmed.pop(chunk.sequence, None)
            if chunk.confirmed:
                self.oracle.keys.rows(chunk, answer)
            if not chunk.confirmed or not answer.duplicate:
                self.oracle.published(chunk, answer, mark)
            chunk.confirmed = True
            return
        assert isinstance(answer, f.Error), answer
        self.world.note(self.name, "chunk %d: %s %s", chunk.sequence, answer.code, answer.message)
        self.world.sometimes[f"a publish was refused: {answer.code}"] += 1
        self.oracle.refused(chunk, answer)
        if answer.code == "SEQUENCE_TOO_OLD":
            self.too_old(chunk)
        if answer.retryable:
            self.world.after(500 * MS, self.publish, chunk)
        else:
            chunk.gave_up = not chunk.confirmed
            self.unconfirmed.pop(chunk.sequence, None)

    def too_old(self, chunk: Chunk) -> None:
        behind = self.sequence - chunk.sequence
        if behind < PRODUCER_WINDOW:
            raise Violation(f"{chunk} is called too old, and is {behind} behind the newest sent")

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        """Unanswered chunks are sent again, unchanged and in order."""
        for chunk in list(self.unconfirmed.values()):
            if chunk.attempts:
                self.world.sometimes["a chunk was sent again"] += 1
            self.publish(chunk)

    def send_old_one(self) -> None:
        """A chunk comes again by mistake: a duplicate, or too old; or before it was answered."""
        if self.unconfirmed and self.rng.random() < 0.3:
            self.publish(self.rng.choice(list(self.unconfirmed.values())))
            return
        old = [
            chunk
            for chunk in self.chunks[-30:]
            if chunk.confirmed and not any(known.relaxed for known in chunk.messages)
        ]
        edge = [
            c for c in old if PRODUCER_WINDOW - 1 <= self.sequence - c.sequence <= PRODUCER_WINDOW
        ]
        if old:
            self.publish(self.rng.choice(edge or old))
