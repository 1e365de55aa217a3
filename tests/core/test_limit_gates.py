"""What no scenario of limits shows: claims, keys that are forgotten, what is asked in between."""

from __future__ import annotations

import json

from harness import Harness
from qbroker.core.broker import Broker
from qbroker.core.limits import LimitGate
from qbroker.core.moment import Now


def story(*lines: str) -> Harness:
    harness = Harness()
    for line in lines:
        harness.run(line)
    return harness


def gate(tale: Harness, name: str, key: str = "") -> LimitGate:
    return tale.machine.core.state.limits.by_name[name].gates[key]


def test_a_claim_takes_slots_and_spends_nothing() -> None:
    """Nobody knows when it was handed out; and what runs may be more than the rule lets through."""
    tale = story("limit r q=q concurrency=1 rate=1/h", "publish a b", "consume credit=1")
    found = gate(tale, "r")
    (lane,) = tale.machine.core.state.lanes
    before = found.bucket.missing
    found.charge(lane, 1, 0)
    assert (found.bucket.used, found.bucket.missing) == (2, before)


def test_a_key_that_nobody_uses_is_forgotten_once_it_is_full() -> None:
    tale = story(
        "limit r per_key rate=1/s", "publish limit_key=a x", "publish limit_key=b y", "consume"
    )
    state, wall_ms = tale.machine.core.state, tale.machine.wall_ms
    limits, lane = state.limits, state.lanes[0]
    tale.run("ack x")
    limits.leave(lane)
    limits.forget(wall_ms + 999, 10)
    assert set(limits.by_name["r"].gates) == {"a", "b"}
    limits.forget(wall_ms + 1_000, 0)
    assert set(limits.by_name["r"].gates) == {"a", "b"}, "so many in a turn"
    limits.forget(wall_ms + 1_000, 10)
    assert set(limits.by_name["r"].gates) == {"b"}
    # One that is used again, or whose rule is gone, is left alone.
    limits.leave(state.lanes[1])
    gate(tale, "r", "b").places += 1
    limits.forget(wall_ms + 1_000, 10)
    assert set(limits.by_name["r"].gates) == {"b"}
    gate(tale, "r", "b").places -= 1
    limits.fades(gate(tale, "r", "b"))
    tale.run("unlimit r")
    limits.forget(wall_ms + 1_000, 10)
    assert not limits.by_name


def test_an_order_is_left_by_a_lane_that_closes() -> None:
    """Its other gates are no limits; nothing is forgotten of those."""
    tale = story("publish ordering_key=k x")
    tale.machine.core.state.limits.leave(tale.machine.core.state.lanes[0])


def test_what_was_purged_is_not_held_back_any_more() -> None:
    tale = story("limit r task=t concurrency=1", "publish task=t a b", "consume credit=5", "purge")
    found = gate(tale, "r")
    (shelf,) = tale.machine.core.state.queues["q"].shelves.values()
    shelf.renew()
    assert found.held() == 0


def test_rows_are_plain_values() -> None:
    tale = story("limit r q=q per_key concurrency=2", "publish limit_key=a x", "consume")
    core: Broker = tale.machine.core
    (row,) = json.loads(json.dumps(core.limits(tale.machine.now)))
    assert (row["name"], row["keys"], row["used"], row["declared"]) == ("r", 1, 1, None)


def test_an_alarm_that_is_out_of_date_wakes_nobody() -> None:
    tale = story("limit r q=q rate=1/h", "publish a b", "consume")
    keeper, found = tale.machine.core.state.keeper, gate(tale, "r")
    assert found.alarm_ms
    found.alarm_ms += 1
    keeper.wake_all()
    assert found.alarm_ms
    assert keeper.next_ms() == 0


def test_what_was_dropped_has_room_for_who_still_waits_there() -> None:
    tale = story(
        "limit r q=q concurrency=2", "publish weight=2 a b", "publish c", "consume credit=9"
    )
    found, (heavy, _) = gate(tale, "r"), tale.machine.core.state.lanes
    assert found.room(heavy, Now(0, 0)) == 0
    found.is_dropped()
    assert found.room(heavy, Now(0, 0)) > 1
    assert not found.is_shut(Now(0, 0))
