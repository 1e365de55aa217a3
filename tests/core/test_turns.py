"""No turn is long, whatever there is to do: the rest waits for the next one, crashes or not.

Bounds are of what a turn touches, not of time; `bench/turns.py` has the milliseconds.
"""

from __future__ import annotations

import pytest

from digest import check_places, exact
from machine import Machine, Peer
from qbroker.ages import Ages
from qbroker.core import (
    census,
    declaring,
    leaving,
    orders,
    passing,
    peeking,
    purging,
    timers,
    walking,
)
from qbroker.core.broker import Broker
from qbroker.core.runs import Run
from qbroker.log.log import Log, LogSettings
from qbroker.replaying import replay
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.codec import Decoder, encode_in_parts
from qprotocol.limits import MESSAGES_PER_FRAME_MAX
from qprotocol.message import Message, Outcome
from qprotocol.states import State

SESSION = b"s" * 16
LAZY_MS = 30
"""After that also what nobody waits for is written."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Ten messages a turn; one that had begun counts for five."""
    monkeypatch.setattr(leaving, "LOST_MESSAGES_MAX", 10)
    monkeypatch.setattr(leaving, "STARTED_WEIGHT", 4)
    return Machine()


def greeted(machine: Machine, role: str = "consumer", **fields: object) -> Peer:
    peer = machine.connect()
    machine.submit(peer, f.Hello(correlation=1, protocol=1, role=role, client_id="t", **fields))
    machine.settle()
    return peer


def worker(machine: Machine, member: int = 0, raw: bytes = b"") -> Peer:
    role = "member" if member else "worker"
    return greeted(machine, role, session=SESSION, member=member, raw=raw)


def fill(machine: Machine, count: int, **fields: object) -> None:
    raw = Message("q", b"x", **fields).pack()
    frame = f.Publish(correlation=2, producer=0, sequence=0, count=count, raw=raw * count)
    machine.submit(greeted(machine), frame)
    machine.settle()


def take(machine: Machine, peer: Peer, count: int) -> list[tuple[int, int]]:
    """The peer is handed so many new messages; their tokens."""
    before = set(machine.core.state.leases)
    fill(machine, count)
    machine.submit(peer, f.Consume(correlation=3, subscription=1, queues=["q"], credit=count))
    machine.wait(LAZY_MS)
    peer.received.clear()
    leases = machine.core.state.leases
    return [(p, grant.number) for p, grant in leases.items() if p not in before]


def tokens_of(tokens: list[tuple[int, int]]) -> bytes:
    return b"".join(wire.TOKEN.pack(*token) for token in tokens)


def held_by_turns(machine: Machine) -> list[int]:
    """How many leases there are after each turn, until nothing happens any more."""
    found: list[int] = []
    while True:
        machine.turn()
        found.append(len(machine.core.state.leases))
        check_places(machine.core.state)
        if not machine.core.has_more:
            return found


def replayed(machine: Machine) -> Broker:
    """What a broker knows that reads the log of this one."""
    machine.wait(LAZY_MS)
    core = Broker(machine.settings)
    settings = machine.log_settings or LogSettings(segment_bytes=1 << 20)
    replay(Log.open(machine.disk.copy(), settings), core, Ages(), lambda done, last: None)
    return core


# --- Those who leave


def test_a_worker_that_is_lost_gives_back_a_few_a_turn(machine: Machine) -> None:
    parent = worker(machine)
    tokens = take(machine, parent, 25)
    machine.submit(parent, f.Running(raw=tokens_of(tokens[:3])))
    machine.settle()
    machine.mono_ms += 31_000
    assert held_by_turns(machine) == [23, 17, 7, 0]
    machine.settle()
    assert not parent.is_open
    assert machine.core.state.sessions == {}
    counters = [each.counters() for each in machine.core.state.attempts.values()]
    assert counters.count((1, 0, 1)) == 3
    assert counters.count((1, 0, 0)) == 22
    assert exact(replayed(machine).state) == exact(machine.core.state)


def test_workers_lost_together_are_given_back_a_few_a_turn(machine: Machine) -> None:
    """A switch that fails takes a hundred workers with it, but not the broker's next turn."""
    for number in range(4):
        take(machine, greeted(machine, "worker", session=bytes([number]) * 16), 6)
    machine.mono_ms += 31_000
    assert held_by_turns(machine) == [14, 4, 0]
    assert machine.core.state.queues["q"].ready == 24


