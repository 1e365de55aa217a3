"""What is kept, and for how long; what is shed; files that are no archive."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from archives import DAY, NOW, Books
from qbroker.archive.archivist import Keeping
from qbroker.archive.errors import BusyError, DamagedError, ForeignError, NewerError
from qbroker.archive.questions import PAGE_ROWS_MAX, Questions
from qbroker.archive.schema import FILE_NAME, SCHEMA, move_aside, open_to_write
from qbroker.archive.store import SWEEP_ROWS_MAX, open_store
from qbroker.archive.walking import Query
from qbroker.archiving import Lag
from qbroker.core import records as r
from qbroker.log.errors import CorruptError, UnreadableError
from qbroker.log.reader import LogReader
from qprotocol.failure import Failure

LOG_ID = bytes(16)
FAILED = Failure("E", "m", "trace").pack()


@pytest.mark.parametrize(
    ("history", "now", "later"),
    [
        ("all", ["t1.0", "t2.0", "t3.0"], ["t1.0", "t2.0", "t3.0"]),
        ("failures", ["t2.0", "t3.0"], ["t3.0"]),
        ("none", ["t2.0", "t3.0"], []),
    ],
)
def test_history_says_of_what_a_row_is_kept_and_for_how_long(
    tmp_path: Path, history: str, now: list[str], later: list[str]
) -> None:
    books = Books(tmp_path, history=history)
    books.acked()
    books.settled(r.SUCCEEDED, 6, b"2", DAY)
    books.settled(r.FAILED, 7, FAILED, DAY)
    assert books.go_on() == now
    assert books.swept(DAY - 1) == now
    assert books.swept(DAY) == later
    assert books.swept(8 * DAY) == []


def test_history_may_be_set_later_and_survives_the_archivist(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.acked()
    assert books.go_on() == ["t1.0"]
    books.write(r.HistorySet(0, "failures"))
    books.acked()
    assert books.go_on() == ["t1.0"]
    books.archive.kill()
    books.acked()
    assert books.go_on() == ["t1.0"]
    books.write(r.HistorySet(0, ""))
    books.acked()
    assert books.go_on() == ["t1.0", "t4.0"]


def test_a_result_goes_with_its_time_and_a_failure_keeps_its_traceback(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.settled(r.SUCCEEDED, 6, b"2", DAY)
    books.settled(r.FAILED, 7, FAILED, DAY)
    books.go_on()
    questions = books.archive.questions
    assert questions.find(b"t1.0", minted=False).kept == b"2"  # type: ignore[union-attr]
    assert questions.task("t1.0")["result_bytes"] == 1  # type: ignore[index]
    books.swept(DAY)
    assert questions.find(b"t1.0", minted=False) is None
    assert questions.find(b"t2.0", minted=False) is None
    assert questions.task("t1.0")["result_bytes"] is None  # type: ignore[index]
    assert questions.task("t2.0")["traceback"] == "trace"  # type: ignore[index]


def test_shedding_leaves_out_successes_without_a_result_and_counts_them(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.acked(5)
    books.settled(r.SUCCEEDED, 6, b"", 0)
    books.settled(r.SUCCEEDED, 6, b"2", DAY)
    books.settled(r.FAILED, 7, FAILED, DAY)
    assert books.go_on(is_shedding=True) == ["t3.0", "t4.0"]
    assert books.archive.store.figures().shed == 6
    books.acked()
    assert books.go_on() == ["t3.0", "t4.0", "t5.0"]
    assert books.archive.store.figures().shed == 6


def test_over_the_quota_the_oldest_go(tmp_path: Path) -> None:
    books = Books(tmp_path, keeping=Keeping(7 * DAY, 1 << 19))
    for _ in range(30):
        books.acked(200)
    books.archive.read(books.log.durable)
    books.archive.archivist.save()
    before = books.archive.store.figures().bytes
    assert before > 1 << 19
    for _ in range(10):
        books.swept(0)
    left = books.archive.rows()
    assert books.archive.store.figures().bytes <= 1 << 19
    assert 0 < len(left) <= PAGE_ROWS_MAX
    assert left[0]["id"].startswith("t30.")
    assert SWEEP_ROWS_MAX < 6_000, "one step is not all"


def test_a_head_that_is_gone_costs_its_columns_not_its_row(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.write(r.Granted(1, b"s" * 16, 1, [[0, 0, 1 << 60, 2]]))
    books.write(r.Acked([[1, 1 << 60, 2]]))
    books.archive.advance(books.log.durable)
    rows = books.archive.rows()
    assert [(row["id"], row["state"]) for row in rows] == [(None, "SUCCESS")] * 2


def test_pages_follow_on_one_another_and_leave_nothing_out(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.acked(25)
    books.go_on()
    seen: list[str] = []
    query = Query(limit=10)
    while True:
        page = books.archive.questions.search(query)
        seen += [row["id"] for row in page.rows]
        if page.next is None:
            break
        query = Query(limit=10, after=page.next)
    assert seen == [f"t1.{number}" for number in reversed(range(25))]


def test_what_stands_for_itself_in_a_search(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.settled(r.FAILED, 7, Failure("a*b", "m").pack(), DAY)
    books.settled(r.FAILED, 7, Failure("axb", "m").pack(), DAY)
    books.go_on()
    found = books.archive.questions.search(Query(error="a*")).rows
    assert [row["error"] for row in found] == ["a*b"]


# --- Files that are no archive


def test_an_archive_of_another_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    open_store(path, LOG_ID).close()
    with pytest.raises(ForeignError, match="it is that of log 0000"):
        open_store(path, b"x" * 16)
    open_store(path, LOG_ID).close()


def test_an_archive_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    books = Books(tmp_path)
    books.acked()
    books.go_on()
    with pytest.raises(ForeignError, match="the log ends at 1"):
        list(books.archive.archivist.advance(1, is_shedding=False))


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(ForeignError, match="another program's"):
        open_store(path, LOG_ID)


def test_a_newer_archive_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    db = open_to_write(path, LOG_ID)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(NewerError, match=f"schema 99, this version reads schema {SCHEMA}"):
        open_store(path, LOG_ID)


def test_bytes_that_are_no_database_are_damage_and_stay_until_moved(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"nothing of the kind" * 1_000)
    with pytest.raises(DamagedError, match="--move-archive-aside"):
        open_store(path, LOG_ID)
    with pytest.raises(DamagedError):
        Questions(path).search(Query())
    assert path.read_bytes().startswith(b"nothing")
    aside = move_aside(path, NOW)
    assert aside.read_bytes().startswith(b"nothing")
    open_store(path, LOG_ID).close()


def test_a_page_that_rotted_is_damage_too(tmp_path: Path) -> None:
    books = Books(tmp_path)
    for _ in range(10):
        books.acked(200)
    books.go_on()
    books.archive.close()
    data = bytearray(books.archive.path.read_bytes())
    for at in range(8192, len(data)):
        data[at] ^= 0xFF
    books.archive.path.write_bytes(data)
    with pytest.raises(DamagedError):
        open_store(books.archive.path, books.log.log_id)


def test_a_file_somebody_else_writes_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbroker.archive.schema.BUSY_MS", 10)
    path = tmp_path / FILE_NAME
    first = open_to_write(path, LOG_ID)
    first.execute("BEGIN IMMEDIATE")
    (tmp_path / "own").mkdir()
    books = Books(tmp_path / "own")
    store = open_store(path, LOG_ID)
    with pytest.raises(BusyError, match="locked") as caught:
        store.save(1, books.archive.archivist._follower.changes, store.known())
    assert not caught.value.lasting
    first.execute("ROLLBACK")
    store.save(1, books.archive.archivist._follower.changes, store.known())
    assert store.batch == 1


# --- How far behind


def test_the_lag_is_what_the_log_grew_since_the_archived_batch() -> None:
    lag = Lag()
    lag.begin(100, 100, 1 << 20, 100)
    assert lag.bytes == 0
    for batch in range(101, 111):
        lag.note(batch, 1 << 20)
    assert lag.bytes == 10 << 20
    lag.reached(105)
    assert lag.bytes == 5 << 20
    lag.reached(110)
    assert lag.bytes == 0


def test_at_a_start_the_lag_is_its_share_of_the_log() -> None:
    lag = Lag()
    assert not lag.is_known
    lag.begin(100, 75, 1 << 20, 100)
    assert lag.is_known
    assert lag.bytes == lag.inherited == 1 << 18
    lag.reached(99)
    assert lag.bytes == 1 << 18, "a mark is passed as a whole"
    lag.note(101, 1 << 20)
    assert lag.inherited == 1 << 18, "what is published now comes on top"
    lag.reached(100)
    assert (lag.bytes, lag.inherited) == (1 << 20, 1 << 18)
    lag.reached(101)
    assert (lag.bytes, lag.inherited) == (0, 0)


# --- A disk that does not give a message's bytes


def unreadable(books: Books) -> None:
    """The log cannot be read, as seen by an archivist that remembers no message."""
    books.archive.kill()
    list(books.archive.archivist._reader.replay(1, books.log.durable))  # its index stands
    books.disk.fail(1, sticky=True)


def test_a_head_that_cannot_be_read_now_costs_no_name(tmp_path: Path) -> None:
    """The disk refuses for a while: the archivist ends, and the next one has all of the row."""
    books = Books(tmp_path)
    first, grant = books.handed_out()
    books.go_on()
    unreadable(books)
    with pytest.raises(UnreadableError):
        list(books.archive.archivist._follower.heads(first, 1))
    books.disk.heal()
    books.write(r.Acked([[grant, first, 1]]))
    books.archive.kill()
    assert books.go_on() == ["t1.0"]


def test_a_head_that_is_refused_for_long_is_given_up(tmp_path: Path) -> None:
    """One bad sector does not keep everything behind it out of the archive."""
    books = Books(tmp_path)
    first, _ = books.handed_out()
    books.go_on()
    books.archive.is_patient = False
    unreadable(books)
    assert list(books.archive.archivist._follower.heads(first, 1)) == [(first, *[None] * 7)]


def test_a_damaged_neighbour_costs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are read ahead; where that meets damage, a batch is read alone."""
    read_block = LogReader.read_block

    def with_a_neighbour(log: LogReader, batch: int, min_bytes: int = 1 << 20) -> Any:
        if min_bytes > 1:
            raise CorruptError("1.qlog", 0, 1, 1, "batch header checksum disagrees")
        return read_block(log, batch, min_bytes)

    books = Books(tmp_path)
    first, grant = books.handed_out()
    books.go_on()
    books.archive.kill()
    monkeypatch.setattr(LogReader, "read_block", with_a_neighbour)
    books.write(r.Acked([[grant, first, 1]]))
    assert books.go_on() == ["t1.0"]
