"""One holder a key, an answer for all: whatever is published, settled, cancelled or crashes.

A stateful story over the real core and log. What must be true is worked out here from the bytes
of what was stored, from where messages are, and from the answers; never from the table of keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.test_model import STORIES
from digest import check_places, digest, exact
from machine import Machine
from qbroker.core import records as r
from qbroker.core.keys import TASK, pack_held
from qbroker.core.moment import Now
from qbroker.core.settings import Settings
from qbroker.core.snapshot import decode, encode
from qbroker.log.log import Log, LogSettings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Message, Outcome, meta_fields, pack_fields, unpack_message, walk
from qprotocol.options import RetryPolicy
from qprotocol.uniquekeys import CONFLICTS, IdempotencyKey, UniqueKey, unpack_existing

LOG = LogSettings(segment_bytes=64 << 10)
WINDOW_MS = 3_000
SETTINGS = Settings(idempotency_window_ms=WINDOW_MS, session_timeout_ms=60_000)
RETRY = RetryPolicy(9, 400, factor=1.0, jitter=False).pack()


FRAME: dict[str, Any] = {
    "keys": st.lists(
        st.tuples(
            st.sampled_from(["k", "k", "l", ""]),
            st.sampled_from(["", "", "i", "j"]),
            st.sampled_from(list(CONFLICTS)),
            st.sampled_from(["finished", "finished", "started", "time"]),
        ),
        min_size=1,
        max_size=3,
    ),
    "queue": st.sampled_from(["a", "a", "b"]),
    "delay_ms": st.sampled_from([0, 0, 500, 2_000]),
}
"""What is published in one frame: unique key, idempotency key, on conflict, until."""


@dataclass
class Told:
    """A message that was stored: what its bytes say, and what the log said of it since."""

    id: str
    queue: str
    unique: UniqueKey | None
    window: IdempotencyKey | None
    stored_ms: int
    went_out: bool = False
    replaced: bool = False
    freed: bool = False


@dataclass
class Asked:
    """A frame, and the ids that stand for its messages once it is answered."""

    frame: f.Publish
    ids: list[str]
    keys: list[tuple[str, str]]
    """Unique and idempotency key of each; empty for none."""
    stand: list[str] = field(default_factory=list)
    existing: list[int] = field(default_factory=list)


class Story(RuleBasedStateMachine):
    """What may happen, and what must then be true."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(settings=SETTINGS, log_settings=LOG)
        self.told: dict[int, Told] = {}
        self.answered: list[Asked] = []
        self.windows: dict[str, tuple[str, int]] = {}
        """Idempotency key to what it means, and until when."""
        self.count = self.sequence = self.correlation = 0
        self.meet()
        for queue in ("a", "b"):
            self.ask(f.Declare(queue=queue, options={}))

    def meet(self) -> None:
        """Connections anew, and one who takes messages."""
        self.peer = self.machine.connect()
        self.taker = self.machine.connect()
        self.held: dict[int, int] = {}
        hello = f.Hello(protocol=1, role="consumer", client_id="t")
        assert isinstance(self.ask(hello, self.taker), f.Welcome)
        consume = f.Consume(subscription=1, queues=["a"], credit=2)
        assert isinstance(self.ask(consume, self.taker), f.Ok)

    def ask(self, frame: f.Frame, peer: Any = None) -> f.Frame:
        """The answer, when all that follows has happened."""
        self.correlation += 1
        frame.correlation = self.correlation
        self.machine.submit(peer or self.peer, frame)
        self.step()
        found = [x for x in self.heard if x.correlation == frame.correlation]
        assert len(found) == 1, found
        return found[0]

    def step(self) -> None:
        self.machine.settle()
        self.heard: list[f.Frame] = []
        for peer in (self.peer, self.taker):
            for frame in peer.received:
                if isinstance(frame, f.Deliver):
                    at = frame.runs * wire.RUN.size
                    for first, count in wire.RUN.iter_unpack(frame.raw[:at]):
                        self.held.update(dict.fromkeys(range(first, first + count), frame.grant))
                elif isinstance(frame, f.Revoke):
                    for position, _ in wire.TOKEN.iter_unpack(frame.raw):
                        self.held.pop(position, None)
                else:
                    self.heard.append(frame)
            peer.received.clear()
        self.read_log()

    def read_log(self) -> None:
        """What the records say, read from messages' bytes."""
        for position, record in self.machine.noted:
            if isinstance(record, r.Published):
                self.note(position, record.batch.raw, record.wall_ms)
            elif isinstance(record, r.Granted | r.GrantedExactly):
                for _, _, first, count in record.entries:
                    for each in range(first, first + count):
                        self.told[each].went_out = True
            elif isinstance(record, r.Removed) and record.reason == "replaced":
                for each, _, _ in record.positions:
                    told = self.told[each]
                    assert not told.went_out
                    told.replaced = True
        self.machine.noted.clear()

    def note(self, position: int, raw: bytes, wall_ms: int) -> None:
        for index, (at, _) in enumerate(walk(raw)):
            message = unpack_message(raw, at)
            fields = meta_fields(message.fields)
            unique, window = fields.get(wire.UNIQUE), fields.get(wire.IDEMPOTENCY)
            self.told[position + index] = Told(
                message.id,
                message.queue,
                UniqueKey.unpack(unique) if unique else None,
                IdempotencyKey.unpack(window) if window else None,
                wall_ms,
            )

    # Publishing.

    @rule(**FRAME)
    def publish_once(self, **given: Any) -> None:
        self.publish(**given)

    @rule(**FRAME)
    def publish_more(self, **given: Any) -> None:
        """As often again: most of a story are publishes."""
        self.publish(**given)

    def publish(self, keys: Any, queue: str, delay_ms: int) -> None:
        raw, ids = b"", []
        for unique, window, conflict, until in keys:
            self.count += 1
            ids.append(f"m{self.count}")
            fields = {}
            if unique:
                # One way to hold it a key, so that what must be true can be said of the key.
                name = f"{unique}-{until}"
                for_ms = 2_500 if until == "time" else 0
                fields[wire.UNIQUE] = UniqueKey(name, "task", until, conflict, for_ms).pack()
            if window:
                fields[wire.IDEMPOTENCY] = IdempotencyKey(window).pack()
            due_ms = self.machine.wall_ms + delay_ms if delay_ms else 0
            raw += Message(
                queue, b"x", ids[-1], "t", due_ms=due_ms, fields=pack_fields(fields)
            ).pack()
        self.sequence += 1
        frame = f.Publish(producer=7, sequence=self.sequence, count=len(ids), raw=raw)
        named = [(f"{u}-{until}" if u else "", w) for u, w, _, until in keys]
        asked = Asked(frame, ids, named)
        answer = self.ask(frame)
        if isinstance(answer, f.Error):
            assert answer.code == "NOT_UNIQUE"
            assert answer.details["id"] in {told.id for told in self.told.values()} | set(ids)
            return
        self.check_answer(asked, answer)
        self.answered.append(asked)

    def check_answer(self, asked: Asked, answer: f.Frame) -> None:
        """Each message of the frame is stored, or another stands for it that was published with a
        key of it.
        """
        assert isinstance(answer, f.Published)
        asked.stand = list(asked.ids)
        rows = list(unpack_existing(answer.raw))
        asked.existing = [number for number, _, _ in rows]
        assert len(rows) == answer.existing
        for number, name, _ in rows:
            asked.stand[number] = name
        self.check_windows(asked)
        by_id = {told.id: told for told in self.told.values()}
        for number, name, position in rows:
            unique, window = asked.keys[number]
            told = by_id[name]
            mine = told.unique and told.unique.key == unique
            means = window and self.windows.get(window, ("", 0))[0] == name
            own = window and told.window and told.window.key == window
            assert mine or means or own, f"{name} stands for {asked.ids[number]}: why?"
            assert position == 0 or self.told[position].id == name
        stored = [i for n, i in enumerate(asked.ids) if n not in asked.existing]
        for rank, name in enumerate(stored):
            assert self.told[answer.first + rank].id == name

    def check_windows(self, asked: Asked) -> None:
        """Within its window an idempotency key means one task."""
        now = self.machine.wall_ms
        for (_, window), stands in zip(asked.keys, asked.stand, strict=True):
            if not window:
                continue
            known, until_ms = self.windows.get(window, ("", 0))
            if until_ms > now:
                assert stands == known
            else:
                self.windows[window] = stands, now + WINDOW_MS

    @precondition(lambda self: self.answered)
    @rule(nth=st.integers(0, 3))
    def send_again(self, nth: int) -> None:
        """A frame that was answered is answered as it was, and stores nothing."""
        asked = self.answered[-1 - nth % len(self.answered)]
        count = len(self.told)
        answer = self.ask(asked.frame)
        assert isinstance(answer, f.Published)
        assert answer.duplicate
        stand = list(asked.ids)
        for number, name, _ in unpack_existing(answer.raw):
            stand[number] = name
        assert stand == asked.stand
        assert len(self.told) == count

    # Ends.

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["ack", "done", "fail", "retry", "release", "reject", "follow"]))
    def settle(self, how: str) -> None:
        position, grant = self.held.popitem()
        if how == "ack":
            raw = wire.ACK_RUN.pack(grant, position, 1)
            assert isinstance(self.ask(f.Ack(raw=raw), self.taker), f.Settled)
            return
        outcomes = {
            "done": Outcome(wire.ACK, position, grant, flags=wire.HAS_RESULT, result=b"r"),
            "fail": Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY, result=ERROR),
            "retry": Outcome(wire.FAIL, position, grant, policy=RETRY, result=ERROR),
            "release": Outcome(wire.RELEASE, position, grant, delay_ms=300),
            "reject": Outcome(wire.REJECT, position, grant, result=b"no"),
        }
        if how != "follow":
            raw = outcomes[how].pack()
            assert isinstance(self.ask(f.Settle(count=1, raw=raw), self.taker), f.Settled)
            return
        self.follow(position, grant)

    def follow(self, position: int, grant: int) -> None:
        """A task publishes itself anew as it ends: its key is free for that."""
        told = self.told[position]
        unique = told.unique
        if unique is None or unique.until != "finished":
            self.held[position] = grant
            return
        self.count += 1
        field = pack_fields({wire.UNIQUE: unique.pack()})
        then = Message("a", b"x", f"m{self.count}", "t", fields=field).pack()
        before = len(self.machine.core.state.names)
        outcome = Outcome(wire.ACK, position, grant, follow_on=(then,)).pack()
        self.correlation += 1
        frame = f.Settle(count=1, raw=outcome, correlation=self.correlation)
        self.machine.submit(self.taker, frame)
        self.machine.settle()
        for at, record in self.machine.noted:
            if isinstance(record, r.Settled) and record.follow_on.count:
                self.note(at + 1, record.follow_on.raw, record.finished_ms)
        freed = told.freed
        assert freed or len(self.machine.core.state.names) == before
        self.step()

    @precondition(lambda self: self.told and self.count % 3 == 1)
    @rule(nth=st.integers(0, 5))
    def cancel(self, nth: int) -> None:
        told = list(self.told.values())[-1 - nth % len(self.told)]
        self.ask(f.Cancel(id=told.id))

    @precondition(lambda self: self.count % 3 == 0)
    @rule(queue=st.sampled_from(["a", "b"]))
    def purge(self, queue: str) -> None:
        self.ask(f.Purge(queue=queue))

    @precondition(lambda self: self.count % 7 == 3)
    @rule(key=st.sampled_from(["k-finished", "k-time", "l-started"]))
    def free(self, key: str) -> None:
        """An operator frees a key: who had it has none from now on."""
        answer = self.ask(f.ForgetKey(key=key, name="t"))
        assert isinstance(answer, f.Ok)
        for told in self.told.values():
            if told.unique and told.unique.key == key:
                told.freed = True

    @precondition(lambda self: self.count % 4 == 0)
    @rule(to=st.sampled_from(["a", "b"]))
    def move(self, to: str) -> None:
        self.ask(f.Move(queue="b" if to == "a" else "a", to=to))

    # Time and crashes.

    @rule(wait_ms=st.sampled_from([100, 500, 2_500]))
    def wait(self, wait_ms: int) -> None:
        self.machine.wait(wait_ms)
        self.step()

    @rule(how=st.sampled_from(["crash", "kill"]), save=st.booleans())
    def restart(self, how: str, save: bool) -> None:
        if save:
            self.machine.write_all()
            self.machine.save()
        getattr(self.machine, how)()
        self.meet()

    # What must be true.

    @invariant()
    def one_holder_a_key(self) -> None:
        state, now_ms = self.machine.core.state, self.machine.wall_ms
        alive = check_places(state)
        holders: dict[str, list[str]] = {}
        for position, told in self.told.items():
            unique = told.unique
            if unique is None or told.freed or told.replaced:
                continue
            here = position in alive and not alive[position].endswith(".dead")
            lasts = {
                "finished": here,
                "started": here and not told.went_out,
                "time": told.stored_ms + unique.for_ms > now_ms,
            }
            if lasts[unique.until]:
                holders.setdefault(unique.key, []).append(told.id)
        assert all(len(found) == 1 for found in holders.values()), holders
        by_name = {key: h for key, h in state.keys.held.items() if state.keys.get(key, self.now)}
        mine = {pack_held(TASK, "t", key): ids[0] for key, ids in holders.items()}
        theirs = {k: h.id[1:].decode() for k, h in by_name.items() if k[0] == TASK}
        assert theirs == mine

    @property
    def now(self) -> Now:
        return self.machine.now

    def teardown(self) -> None:
        """The log says the same, whole or from a snapshot on."""
        machine = self.machine
        machine.write_all()
        live = digest(machine.core.state, machine.now)
        log = Log.open(machine.disk.copy(), LOG)
        snapshot, machine.snapshot = machine.snapshot, None
        whole = machine.rebuilt(log).state
        assert digest(whole, machine.now)["keys"] == live["keys"]
        assert digest(whole, machine.now)["keys of"] == live["keys of"]
        assert digest(whole, machine.now)["answers"] == live["answers"]
        machine.snapshot = snapshot
        by_snapshot = machine.rebuilt(log).state
        for name in ("keys", "keys of", "answers"):
            assert digest(by_snapshot, machine.now)[name] == live[name]
        again = decode(SETTINGS, dict(encode(whole)))
        assert exact(again) == exact(whole)


ERROR = Failure("Oops", "it broke").pack()


def test_whatever_happens_a_key_has_one_holder_and_a_message_an_answer() -> None:
    run_state_machine_as_test(Story, settings=STORIES)
