"""Idle lanes are closed, their numbers used anew, and what is handed out does not tell of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from core import test_limits
from digest import check_places, digest, exact
from qbroker.core import closing, purging
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.closing import lanes_open
from qbroker.core.columns import pack_columns, unpack_columns
from qbroker.core.effects import Hand
from qbroker.core.moment import Now
from qbroker.core.settings import LANE_IDLE_MS, LOOK_CROWDED_MS, Settings
from qbroker.core.snapshot import decode, encode
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.lanekeys import LaneKeys
from qprotocol.limitrules import LimitRule
from qprotocol.message import Message, Outcome, pack_fields
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey

START_MS = 1_800_000_000_000
UNSEEN = r.LaneOpened, r.LanesClosed
"""Records that take no position here, so that twins give messages the same ones."""
KEYS = [
    LaneKeys(fair="a"),
    LaneKeys(fair="b"),
    LaneKeys(limit="c"),
    LaneKeys(limit="d", weight=2),
    LaneKeys(ordering="e"),
    LaneKeys(limit="c", ordering="e"),
    LaneKeys(),
]

SOON, LATER = {"expires_ms": 900}, {"expires_ms": 4_000}
EXTRAS: dict[str, tuple[dict[int, bytes], dict[str, int]]] = {
    "plain": ({}, {}),
    "plain as well": ({}, {}),
    "delayed": ({}, {"due_ms": 900}),
    "expires": ({}, SOON),
    "expires late": ({}, LATER),
    "delayed, and expires": ({}, {"due_ms": 900, **LATER}),
    "one": ({wire.UNIQUE: UniqueKey("u").pack()}, {}),
    "until started": ({wire.UNIQUE: UniqueKey("v", until="started").pack()}, {}),
    "for a time": ({wire.UNIQUE: UniqueKey("w", until="time", for_ms=2_000).pack()}, {}),
    "replaces": ({wire.UNIQUE: UniqueKey("u", conflict="replace").pack()}, {}),
    "waits anew": ({wire.UNIQUE: UniqueKey("u", conflict="redelay").pack()}, {"due_ms": 1_500}),
    "once": ({wire.IDEMPOTENCY: IdempotencyKey("i", 2_000).pack()}, {}),
}
"""What a message may say beside its keys: fields, and times from now."""


@dataclass
class Twin:
    """A core alone, with one consumer, and all its records."""

    settings: Settings
    broker: Broker = field(init=False)
    now: Now = Now(START_MS, 1_000)
    position: int = 1 << wire.SLOT_BITS
    records: list[tuple[int, r.Record]] = field(default_factory=list)
    sections: dict[str, bytes] = field(default_factory=dict)
    saved: int = 0
    """Records before the snapshot."""
    handed: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = Broker(self.settings)
        self.broker.boot(self.now, "test", self.append)
        self.say(f.Hello(protocol=1, role="worker", client_id="x", session=b"s" * 16))
        self.say(f.Consume(subscription=1, queues=["q", "p", "q.dead"], credit=4))
        rule = LimitRule(per_key=True, concurrency=2).as_dict()
        self.say(f.SetLimit(name="two", origin="operator", rule=rule))
        options = {"message_ttl_ms": 6_000}
        self.say(f.SetPolicy(name="dead", pattern="*.dead", options=options))

    def append(self, record: r.Record) -> int:
        position = self.position
        self.records.append((position, record))
        self.position += 0 if isinstance(record, UNSEEN) else record.slots
        return position

    def say(self, frame: f.Frame) -> None:
        self.broker.execute(1, frame, self.now, self.append)
        self.turn()

    def turn(self) -> None:
        self.broker.due(self.now, self.append)
        for effect in self.broker.dispatch(self.now, self.append):
            assert isinstance(effect, Hand)
            self.handed.append((effect.grant, *effect.runs, *effect.touched))

    def pass_ms(self, wait_ms: int) -> None:
        self.now = Now(self.now.wall_ms + wait_ms, self.now.mono_ms + wait_ms)
        self.broker.heard(1, self.now.mono_ms)
        self.turn()

    @property
    def held(self) -> list[tuple[int, int]]:
        return [(p, grant.number) for p, grant in sorted(self.broker.state.leases.items())]

    def replayed(self) -> Broker:
        whole = Broker(self.settings)
        for position, record in self.records:
            whole.replay(position, record)
        return whole

    def save(self) -> None:
        """As the keeper does: of what the log says."""
        self.saved, self.sections = len(self.records), dict(encode(self.replayed().state))

    def check(self) -> None:
        """What a start would know is what is known."""
        state = self.broker.state
        check_places(state)
        whole = self.replayed()
        if self.sections:
            short = Broker(self.settings, decode(self.settings, self.sections))
            for position, record in self.records[self.saved :]:
                short.replay(position, record)
            assert exact(short.state) == exact(whole.state)
        assert digest(whole.state, self.now) == digest(state, self.now)


STEPS = st.one_of(
    st.tuples(
        st.just("publish"),
        st.sampled_from(KEYS),
        st.integers(-1, 1),
        st.sampled_from(list(EXTRAS)),
        st.integers(1, 3),
    ),
    st.tuples(st.just("acked"), st.integers(0, 9)),
    st.tuples(st.just("failed"), st.integers(0, 9)),
    st.tuples(st.just("rejected"), st.integers(0, 9)),
    st.tuples(st.just("waited"), st.sampled_from([1, 800, 5_000])),
    st.tuples(st.sampled_from(["purge", "save", "move", "replay", "cancel", "delete"])),
)


def step(twin: Twin, name: str, *given: Any) -> None:
    if name == "publish":
        keys, priority, kind, count = given
        unique, times = EXTRAS[kind]
        extra: dict[str, Any] = {each: twin.now.wall_ms + in_ms for each, in_ms in times.items()}
        if unique:
            extra |= {"fields": pack_fields(unique), "id": f"m{len(twin.records)}"}
            count = 1
        message = Message("q", b"x", task="t", keys=keys.pack(), priority=priority)
        raw = replace(message, **extra).pack() * count
        twin.say(f.Publish(producer=0, sequence=0, count=count, raw=raw))
    elif name == "waited":
        twin.pass_ms(*given)
    elif name == "save":
        twin.save()
    elif name == "purge":
        twin.say(f.Purge(queue="q"))
    elif name == "move":
        twin.say(f.Move(queue="q", to="p"))
    elif name == "replay":
        letters = twin.broker.state.letters.by_position.items()
        raw = b"".join(wire.LETTER.pack(at, letter.number) for at, letter in letters)
        if raw:
            twin.say(f.ReplayDead(raw=raw))
    elif name == "cancel":
        twin.say(f.CancelMany(queue="q", key="c"))
    elif name == "delete":
        twin.say(f.DeleteQueue(queue="p"))
        twin.say(f.Consume(subscription=len(twin.records), queues=["p"], credit=1))
    elif twin.held:
        position, grant = twin.held[given[0] % len(twin.held)]
        if name == "acked":
            twin.say(f.Ack(raw=wire.ACK_RUN.pack(grant, position, 1)))
            return
        kind = wire.FAIL if name == "failed" else wire.REJECT
        outcome = Outcome(kind, position, grant, result=b"e", delay_ms=700)
        twin.say(f.Settle(count=1, raw=outcome.pack()))


def whereabouts(twin: Twin) -> dict[str, Any]:
    """What waits, what is handed out, what has died."""
    found = digest(twin.broker.state, twin.now)
    return {name: found[name] for name in ("counts", "ready", "counted")}


@given(st.lists(STEPS, max_size=40))
def test_closing_changes_nothing_of_what_is_handed_out(steps: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        eager, idle = Twin(Settings(lanes_max=1_000)), Twin(Settings(lanes_max=1_000))
        for one in steps:
            patch.setattr(closing, "LANE_IDLE_MS", 10**12)
            patch.setattr(closing, "LOOK_MS", 10**12)
            step(idle, *one)
            patch.setattr(closing, "LANE_IDLE_MS", 0)
            patch.setattr(closing, "LOOK_MS", 0)
            step(eager, *one)
            assert eager.handed == idle.handed
            assert whereabouts(eager) == whereabouts(idle)
        assert not any(isinstance(each, r.LanesClosed) for _, each in idle.records)
        eager.check()
        idle.check()


def test_limits_and_orders_hold_when_lanes_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LANE_IDLE_MS", 0)
    monkeypatch.setattr(closing, "LOOK_MS", 0)
    run_state_machine_as_test(test_limits.Story, settings=test_limits.STORIES)


# --- One by one


def keyed(nth: int, queue: str = "q", **fields: Any) -> bytes:
    return Message(queue, b"x", task="t", keys=LaneKeys(fair=f"k{nth}").pack(), **fields).pack()


def limited(nth: int, **fields: Any) -> bytes:
    return Message("q", b"x", task="t", keys=LaneKeys(limit=f"k{nth}").pack(), **fields).pack()


def publish(twin: Twin, *raws: bytes) -> None:
    twin.say(f.Publish(producer=0, sequence=0, count=len(raws), raw=b"".join(raws)))


def ack_all(twin: Twin) -> None:
    while twin.held:
        twin.say(f.Ack(raw=b"".join(wire.ACK_RUN.pack(g, p, 1) for p, g in twin.held)))


def closed(twin: Twin) -> list[list[int]]:
    return [each.numbers for _, each in twin.records if isinstance(each, r.LanesClosed)]


def idle_out(twin: Twin) -> None:
    """Time enough to find a lane idle twice."""
    for _ in range(3):
        twin.pass_ms(LANE_IDLE_MS)


def test_a_stream_of_keys_that_never_come_again_costs_nothing() -> None:
    twin = Twin(Settings())
    for round_ in range(40):
        publish(twin, *(keyed(100 * round_ + nth) for nth in range(100)))
        ack_all(twin)
        twin.pass_ms(1_000)
    state = twin.broker.state
    assert len(state.lanes) <= 2_500
    idle_out(twin)
    for _ in range(9):
        twin.turn()
    assert lanes_open(state) == len(state.routes) == 0
    assert not state.queues["q"].shelves["t"].keyed
    twin.check()


def test_a_number_is_used_anew_and_the_last_one_first() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0), keyed(1), keyed(2))
    ack_all(twin)
    idle_out(twin)
    assert closed(twin) == [[0, 1, 2]]
    publish(twin, keyed(3), keyed(4), keyed(5), keyed(6))
    opened = [each.number for _, each in twin.records if isinstance(each, r.LaneOpened)]
    assert opened == [0, 1, 2, 2, 1, 0, 3]
    assert len(twin.broker.state.lanes) == 4
    twin.check()


def test_a_number_used_anew_says_nothing_of_a_task_that_was_there_before() -> None:
    twin = Twin(Settings())
    twin.say(f.Declare(queue="fast", options={"fsync": "never"}))
    once = pack_fields({wire.IDEMPOTENCY: IdempotencyKey("i", 10**9).pack()})
    publish(twin, keyed(0, id="a", fields=once))
    ack_all(twin)
    idle_out(twin)
    publish(twin, keyed(0, "fast"))
    assert twin.broker.state.lanes[0].queue.name == "fast"
    again = f.Publish(producer=0, sequence=0, count=1, raw=keyed(1, id="b", fields=once))
    (reply,) = twin.broker.execute(1, again, twin.now, twin.append)
    assert (reply.frame.existing, reply.frame.durability) == (1, "synced")


def test_a_lane_without_keys_stays() -> None:
    twin = Twin(Settings())
    publish(twin, Message("q", b"x", task="t").pack())
    ack_all(twin)
    idle_out(twin)
    assert closed(twin) == []


@pytest.mark.parametrize("fields", [{"due_ms": START_MS + 10**6}, {}])
def test_a_lane_with_something_delayed_or_handed_out_stays(fields: dict[str, int]) -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0, **fields))
    twin.save()
    idle_out(twin)
    assert closed(twin) == []
    twin.check()


def test_a_lane_that_was_purged_is_closed() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0, due_ms=START_MS + 10**6), *(keyed(nth) for nth in range(9)))
    twin.say(f.Purge(queue="q"))
    ack_all(twin)
    idle_out(twin)
    assert lanes_open(twin.broker.state) == 0
    twin.check()


def test_while_many_are_open_idle_ones_are_closed_at_once() -> None:
    twin = Twin(Settings(lanes_max=10))
    for nth in range(50):
        publish(twin, keyed(nth))
        ack_all(twin)
        twin.pass_ms(LOOK_CROWDED_MS)
    assert len(twin.broker.state.lanes) <= 8
    twin.check()


def test_lanes_of_a_deleted_queue_are_closed_and_do_not_count() -> None:
    twin = Twin(Settings(lanes_max=100))
    publish(twin, keyed(0), Message("q", b"x").pack())
    twin.say(f.DeleteQueue(queue="q"))
    ack_all(twin)
    assert twin.broker.state.catalogue.gone_lanes == 2
    idle_out(twin)
    assert twin.broker.state.catalogue.gone_lanes == lanes_open(twin.broker.state) == 0
    publish(twin, keyed(0))
    assert lanes_open(twin.broker.state) == 1
    twin.check()


def test_the_new_lane_of_a_name_keeps_its_route_when_the_old_one_is_closed() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0))
    twin.say(f.DeleteQueue(queue="q"))
    publish(twin, keyed(0))
    publish(twin, keyed(0))
    ack_all(twin)
    twin.say(f.Consume(subscription=2, queues=["q"], credit=1))
    state = twin.broker.state
    idle_out(twin)
    assert closed(twin) == [[0]]
    assert [lane.number for lane in state.routes.values()] == [1]


def test_a_lane_in_quarantine_or_of_an_upload_stays() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0))
    twin.broker.quarantine(twin.now, twin.append, [twin.held[0][0]], "rot", "1.bin")
    parts = keyed(1) + keyed(2, due_ms=START_MS + 10**6)
    twin.say(f.Part(index=0, of=f.Publish.TYPE, raw=parts, correlation=9))
    twin.save()
    idle_out(twin)
    assert closed(twin) == []
    twin.say(f.Publish(producer=0, sequence=0, count=2, raw=b"", correlation=9))
    twin.check()
    ack_all(twin)
    idle_out(twin)
    assert closed(twin) == [[1]]
    twin.check()


def test_a_queue_that_is_walked_or_paused_keeps_its_lanes() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0))
    ack_all(twin)
    twin.say(f.PauseQueue(queue="q", dispatch=True))
    idle_out(twin)
    assert closed(twin) == []
    twin.say(f.ResumeQueue(queue="q", dispatch=True))
    idle_out(twin)
    assert closed(twin) == [[0]]


def test_an_ordering_key_is_forgotten_with_the_last_of_its_lanes() -> None:
    twin = Twin(Settings())
    for task in ("t", "u"):
        publish(twin, Message("q", b"x", task=task, keys=LaneKeys(ordering="k").pack()).pack())
    state = twin.broker.state
    while twin.held:
        position, grant = twin.held[0]
        twin.say(f.Ack(raw=wire.ACK_RUN.pack(grant, position, 1)))
    assert len(state.orderings) == 1
    idle_out(twin)
    assert not state.orderings
    assert not state.queues["q"].gated
    twin.check()


def test_lists_lose_closed_lanes_though_an_old_message_is_never_taken() -> None:
    twin = Twin(Settings())
    twin.say(f.Credit(subscription=1, credit=0))
    publish(twin, limited(0))
    for nth in range(1, 30):
        publish(twin, limited(nth, expires_ms=twin.now.wall_ms + 10))
        idle_out(twin)
    (level,) = twin.broker.state.queues["q"].shelves["t"].levels
    assert lanes_open(twin.broker.state) == 1
    assert len(level.heap) <= 3
    twin.check()


def test_an_old_snapshot_does_not_say_what_is_delayed_and_it_is_counted() -> None:
    twin = Twin(Settings())
    publish(twin, *(keyed(nth, due_ms=START_MS + 10**6) for nth in (0, 0, 1)))
    twin.say(f.CancelMany(queue="q", key="k1"))
    twin.turn()
    assert twin.broker.state.cancelled
    sections = dict(encode(twin.broker.state))
    del sections["lanes"]
    row = unpack_columns(sections["broker"])[0]
    sections["broker"] = pack_columns([4, *row[1:]])
    found = decode(twin.settings, sections)
    assert exact(found) == exact(twin.broker.state)
    check_places(found)


def settle(twin: Twin, kind: int) -> None:
    ((position, grant),) = twin.held
    twin.say(f.Settle(count=1, raw=Outcome(kind, position, grant, result=b"e").pack()))


def waits_in(twin: Twin, queue: str) -> int:
    """The number of the lane in which the queue's only message waits."""
    (number,) = [x.number for x in twin.broker.state.queues[queue].lanes if x.waiting]
    return number


