"""Those who keep a broker busy while it is killed: publishers, consumers, and real workers.

Rule 1. They never give up: a lost connection is opened again, an unconfirmed chunk is sent again
        unchanged, and in order.
Rule 2. What becomes of each message is written into the books at once.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType

from e2e.books import Books
from e2e.daemon import Daemon
from e2e.talker import Refused, Talker
from qclient import NotDone, OutcomeUnknown, PartialPublish
from qclient.exceptions import ConnectError, ConnectionLost, RefusedError
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.frames import Error, Publish, Published, Settle, Settled
from qprotocol.ids import mint, unpack_id
from qprotocol.message import Delivery, Message, Outcome
from qprotocol.options import RetryPolicy

QUEUES = ("left", "right")
WINDOW = 4
"""Chunks of a publisher that may be unconfirmed."""
DELAYED = ((0.01, (5_000, 12_000)), (0.1, (10, 500)))
"""Parts of the messages, and for how many milliseconds they wait. Some outlive their segment."""
CREDIT = 64
FORGOTTEN_MAX = 16
"""Deliveries a consumer keeps without a word before it vanishes."""
PAUSE_S = 0.02
"""Between two chunks: so many messages that kills fall into work, not so many that they pile up."""
AGAIN_SOON = RetryPolicy(retries_max=0xFFFF, backoff_ms=20, factor=1.0).pack()
GONE = (ConnectionLost, ConnectError, RefusedError, TimeoutError)


class Busy(threading.Thread):
    """A thread that does one thing again and again, over connections that come and go."""

    def __init__(self, name: str, broker: Daemon, books: Books, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.broker = broker
        self.books = books
        self.rng = random.Random(f"{seed} {name}")
        self.ending = threading.Event()
        self.connections = 0
        self.trouble: BaseException | None = None

    def run(self) -> None:
        """Until it is told to end, and has nothing left to do."""
        try:
            while not self.over:
                try:
                    talker = Talker(self.broker.port, "consumer", name=self.name)
                except GONE:
                    self.ending.wait(0.02)
                    continue
                self.connections += 1
                try:
                    self.work(talker)
                except GONE:
                    continue
                finally:
                    talker.close()
        except BaseException as trouble:
            self.trouble = trouble
            raise

    @property
    def over(self) -> bool:
        return self.ending.is_set()

    def work(self, talker: Talker) -> None:
        """Its thing, on one connection, until that ends or it is over."""
        raise NotImplementedError

    def end(self) -> None:
        """It has ended."""
        self.ending.set()
        self.join(60)
        assert not self.is_alive(), f"{self.name} does not end"
        assert self.trouble is None, f"{self.name} broke: {self.trouble!r}"


class Publisher(Busy):
    """Publishes chunks over the raw protocol, with resends."""

    def __init__(self, name: str, broker: Daemon, books: Books, seed: int) -> None:
        super().__init__(name, broker, books, seed)
        self.producer = self.rng.getrandbits(63)
        self.sequence = 0
        self.open: OrderedDict[int, tuple[Publish, list[str]]] = OrderedDict()
        """Chunks without an answer, by sequence."""

    @property
    def over(self) -> bool:
        return self.ending.is_set() and not self.open

    def work(self, talker: Talker) -> None:
        asked = {talker.say(publish): number for number, (publish, _) in self.open.items()}
        while not self.over:
            if len(asked) < WINDOW and not self.ending.is_set():
                number, publish = self.chunk(talker)
                asked[talker.say(publish)] = number
            if len(asked) == WINDOW or self.ending.is_set():
                first = next(iter(asked))
                self.note(asked.pop(first), talker.answer(first))
            self.ending.wait(PAUSE_S)

    def chunk(self, talker: Talker) -> tuple[int, Publish]:
        """The next chunk, in the books and among those without an answer."""
        marks = self.books.marks(self.rng.randint(1, 20))
        packed = [self.message(talker, mark).pack() for mark in marks]
        self.sequence += 1
        publish = Publish(
            producer=self.producer,
            sequence=self.sequence,
            count=len(packed),
            raw=b"".join(packed),
        )
        self.open[self.sequence] = publish, marks
        return self.sequence, publish

    def message(self, talker: Talker, mark: str) -> Message:
        chance = self.rng.random()
        delay_ms = next((self.rng.randint(*span) for part, span in DELAYED if chance < part), 0)
        task_id = self.task_id(talker, mark)
        self.books.name(mark, task_id)
        return Message(
            self.rng.choice(QUEUES),
            f"{mark} ".encode() + b"." * self.rng.randint(0, 1_000),
            id=task_id,
            task="load.task" if task_id else "",
            priority=self.rng.choice((0, 0, 0, -5, 9)),
            due_ms=talker.link.server_ms() + delay_ms if delay_ms else 0,
        )

    def task_id(self, talker: Talker, mark: str) -> str:
        """Minted, or the caller's own; empty for a message that is no task."""
        chance = self.rng.random()
        if chance < 0.1:
            return ""
        if chance < 0.2:
            return f"own-{mark}"
        return unpack_id(mint(talker.link.server_ms(), self.rng.getrandbits(80)), minted=True)

    def note(self, number: int, answer: object) -> None:
        """An answer came."""
        publish, marks = self.open[number]
        if isinstance(answer, Published):
            assert answer.count == publish.count
            self.books.confirm(marks, was_duplicate=answer.duplicate)
        else:
            assert isinstance(answer, Error), answer
            if answer.retryable:
                raise ConnectionLost(answer.message)  # sent again on the next one
            assert not answer.definite, f"{answer.code}: {answer.message}"
            self.books.doubt(marks)
        del self.open[number]


