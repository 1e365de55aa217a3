"""The slot protocol, with real processes: take, recall, death."""

import os
import signal
import time
from array import array
from pathlib import Path

import pytest

from qprotocol import wire
from qprotocol.frames import Deliver
from qprotocol.message import Message
from qworker.hand import Hand
from qworker.slots import (
    CONFIRMED,
    ENDED_OTHER,
    ENDED_PLAIN,
    READY,
    RING,
    TAKEN,
    Slot,
    Slots,
    describe,
)

ENOUGH = READY
"""A word that nobody else uses here."""
TASK_ID = "01912d68-783e-7000-8000-000000000001"


@pytest.fixture
def slots():
    """Two slots, as a parent makes them; their names are gone at once."""
    made = Slots.make(2)
    made.seal()
    return made


def delivery(first: int, count: int, grant: int = 7) -> Deliver:
    """A frame that delivers ``count`` messages from position ``first`` on."""
    raw = Message("mail", b"body", id=TASK_ID, task="shop.add").pack()
    return Deliver(
        subscription=1,
        grant=grant,
        count=count,
        runs=1,
        touched=0,
        raw=wire.RUN.pack(first, count) + raw * count,
    )


def taken(hand: Hand) -> list[int]:
    """The positions that can be taken from now on."""
    found = []
    while hand.parcels:
        parcel = hand.take()
        if parcel is not None:
            found.append(parcel.position)
    return found


def test_messages_are_taken_in_the_order_they_came(slots):
    """First in, first out, across frames and around the ring's end."""
    hand = Hand(slots[0])
    for start in range(0, 3 * RING, 1000):
        hand.receive(delivery(start, 1000))
        assert taken(hand) == list(range(start, start + 1000))


def test_recalled_messages_are_never_taken(slots):
    """The parent gets exactly those tokens that the runner will not begin."""
    hand = Hand(slots[0])
    hand.receive(delivery(100, 10))
    first = hand.take()
    assert first is not None
    recalled = slots[0].recall(keep=2)
    assert recalled == [(position, 7) for position in range(103, 110)]
    assert slots[0].recall() == [(101, 7), (102, 7)]
    assert taken(hand) == []


def test_what_comes_after_a_recall_is_taken(slots):
    """A recall is forgotten once the runner has seen it."""
    hand = Hand(slots[0])
    hand.receive(delivery(100, 5))
    slots[0].recall(keep=1)
    hand.receive(delivery(200, 2))
    assert taken(hand) == [100, 200, 201]


def test_giving_back_counts_what_the_parent_recalled_once(slots):
    """No token is returned twice: what the parent took is not the runner's to give."""
    hand = Hand(slots[0])
    hand.receive(delivery(100, 5))
    assert len(slots[0].recall(keep=3)) == 2
    assert hand.give_back() == [(100, 7), (101, 7), (102, 7)]
    assert not hand.parcels
    hand.receive(delivery(300, 1))
    assert taken(hand) == [300]


def test_counters_of_messages_handed_out_before(slots):
    """A touched delivery has its three counters, the others have those of a first delivery."""
    hand = Hand(slots[0])
    plain = delivery(100, 2)
    touched = wire.RUN.size
    raw = plain.raw[:touched] + wire.TOUCHED.pack(1, 4, 2, 1) + plain.raw[touched:]
    hand.receive(Deliver(subscription=1, grant=7, count=2, runs=1, touched=1, raw=raw))
    first, second = hand.parcels
    assert (first.deliveries, first.failures, first.crashes) == (1, 0, 0)
    assert (second.deliveries, second.failures, second.crashes) == (4, 2, 1)


@pytest.mark.parametrize("cut", [0, 5, 20, 60])
def test_a_torn_delivery_is_refused_whole(slots, cut):
    """A frame whose raw section does not fit its header changes nothing."""
    hand = Hand(slots[0])
    frame = delivery(100, 2)
    frame.raw = frame.raw[:cut]
    with pytest.raises(ValueError):
        hand.receive(frame)
    assert not hand.parcels
    assert not slots[0].in_hand()


def test_the_parent_reads_what_runs(slots):
    """Token, task and id of the running message are in the slot."""
    hand = Hand(slots[0])
    hand.receive(delivery(100, 2))
    assert slots[0].running() is None
    hand.take()
    running = slots[0].running()
    assert running is not None
    assert (running.index, running.token) == (0, (100, 7))
    assert describe(running.head) == ("shop.add", TASK_ID, "mail")
    slots[0].ends[0] = ENDED_PLAIN
    assert slots[0].running() is None


def test_remains_name_every_token_once(slots):
    """Finished, unsent, running and unbegun: a death leaves no token out."""
    hand = Hand(slots[0])
    hand.receive(delivery(100, 6))
    for _ in range(4):
        hand.take()
    slot = slots[0]
    slot.ends[0] = slot.ends[1] = ENDED_PLAIN
    slot.ends[2] = ENDED_OTHER
    slot.words[CONFIRMED] = 1
    remains = slot.remains()
    assert remains.finished == [(101, 7)]
    assert remains.unsent == [(102, 7)]
    assert remains.running is not None
    assert remains.running.token == (103, 7)
    assert remains.unbegun == [(104, 7), (105, 7)]


def test_a_runner_killed_while_it_holds_the_lock_blocks_nobody(slots):
    """The parent reads the remains without the lock, and the next runner gets a new one."""
    pid = os.fork()
    if not pid:
        slots[0].lock.acquire()
        slots[0].words[READY] = 1
        signal.pause()
    wait_until(lambda: slots[0].words[READY])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert slots[0].recall() == []
    assert slots[0].remains().unbegun == []
    slots[0].renew()
    hand = Hand(slots[0])
    hand.receive(delivery(100, 1))
    assert taken(hand) == [100]


def test_takes_and_recalls_of_two_processes_share_every_token_out(slots, tmp_path):
    """However they race, each token is begun by the runner or recalled by the parent: never both.

    The runner takes as fast as it can; the parent recalls at random moments, until each has
    got many: twice as many as the ring remembers. Both write down what they got.
    """
    report, slot = tmp_path / "begun", slots[0]
    pid = os.fork()
    if not pid:
        run_child(slot, report)
        os._exit(0)
    recalled: list[int] = []
    while not os.waitpid(pid, os.WNOHANG)[0]:
        recalled += [position for position, _ in slot.recall(keep=len(recalled) % 3)]
        if min(len(recalled), slot.words[TAKEN]) > 2 * RING:
            slot.words[ENOUGH] = 1
    recalled += [position for position, _ in slot.recall()]
    begun = array("Q", report.read_bytes())
    assert not set(begun) & set(recalled)
    assert sorted([*begun, *recalled]) == list(range(len(begun) + len(recalled)))
    assert min(len(begun), len(recalled)) > 2 * RING


def run_child(slot: Slot, report: Path) -> None:
    """Receives in frames of 40 and takes, until told that it is enough; then takes the rest."""
    hand, begun, start = Hand(slot), array("Q"), 0
    while not slot.words[ENOUGH] or hand.parcels:
        if not slot.words[ENOUGH] and len(hand) < 20:
            hand.receive(delivery(start, 40))
            start += 40
        parcel = hand.take()
        if parcel is not None:
            begun.append(parcel.position)
            slot.ends[(slot.words[TAKEN] - 1) % RING] = ENDED_PLAIN
    report.write_bytes(begun.tobytes())


def wait_until(holds, timeout_s: float = 5.0) -> None:
    """Polls until ``holds()`` is true. Fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        os.sched_yield()
