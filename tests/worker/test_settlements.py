"""What a runner has to say is cut into frames that the broker takes."""

from __future__ import annotations

from itertools import count

import pytest

from qclient.context import Context
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.lanekeys import LaneKeys
from qprotocol.limits import ACK_RUNS_MAX, OUTCOMES_MAX
from qprotocol.message import Outcome
from qworker.hand import Parcel
from qworker.judging import Run
from qworker.settlements import Ended, Settlements
from qworker.slots import CONFIRMED


def settlements() -> Settlements:
    return Settlements(memoryview(bytearray(8 * (CONFIRMED + 1))).cast("Q"), count(1).__next__)


def test_acks_of_strangers_are_cut_by_the_runs_of_a_frame() -> None:
    mine = settlements()
    mine.pending += [Ended(n, 2 * n, 7) for n in range(2 * ACK_RUNS_MAX + 1)]
    frames = mine.frames()
    assert [len(frame.raw) // wire.ACK_RUN.size for frame in frames] == [
        ACK_RUNS_MAX,
        ACK_RUNS_MAX,
        1,
    ]
    assert list(mine.unanswered) == [frame.correlation for frame in frames]


def test_outcomes_are_cut_by_their_number() -> None:
    mine = settlements()
    outcome = Outcome(wire.FAIL, 1, 7)
    mine.pending += [Ended(n, n, 7, outcome) for n in range(OUTCOMES_MAX + 1)]
    frames = mine.frames()
    assert all(isinstance(frame, f.Settle) for frame in frames)
    assert [frame.count for frame in frames] == [OUTCOMES_MAX, 1]


@pytest.mark.parametrize(
    ("fair", "run_ms", "wanted"), [("", 900, False), ("a", 1.9, False), ("a", 2, True)]
)
def test_the_run_time_is_told_where_tenants_share_by_it_and_an_ack_says_less(
    fair: str, run_ms: float, *, wanted: bool
) -> None:
    request = Context(keys=LaneKeys(fair=fair))
    parcel = Parcel(b"", 0, 0, 1, 1, 1, 0, 0)
    assert Run(parcel, None, request, int(run_ms * 1_000_000)).is_measured is wanted
