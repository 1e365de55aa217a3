"""Keys: what no scenario shows."""

from __future__ import annotations

import pytest

from harness import Harness, Words
from qbroker.core import purging
from qbroker.core import records as r
from qbroker.core.broker import Broker
from qbroker.core.chunks import answer_to, note_chunk, seen_before
from qbroker.core.effects import Send
from qbroker.core.keys import FINISHED, IDEMPOTENCY, STARTED, TIME, Holder, Keys, pack_held
from qbroker.core.moment import Now
from qbroker.core.orders import begin, nothing
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import Settings
from qbroker.core.snapshot import decode, encode
from qbroker.core.state import BrokerState
from qbroker.core.walking import Picked
from qprotocol.frames import Error, Published
from qprotocol.limits import PRODUCER_WINDOW
from qprotocol.uniquekeys import unpack_existing

KEY = pack_held(2, "t", "k")
WINDOW = pack_held(IDEMPOTENCY, "t", "k")


def told(*lines: str) -> Harness:
    harness = Harness()
    for line in lines:
        harness.run(line)
    return harness


# --- The table


def test_a_key_is_free_when_its_message_goes_out_or_ends() -> None:
    keys = Keys()
    keys.take(KEY, Holder(5, b"\0a", STARTED))
    keys.go_out(range(6, 9))
    assert keys.held
    keys.go_out(range(5, 6))
    assert (keys.held, keys.of, keys.starting) == ({}, {}, set())
    keys.take(KEY, Holder(5, b"\0a", FINISHED))
    keys.go_out(range(5, 6))
    keys.redelay(KEY, 100)
    keys.move(5, 9)
    assert keys.redelayed == {9: KEY}
    keys.end(5)
    assert keys.held[KEY].position == 9
    keys.end(9)
    assert (keys.held, keys.of, keys.redelayed) == ({}, {}, {})


def test_who_takes_a_key_takes_it_from_whoever_has_it() -> None:
    keys = Keys()
    keys.take(KEY, Holder(5, b"\0a", STARTED))
    keys.take(KEY, Holder(7, b"\0b", FINISHED))
    assert (keys.of, keys.starting) == ({7: KEY}, set())
    keys.end(5)
    assert keys.held[KEY].position == 7


def test_times_of_keys_that_are_gone_do_not_pile_up() -> None:
    keys = Keys()
    for nth in range(5_000):
        keys.take(WINDOW, Holder(nth, b"\0a", TIME, 10_000 + nth))
        assert keys.windows == 1
    assert len(keys._lapses) < 1_100
    assert keys.next_ms() == min(until for until, _ in keys._lapses)
    assert keys.lapsed(Now(15_000, 0), 10) == [WINDOW]
    assert keys.counts() == {"unique": 0, "idempotency": 1}
    keys.drop(WINDOW)
    assert keys.counts() == {"unique": 0, "idempotency": 0}
    assert keys.lapsed(Now(15_000, 0), 10) == []


def test_a_key_taken_anew_in_the_same_millisecond_is_told_twice_and_freed_once() -> None:
    keys = Keys()
    keys.take(WINDOW, Holder(5, b"\0a", TIME, 10_000))
    keys.drop(WINDOW)
    keys.take(WINDOW, Holder(7, b"\0b", TIME, 10_000))
    told_of = keys.lapsed(Now(10_000, 0), 10)
    assert told_of == [WINDOW, WINDOW]
    for key in told_of:
        keys.drop(key)
    assert keys.counts() == {"unique": 0, "idempotency": 0}


# --- Answers that are remembered with a producer's chunks


def test_of_too_many_answers_the_oldest_are_not_known_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qbroker.core.chunks.ANSWERS_MAX", 5)
    state = BrokerState(Settings())
    rows = [[number, 0, b"\0a"] for number in range(3)]
    for sequence in (1, 2, 3):
        note_chunk(state, 7, sequence, 0, rows)
    assert seen_before(state, 7, 3)
    assert answer_to(state, 7, 3) == rows
    with pytest.raises(RefusedError, match="so nobody can tell any more"):
        seen_before(state, 7, 1)
    note_chunk(state, 7, 4, 0, rows * 2)
    assert state.producers[7].answers == {1: None, 2: None, 3: None, 4: rows * 2}
    note_chunk(state, 7, 3 + PRODUCER_WINDOW, 0, rows)
    assert list(state.producers[7].answers) == [4, 3 + PRODUCER_WINDOW]
    assert answer_to(state, 8, 1) == []


# --- Conflicts


