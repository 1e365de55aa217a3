"""How much a runner asks for, by how long its tasks take."""

import pytest

from qworker.credit import ALONE_S, MAX, START, TARGET_S, Credit


def after(*runs: tuple[int, float]) -> Credit:
    """A credit that has seen so many runs of so many seconds, in order."""
    credit = Credit()
    for count, seconds in runs:
        for _ in range(count):
            credit.ran(seconds)
    return credit


def test_it_starts_small():
    """Nothing is known yet: little is asked for."""
    assert Credit().wanted() == START


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.00002, MAX), (0.001, 75), (0.01, 7), (0.5, START), (ALONE_S, 1), (60.0, 1)],
)
def test_steady_tasks_get_a_target_time_of_work_in_hand(seconds, wanted):
    """Many short ones, few long ones, one at a time from a second on."""
    credit = after((5000, seconds))
    assert credit.wanted() == pytest.approx(wanted, abs=1)
    assert wanted * seconds <= TARGET_S or wanted <= START


def test_one_short_task_does_not_make_a_hoarder():
    """Credit doubles only for as many tasks as it was."""
    seen = [after((count, 0.00001)).wanted() for count in (1, 2, 6, 14)]
    assert seen == [2, 4, 8, 16]


def test_a_long_task_ends_the_hoard_at_once_and_trust_comes_back_slowly():
    """A second after a thousand short ones: from then on few are asked for, for a while."""
    before = after((5000, 0.0001))
    assert before.wanted() == 750
    before.ran(1.0)
    assert before.wanted() == START
    for _ in range(20):
        before.ran(0.0001)
    assert before.wanted() < 10
    for _ in range(200):
        before.ran(0.0001)
    assert before.wanted() > 100


def test_a_shrunk_credit_grows_again_from_the_start():
    """What the watchman took away has to be earned."""
    credit = after((5000, 0.00001))
    credit.shrink()
    assert credit.wanted() == START


def test_small_changes_are_not_worth_a_frame():
    """The broker is told when the credit moves by a quarter."""
    credit = after((5000, 0.001))
    credit.granted = 75
    assert credit.change() == 0
    credit.granted = 10
    assert credit.change() == 75
    credit.granted = 1000
    assert credit.change() == 75
