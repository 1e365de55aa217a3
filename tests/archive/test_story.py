"""Rows against an oracle, whatever happened, however often broker and archivist were killed.

The stories are those of the core's model. The oracle goes through the whole log at the end,
message by message, and knows nothing of runs, grants' books, transactions or crashes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from archives import Archive
from core.test_model import Story
from qbroker.archive.following import RULES, Follower
from qbroker.archive.known import Known
from qbroker.archive.store import Store
from qbroker.bodies import stored_body
from qbroker.core import records as r
from qbroker.core.survey import id_of, place_of
from qbroker.log.format import StoredRecord
from qbroker.log.log import Log
from qprotocol import frames as f
from qprotocol.states import State

FINAL = {r.SUCCEEDED, r.FAILED, r.REJECTED, r.POISONED}


class Oracle:
    """Every message that the log tells of, one by one."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[bytes, int]] = {}
        """Bytes, and when it was first written."""
        self.holders: dict[int, tuple[str | None, int]] = {}
        self.tries: dict[int, int] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.kept: dict[int, bytes] = {}
        self.dead_queues: set[int] = set()
        self.dead_lanes: set[int] = set()

    def take(self, stored: StoredRecord) -> None:
        body = stored_body(stored)
        if body is not None:
            for position in range(body.first, body.first + body.count):
                self.messages[position] = body.message(position), stored.wall_ms
        record = r.unpack(stored.type, stored.body)
        name = f"on_{type(record).__name__.lower()}"
        if hasattr(self, name):
            getattr(self, name)(record, stored)

    def on_granted(self, record: r.Granted, stored: StoredRecord) -> None:
        worker = f"{record.session.hex()}/{record.member}" if record.session else None
        for _, _, first, count in record.entries:
            for position in range(first, first + count):
                self.holders[position] = worker, stored.wall_ms

    on_grantedexactly = on_granted

    def on_returned(self, record: r.Returned, _: StoredRecord) -> None:
        for position in record.positions:
            del self.holders[position]

    def row(self, position: int, state: State, **more: Any) -> dict[str, Any]:
        raw, published = self.messages[position]
        queue, task, *_ = place_of(raw)
        worker, granted = self.holders.pop(position, (None, None))
        return {
            "position": position,
            "id": id_of(raw).decode() or None,
            "queue": queue,
            "task": task or None,
            "state": state.name,
            "worker": worker,
            "started_ms": granted,
            "published_ms": published,
            "failures": self.tries.get(position, 0),
            "reason": None,
            "error": None,
        } | more

    def on_acked(self, record: r.Acked, stored: StoredRecord) -> None:
        for _, first, count in record.runs:
            for position in range(first, first + count):
                row = self.row(position, State.SUCCESS, finished_ms=stored.wall_ms)
                if row["task"]:
                    self.rows.setdefault(position, row)

    def on_settled(self, record: r.Settled, stored: StoredRecord) -> None:
        position = record.position
        if record.change in (r.RETRIED, r.FAILED):
            self.tries[position] = self.tries.get(position, 0) + 1
        if record.change not in FINAL:
            self.holders.pop(position)
            if record.replaced:
                raw, _ = self.messages[stored.position + 1]
                self.messages[stored.position + 1] = raw, self.messages[position][1]
                self.tries[stored.position + 1] = self.tries.get(position, 0)
            return
        more: dict[str, Any] = {"finished_ms": record.finished_ms}
        if record.change != r.SUCCEEDED:
            more |= {"reason": record.reason, "error": "E"}
            if record.change == r.REJECTED:
                more["error"] = "Rejected"
            elif b"WorkerLost" in record.result:
                more["error"] = "WorkerLost"
        row = self.row(position, State(record.state), **more)
        if record.change != r.SUCCEEDED or record.keep_until_ms:
            self.rows[position], self.kept[position] = row, record.result
        elif row["task"]:
            self.rows.setdefault(position, row)

    def on_removed(self, record: r.Removed, _: StoredRecord) -> None:
        for position, _, _ in record.positions if record.reason != "purged" else ():
            more = {"reason": record.reason, "finished_ms": record.finished_ms}
            self.rows[position] = self.row(position, State.REVOKED, **more)

    def on_queueopened(self, record: r.QueueOpened, _: StoredRecord) -> None:
        if record.name.endswith(".dead"):
            self.dead_queues.add(record.number)

    def on_laneopened(self, record: r.LaneOpened, _: StoredRecord) -> None:
        if record.queue in self.dead_queues:
            self.dead_lanes.add(record.number)

    def on_moved(self, record: r.Moved, _: StoredRecord) -> None:
        runs = [*record.ready, *([*row[:4], 1] for row in record.scheduled)]
        for lane, _priority, to, first, count in runs:
            if lane in self.dead_lanes and to not in self.dead_lanes:
                for position in range(first, first + count):
                    self.rows.pop(position, None)
                    self.kept.pop(position, None)

    def on_replayed(self, record: r.Replayed, _: StoredRecord) -> None:
        for _lane, _priority, _to, position, _was in record.entries:
            self.rows.pop(position, None)
            self.kept.pop(position, None)
            self.tries[position] = 0

    def on_letteredited(self, record: r.LetterEdited, stored: StoredRecord) -> None:
        before, after = record.letter, stored.position
        raw, _ = self.messages[after]
        self.messages[after] = raw, self.messages[before][1]
        self.tries[after] = self.tries.get(before, 0)
        row, kept = self.rows.pop(before, None), self.kept.pop(before, None)
        if row:
            self.rows[after] = row | {"position": after}
        if kept is not None:
            self.kept[after] = kept

    def on_forgotten(self, record: r.Forgotten, _: StoredRecord) -> None:
        for position in record.positions:
            self.rows.pop(position, None)
            self.kept.pop(position, None)