def test_a_crash_in_the_middle_leaves_the_rest_to_its_session(machine: Machine) -> None:
    """What was given back by then is lost to the worker; for the rest it may come back."""
    tokens = take(machine, worker(machine), 25)
    machine.mono_ms += 31_000
    machine.turn()
    machine.begin_write()
    machine.turn()
    machine.write()
    assert len(machine.core.state.leases) == 5
    machine.disk.kill()
    machine.start()
    assert len(machine.core.state.leases) == 15, "the second piece was not written"
    parent = worker(machine, raw=tokens_of(tokens[8:12]))
    (welcome,) = parent.received
    assert welcome.raw == tokens_of(tokens[8:10])
    machine.settle()
    assert sorted(machine.core.state.leases) == [position for position, _ in tokens[10:12]]
    check_places(machine.core.state)


def test_a_worker_that_comes_back_in_the_middle_keeps_the_rest_that_it_names(
    machine: Machine,
) -> None:
    tokens = take(machine, worker(machine), 35)
    machine.mono_ms += 31_000
    machine.turn()
    peer = machine.connect()
    raw = tokens_of([*tokens[9:11], tokens[-1]])
    hello = f.Hello(
        correlation=1, protocol=1, role="worker", client_id="t", session=SESSION, raw=raw
    )
    machine.submit(peer, hello)
    assert held_by_turns(machine) == [16, 6, 2]
    machine.settle()
    (welcome,) = peer.received
    assert welcome.raw == tokens_of(tokens[9:10])
    assert not machine.core.state.sessions[SESSION].over
    machine.wait(29_000)
    assert len(machine.core.state.leases) == 2
    machine.wait(2_000)
    assert len(machine.core.state.leases) == 0


def test_a_child_that_comes_first_finds_its_session_alive_and_its_siblings_tokens_lost(
    machine: Machine,
) -> None:
    worker(machine)
    first = take(machine, worker(machine, 1), 15)
    second = take(machine, worker(machine, 2), 15)
    machine.mono_ms += 31_000
    machine.turn()
    peer = machine.connect()
    raw = tokens_of([first[-1], second[-1]])
    hello = f.Hello(
        correlation=1,
        protocol=1,
        role="member",
        client_id="t",
        session=SESSION,
        member=2,
        raw=raw,
    )
    machine.submit(peer, hello)
    machine.settle()
    (welcome,) = peer.received
    assert welcome.raw == tokens_of(first[-1:]), "it is about to be given back"
    assert list(machine.core.state.leases) == [second[-1][0]]
    check_places(machine.core.state)


@pytest.mark.parametrize("leave", ["bye", "disconnect"])
def test_a_consumer_that_leaves_gives_back_a_few_a_turn(machine: Machine, leave: str) -> None:
    peer = greeted(machine)
    take(machine, peer, 25)
    peer.received.clear()
    if leave == "bye":
        machine.submit(peer, f.Bye(correlation=9))
    else:
        machine.disconnect(peer)
    # The turn in which it leaves does what time has made due as well.
    assert held_by_turns(machine) == [5, 0]
    machine.settle()
    assert [type(frame) for frame in peer.received] == [f.Ok] * (leave == "bye")
    assert exact(replayed(machine).state) == exact(machine.core.state)


def test_a_parents_goodbye_is_forgotten_when_all_is_given_back(machine: Machine) -> None:
    parent = worker(machine)
    child = worker(machine, 1)
    take(machine, child, 25)
    machine.submit(parent, f.Bye(correlation=9))
    machine.turn()
    assert machine.core.state.sessions[SESSION].over
    assert machine.core.next_due_ms(machine.now) == 0
    machine.settle()
    assert machine.core.state.sessions == {}
    assert not child.is_open


def test_what_is_acked_while_its_holder_leaves_is_not_given_back(machine: Machine) -> None:
    """A token is good until a record says otherwise, whoever shows it."""
    tokens = take(machine, worker(machine), 25)
    machine.mono_ms += 31_000
    machine.turn()
    position, grant = tokens[-1]
    other = greeted(machine)
    assert machine.core.state.leases == {}
    take(machine, other, 1)
    machine.submit(other, f.Ack(correlation=5, raw=wire.ACK_RUN.pack(grant, position, 1)))
    machine.settle()
    check_places(machine.core.state)