class Consumer(Busy):
    """Takes messages, and settles most of them; some fail, some go back, some are forgotten."""

    def work(self, talker: Talker) -> None:
        talker.consume(*QUEUES, credit=CREDIT)
        asked: OrderedDict[int, dict[int, str]] = OrderedDict()
        forgotten = 0
        while not self.over:
            talker.listen(0.1)
            if forgotten > FORGOTTEN_MAX or (forgotten and not talker.waiting):
                return  # it vanishes with what it holds
            outcomes, acked = [], {}
            while talker.waiting:
                delivery = talker.receive()
                mark = delivery.message.body.split(b" ", 1)[0].decode()
                self.books.run(mark)
                outcome = self.outcome(delivery)
                if outcome is None:
                    forgotten += 1
                    continue
                outcomes.append(outcome.pack())
                if outcome.outcome == wire.ACK:
                    acked[delivery.position] = mark
            if outcomes:
                asked[talker.say(Settle(count=len(outcomes), raw=b"".join(outcomes)))] = acked
            while len(asked) > (WINDOW if outcomes else 0):
                self.note(*asked.popitem(last=False), talker)

    def outcome(self, delivery: Delivery) -> Outcome | None:
        chance = self.rng.random()
        token = delivery.position, delivery.grant
        task_id = delivery.message.id
        if chance < 0.4 and task_id:
            self.books.give(task_id, result := b"%d" % delivery.position)
            return Outcome(wire.ACK, *token, result=result, flags=wire.HAS_RESULT)
        if chance < 0.85:
            self.books.give(task_id, None)
            return Outcome(wire.ACK, *token)
        if chance < 0.93:
            failure = Failure("LoadError", "one of many").pack()
            return Outcome(wire.FAIL, *token, result=failure, policy=AGAIN_SOON)
        if chance < 0.99:
            return Outcome(wire.RELEASE, *token, delay_ms=self.rng.choice((0, 30)))
        return None  # kept until the connection ends

    def note(self, correlation: int, acked: dict[int, str], talker: Talker) -> None:
        """The broker's answer to a settlement."""
        answer = talker.answer(correlation)
        if isinstance(answer, Error):
            raise Refused(answer)
        assert isinstance(answer, Settled)
        lost = {position for (position,) in wire.POSITION.iter_unpack(answer.raw)}
        self.books.settle(mark for position, mark in acked.items() if position not in lost)


class Sender(Busy):
    """Sends tasks as applications do: one at a time, or many in one call."""

    def __init__(
        self, name: str, broker: Daemon, books: Books, seed: int, tasks: ModuleType
    ) -> None:
        super().__init__(name, broker, books, seed)
        self.tasks = tasks

    def run(self) -> None:
        """The client connects, and connects again, by itself."""
        try:
            while not self.over:
                self.send(self.one if self.rng.random() < 0.7 else self.many)
                self.ending.wait(PAUSE_S)
        except BaseException as trouble:
            self.trouble = trouble
            raise

    def send(self, way: Callable[[list[str]], None]) -> None:
        marks = self.books.marks(1 if way == self.one else self.rng.randint(2, 60))
        try:
            way(marks)
        except PartialPublish as partial:
            self.books.confirm(result.id for result in partial.confirmed)
            self.books.refuse(result.id for result in partial.refused)
            self.books.doubt(result.id for result in partial.unknown)
        except NotDone:
            self.books.refuse(marks)
        except OutcomeUnknown:
            self.books.doubt(marks)
        else:
            self.books.confirm(marks)

    def one(self, marks: list[str]) -> None:
        result = self.tasks.note.delay(marks[0])
        self.books.name(marks[0], result.id)

    def many(self, marks: list[str]) -> None:
        note = self.tasks.note
        for mark in marks:
            self.books.name(mark, mark)
        self.tasks.app.send_many(note.s(mark).set(task_id=mark) for mark in marks)
