"""What transcripts do not reach: turns and their bounds, volatile news, small values."""

from __future__ import annotations

from time import perf_counter

import pytest

from digest import check_places
from machine import Machine, Peer
from qbroker.core import effects as e
from qbroker.core import records as r
from qbroker.core.endings import push_revoke
from qbroker.core.gates import Gatekeeper
from qbroker.core.lanes import Lane
from qbroker.core.leases import Attempts, Grant, Member
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.results import DEADLINES_SPARE, Finished, Found, Results, Waiter
from qbroker.core.settings import DISPATCH_MESSAGES_MAX
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.message import Message
from qprotocol.options import QueueOptions
from qprotocol.states import State


@pytest.fixture
def machine() -> Machine:
    return Machine()


def greeted(machine: Machine, role: str = "consumer", **fields: object) -> Peer:
    peer = machine.connect()
    machine.submit(peer, f.Hello(correlation=1, protocol=1, role=role, client_id="t", **fields))
    machine.settle()
    peer.received.clear()
    return peer


def fill(machine: Machine, peer: Peer, count: int, **fields: object) -> None:
    raw = Message("q", b"x", **fields).pack()
    for first in range(0, count, 1_000):
        size = min(1_000, count - first)
        frame = f.Publish(correlation=2, producer=0, sequence=0, count=size, raw=raw * size)
        machine.submit(peer, frame)
    machine.settle()
    peer.received.clear()


# --- Turns


def test_a_turn_hands_out_so_much_and_the_next_one_more(machine: Machine) -> None:
    peer = greeted(machine)
    fill(machine, peer, DISPATCH_MESSAGES_MAX + 500)
    machine.submit(peer, f.Consume(correlation=2, subscription=1, queues=["q"], credit=10_000))
    machine.turn()
    state = machine.core.state
    assert len(state.leases) == DISPATCH_MESSAGES_MAX
    assert machine.core.has_more
    machine.turn()
    assert len(state.leases) == DISPATCH_MESSAGES_MAX + 500
    assert not machine.core.has_more
    check_places(state)


def test_what_is_due_comes_in_bounded_steps(machine: Machine) -> None:
    peer = greeted(machine)
    fill(machine, peer, 5_000, due_ms=machine.wall_ms + 1_000)
    machine.wall_ms += 2_000
    machine.mono_ms += 2_000
    machine.turn()
    queue = machine.core.state.queues["q"]
    assert 0 < queue.ready < 5_000
    assert machine.core.next_due_ms(machine.now) == 0
    machine.wait(1)
    machine.wait(1)
    machine.wait(1)
    assert queue.ready == 5_000


def test_a_broker_that_stood_still_blames_no_worker(machine: Machine) -> None:
    """Sessions live longer by the time in which nobody could be heard."""
    parent = greeted(machine, "worker", session=b"s" * 16)
    fill(machine, parent, 1)
    machine.submit(parent, f.Consume(correlation=3, subscription=1, queues=["q"], credit=1))
    machine.settle()
    machine.mono_ms += 50_000
    machine.core.stalled(50_000)
    machine.settle()
    assert parent.is_open
    assert len(machine.core.state.leases) == 1
    machine.wait(30_000)
    assert not parent.is_open


def test_a_stall_before_anybody_was_heard_of_changes_nothing(machine: Machine) -> None:
    parent = greeted(machine, "worker", session=b"s" * 16)
    fill(machine, parent, 1)
    machine.submit(parent, f.Consume(correlation=3, subscription=1, queues=["q"], credit=1))
    machine.wait(30)
    machine.disk.kill()
    machine.start()
    (session,) = machine.core.state.sessions.values()
    machine.core.stalled(1_000)
    assert session.alive_until_ms == 0


