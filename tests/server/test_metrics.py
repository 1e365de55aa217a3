"""The metrics table, health's verdict, and the lines of the journal: values in, text out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest

from qbroker.core.statistics import ArchiveStatistics, QueueStatistics, Statistics
from qbroker.net.complaints import Complaints
from qbroker.ops.health import STALLED_S, Health
from qbroker.ops.journal import open_journal
from qbroker.ops.metrics import METRICS, OUTCOMES, Metrics, Snapshot, markdown


def queue(name: str, ready: int = 0, **fields: object) -> QueueStatistics:
    given = {
        "name": name,
        "ready": ready,
        "scheduled": 0,
        "leased": 0,
        "consumers": 0,
        "quarantined": 0,
        "oldest_ready": 0,
        "oldest_ready_ms": 0,
        "counts": {},
    }
    return QueueStatistics(**given | fields)


def snapshot(*queues: QueueStatistics, **fields: object) -> Snapshot:
    statistics = Statistics(
        queues=queues,
        connections={},
        sessions=2,
        leases=3,
        results=4,
        results_dropped=5,
        lease_lost=6,
        duplicates=7,
        uploads=0,
        producers=1,
    )
    given = {
        "statistics": statistics,
        "connections": {"worker": 2, "stranger": 1},
        "protocol_errors": {"BAD_FRAME": 9},
        "inbox_bytes": 10,
        "log_bytes": 11,
        "log_segments": 12,
        "checkpoint_batch": 20,
        "checkpoint_age_s": 2.5,
        "checkpoint_s": 3.5,
        "checkpoint_bytes": 21,
        "checkpoint_failures": 22,
        "disk_free_bytes": 13,
        "disk_level": 1,
        "archive": ArchiveStatistics(14, 15, 16, 17, 0.25, "", 18, 19),
        "loop_lag_s": 0.5,
        "started_s": 1.5,
        "version": "1.2",
        "epoch": 7,
    }
    return Snapshot(**given | fields)


class Scraped(Metrics):
    """Metrics of what ``take`` gives at each look."""

    def __init__(self, take: Callable[[], Snapshot], queues_max: int = 200) -> None:
        super().__init__(queues_max)
        self.take = take

    def scrape(self) -> bytes:
        return self.text(self.take())


def values(metrics: Scraped) -> dict[str, float]:
    lines = metrics.scrape().decode().splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


def test_every_metric_is_there_under_its_name_with_its_help() -> None:
    text = Scraped(lambda: snapshot(queue("q"))).scrape().decode()
    for row in METRICS:
        assert f"# HELP {row.name} {row.help}\n" in text
        assert f"# TYPE {row.name} {row.kind}\n" in text


def test_figures_come_out_as_they_went_in() -> None:
    mail = queue(
        "mail",
        ready=5,
        scheduled=6,
        leased=7,
        consumers=8,
        quarantined=9,
        oldest_ready_ms=1500,
        counts={"published": 20, "acked": 2},
    )
    found = values(Scraped(lambda: snapshot(mail)))
    assert found['qbroker_queue_messages{queue="mail",state="ready"}'] == 5
    assert found['qbroker_queue_messages{queue="mail",state="scheduled"}'] == 6
    assert found['qbroker_queue_messages{queue="mail",state="leased"}'] == 7
    assert found['qbroker_queue_messages{queue="mail",state="quarantined"}'] == 9
    assert found['qbroker_queue_consumers{queue="mail"}'] == 8
    assert found['qbroker_queue_oldest_ready_seconds{queue="mail"}'] == 1.5
    assert found['qbroker_messages_total{outcome="published",queue="mail"}'] == 20
    assert found['qbroker_messages_total{outcome="failed",queue="mail"}'] == 0
    assert found['qbroker_connections{role="stranger"}'] == 1
    assert found['qbroker_protocol_errors_total{code="BAD_FRAME"}'] == 9
    assert found["qbroker_lease_lost_total"] == 6
    assert (found["qbroker_disk_free_bytes"], found["qbroker_disk_level"]) == (13, 1)
    assert (found["qbroker_checkpoint_batch"], found["qbroker_checkpoint_bytes"]) == (20, 21)
    assert found["qbroker_checkpoint_failures_total"] == 22
    assert found["qbroker_event_loop_lag_seconds"] == 0.5
    assert found['qbroker_build_info{epoch="7",version="1.2"}'] == 1


def test_every_outcome_of_a_queue_has_its_series() -> None:
    found = values(Scraped(lambda: snapshot(queue("q"))))
    assert {f'qbroker_messages_total{{outcome="{o}",queue="q"}}' for o in OUTCOMES} <= set(found)


def test_what_is_observed_is_counted() -> None:
    metrics = Scraped(snapshot)
    metrics.turn_seconds.observe(0.002)
    metrics.sync_seconds.observe(0.003)
    metrics.batch_records.observe(50)
    found = values(metrics)
    assert found["qbroker_turn_seconds_count"] == 1
    assert found["qbroker_log_sync_seconds_sum"] == 0.003
    assert found['qbroker_log_batch_records_bucket{le="30.0"}'] == 0
    assert found['qbroker_log_batch_records_bucket{le="100.0"}'] == 1
    # When one is on a bound, and one over all of them
    metrics.batch_records.observe(30)
    metrics.batch_records.observe(1e6)
    found = values(metrics)
    assert found['qbroker_log_batch_records_bucket{le="30.0"}'] == 1
    assert found['qbroker_log_batch_records_bucket{le="100000.0"}'] == 2
    assert found['qbroker_log_batch_records_bucket{le="+Inf"}'] == 3
    assert found["qbroker_log_batch_records_count"] == 3
    assert found["qbroker_log_batch_records_sum"] == 1_000_080


def test_series_are_bounded_the_fullest_queues_keep_their_names() -> None:
    queues = [queue(f"q{n}", ready=n, counts={"published": 1}) for n in range(10)]
    found = values(Scraped(lambda: snapshot(*queues), queues_max=3))
    depths = {name: value for name, value in found.items() if 'state="ready"' in name}
    assert depths == {
        'qbroker_queue_messages{queue="q9",state="ready"}': 9,
        'qbroker_queue_messages{queue="q8",state="ready"}': 8,
        'qbroker_queue_messages{queue="q7",state="ready"}': 7,
        'qbroker_queue_messages{queue="other",state="ready"}': sum(range(7)),
    }
    assert found['qbroker_messages_total{outcome="published",queue="other"}'] == 7


def test_a_queue_never_changes_its_series_so_no_counter_goes_backwards() -> None:
    now = [queue("a", ready=9, counts={"acked": 1}), queue("b", ready=1, counts={"acked": 2})]
    metrics = Scraped(lambda: snapshot(*now), queues_max=1)
    assert values(metrics)['qbroker_messages_total{outcome="acked",queue="a"}'] == 1
    now[:] = [queue("a", ready=0, counts={"acked": 5}), queue("b", ready=99, counts={"acked": 7})]
    found = values(metrics)
    assert found['qbroker_messages_total{outcome="acked",queue="a"}'] == 5
    assert found['qbroker_messages_total{outcome="acked",queue="other"}'] == 7


def test_a_queues_name_cannot_break_the_format() -> None:
    text = Scraped(lambda: snapshot(queue('a"b\n', ready=1))).scrape().decode()
    assert 'qbroker_queue_messages{queue="a\\"b\\n",state="ready"} 1.0\n' in text


def test_two_brokers_in_one_process_do_not_share_a_registry() -> None:
    first, second = Scraped(snapshot), Scraped(snapshot)
    first.turn_seconds.observe(1)
    assert values(second)["qbroker_turn_seconds_count"] == 0


def test_the_table_for_the_docs_has_a_row_for_each() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(METRICS)
    assert {line.count("|") for line in lines} == {6}


# --- Health


class Disk:
    """What the engine says of its batches."""

    def __init__(self) -> None:
        metrics = Scraped(snapshot)
        self.begun, self.done = metrics.batch_records, metrics.sync_seconds
        self.begin()  # the boot's batch is not timed
        self.health = Health(self.begun, self.done, epoch=3, version="1.2")

    def begin(self) -> None:
        self.begun.observe(1)

    def finish(self, took_s: float = 0.001) -> None:
        self.done.observe(took_s)

    def wait(self, seconds: float) -> str:
        for _ in range(10):
            self.health.tick(seconds / 10)
        return self.health.status


def test_a_broker_with_nothing_to_do_is_well() -> None:
    assert Disk().wait(1000) == "ok"


def test_a_batch_that_stays_with_the_disk_is_a_stall_until_it_is_back() -> None:
    disk = Disk()
    disk.begin()
    assert disk.wait(STALLED_S - 0.1) == "ok"
    assert disk.wait(1) == "stalled"
    disk.finish()
    assert disk.wait(1) == "ok"


def test_a_slow_disk_that_answers_is_no_stall() -> None:
    disk = Disk()
    for _ in range(5):
        disk.begin()
        assert disk.wait(STALLED_S - 1) == "ok"
        disk.finish()


def test_who_stops_is_not_well_whatever_the_disk_does() -> None:
    disk = Disk()
    disk.health.stopping = True
    assert disk.wait(1) == "stopping"


def test_the_report_says_what_it_is_based_on() -> None:
    disk = Disk()
    disk.begin()
    disk.finish(0.0123)
    disk.wait(2)
    assert disk.health.report(written=20, durable=18) == {
        "status": "ok",
        "version": "1.2",
        "epoch": 3,
        "log_written": 20,
        "log_durable": 18,
        "log_durable_lag": 2,
        "last_sync_ms": 12.3,
        "stuck_ms": 0,
        "uptime_s": 2,
    }


# --- Lines


@pytest.fixture
def journal() -> io.StringIO:
    logger = logging.getLogger("qbroker")
    before = logger.handlers[:], logger.level, logger.propagate
    yield io.StringIO()
    logger.handlers[:], logger.level, logger.propagate = before


def test_a_line_for_people(journal: io.StringIO) -> None:
    open_journal("info", "text", journal)
    logging.getLogger("qbroker.net").warning("%d\nlines", 2)
    logging.getLogger("qbroker").debug("unheard")
    (line,) = journal.getvalue().splitlines()
    assert line[4] == "-"
    assert line.endswith(" warning net: 2\\nlines")


def test_a_line_for_collectors(journal: io.StringIO) -> None:
    open_journal("debug", "json", journal)
    try:
        raise ValueError("é")
    except ValueError as error:
        logging.getLogger("qbroker.engine").critical("oh", exc_info=error)
    (line,) = journal.getvalue().splitlines()
    said = json.loads(line)
    assert (said["level"], said["where"], said["message"]) == ("critical", "qbroker.engine", "oh")
    assert said["time"].endswith("+00:00")
    assert said["traceback"].endswith("ValueError: é")


def test_complaints_say_how_many_they_stand_for(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    complaints = Complaints(lambda: now[0])
    for _ in range(5):
        complaints.add("BAD_FRAME", "1.2.3.4:5", "no\x1b[31m good\n" + "x" * 300)
    complaints.add("BAD_STATE", "1.2.3.4:5", "other codes are not drowned")
    now[0] = 11
    complaints.add("BAD_FRAME", "1.2.3.4:6", "again")
    assert complaints.counts == {"BAD_FRAME": 6, "BAD_STATE": 1}
    first, other, second = caplog.messages
    assert first.startswith("BAD_FRAME from 1.2.3.4:5: no?[31m good?xxx")
    assert len(first) < 260
    assert other.startswith("BAD_STATE")
    assert second == "BAD_FRAME from 1.2.3.4:6: again (and 4 more since the last such line)"
