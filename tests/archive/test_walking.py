"""Searches: what a walk finds is what is there, in whatever slices and pages it goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbroker.archive import questions, walking
from qbroker.archive.changes import COLUMNS, Changes
from qbroker.archive.questions import Page, Questions
from qbroker.archive.schema import FILE_NAME
from qbroker.archive.store import Store, open_store
from qbroker.archive.walking import Query, walk_for
from qprotocol.states import State

NAMES = ["t", "u", "q", "r", "ab/1", "ab/2", "cd/1", "nobody has this"]
NUMBERS = {name: number for number, name in enumerate(NAMES, 1)}
ROW = st.fixed_dictionaries(
    {
        "finished_ms": st.integers(1, 9),
        "task": st.sampled_from(["t", "u", None]),
        "queue": st.sampled_from(["q", "r"]),
        "worker": st.sampled_from(["ab/1", "ab/2", "cd/1", None]),
        "state": st.sampled_from([6, 6, 7, 8]),
        "error": st.sampled_from(["E", "Else", None]),
        "preview": st.sampled_from(["(1, 'a')", "('a%',)", None]),
    }
)
QUERY = st.builds(
    Query,
    task=st.sampled_from(["", "t", "u", "nothing", "nobody has this"]),
    queue=st.sampled_from(["", "", "q", "nothing"]),
    worker=st.sampled_from(["", "", "ab", "ab/1", "cd", "x", "nobody"]),
    state=st.sampled_from([0, 0, 6, 7, 8]),
    error=st.sampled_from(["", "", "E", "Else", "X"]),
    preview=st.sampled_from(["", "", "a", "1, ", "%"]),
    since_ms=st.sampled_from([0, 3, 5]),
    until_ms=st.sampled_from([0, 5, 9]),
    limit=st.integers(1, 5),
)


def stored(folder: Path, rows: list[dict[str, Any]]) -> Store:
    """An archive with these rows; positions are as they come."""
    store = open_store(folder / FILE_NAME, bytes(16))
    known = store.known()
    for name in NAMES:
        known.number(name)
    changes = Changes()
    for position, row in enumerate(rows, 1 << 20):
        row["position"] = position
        row["error"] = row["error"] if row["state"] != State.SUCCESS else None
        numbered = {name: NUMBERS.get(row[name]) for name in ("task", "queue", "worker")}
        whole = {"failures": 0, "keep_until_ms": 0, "brief": 0} | row | numbered
        changes.acked.append(tuple(whole.get(name) for name in COLUMNS))
    store.save(1, changes, known)
    return store


def fits(row: dict[str, Any], query: Query) -> bool:
    return (
        (not query.task or row["task"] == query.task)
        and (not query.queue or row["queue"] == query.queue)
        and (row["worker"] or "").startswith(query.worker)
        and query.state in (0, row["state"])
        and (row["error"] or "").startswith(query.error)
        and query.preview in (row["preview"] or "")
        and query.since_ms <= row["finished_ms"]
        and not 0 < query.until_ms <= row["finished_ms"]
    )


def pages(asked: Questions, query: Query) -> Iterator[Page]:
    """All of them, one after the other."""
    after = query.after
    while True:
        values = {name: getattr(query, name) for name in query.__slots__}
        page = asked.search(Query(**values | {"after": after}))
        yield page
        if page.next is None:
            return
        assert after == (0, 0) or page.next < after, "it goes on"
        after = page.next


@given(st.lists(ROW, max_size=30), st.lists(QUERY, min_size=5, max_size=5), st.data())
def test_pages_hold_what_is_there_once_and_in_order(
    rows: list[dict[str, Any]], queries: list[Query], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder), rows)
        asked = Questions(Path(folder) / FILE_NAME)
        for query in queries:
            wanted = sorted(
                ((row["finished_ms"], row["position"]) for row in rows if fits(row, query)),
                reverse=True,
            )
            ms = data.draw(st.sampled_from([-1, 1_000]), "time for a search")
            with (
                mock.patch.object(walking, "SLICE_ROWS", data.draw(st.integers(1, 8), "slice")),
                mock.patch.object(questions, "SEARCH_MS_MAX", ms),
            ):
                found = list(pages(asked, query))
            shown = [(row["finished_ms"], row["position"]) for page in found for row in page.rows]
            assert shown == wanted
            assert all(len(page.rows) <= query.limit for page in found)
            assert all(page.next for page in found if page.is_cut)
        asked.close()
        store.close()


def test_a_search_without_time_says_how_far_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"task": "t", "queue": "q", "worker": "ab/1", "state": 6, "error": None, "preview": None}
    stored(tmp_path, [{**row, "finished_ms": ms} for ms in range(1, 101)]).close()
    asked = Questions(tmp_path / FILE_NAME)
    monkeypatch.setattr(walking, "SLICE_ROWS", 10)
    assert asked.search(Query(worker="cd", queue="q")) == Page()
    monkeypatch.setattr(questions, "SEARCH_MS_MAX", -1)
    page = asked.search(Query(worker="cd", queue="q"))
    assert (page.rows, page.next, page.is_cut) == ([], (91, 0), True)
    page = asked.search(Query(worker="ab", queue="q", limit=50))
    assert (len(page.rows), page.next, page.is_cut) == (10, (91, 0), True)
    page = asked.search(Query(worker="nobody at all"))
    assert page == Page(), "a name that no row has needs no search"
    page = asked.search(Query(task="t", limit=50))
    assert (len(page.rows), page.is_cut) == (50, False), "what an index has in order is not cut"


@pytest.mark.parametrize(
    ("query", "index", "entered"),
    [
        (Query(), "tasks_finished", ""),
        (Query(since_ms=5), "tasks_finished", "finished_ms>"),
        (Query(task="t"), "tasks_task", "task=?"),
        (Query(task="t", until_ms=5), "tasks_task", "task=? AND finished_ms<"),
        (Query(task="t", worker="ab"), "tasks_task", "task=?"),
        (Query(state=6, queue="q"), "tasks_finished", ""),
        (Query(state=7), "tasks_unsuccessful", ""),
        (Query(error="E", task="t"), "tasks_unsuccessful", ""),
        (Query(queue="q", after=(5, 1)), "tasks_finished", "finished_ms<"),
        (Query(worker="ab", preview="x"), "tasks_finished", ""),
    ],
)
def test_a_walk_goes_over_its_index_and_sorts_no_more_than_a_millisecond(
    tmp_path: Path, query: Query, index: str, entered: str
) -> None:
    store = stored(tmp_path, [])
    db = store._db
    walk = walk_for(db, query)
    assert walk is not None
    said: list[str] = []
    db.set_trace_callback(said.append)
    walk.rows(db, query.after, None, 51).fetchall()
    walk.end_of_slice(db, query.after)
    db.set_trace_callback(None)
    plans = [[row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")] for sql in said]
    plan, *ends = plans
    assert plan[0].split(" INDEX ")[1].startswith(f"{index} ({entered}" if entered else index)
    assert not [step for step in plan if step.startswith("USE TEMP B-TREE FOR ORDER BY")]
    for end in ends:
        assert len(end) == 1, "nothing is sorted"
        assert f"COVERING INDEX {index}" in end[0], "no row is looked at"
    assert bool(ends) == bool(walk.wanted)
    store.close()