def test_only_so_many_sessions_are_taken_leave_of_in_one_turn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "LOST_MEMBERS_MAX", 2)
    parents = [greeted(machine, "worker", session=bytes([n]) * 16) for n in range(5)]
    machine.mono_ms += 31_000
    for left in (3, 1, 0):
        machine.turn()
        machine.release()
        assert len(machine.core.state.sessions) == left
    machine.settle()
    assert not any(parent.is_open for parent in parents)


# --- Purges


@pytest.fixture
def sweeping(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Ten messages a turn; one of which something is kept counts for two."""
    monkeypatch.setattr(purging, "SWEEP_MESSAGES_MAX", 10)
    monkeypatch.setattr(purging, "SWEEP_FORGOTTEN_WEIGHT", 1)
    monkeypatch.setattr(purging, "SWEEP_STEP", 5)
    monkeypatch.setattr(purging, "SWEEP_LANES_MAX", 1)
    monkeypatch.setattr(timers, "LEAF_ENTRIES", 5)
    return machine


def named(machine: Machine, peer: Peer, first: int, count: int, **fields: object) -> f.Frame:
    """So many messages with ids of their own; the answer."""
    ids = [f"id{nth}" for nth in range(first, first + count)]
    raw = b"".join(Message("q", b"x", id=name, **fields).pack() for name in ids)
    peer.received.clear()
    frame = f.Publish(correlation=2, producer=0, sequence=0, count=count, raw=raw)
    machine.submit(peer, frame)
    machine.turn()
    machine.begin_write()
    machine.write()
    return peer.received[-1]


def test_a_purge_is_true_at_once_and_swept_a_few_a_turn(sweeping: Machine) -> None:
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    named(machine, peer, 0, 20)
    due_ms = machine.wall_ms + 60_000
    named(machine, peer, 20, 20, due_ms=due_ms, expires_ms=due_ms + 1)
    fill(machine, 30, task="t")
    machine.submit(peer, f.Watch(correlation=7, id="id39", wait_ms=60_000))
    machine.settle()
    peer.received.clear()
    machine.submit(peer, f.Purge(correlation=8, queue="q"))
    machine.submit(peer, f.Peek(correlation=9, queue="q"))
    machine.turn()
    queue = state.queues["q"]
    assert (queue.ready, queue.scheduled) == (0, 0)
    assert check_places(state) == {}
    kept = [len(state.names)]
    while state.remains:
        assert machine.core.next_due_ms(machine.now) == 0
        machine.turn()
        kept.append(len(state.names))
        assert kept[-1] >= kept[-2] - 10
    assert kept[0] >= 30
    assert state.names == state.named == {}
    assert state.timers.size == 0
    machine.settle()
    ok, peeked, result = peer.received
    assert (ok.count, peeked.count, result.correlation) == (70, 0, 7)
    assert exact(replayed(machine).state) == exact(state)


def test_what_comes_while_a_purge_is_swept_is_not_purged(sweeping: Machine) -> None:
    """New messages, one that was leased, and one whose id is taken until its turn comes."""
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    holder = greeted(machine)
    take(machine, holder, 1)
    named(machine, peer, 0, 30)
    machine.submit(peer, f.Purge(correlation=8, queue="q"))
    machine.turn()
    assert isinstance(named(machine, peer, 29, 1), f.Error)
    machine.submit(holder, f.Bye(correlation=9))
    fill(machine, 5)
    machine.settle()
    assert not state.remains
    assert state.queues["q"].ready == 6
    assert isinstance(named(machine, peer, 29, 1), f.Published)
    machine.submit(peer, f.Purge(correlation=8, queue="q"))
    machine.settle()
    assert check_places(state) == {}
    assert exact(replayed(machine).state) == exact(state)


def test_a_crash_while_a_purge_is_swept_changes_nothing(sweeping: Machine) -> None:
    machine = sweeping
    peer = greeted(machine)
    take(machine, peer, 20)
    machine.submit(peer, f.Bye(correlation=9))
    machine.settle()
    other = greeted(machine)
    named(machine, other, 0, 30)
    machine.submit(other, f.Purge(correlation=8, queue="q"))
    machine.turn()
    machine.begin_write()
    machine.write()
    assert machine.core.state.remains
    fill(machine, 3)
    machine.disk.kill()
    machine.start()
    state = machine.core.state
    assert (state.names, state.named, state.attempts) == ({}, {}, {})
    assert len(check_places(state)) == 3


def test_two_purges_are_swept_one_after_the_other(sweeping: Machine) -> None:
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    for task in ("", "t", "u"):
        named(machine, peer, 0, 40, task=task)
        machine.submit(peer, f.Purge(correlation=8, queue="q"))
        machine.turn()
        named(machine, peer, 40, 40, task=task)
        machine.submit(peer, f.Purge(correlation=8, queue="q"))
        machine.turn()
        assert len(state.remains) > 1
        machine.settle()
        assert not state.remains
        assert state.named == {}
        assert not state.queues["q"].retired
    assert exact(replayed(machine).state) == exact(state)


def test_a_message_that_waits_a_second_time_can_be_purged_and_is_unknown_then(
    sweeping: Machine,
) -> None:
    """Its counters are still there, and say nothing any more."""
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    named(machine, peer, 0, 30)
    machine.submit(peer, f.Consume(correlation=3, subscription=1, queues=["q"], credit=30))
    machine.settle()
    machine.submit(peer, f.Bye(correlation=4))
    machine.settle()
    asker = greeted(machine)
    asker.received.clear()
    machine.submit(asker, f.Purge(correlation=8, queue="q"))
    machine.submit(asker, f.Watch(correlation=9, id="id0"))
    machine.submit(asker, f.Cancel(correlation=10, id="id0"))
    machine.turn()
    assert state.remains
    machine.settle()
    found = [frame.state for frame in asker.received if isinstance(frame, f.Result)]
    assert found == [int(State.UNKNOWN)] * 2
    assert check_places(state) == {}


def test_an_upload_that_becomes_true_after_a_purge_is_not_purged(sweeping: Machine) -> None:
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    fill(machine, 1)
    due_ms = machine.wall_ms + 60_000
    raw = Message("q", b"x", due_ms=due_ms, expires_ms=due_ms + 1).pack() * 4
    machine.submit(peer, f.Part(correlation=5, index=0, of=f.Publish.TYPE, raw=raw))
    machine.submit(peer, f.Purge(correlation=6, queue="q"))
    machine.submit(peer, f.Publish(correlation=5, producer=0, sequence=0, count=4, raw=b""))
    machine.settle()
    assert (state.queues["q"].ready, state.queues["q"].scheduled) == (0, 4)
    assert len(state.queues["q"].delayed) == 4
    assert exact(replayed(machine).state) == exact(state)


@pytest.mark.parametrize("at", ["first", "later", "last"])
def test_a_part_with_more_messages_than_a_turn_has_time_for_is_refused(
    machine: Machine, at: str
) -> None:
    peer = greeted(machine)
    one = Message("q", b"x").pack()
    most, over = one * MESSAGES_PER_FRAME_MAX, one * (MESSAGES_PER_FRAME_MAX + 1)
    parts = {"first": [over, one], "later": [most, over, one], "last": [most, over]}[at]
    peer.received.clear()
    for index, raw in enumerate(parts[:-1]):
        machine.submit(peer, f.Part(correlation=5, index=index, of=f.Publish.TYPE, raw=raw))
    count = sum(map(len, parts)) // len(one)
    machine.submit(
        peer, f.Publish(correlation=5, producer=0, sequence=0, count=count, raw=parts[-1])
    )
    machine.settle()
    (answer,) = peer.received
    assert answer.code == "BATCH_TOO_LARGE"
    assert answer.message == (
        "over 1000 messages begin in one part: messages_per_frame_max is 1000, "
        "send more in further parts"
    )
    assert machine.core.state.uploads == {}


@pytest.mark.parametrize("body", [b"", b"x" * 100])
def test_what_the_codec_cuts_has_no_more_messages_a_part_than_may_be(
    machine: Machine, body: bytes
) -> None:
    """Small messages are cut by their number, others by their bytes, within a message."""
    peer = greeted(machine)
    count = 5 * MESSAGES_PER_FRAME_MAX
    raw = Message("q", body, id="").pack() * count
    publish = f.Publish(correlation=5, producer=0, sequence=0, count=count, raw=raw)
    peer.received.clear()
    for data in encode_in_parts(publish):
        for frame in Decoder().feed(data):
            machine.submit(peer, frame)
            machine.settle()
    (answer,) = peer.received
    assert isinstance(answer, f.Published)
    assert machine.core.state.queues["q"].ready == count


def test_one_ack_ends_messages_of_several_kinds(machine: Machine) -> None:
    """What ends first may empty the table in which the rest is still known: all are forgotten."""
    state = machine.core.state
    peer = greeted(machine)
    take(machine, peer, 1)
    machine.submit(peer, f.Bye(correlation=9))
    machine.settle()
    peer = greeted(machine)
    named(machine, peer, 0, 1)
    machine.submit(peer, f.Consume(correlation=3, subscription=1, queues=["q"], credit=9))
    machine.settle()
    assert (len(state.attempts), len(state.names), len(state.leases)) == (1, 1, 2)
    machine.submit(greeted(machine), f.Watch(correlation=7, id="id0", wait_ms=60_000))
    tokens = [(p, grant.number) for p, grant in sorted(state.leases.items())]
    raw = b"".join(wire.ACK_RUN.pack(number, position, 1) for position, number in tokens)
    machine.submit(peer, f.Ack(correlation=4, raw=raw))
    machine.settle()
    assert (state.attempts, state.names, state.named, state.leases) == ({}, {}, {}, {})
    assert isinstance(named(machine, greeted(machine), 0, 1), f.Published)


def test_a_waiter_that_is_told_hides_no_replaced_message(machine: Machine) -> None:
    """Of two acks in one record the first is waited for, the second was replaced."""
    state = machine.core.state
    peer = greeted(machine)
    [(position, grant)] = take(machine, peer, 1)
    new = Message("q", b"again").pack()
    outcome = Outcome(
        wire.RELEASE, position, grant, delay_ms=0, flags=wire.HAS_REPLACEMENT, follow_on=(new,)
    )
    machine.submit(peer, f.Settle(correlation=4, count=1, raw=outcome.pack()))
    named(machine, peer, 0, 1)
    machine.submit(greeted(machine), f.Watch(correlation=7, id="id0", wait_ms=60_000))
    machine.submit(peer, f.Credit(subscription=1, credit=9))
    machine.settle()
    assert (len(state.results.waiters), len(state.origin)) == (1, 1)
    held = sorted(state.leases.items(), key=lambda lease: lease[0] in state.origin)
    raw = b"".join(wire.ACK_RUN.pack(grant.number, p, 1) for p, grant in held)
    machine.submit(peer, f.Ack(correlation=5, raw=raw))
    machine.settle()
    assert (state.moved, state.origin) == ({}, {})
    assert exact(replayed(machine).state) == exact(state)


@pytest.mark.parametrize("failed", [False, True])
def test_a_claim_takes_a_message_out_of_the_timers(machine: Machine, failed: bool) -> None:
    """That it came due was lost with the grant behind it, and its worker still has it.

    In the first turn, or after the wall clock has stepped back, it waits for its time again.
    """
    state = machine.core.state
    parent, child = worker(machine), worker(machine, 1)
    machine.submit(child, f.Consume(correlation=3, subscription=1, queues=["q"], credit=1))
    fill(machine, 1, due_ms=0 if failed else machine.wall_ms + 1_000)
    if failed:
        [(position, grant)] = state.leases.items()
        again = Outcome(wire.RELEASE, position, grant.number, delay_ms=1_000)
        machine.submit(child, f.Settle(correlation=4, count=1, raw=again.pack()))
        machine.settle()
    assert (state.timers.size, len(state.leases)) == (1, 0)
    machine.wall_ms += 1_000
    machine.turn()
    [(position, grant)] = state.leases.items()
    machine.disk.kill()
    machine.start()
    machine.wall_ms -= 1_000
    state = machine.core.state
    assert (state.timers.size, len(state.leases)) == (1, 0)
    parent = worker(machine)
    child = worker(machine, 1, wire.TOKEN.pack(position, grant.number))
    assert [frame.raw for frame in child.received if isinstance(frame, f.Welcome)] == [b""]
    assert check_places(state) == {position: "leased from q"}
    machine.wall_ms += 2_000
    machine.settle()
    assert check_places(state) == {position: "leased from q"}
    machine.submit(child, f.Ack(correlation=5, raw=wire.ACK_RUN.pack(grant.number, position, 1)))
    machine.submit(parent, f.Heartbeat())
    machine.settle()
    assert (check_places(state), state.timers.size, state.cancelled) == ({}, 0, set())
    assert exact(replayed(machine).state) == exact(state)


# --- Large orders


def order(machine: Machine, peer: Peer, frame: f.Frame) -> None:
    peer.received.clear()
    frame.correlation = 9
    machine.submit(peer, frame)


def few_a_turn(monkeypatch: pytest.MonkeyPatch, work: int) -> None:
    monkeypatch.setattr(orders, "ORDER_WORK_MAX", work)
    monkeypatch.setattr(walking, "SWEEP_STEP", 3)


@pytest.mark.parametrize("places", ["ready", "scheduled", "given back"])
def test_an_order_is_done_so_much_a_turn_and_nothing_leaves_meanwhile(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    few_a_turn(monkeypatch, 100)
    due_ms = machine.wall_ms + 60_000 if places == "scheduled" else 0
    if places == "given back":
        peer = worker(machine)
        take(machine, peer, 100)
        machine.submit(peer, f.Bye(correlation=4))
        machine.settle()
    else:
        fill(machine, 100, due_ms=due_ms)
    other = greeted(machine)
    machine.submit(other, f.Declare(correlation=2, queue="to", options={}))
    machine.settle()
    asked, consumer = greeted(machine), greeted(machine)
    order(machine, asked, f.Move(queue="q", to="to"))
    machine.submit(consumer, f.Consume(correlation=3, subscription=1, queues=["q"], credit=9))
    before, sizes = 0, []
    target = machine.core.state.queues["to"]
    while machine.core.has_more or not sizes:
        machine.turn()
        check_places(machine.core.state)
        moved = target.ready + target.scheduled
        sizes.append(moved - before)
        before = moved
    assert before == 100
    assert max(sizes) <= 45, "a piece when it is given, and one a turn"
    assert len(sizes) >= 4
    machine.settle()
    assert asked.received == [f.Ok(count=100, correlation=9)]
    assert not machine.core.state.leases
    assert machine.core.state.queues["q"].held == 0


def test_an_order_that_a_crash_cut_leaves_each_message_in_one_queue(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_a_turn(monkeypatch, 100)
    fill(machine, 50)
    fill(machine, 50, due_ms=machine.wall_ms + 60_000)
    machine.submit(greeted(machine), f.Declare(correlation=2, queue="to", options={}))
    machine.settle()
    order(machine, greeted(machine), f.Move(queue="q", to="to"))
    for _ in range(2):
        machine.turn()
        machine.begin_write()
        machine.write()
    machine.crash()
    queues = machine.core.state.queues
    counts = [queue.ready + queue.scheduled for queue in (queues["q"], queues["to"])]
    assert sum(counts) == 100
    assert all(counts)
    assert len(check_places(machine.core.state)) == 100
    asked = greeted(machine)
    order(machine, asked, f.Move(queue="q", to="to"))
    machine.settle()
    assert asked.received == [f.Ok(count=counts[0], correlation=9)]


def test_orders_take_turns_and_too_many_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_a_turn(monkeypatch, 10)
    monkeypatch.setattr(orders, "ORDERS_MAX", 2)
    fill(machine, 20)
    peers = [greeted(machine) for _ in range(3)]
    for peer in peers:
        order(machine, peer, f.CancelMany(queue="q", purge=True, dry_run=True))
    machine.settle()
    answers = [peer.received[0] for peer in peers]
    assert [each.count for each in answers[:2] if isinstance(each, f.Ok)] == [20, 20]
    assert isinstance(answers[2], f.Error)
    assert answers[2].code == "LIMIT_REACHED"


def test_a_purge_in_the_middle_of_an_order_ends_it_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_a_turn(monkeypatch, 20)
    fill(machine, 20)
    fill(machine, 20, task="t")
    asked, purge = greeted(machine), greeted(machine)
    order(machine, asked, f.CancelMany(queue="q"))
    machine.turn()
    order(machine, purge, f.Purge(queue="q"))
    machine.settle()
    first = asked.received[0]
    assert isinstance(first, f.Ok)
    assert purge.received == [f.Ok(count=40 - first.count, correlation=9)]
    assert check_places(machine.core.state) == {}


def test_what_was_purged_does_not_expire(sweeping: Machine) -> None:
    """Its time is over before the purge has come to it: nobody hears of more than the purge."""
    machine, state = sweeping, sweeping.core.state
    peer = greeted(machine)
    fill(machine, 30, expires_ms=machine.wall_ms + 1_000)
    machine.submit(peer, f.Consume(correlation=3, subscription=1, queues=["q"], credit=30))
    machine.settle()
    machine.submit(peer, f.Bye(correlation=4))
    machine.settle()
    assert len(state.attempts) == 30
    machine.submit(greeted(machine), f.Purge(correlation=8, queue="q"))
    machine.turn()
    assert state.remains
    machine.wall_ms += 2_000
    machine.settle()
    counts = state.queues["q"].counts
    assert (counts["purged"], counts["expired"]) == (30, 0)
    assert check_places(state) == {}


# --- Policies


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A policy comes to four queues a turn, and there are ten."""
    monkeypatch.setattr(declaring, "POLICY_WORK_MAX", 44)
    machine = Machine()
    peer = greeted(machine)
    for number in range(10):
        machine.submit(peer, f.Declare(correlation=3, queue=f"q{number}", options={}))
    machine.settle()
    return machine


def bounded(core: Broker) -> list[int]:
    """Numbers of queues that have the option."""
    return [queue.number for queue in core.state.numbered if queue.options.max_length == 5]


def policy(machine: Machine, peer: Peer, **fields: object) -> None:
    machine.submit(peer, f.SetPolicy(correlation=4, name="p", **fields))  # type: ignore[arg-type]
    machine.turn()


def test_a_policy_comes_to_a_few_queues_a_turn_and_to_new_ones_at_once(many: Machine) -> None:
    peer = greeted(many)
    policy(many, peer, pattern="q*", options={"max_length": 5})
    assert bounded(many.core) == [0, 1, 2, 3, 4, 5, 6, 7], "the frame, and what is due"
    many.submit(peer, f.Declare(correlation=5, queue="qx", options={}))
    many.submit(peer, f.DeleteQueue(correlation=6, queue="q8"))
    many.settle()
    assert bounded(many.core) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10], "and not to one that is gone"
    assert many.core.state.catalogue.reached == -1
    policy(many, peer, drop=True)
    assert bounded(many.core) == [9, 10]
    many.settle()
    assert bounded(many.core) == []
    assert exact(replayed(many).state) == exact(many.core.state)


