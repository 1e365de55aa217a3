"""Twenty kills under load: everything confirmed is run, nothing is invented, the counts agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.books import Books
from e2e.crash import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CYCLES = 20


@pytest.mark.parametrize("side", ["raw", "workers"])
def test_kill_nine_under_load(side: str, tmp_path: Path, record_property) -> None:
    """The total-queue check: lost and unexpected are empty, what was acked never came again."""
    totals = run(tmp_path, CYCLES, seed=7, names=[side])
    found = totals.as_dict()
    record_property("totals", json.dumps(found))
    assert totals.good, found
    assert totals.confirmed >= CYCLES * 40
    assert totals.confirmed + totals.refused + totals.unknown == totals.tried


# The check itself can fail: each fault is seen in books that hold it.


@pytest.fixture
def books() -> Books:
    """Three messages, confirmed and run once."""
    found = Books()
    found.confirm(found.marks(3))
    for mark in ("m0", "m1", "m2"):
        found.run(mark)
    assert found.totals().good
    return found


def test_books_see_a_lost_message(books: Books) -> None:
    """Confirmed and never run is lost; tried and never confirmed is not."""
    (tried,) = books.marks(1)
    assert books.totals().good
    books.confirm([tried])
    assert books.totals().lost == [tried]


def test_books_see_an_invented_message(books: Books) -> None:
    """What nobody tried, and what was said to be not done, is unexpected if it is run."""
    books.run("who?")
    books.refuse(refused := books.marks(1))
    books.run(refused[0])
    assert books.totals().unexpected == sorted(["who?", *refused])


def test_books_see_a_message_risen_from_the_dead(books: Books) -> None:
    """Run again is a duplicate; run again after its confirmed end is a fault."""
    books.run("m0")
    assert books.totals().good
    assert books.totals().duplicates == 1
    books.settle(["m1"])
    books.run("m1")
    assert books.totals().risen == ["m1"]
