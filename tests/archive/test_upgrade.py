"""Archives that earlier versions wrote: brought up to date when the archivist opens them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from archives import DAY, Books
from qbroker.archive import schema
from qbroker.archive.archivist import Keeping
from qbroker.archive.errors import OlderError
from qbroker.archive.questions import Questions
from qbroker.archive.walking import Query
from qbroker.core import records as r
from qprotocol.failure import Failure

OLD = sorted((Path(__file__).parent / "old").glob("schema_*.sql"))


def written(source: Path, path: Path, log_id: bytes) -> None:
    """The archive, as that version left it."""
    with closing(sqlite3.connect(path)) as db:
        for pragma in (
            f"page_size={schema.PAGE_BYTES}",
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
        ):
            db.execute(f"PRAGMA {pragma}")
        db.executescript(source.read_text(encoding="utf-8"))
        db.execute("UPDATE meta SET value = ? WHERE name = 'log'", (log_id,))
        db.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={source.stem.removeprefix('schema_')}")
        db.commit()


def tables(path: Path) -> dict[str, set[str]]:
    """What is in the file: columns of tables and views, and what indexes are on."""
    with closing(sqlite3.connect(path)) as db:
        names = db.execute("SELECT name, type FROM sqlite_schema").fetchall()
        pragma = {"index": "index_info", "table": "table_info", "view": "table_info"}
        return {
            name: {str(row[2 if kind == "index" else 1]) for row in found}
            for name, kind in names
            if (found := db.execute(f"PRAGMA {pragma[kind]}({name})").fetchall())
        }


@pytest.mark.parametrize("source", OLD, ids=lambda path: path.stem)
def test_an_old_archive_goes_on_as_a_new_one(source: Path, tmp_path: Path) -> None:
    books = Books(tmp_path, keeping=Keeping(7 * DAY, 1 << 30, 100))
    books.acked(2)
    books.settled(r.SUCCEEDED, 6, b"2", DAY)
    books.settled(r.FAILED, 7, Failure("E", "m", "trace").pack(), DAY)
    first, grant = books.handed_out(1, msgpack.packb({"preview": "(4,)"}))
    fresh = tables(books.archive.path)
    books.archive.close()
    for part in tmp_path.glob(f"{schema.FILE_NAME}*"):
        part.unlink()
    written(source, books.archive.path, books.log.log_id)

    # Old results are found before the archivist has seen it; for searches it must have been there
    asked = Questions(books.archive.path)
    found = asked.find(b"t2.0", minted=False)
    assert found is not None
    assert found.kept == b"2"
    with pytest.raises(OlderError, match=f"searches need schema {schema.SCHEMA}"):
        asked.search(Query())
    books.archive.start()
    assert [row["id"] for row in asked.search(Query()).rows] == ["t3.0", "t2.0", "t1.1", "t1.0"]
    asked.close()
    assert tables(books.archive.path) == fresh

    # What it knew then it knows now: who has t4.0
    books.write(r.Acked([[grant, first, 1]]))
    assert books.go_on() == ["t1.0", "t1.1", "t2.0", "t3.0", "t4.0"]
    row = books.archive.rows()[0]
    assert (row["preview"], row["worker"]) == ("(4,)", f"{b's'.hex() * 16}/1")
    assert books.archive.questions.task("t3.0")["traceback"] == "trace"  # type: ignore[index]


@pytest.mark.parametrize("source", OLD, ids=lambda path: path.stem)
def test_an_upgrade_that_is_cut_off_has_changed_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / schema.FILE_NAME
    written(source, path, b"x" * 16)
    before = tables(path)
    last = schema.SCHEMA - 1
    cut_off = (*schema.UPGRADES[last], "no SQL")
    monkeypatch.setitem(schema.UPGRADES, last, cut_off)
    with pytest.raises(schema.ArchiveError, match="no"):
        schema.open_to_write(path, b"x" * 16)
    assert tables(path) == before
    monkeypatch.undo()
    schema.open_to_write(path, b"x" * 16).close()
    assert tables(path) != before


def test_there_is_an_old_archive_of_every_schema_before_this_one() -> None:
    assert [path.stem for path in OLD] == [f"schema_{n}" for n in range(1, schema.SCHEMA)]