def test_a_message_that_was_purged_holds_no_key_though_it_is_not_swept_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its queue is walked so much a turn; the key is free at once."""
    harness = told(
        "publish q=a task=t id=r unique=r r",
        "publish q=a task=t id=w unique=w in=9s w",
        "publish q=a task=t id=f unique=f f",
        "publish q=b task=t id=b unique=b b",
        "publish q=b task=t id=h unique=h h",
        "consume c=W q=b credit=1",
        "consume c=V q=a credit=1",
        "release c=V r delay=5s",
    )
    monkeypatch.setattr(purging, "sweep", lambda _state: None)
    monkeypatch.setattr("qbroker.core.passing.sweep", lambda _state: None)
    state = harness.machine.core.state
    purging.purge(state, state.queues["a"])
    assert state.remains
    for key in ("r", "w"):
        assert not answer(harness, f"q=c task=t id={key}2 unique={key}").existing
    for key in ("f", "b", "h"):
        assert ids(answer(harness, f"q=c task=t id={key}2 unique={key}")) == [key]


def answer(harness: Harness, words: str) -> Published:
    """What a publish is answered, before anything else happens."""
    line = Words.of(f"publish {words} x")
    frame = harness.publish_frame(line, harness.message(line, "x"))
    frame.correlation = 99
    machine = harness.machine
    effects = machine.core.execute(1, frame, machine.now, machine.append)
    (sent,) = (x for x in effects if isinstance(x, Send) and x.frame.correlation == 99)
    if isinstance(sent.frame, Error):
        raise RefusedError(sent.frame.code, sent.frame.message)
    assert isinstance(sent.frame, Published)
    return sent.frame


def ids(found: Published) -> list[str]:
    return [row.id for row in unpack_existing(found.raw)]


def test_who_would_have_to_move_under_a_large_order_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qbroker.core.orders.ORDER_WORK_MAX", 1)
    harness = told("publish q=a task=t id=a unique=a a", "publish q=a task=t b c d")
    machine = harness.machine
    state = machine.core.state
    begin(state, machine.now, (1, 98), Picked([state.queues["a"]], state.head), nothing)
    assert state.orders
    for rule in ("replace", "redelay"):
        with pytest.raises(RefusedError, match="a large order is under way in queue 'a'"):
            answer(harness, f"q=a task=t id=x unique=a conflict={rule}")
    assert ids(answer(harness, "q=a task=t id=x unique=a")) == ["a"]


def test_a_replaced_message_is_taken_out_at_the_start_if_a_crash_came_between() -> None:
    """The record that replaces it may be the last of a batch."""
    harness = told("publish q=a task=t id=a unique=a a")
    machine = harness.machine
    machine.noted.clear()
    harness.run("publish q=a task=t id=b unique=a conflict=replace b")
    broker = Broker(machine.settings)
    for _, stored in machine.log.replay():
        for each in stored:
            record = r.unpack(each.type, each.body)
            if not isinstance(record, r.Removed):
                broker.replay(each.position, record)
    broker = Broker(machine.settings, decode(machine.settings, dict(encode(broker.state))))
    assert len(broker.state.keys.doomed) == 1
    appended: list[r.Record] = []

    def append(record: r.Record) -> int:
        appended.append(record)
        return 99 << 20

    broker.boot(machine.now, "test", append)
    assert [type(each).__name__ for each in appended] == ["Booted", "Removed"]
    assert broker.state.keys.doomed == {}
    assert broker.state.queues["a"].ready == 1


def test_of_an_upload_into_a_bounded_queue_what_is_dropped_weighs_nothing() -> None:
    harness = told(
        "declare q=a max_bytes=10000",
        "publish q=a task=t id=a unique=a a",
        "part as=5 index=0 q=a task=t id=b unique=a b",
        "part as=5 index=1 q=a task=t id=c c",
        "end as=5 q=a task=t id=d unique=d in=5s d count=3",
    )
    state = harness.machine.core.state
    queue = state.queues["a"]
    assert (queue.ready, queue.scheduled) == (2, 1)
    weights = state.catalogue.weights[queue.number]
    assert len(list(weights.known())) == 3
    assert set(state.named) == {b"a", b"c", b"d"}


def test_of_what_was_staged_in_a_lane_only_what_is_not_stored_goes() -> None:
    harness = told(
        "publish task=t id=a unique=a a",
        "part as=5 index=0 task=t unique=a x",
        "part as=5 index=1 task=t id=y y",
    )
    harness.run("part as=5 index=2 task=t priority=5 unique=a v")
    said = harness.run("end as=5 task=u z count=4")
    assert any("existing[0]=a" in line for line in said)
    queue = harness.machine.core.state.queues["q"]
    assert queue.ready == 3


def test_keys_of_what_follows_on_two_outcomes_are_held_against_each_other() -> None:
    harness = told(
        "publish task=t a b",
        "consume c=W credit=2",
        "done c=W a b then=x task=u unique=k",
    )
    assert list(harness.machine.core.state.keys.held) == [pack_held(2, "u", "k")]
    assert harness.machine.core.state.queues["q"].leased == 1


def test_a_key_of_a_message_that_goes_nowhere_is_nobodys() -> None:
    """The exchange drops it; others of the same upload have theirs."""
    harness = told(
        "exchange e direct unroutable=drop",
        "bind e q=a key=a",
        "part as=5 index=0 exchange=e key=b task=t unique=b x",
        "end as=5 exchange=e key=a task=t unique=a y count=2",
    )
    assert list(harness.machine.core.state.keys.held) == [pack_held(2, "t", "a")]


def test_a_message_that_is_out_again_is_not_replaced() -> None:
    """One for a time: it has no entry by position, and was started long ago."""
    harness = told(
        "publish q=a task=t id=a unique=a held=60s a",
        "consume c=W q=a credit=1",
    )
    assert ids(answer(harness, "q=a task=t id=b unique=a held=60s conflict=replace")) == ["a"]
    harness.run("ack c=W a")
    assert ids(answer(harness, "q=a task=t id=b unique=a held=60s conflict=redelay")) == ["a"]