def test_a_policy_goes_on_to_the_others_after_a_crash(many: Machine) -> None:
    peer = greeted(many)
    policy(many, peer, pattern="q*", options={"max_length": 5})
    many.write_all()
    many.crash()
    many.settle()
    assert bounded(many.core) == list(range(10))


def test_a_policy_in_the_middle_of_another_begins_with_the_first_queue(many: Machine) -> None:
    peer = greeted(many)
    policy(many, peer, pattern="q*", options={"max_length": 5})
    assert many.core.state.catalogue.reached == 8
    policy(many, peer, pattern="q*", options={"max_length": 6})
    assert many.core.state.catalogue.reached == 8
    assert many.core.state.numbered[0].options.max_length == 6
    many.settle()
    assert {queue.options.max_length for queue in many.core.state.numbered} == {6}


# --- A look at all queues


def test_a_look_at_all_queues_takes_a_few_a_turn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "CENSUS_WORK_MAX", 10)
    monkeypatch.setattr(census, "CENSUS_QUEUE_WEIGHT", 4)
    peer = greeted(machine)
    for number in range(5):
        machine.submit(peer, f.Declare(correlation=3, queue=f"w{number}", options={}))
    for number in range(25):
        fill(machine, 1, task=f"t{number}")
    look = machine.core.census()
    steps = 0
    while not look.is_over:
        look.step()
        steps += 1
        if steps == 1:
            assert [row.name for row in look.rows] == ["w0", "w1", "w2"]
            machine.submit(peer, f.DeleteQueue(correlation=4, queue="w4"))
            machine.settle()
    assert [row.name for row in look.rows] == ["w0", "w1", "w2", "w3", "q"]
    assert steps == 5
    row = look.rows[-1]
    assert (row.ready, row.waiting) == (25, {"no_consumer": 25})
    assert row.oldest_ready == min(p for run in runs(machine) for p in run)
    assert machine.core.statistics().queues == look.statistics().queues