def test_a_message_that_was_moved_expires_though_its_old_lane_is_one_of_dead_letters() -> None:
    twin = Twin(Settings())
    twin.say(f.Credit(subscription=1, credit=0))
    publish(twin, keyed(0, expires_ms=twin.now.wall_ms + 10 * LANE_IDLE_MS))
    twin.say(f.Move(queue="q", to="p"))
    idle_out(twin)
    assert closed(twin) == [[0]]
    publish(twin, keyed(1, queue="q.dead"))
    assert (waits_in(twin, "p"), waits_in(twin, "q.dead")) == (1, 0)
    twin.pass_ms(10 * LANE_IDLE_MS)
    assert twin.broker.state.queues["p"].ready == 0
    assert twin.broker.state.queues["p"].counts["expired"] == 1
    twin.check()


def test_a_dead_letter_does_not_expire_because_its_lane_has_the_number_of_its_first() -> None:
    twin = Twin(Settings())
    twin.say(f.SetPolicy(name="dead", drop=True))
    twin.say(f.Unsubscribe(subscription=1))
    twin.say(f.Consume(subscription=2, queues=["q"], credit=4))
    publish(twin, keyed(0, expires_ms=twin.now.wall_ms + 10 * LANE_IDLE_MS))
    settle(twin, wire.REJECT)
    idle_out(twin)
    publish(twin, keyed(1))
    other = twin.held
    ((at, letter),) = twin.broker.state.letters.by_position.items()
    twin.say(f.ReplayDead(raw=wire.LETTER.pack(at, letter.number)))
    idle_out(twin)
    assert closed(twin) == [[0], [1]]
    ((first, grant),) = other
    twin.say(f.Ack(raw=wire.ACK_RUN.pack(grant, first, 1)))
    idle_out(twin)
    assert closed(twin)[-1] == [0]
    settle(twin, wire.REJECT)
    assert waits_in(twin, "q.dead") == 0
    twin.pass_ms(10 * LANE_IDLE_MS)
    assert waits_in(twin, "q.dead") == 0
    twin.check()


