"""Delayed messages over many ends of the broker: none early, none lost, none twice unexcused."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from e2e.daemon import Daemon, until
from e2e.storage import OFTEN, connected, count_rows
from e2e.talker import Talker
from qprotocol import wire
from qprotocol.frames import Ack, Published, Settled
from qprotocol.ids import mint, unpack_id
from qprotocol.message import Delivery, Message

pytestmark = pytest.mark.e2e

EACH = 60
"""Messages published in a life of the broker."""
LIFE_S = 0.6
SPREAD_MS = (0, 200, 1_500, 6_000)
"""How far away a message may be due: within one life, in the next ones, some lives on."""


def now_ms() -> int:
    """The clock of this machine, which is the broker's."""
    return time.time_ns() // 1_000_000


class Story:
    """What was published and delivered, over all lives of one broker."""

    def __init__(self, broker: Daemon, seed: int) -> None:
        self.broker = broker
        self.rng = random.Random(seed)
        self.life = 0
        self.due: dict[bytes, int] = {}
        """Confirmed messages by body, and when they are due: milliseconds since 1970."""
        self.ids: dict[str, bytes] = {}
        """Their bodies by task id, in hexadecimal."""
        self.lives: dict[bytes, list[int]] = {}
        """In which lives a message was delivered."""
        self.done: set[bytes] = set()
        """Those whose end was confirmed."""

    def publish(self, talker: Talker) -> None:
        """Some more are confirmed."""
        messages = []
        for _ in range(EACH):
            body = b"%d" % len(self.due)
            self.due[body] = now_ms() + self.rng.randint(1, 1 + self.rng.choice(SPREAD_MS))
            raw = mint(now_ms(), self.rng.getrandbits(80))
            self.ids[raw.hex()] = body
            task = {"id": unpack_id(raw, minted=True), "task": "story.task"}
            messages.append(Message("emails", body, due_ms=self.due[body], **task))
        talker.ask(talker.chunk(messages), Published)

    def take(self, talker: Talker, acks: float = 0.8) -> None:
        """A delivery is in the books, and most are acknowledged: the others see the next life."""
        delivery = talker.receive()
        seen_ms, body = now_ms(), delivery.message.body
        assert body in self.due, "nobody published it"
        assert seen_ms >= self.due[body], f"{self.due[body] - seen_ms} ms early"
        lives = self.lives.setdefault(body, [])
        assert self.life not in lives, "twice in one life, and nobody gave it back"
        assert body not in self.done, "its end was confirmed"
        lives.append(self.life)
        if self.rng.random() < acks:
            self.finish(talker, delivery)

    def finish(self, talker: Talker, delivery: Delivery) -> None:
        raw = wire.ACK_RUN.pack(delivery.grant, delivery.position, 1)
        assert talker.ask(Ack(raw=raw), Settled).lost == 0
        self.done.add(delivery.message.body)

    def live(self) -> None:
        """A life of the broker, which ends in one of two ways while messages are out."""
        talker = self.broker.connect()
        talker.consume("emails", credit=50)
        self.publish(talker)
        end = time.monotonic() + self.rng.uniform(0.1, LIFE_S)
        while time.monotonic() < end:
            talker.listen(0.02)
            while talker.waiting:
                self.take(talker)
        if self.rng.random() < 0.6:
            self.broker.kill()
        else:
            talker.close()
            assert self.broker.stop() == 0, self.broker.last_words()
        self.broker.start()
        self.life += 1

    def drain(self) -> None:
        """All that is left comes: what was out goes back once its grace is over."""
        talker = self.broker.connect()
        talker.consume("emails", credit=5_000)

        def is_over() -> bool:
            talker.listen(0.05)
            while talker.waiting:
                self.take(talker, acks=1)
            row = talker.queue("emails")
            return not any(row[column] for column in ("ready", "scheduled", "leased"))

        until(is_over, "the drain", patience_s=90)
        until(lambda: count_rows(self.broker) >= len(self.due), "the archive")


@pytest.mark.parametrize(
    "restarts", [5, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(400)])]
)
def test_delayed_messages_outlive_many_restarts(
    restarts: int, make_broker: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Kills and stops in turn, checkpoints and cleaning meanwhile. The archive says when each was
    granted by the broker's own clock.
    """
    broker = make_broker(grace_ms=100, claims_ms=50, **OFTEN).start()
    story = Story(broker, seed=restarts)
    for _ in range(restarts):
        story.live()
    story.drain()
    assert story.done == set(story.due)
    assert any(len(lives) > 1 for lives in story.lives.values()), "no restart fell into work"
    with closing(connected(broker)) as db:
        rows = db.execute("SELECT lower(hex(id)), started_ms FROM tasks").fetchall()
    assert sorted(name for name, _ in rows) == sorted(story.ids)
    early = [(name, ms) for name, ms in rows if ms < story.due[story.ids[name]]]
    assert not early
