"""A start that is killed is as if it had not begun: real files, recovered again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from e2e.daemon import Daemon, until
from e2e.storage import Sight
from e2e.talker import Talker
from qprotocol import wire
from qprotocol.frames import Ack, Settled
from qprotocol.states import State

pytestmark = pytest.mark.e2e

SOON = {"checkpoint_log_bytes": "64KiB", "segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}
SYNC_S = "0.02"
"""How much longer a sync takes, so that kills fall between what a start does to the disk."""
GAP_BYTES = 4_096
LEFT = 2
"""Deliveries of a turn that are not settled."""
KILLS = (2, 4)
"""Starts of a round that are killed."""


class Wreck:
    """One data folder, a load that is put on it, and what must be in it whatever happens."""

    def __init__(self, broker: Daemon, seed: int) -> None:
        self.broker = broker
        self.rng = random.Random(seed)
        self.sight = Sight(broker)
        self.stays: list[bytes] = []
        """Confirmed and never taken."""
        self.waits = 0
        """Messages of the other queue that were not acknowledged."""
        self.results: dict[str, bytes] = {}
        self.start_s = 0.0
        self.cut = 0
        """Starts that were killed before they listened."""

    def load(self) -> None:
        """Messages stay, come and go, until a checkpoint is begun or stands; then a kill."""
        talker = self.broker.connect()
        talker.consume("work", "tasks", credit=10_000)  # some are left of each turn
        keeper = self.rng.choice((".tmp", ".qckp", ""))
        before = self.sight.checkpoint_names()
        for _ in range(3):
            self.turn(talker)
        if keeper:
            until(lambda: self.turn(talker) or self.is_new(keeper, before), f"a new {keeper}", 60)
        self.broker.kill()

    def is_new(self, end: str, before: set[str]) -> bool:
        return any(name.endswith(end) for name in self.sight.checkpoint_names() - before)

    def turn(self, talker: Talker) -> None:
        """Some that stay, a task with a result, and a hundred that are done but for a few."""
        mine = [b"stays %d" % (len(self.stays) + number) for number in range(5)]
        talker.publish("stays", *mine)
        self.stays += mine
        talker.task("tasks", b"task")
        talker.publish("work", *(self.rng.randbytes(1_000) for _ in range(100)))
        taken = [talker.receive() for _ in range(101)]
        for task in (each for each in taken if each.message.id):
            self.results[task.message.id] = result = self.rng.randbytes(50)
            talker.ack(task, result)
        done = [each for each in taken if not each.message.id][LEFT:]
        raw = b"".join(wire.ACK_RUN.pack(each.grant, each.position, 1) for each in done)
        assert talker.ask(Ack(raw=raw), Settled).lost == 0
        self.waits += 100 - len(done)

    def litter(self) -> None:
        """A torn tail, and what a keeper leaves that is killed."""
        log, checkpoints = self.broker.data / "log", self.broker.data / "checkpoints"
        active = max(log.glob("*.qlog"))
        end = len(active.read_bytes().rstrip(b"\0"))
        with active.open("r+b") as file:
            file.seek(-(-end // GAP_BYTES) * GAP_BYTES + GAP_BYTES)
            file.write(self.rng.randbytes(300))
        batch = int(active.name.split(".")[0])
        half = self.rng.randbytes(3_000)
        (checkpoints / f"{batch + 1:020d}.qckp.tmp").write_bytes(half)
        (log / f"{batch:020d}.7-0123abcd.tmp").write_bytes(half)

    def cut_starts(self) -> None:
        """Starts are killed at random moments, each on what the one before it left."""
        for _ in range(self.rng.randint(*KILLS)):
            self.broker.launch(is_faulty=True)
            moment = time.monotonic() + self.start_s * self.rng.uniform(0.3, 1.0)
            until(lambda moment=moment: time.monotonic() >= moment, "the kill")
            said = self.broker.says_it_listens()
            self.broker.kill()
            self.cut += not said

    def start(self) -> None:
        """For good: all is there."""
        began = time.monotonic()
        self.broker.start(is_faulty=True)
        self.start_s = time.monotonic() - began
        talker = self.broker.connect()
        row = talker.queue("work")
        assert row["ready"] + row["leased"] + row["scheduled"] == self.waits
        assert talker.queue("stays")["ready"] == len(self.stays)
        for task_id, result in self.results.items():
            found = talker.look(task_id)
            assert (State(found.state), found.raw) == (State.SUCCESS, result)
        talker.close()

    def empty(self) -> None:
        """All that stayed comes, each once and in order."""
        talker = self.broker.connect()
        talker.consume("stays", credit=10_000)
        assert [talker.receive().message.body for _ in self.stays] == self.stays
        talker.listen(0.2)
        assert not talker.waiting


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_starts_that_are_killed_cost_nothing(
    rounds: int, make_broker: Callable[..., Daemon]
) -> None:
    """Torn tails, half-made checkpoints and cleaned files; kills while that is put right."""
    broker = make_broker(grace_ms=0, claims_ms=0, **SOON)
    wreck = Wreck(broker, seed=rounds)
    wreck.start()
    for _ in range(rounds):
        wreck.load()
        wreck.litter()
        broker.fault("slow", is_on=True, text=SYNC_S)
        wreck.cut_starts()
        wreck.start()
        broker.fault("slow", is_on=False)
    assert list((broker.data / "log").glob("*.torn")), "no tail was torn"
    assert wreck.cut >= rounds, "too few kills fell into a start"
    wreck.empty()
