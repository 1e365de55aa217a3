"""Slots and tokens: what a bucket may hand out, whatever the clocks do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker.core.buckets import ROOM_MAX, Bucket, LimitClock
from qbroker.core.moment import Now
from qprotocol.limitrules import LimitRule

RULES = st.builds(
    LimitRule,
    rate=st.integers(1, 50),
    window_ms=st.sampled_from([1, 7, 250, 1_000, 60_000]),
    burst=st.integers(1, 20),
)


def begun(rule: LimitRule, steps: list[tuple[int, int]], weight: int) -> list[tuple[int, int]]:
    """Take what there is room for at each time, up to so many: (when, weight)."""
    bucket, at_ms, out = Bucket(), 1_000, []
    for wait_ms, wanted in steps:
        at_ms += wait_ms
        count = min(wanted, bucket.room(rule, weight, at_ms))
        if count:
            bucket.spends(rule, count * weight, at_ms)
            out.append((at_ms, count * weight))
    return out


STEPS = st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 30)), max_size=40)


@given(RULES, STEPS, st.integers(1, 3))
def test_no_interval_holds_more_than_the_rule_says(
    rule: LimitRule, steps: list[tuple[int, int]], weight: int
) -> None:
    out = begun(rule, steps, weight)
    for first, (start_ms, _) in enumerate(out):
        total = 0
        for at_ms, taken in out[first:]:
            total += taken
            assert total <= rule.burst + rule.rate * (at_ms - start_ms) / rule.window_ms


@given(RULES, STEPS)
def test_whoever_waits_for_a_token_gets_it_when_it_was_foretold(
    rule: LimitRule, steps: list[tuple[int, int]]
) -> None:
    bucket, at_ms = Bucket(), 1_000
    for wait_ms, wanted in steps:
        at_ms += wait_ms
        bucket.spends(rule, min(wanted, bucket.room(rule, 1, at_ms)), at_ms)
        opens_ms = bucket.opens_ms(rule, 1)
        if not bucket.room(rule, 1, at_ms):
            assert bucket.room(rule, 1, opens_ms - 1) == 0
            assert bucket.room(rule, 1, opens_ms) >= 1
            assert opens_ms - at_ms <= -(-rule.window_ms // rule.rate)


def test_a_full_bucket_holds_a_burst_and_fills_evenly() -> None:
    rule, bucket = LimitRule(rate=2, window_ms=1_000, burst=3), Bucket()
    assert bucket.room(rule, 1, 0) == 3
    bucket.spends(rule, 3, 10_000)
    assert [bucket.room(rule, 1, at) for at in (10_000, 10_499, 10_500, 11_500, 99_000)] == [
        *(0, 0, 1, 3, 3),
    ]
    assert bucket.opens_ms(rule, 1) == 10_500
    assert bucket.opens_ms(rule, 3) == 11_500
    assert not bucket.is_idle(rule, 11_499)
    assert bucket.is_idle(rule, 11_500)


def test_slots_are_taken_and_given_back() -> None:
    rule, bucket = LimitRule(concurrency=5), Bucket()
    assert bucket.room(rule, 2, 0) == 2
    bucket.lends(4)
    assert bucket.room(rule, 2, 0) == 0
    assert bucket.room(rule, 1, 0) == 1
    assert not bucket.is_idle(rule, 0)
    bucket.lends(4)  # lowered, or claimed after a crash: what is out stays out
    assert bucket.room(rule, 1, 0) == 0
    bucket.gets_back(8)
    assert bucket.is_idle(rule, 0)
    assert bucket.opens_ms(rule, 1) == 0
    with pytest.raises(AssertionError, match="-1 slots"):
        bucket.gets_back(1)


def test_a_rule_without_rate_counts_no_tokens() -> None:
    rule, bucket = LimitRule(concurrency=1), Bucket()
    bucket.spends(rule, 1, 5)
    assert bucket.missing == 0
    assert bucket.room(LimitRule(rate=1), 1, 5) == 1
    assert bucket.room(LimitRule(), 1, 5) == ROOM_MAX


def test_what_was_spent_is_spent_under_the_changed_rule() -> None:
    old = LimitRule(rate=10, window_ms=1_000, burst=10)
    bucket = Bucket()
    bucket.spends(old, 10, 1_000)
    slower = LimitRule(rate=1, window_ms=3_000, burst=10)
    bucket.follows(old, slower, 1_500)  # five came back
    assert bucket.room(slower, 1, 1_500) == 5
    small = LimitRule(rate=1, window_ms=1_000, burst=2)
    bucket.follows(slower, small, 1_500)
    assert bucket.room(small, 1, 1_500) == 0
    assert bucket.room(small, 1, 2_500) == 1
    none = LimitRule(concurrency=1)
    bucket.follows(small, none, 1_500)
    assert bucket.is_idle(none, 1_500)
    bucket.follows(none, old, 1_600)
    assert bucket.room(old, 1, 1_600) == 10


# --- The clock


def test_a_clock_set_back_goes_on_and_one_set_forward_is_followed() -> None:
    clock = LimitClock(5_000)
    assert clock.read(Now(4_000, 100)) == 5_000, "a start before the last record's time"
    assert clock.read(Now(1_000, 150)) == 5_050, "set back: time goes on all the same"
    assert clock.read(Now(1_001, 150)) == 5_050
    assert clock.read(Now(9_000, 151)) == 9_000, "set forward"
    assert clock.was_set()
    assert clock.read(Now(9_030, 161)) == 9_030, "it drifts"
    assert not clock.was_set()
    clock.told(8_000)
    assert clock.read(Now(9_000, 162)) == 9_031
    clock.told(9_500)
    assert clock.at_ms == 9_500


@given(st.lists(st.tuples(st.integers(-5_000, 5_000), st.integers(0, 500)), max_size=50))
def test_no_time_is_counted_twice(steps: list[tuple[int, int]]) -> None:
    """The wall may jump as it likes: what is gained is the jumps forward over all that was seen."""
    clock, wall_ms, mono_ms = LimitClock(), 100_000, 1
    before = highest = clock.read(Now(wall_ms, mono_ms))
    for step_ms, passed_ms in steps:
        wall_ms, mono_ms = wall_ms + step_ms, mono_ms + passed_ms
        at_ms = clock.read(Now(wall_ms, mono_ms))
        assert at_ms >= before + passed_ms
        assert at_ms == max(before + passed_ms, wall_ms)
        highest, before = max(highest, at_ms), at_ms
    assert before == highest