def test_a_delivery_on_its_way_keeps_the_parts_of_a_message_that_is_cancelled(
    machine: Machine,
) -> None:
    """It was decided before, so it is sent whole; the Revoke comes behind it."""
    peer = greeted(machine)
    machine.submit(peer, f.Consume(correlation=2, subscription=1, queues=["q"], credit=5))
    machine.settle()
    peer.received.clear()
    raw = Message("q", b"a long body", id="x").pack()
    machine.submit(peer, f.Part(correlation=3, index=0, of=f.Publish.TYPE, raw=raw[:40]))
    end = f.Publish(correlation=3, producer=0, sequence=0, count=1, raw=raw[40:])
    machine.submit(peer, end)
    machine.turn()
    machine.submit(peer, f.Peek(correlation=4, queue="q"))
    machine.submit(peer, f.Cancel(correlation=5, id="x"))
    machine.settle()
    kinds = [type(frame) for frame in peer.received]
    assert kinds == [f.Published, f.Deliver, f.Peeked, f.Revoke, f.Result]
    assert peer.received[1].raw.endswith(raw)


SLOW_MACHINE = 10
"""Tests run beside others on shared machines: bounds are this many times what is wanted."""


def test_no_command_over_a_large_backlog_takes_long(machine: Machine) -> None:
    """A turn is meant to end after 5 ms. A purge drops the runs whole, however long they are."""
    peer = greeted(machine)
    fill(machine, peer, 100_000)
    for frame in (f.Peek(correlation=5, queue="q"), f.Purge(correlation=6, queue="q")):
        machine.submit(peer, frame)
        began = perf_counter()
        machine.turn()
        assert perf_counter() - began < 0.005 * SLOW_MACHINE
    assert machine.core.state.queues["q"].ready == 0


# --- Values


def test_a_run_knows_a_stranger_from_its_own() -> None:
    queue = Queue(0, "q", QueueOptions(), synced=True)
    run = Lane(0, queue, "", b"").run(0)
    other = Lane(1, queue, "t", b"").run(0)
    grant = Grant(5, Member(None, 0), None)
    grant.add(other, 12, 1)
    grant.add(run, 10, 2)
    grant.add(run, 10, 1)
    grant.add(run, 13, 1)
    assert grant.run_of(11) is run
    assert list(grant.positions()) == [10, 11, 12, 13]
    assert grant.split(11, 2) == [(run, 11, 1), (other, 12, 1)]
    with pytest.raises(AssertionError, match="14 is not in grant 5"):
        grant.run_of(14)
    assert run < other


def test_a_run_listed_twice_under_one_head_is_handed_out_once() -> None:
    queue = Queue(0, "q", QueueOptions(), synced=True)
    queue.select(None)
    run = Lane(0, queue, "", b"").run(0)
    run.extend(10, 2)
    queue.offer(run, 2)
    for position in (5, 6):
        run.give_back(position, 1)
        queue.offer(run, 1)
    taken = queue.selections[None].take(9, Gatekeeper(), Now(0, 0))
    assert [(first, count) for _, first, count in taken] == [(5, 2), (10, 2)]


def test_waiters_that_were_told_long_ago_cost_nothing() -> None:
    """Deadlines of an hour must not pile up while answers come in milliseconds."""
    results = Results(10)
    for number in range(5 * DEADLINES_SPARE):
        results.wait(Waiter(1, number, "t", number, 3_600_000))
        assert len(results.woken(number)) == 1
    assert len(results._deadlines) <= DEADLINES_SPARE + 1
    results.wait(Waiter(1, 1, "t", 1, 10))
    assert [waiter.correlation for waiter in results.late(10)] == [1]
    assert results.waiters == {}


def test_a_result_that_is_replaced_keeps_its_name() -> None:
    results = Results(10)
    results.store(1, Finished(State.FAILURE, 1, 0, 0, 0, 100, name=b"id"))
    results.store(1, Finished(State.SUCCESS, 2, 0, 0, 0, 100, name=b"id"))
    assert results.names == {b"id": 1}
    results.store(2, Finished(State.SUCCESS, 3, 0, 0, 0, 100, name=b"id"))
    results.drop(1)
    assert results.names == {b"id": 2}
    assert results.prune(100, 10) == [2]
    assert results.names == {}


def test_most_records_have_no_raw_bytes() -> None:
    assert r.Purged(0).raw == b""


def test_counters_say_at_most_what_16_bits_can() -> None:
    attempts = Attempts(deliveries=1 << 20)
    assert attempts.counters() == (0xFFFF, 0, 0)
    assert wire.TOUCHED.pack(0, *attempts.counters())