class ArchivedStory(Story):
    """The same, with an archivist that reads, saves and is killed in between."""

    def archive(self) -> Archive:
        machine = self.machine
        if machine.archive is None:
            machine.archive = Archive(machine.disk)
            machine.delivery._archive = machine.archive.questions
        return machine.archive

    @precondition(lambda self: not self.is_down)
    @rule(save=st.booleans(), told=st.booleans())
    def archivist_reads(self, save: bool, told: bool) -> None:
        archive = self.archive()
        archive.read(self.machine.log.durable)
        if save:
            archive.archivist.save()
            if told:
                self.machine.core.archived((archive.store.batch + 1 << 20) - 1)

    @rule(nth=st.integers(0, 3))
    def forget(self, nth: int) -> None:
        client = self.connected(self.clients[0])
        self.ask(client, f.Forget(id=f"id{nth}"), lambda frame: None)

    @precondition(lambda self: not self.is_down and self.machine.archive)
    @rule()
    def archivist_is_killed(self) -> None:
        self.archive().kill()

    def teardown(self) -> None:
        super().teardown()
        if self.is_down:
            return
        machine, archive = self.machine, self.archive()
        machine.settle()
        machine.log.sync()
        archive.advance(machine.log.durable)
        check(archive, machine.log)
        archive.close()


def check(archive: Archive, log: Log) -> None:
    """The rows are the oracle's, and what the archivist knows is what can still be settled."""
    oracle = Oracle()
    for info, stored in log.replay():
        if info.number <= log.durable:
            for each in stored:
                oracle.take(each)
    found = {row["position"]: row for row in archive.rows()}
    assert {p: shown(found[p], row) for p, row in oracle.rows.items()} == oracle.rows
    assert found.keys() == oracle.rows.keys()
    results = dict(archive.store._db.execute("SELECT position, bytes FROM results"))
    assert results == oracle.kept
    known = archive.store.known()
    assert held(known) == set(oracle.holders)
    assert known == archive.archivist._follower.known


def shown(row: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in wanted}


def held(known: Known) -> set[int]:
    """What is handed out, by the archivist's books, which must agree with one another."""
    named = {
        position
        for grant in known.grants.values()
        for _, first, count in grant.entries
        for position in range(first, first + count)
    }
    assert all(grant.left > 0 for grant in known.grants.values())
    return {position for position, _ in known.holders(named)}


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
STORIES = settings(stateful_step_count=50, suppress_health_check=QUIET)


def test_rows_are_the_oracles_whoever_is_killed() -> None:
    run_state_machine_as_test(ArchivedStory, settings=STORIES)


# --- Would we notice?


def nothing_known_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_save_known", lambda self, known: None)


def a_batch_told_of_twice(patch: pytest.MonkeyPatch) -> None:
    """Rows were saved, and how far they go was not."""
    patch.setattr(Archive, "start", started_behind(Archive.start))


def started_behind(start: Callable[[Archive], None]) -> Callable[[Archive], None]:
    def behind(self: Archive) -> None:
        start(self)
        if self.store.batch:
            self.archivist.read = self.store.batch = max(0, self.store.batch - 3)

    return behind


def a_try_that_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Follower, "_goes_on", lambda self, record, at, lane: None)


def a_return_that_is_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, r.Returned.TYPE, lambda self, stored: None)


PLANTED = [
    nothing_known_after_a_restart,
    a_batch_told_of_twice,
    a_try_that_is_not_counted,
    a_return_that_is_not_seen,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_the_stories_notice(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    once = settings(STORIES, max_examples=400, phases=[Phase.generate], database=None)
    with pytest.raises(Exception) as caught:  # whatever shows it
        run_state_machine_as_test(ArchivedStory, settings=once)
    assert not isinstance(caught.value, NotImplementedError)