def runs(machine: Machine) -> list[Run]:
    return [run for lane in machine.core.state.lanes for run in lane.runs]


# --- Peeks


def test_a_peek_looks_at_a_few_lanes_a_turn(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peeking, "PEEK_LANES_MAX", 4)
    for number in range(9):
        fill(machine, 2, task=f"t{number}", priority=number % 3)
    first, second = greeted(machine), greeted(machine)
    machine.submit(first, f.Peek(correlation=7, queue="q", count=5))
    machine.submit(second, f.Peek(correlation=8, queue="q", count=3))
    for peer in (first, second):
        peer.received.clear()
    asked = [position for _, position in machine.core.state.queues["q"].waiting()]
    machine.turn()
    assert (first.received, len(machine.core.state.peeks)) == ([], 2)
    assert machine.core.next_due_ms(machine.now) == 0
    machine.settle()
    assert rows_of(first) == asked[:5]
    assert rows_of(second) == asked[:3]


def test_a_peek_shows_what_waits_when_it_is_answered(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peeking, "PEEK_LANES_MAX", 1)
    for number in range(3):
        fill(machine, 1, task=f"t{number}")
    first, second = greeted(machine), greeted(machine)
    machine.submit(first, f.Peek(correlation=7, queue="q", count=5))
    machine.turn()
    machine.submit(second, f.Purge(correlation=8, queue="q"))
    machine.settle()
    assert rows_of(first) == []