def test_messages_that_were_only_handed_out_share_their_counters(machine: Machine) -> None:
    """A table entry each, and one value for all that went the same way."""
    for _ in range(3):
        peer = greeted(machine)
        fill(machine, peer, 0 if machine.core.state.attempts else 1_000)
        machine.submit(peer, f.Consume(correlation=2, subscription=1, queues=["q"], credit=2_000))
        machine.settle()
        machine.submit(peer, f.Bye(correlation=3))
        machine.settle()
    attempts = machine.core.state.attempts
    assert len(attempts) == 1_000
    assert len({id(each) for each in attempts.values()}) <= 2
    assert {each.deliveries for each in attempts.values()} == {3}


def test_a_hello_whose_tokens_the_log_cannot_tell_of_changes_nothing(machine: Machine) -> None:
    peer = greeted(machine)
    fill(machine, peer, 1)
    (position,) = (p for q in machine.core.state.numbered for _, p in q.waiting())
    machine.crash()
    session, token = b"s" * 16, wire.TOKEN.pack(position, (1 << wire.EPOCH_SHIFT) + 1)
    hello = f.Hello(
        correlation=1, protocol=1, role="worker", client_id="t", session=session, raw=token
    )
    answer, close = machine.core.execute(
        7, hello, machine.now, machine.append, Found(trouble="Input/output error")
    )
    assert (answer.frame.code, answer.frame.retryable) == ("DISK_STALLED", True)
    assert "none is lost: Input/output error" in answer.frame.message
    assert isinstance(close, e.Close)
    assert (machine.core.state.sessions, machine.core.state.leases) == ({}, {})


def test_a_holder_that_is_gone_for_good_is_not_told_of_a_cancel(machine: Machine) -> None:
    """A plain consumer's leases go back piece by piece; nobody waits for news of them."""
    grant = Grant(1, Member(None, 0), None)
    machine.core.state.effects.clear()
    push_revoke(machine.core.state, grant, 5, r.Removed([[5, 0, 0]], "cancelled", 1, 1))
    assert machine.core.state.effects == []


def test_what_a_worker_comes_back_with_counts_where_it_came_from(machine: Machine) -> None:
    """Two subscriptions, a restart, and no more of each than its credit."""
    about = {"role": "worker", "session": b"s" * 16}
    queues = {1: "q", 2: "other"}

    def subscribed(peer: Peer, order: tuple[int, int]) -> None:
        for number in order:
            machine.submit(
                peer,
                f.Consume(correlation=3, subscription=number, queues=[queues[number]], credit=3),
            )
        machine.settle()

    publisher = greeted(machine)
    raw = Message("other", b"x").pack() * 6
    machine.submit(publisher, f.Publish(correlation=2, producer=0, sequence=0, count=6, raw=raw))
    fill(machine, publisher, 2)
    worker = greeted(machine, **about)
    subscribed(worker, (1, 2))
    tokens = [(p, grant.number) for p, grant in machine.core.state.leases.items()]
    assert len(tokens) == 5
    # When it comes back after a restart, and then more of the first kind is there
    machine.kill()
    raw = b"".join(wire.TOKEN.pack(*token) for token in tokens)
    worker = greeted(machine, raw=raw, **about)
    subscribed(worker, (1, 2))
    fill(machine, greeted(machine), 4)
    # Then it has got one of these, and none of the others
    consumers = machine.core.state.consumers
    held = [consumers[worker.number, number].unsettled for number in (1, 2)]
    assert held == [3, 3]
    assert len(machine.core.state.leases) == 6


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Found(asked=True, trouble="Input/output error"), "RESOURCE_EXHAUSTED"),
        (Found(asked=True, damage="1.qlog is damaged at byte 4096"), "DATA_DAMAGED"),
    ],
)
def test_what_cannot_be_read_is_not_called_unknown(found: Found, code: str) -> None:
    """A disk that refuses may be asked again; of rotten bytes that is all there is to say."""
    machine = Machine()
    watch = f.Watch(correlation=2, id="order-1")
    (answer,) = machine.core.execute(7, watch, machine.now, machine.append, found)
    assert isinstance(answer.frame, f.Error)
    assert (answer.frame.code, answer.frame.retryable) == (code, code == "RESOURCE_EXHAUSTED")
