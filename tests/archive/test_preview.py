"""What clients show of arguments: kept as far as the broker's setting goes, and searched."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from archives import DAY, NOW, Books
from qbroker.archive.archivist import Keeping
from qbroker.archive.walking import Query
from qbroker.core import records as r
from qprotocol.failure import Failure


def headers(preview: str) -> bytes:
    return msgpack.packb({"preview": preview, "user": {"password": "hush"}})


def kept(bytes_max: int) -> Keeping:
    return Keeping(7 * DAY, 1 << 30, bytes_max)


def test_it_is_kept_whatever_becomes_of_the_task_and_any_part_of_it_finds_it(
    tmp_path: Path,
) -> None:
    books = Books(tmp_path, keeping=kept(100))
    books.acked(2, headers("(1, 'acked')"))
    books.settled(r.SUCCEEDED, 6, b"2", DAY, headers("(2, 'done')"))
    failed = Failure("E", "m").pack()
    books.settled(r.FAILED, 7, failed, DAY, headers("(3, 'failed') {'x%_*': 1}"))
    position, _ = books.handed_out(1, headers("(4, 'cancelled')"))
    books.write(r.Removed([[position, 0, 0]], "cancelled", NOW, 0))
    books.acked()
    books.go_on()
    shown = [row["preview"] for row in reversed(books.archive.rows())]
    assert shown[:2] == ["(1, 'acked')"] * 2
    assert shown[2:] == ["(2, 'done')", "(3, 'failed') {'x%_*': 1}", "(4, 'cancelled')", None]
    ask = books.archive.questions
    for part, ids in {"acked": ["t1.1", "t1.0"], "x%_*": ["t3.0"], "Acked": [], "hush": []}.items():
        assert [row["id"] for row in ask.search(Query(preview=part)).rows] == ids, part
    assert ask.task("t2.0")["preview"] == "(2, 'done')"  # type: ignore[index]
    history = books.archive.store._db.execute("SELECT preview FROM history WHERE id = 't2.0'")
    assert history.fetchall() == [("(2, 'done')",)]


def test_a_task_that_took_another_ones_place_shows_its_own(tmp_path: Path) -> None:
    books = Books(tmp_path, keeping=kept(100))
    books.settled(r.RETRIED, 0, Failure("E", "m").pack(), 0, headers("(1,)"))
    books.acked(1, headers("(2,)"))
    books.go_on()
    assert [row["preview"] for row in books.archive.rows()] == ["(2,)"]


@pytest.mark.parametrize(
    ("bytes_max", "shown"), [(0, None), (1, "("), (3, "('"), (4, "('é"), (100, "('é', 1)")]
)
def test_what_is_longer_than_the_setting_is_cut_at_a_character(
    tmp_path: Path, bytes_max: int, shown: str | None
) -> None:
    books = Books(tmp_path, keeping=kept(bytes_max))
    books.acked(1, headers("('é', 1)"))
    books.go_on()
    assert [row["preview"] for row in books.archive.rows()] == [shown]


def test_headers_that_are_not_ours_show_nothing(tmp_path: Path) -> None:
    books = Books(tmp_path, keeping=kept(100))
    for raw in (b"\x81", b"no map at all", msgpack.packb({"user": 1, "preview": "later"})):
        books.acked(1, raw)
    books.go_on()
    assert [row["preview"] for row in books.archive.rows()] == [None] * 3
