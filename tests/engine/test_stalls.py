"""Which time counts for nobody: a process that stood still, a disk that does."""

from __future__ import annotations

from qbroker.stalls import Stalls

HEARTBEAT_MS = 2_000  # so that the patience is 2 s


def test_time_between_turns_counts_as_long_as_they_come() -> None:
    stalls = Stalls(HEARTBEAT_MS, 0)
    assert [stalls.missed_ms(at) for at in (1_000, 2_000, 4_000)] == [0, 0, 0]
    assert stalls.missed_ms(9_000) == 5_000
    assert stalls.missed_ms(10_000) == 0


def test_from_the_patience_on_a_disk_that_hangs_stops_the_clock_till_the_turn_after() -> None:
    stalls = Stalls(HEARTBEAT_MS, 0)
    stalls.disk(500)
    assert [stalls.missed_ms(at) for at in (1_000, 2_000, 3_000, 4_000)] == [0, 0, 1_000, 1_000]
    stalls.disk(None)
    assert [stalls.missed_ms(at) for at in (4_300, 5_000)] == [300, 0]


def test_a_disk_that_is_slow_and_answers_saves_nobody() -> None:
    stalls = Stalls(HEARTBEAT_MS, 0)
    for at in range(0, 60_000, 1_900):
        stalls.disk(at)
        assert stalls.missed_ms(at + 1_900) == 0
        stalls.disk(None)