def test_so_many_peeks_are_under_way_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peeking, "PEEK_LANES_MAX", 1)
    monkeypatch.setattr(peeking, "PEEKS_MAX", 1)
    for number in range(4):
        fill(machine, 1, task=f"t{number}")
    peer = greeted(machine)
    machine.submit(peer, f.Peek(correlation=7, queue="q", count=5))
    machine.submit(peer, f.Peek(correlation=8, queue="q", count=5))
    machine.settle()
    (refused,) = [each for each in peer.received if isinstance(each, f.Error)]
    assert (refused.code, refused.correlation) == ("LIMIT_REACHED", 8)


def rows_of(peer: Peer) -> list[int]:
    (answer,) = [each for each in peer.received if isinstance(each, f.Peeked)]
    found, at = [], 0
    for _ in range(answer.count):
        position, *_, n_reason, n_error = wire.PEEKED.unpack_from(answer.raw, at)
        found.append(position)
        at += wire.PEEKED.size + n_reason + n_error
        at += 4 + wire.SIZE.unpack_from(answer.raw, at)[0]
    return found


# --- Cancelled while its worker was away


def test_a_worker_is_told_of_a_cancel_when_it_comes_back(machine: Machine) -> None:
    parent, child = worker(machine), worker(machine, 1)
    (token,) = take(machine, child, 1)
    machine.disconnect(child)
    asker = greeted(machine)
    parent.received.clear()
    cancel = f.CancelMany(correlation=5, queue="q", terminate=True, grace_ms=500)
    machine.submit(asker, cancel)
    machine.settle()
    revoke = f.Revoke(terminate=True, grace_ms=500, raw=wire.TOKEN.pack(*token))
    assert parent.received == [revoke]
    child = worker(machine, 1, raw=wire.TOKEN.pack(*token))
    assert [type(each) for each in child.received] == [f.Welcome, f.Revoke]
    assert child.received[1] == revoke
    assert child.received[0].raw == wire.TOKEN.pack(*token), "and its lease is lost"
    machine.disconnect(child)
    assert [type(each) for each in worker(machine, 1).received] == [f.Welcome], "once"


def test_a_parent_that_was_away_is_told_too(machine: Machine) -> None:
    parent, child = worker(machine), worker(machine, 1)
    take(machine, child, 2)
    machine.disconnect(parent)
    machine.submit(greeted(machine), f.CancelMany(correlation=5, queue="q"))
    machine.settle()
    back = worker(machine)
    assert [type(each) for each in back.received] == [f.Welcome, f.Revoke]
    assert len(back.received[1].raw) == 2 * wire.TOKEN.size