def test_a_lane_that_was_purged_stays_until_that_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "SWEEP_MESSAGES_MAX", 1)
    monkeypatch.setattr(purging, "SWEEP_STEP", 1)
    twin = Twin(Settings(lanes_max=1))
    twin.say(f.Credit(subscription=1, credit=0))
    publish(
        twin,
        *(Message("q", b"x", f"m{nth}", keys=LaneKeys(fair="k").pack()).pack() for nth in range(9)),
    )
    twin.say(f.Purge(queue="q"))
    assert twin.broker.state.remains
    while twin.broker.state.remains:
        assert closed(twin) == []
        twin.pass_ms(LOOK_CROWDED_MS)
    twin.pass_ms(LOOK_CROWDED_MS)
    assert closed(twin) == [[0]]
    twin.check()


def test_a_snapshot_says_which_numbers_are_free_and_which_is_the_next() -> None:
    twin = Twin(Settings())
    publish(twin, keyed(0), keyed(1), keyed(2), keyed(3, due_ms=START_MS + 10**6))
    publish(twin, keyed(0))
    ack_all(twin)
    idle_out(twin)
    assert closed(twin) == [[0, 1, 2]]
    assert not twin.broker.state.routes
    twin.save()
    found = decode(twin.settings, twin.sections)
    assert list(found.closed) == [0, 1, 2]
    assert [x.number for x in found.queues["q"].lanes] == [3]
    publish(twin, keyed(4), keyed(5))
    assert sorted(x.number for x in twin.broker.state.queues["q"].lanes) == [1, 2, 3]
    twin.check()


def test_a_delayed_message_that_was_thrown_out_and_replayed_comes_due_when_it_was_told() -> None:
    twin = Twin(Settings())
    options = {"max_length": 1, "overflow": "dead_letter_oldest"}
    twin.say(f.Unsubscribe(subscription=1))
    twin.say(f.Declare(queue="few", options=options))
    publish(twin, keyed(0, queue="few", due_ms=twin.now.wall_ms + 90_000))
    publish(twin, keyed(1, queue="few", due_ms=twin.now.wall_ms + 90_000))
    ((at, letter),) = twin.broker.state.letters.by_position.items()
    raw, due_ms = wire.LETTER.pack(at, letter.number), twin.now.wall_ms + 5_000
    twin.say(f.ReplayDead(raw=raw, queue="p", due_ms=due_ms))
    twin.check()
    twin.pass_ms(5_000)
    assert twin.broker.state.queues["p"].ready == 1
    twin.check()
