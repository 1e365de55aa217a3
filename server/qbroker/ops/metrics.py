"""Every metric once: name, kind, unit, help, labels, and where its value is read.

Rule 1. Most values are read when they are asked for, from one immutable snapshot; only
        what has a distribution (histograms) is observed as it happens.
Rule 2. Labels are bounded. The first QUEUES_MAX queues to be seen, the fullest first,
        keep a series of their own until the broker ends; all others share "other". A
        queue never changes places: a counter must not go backwards.
Rule 3. Values are those of this process. Nothing about arguments, hosts or users.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qbroker.core.statistics import ArchiveStatistics, QueueStatistics, Statistics
from qbroker.ops.histogram import Histogram
from qprotocol.options import is_dead_queue

QUEUES_MAX = 200
OTHER = "other"
HALVES = ("intake", "dispatch")
"""What of a queue can be paused."""

OUTCOMES = (
    "published",
    "deduplicated",
    "delivered",
    "acked",
    "failed",
    "retried",
    "released",
    "returned",
    "crashed",
    "expired",
    "dead_lettered",
    "cancelled",
    "rejected",
    "purged",
    "moved_out",
    "moved_in",
    "overflowed",
    "replayed",
    "edited",
    "dropped",
    "quarantined",
    "upstream",
    "skipped",
    "held_again",
)
"""What is counted of messages, in the order of their lives."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The broker at one moment, as the table reads it."""

    statistics: Statistics
    connections: Mapping[str, int]
    """By role; "stranger" before Hello."""
    protocol_errors: Mapping[str, int]
    """By code, since the start."""
    inbox_bytes: int
    log_bytes: int
    log_segments: int
    disk_free_bytes: int
    disk_level: int
    checkpoint_batch: int
    """Of the newest; 0 if there is none."""
    checkpoint_age_s: float
    checkpoint_s: float
    """What writing it took; 0 if it was written before the start."""
    checkpoint_bytes: int
    checkpoint_failures: int
    """Since the start."""
    archive: ArchiveStatistics
    loop_lag_s: float
    """The latest the event loop was since the last snapshot."""
    started_s: float
    """Wall clock, seconds since 1970."""
    version: str
    epoch: int


Samples = Iterable[tuple[Sequence[str], float]]
Queues = list[tuple[str, QueueStatistics]]
"""Each queue with the label it is counted under."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. ``read`` gives label values and value; None where it is observed."""

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    read: Callable[[Snapshot, Queues], Samples] | None = None
    buckets: tuple[float, ...] = ()


def one(value: Callable[[Snapshot], float]) -> Callable[[Snapshot, Queues], Samples]:
    return lambda snapshot, _: [((), value(snapshot))]


def each(values: Callable[[Snapshot], Mapping[str, int]]) -> Callable[[Snapshot, Queues], Samples]:
    return lambda snapshot, _: [((key,), value) for key, value in sorted(values(snapshot).items())]


def outcomes(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for label, queue in queues:
        for outcome in OUTCOMES:
            sums[label, outcome] += queue.counts.get(outcome, 0)
    return sums.items()


def depths(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for label, queue in queues:
        sums[label, "ready"] += queue.ready
        sums[label, "scheduled"] += queue.scheduled
        sums[label, "leased"] += queue.leased
        sums[label, "held"] += queue.held
        sums[label, "quarantined"] += queue.quarantined
    return sums.items()


def consumers(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str], float] = defaultdict(float)
    for label, queue in queues:
        sums[(label,)] += queue.consumers
    return sums.items()


def paused(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for label, queue in queues:
        for half in HALVES:
            sums[label, half] += half in queue.paused
    return sums.items()


def waiting(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for label, queue in queues:
        for reason, count in queue.waiting.items():
            sums[label, reason] += count
    return sums.items()


def oldest(_: Snapshot, queues: Queues) -> Samples:
    return longest((label, queue.oldest_ready_ms) for label, queue in queues)


def oldest_dead(_: Snapshot, queues: Queues) -> Samples:
    return longest(
        (label, queue.oldest_dead_ms) for label, queue in queues if is_dead_queue(queue.name)
    )


def longest(ages_ms: Iterable[tuple[str, int]]) -> Samples:
    """The longest of each label, in seconds."""
    ages: dict[tuple[str], float] = defaultdict(float)
    for label, age_ms in ages_ms:
        ages[(label,)] = max(ages[(label,)], age_ms / 1000)
    return ages.items()


def alarms(_: Snapshot, queues: Queues) -> Samples:
    sums: dict[tuple[str], float] = defaultdict(float)
    for label, queue in queues:
        if is_dead_queue(queue.name):
            sums[(label,)] += bool(queue.alarm)
    return sums.items()


TIMES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
SIZES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0)

# fmt: off
METRICS: tuple[Row, ...] = (
    Row("qbroker_messages_total", "counter", "messages",
        f"Messages by what happened to them: {', '.join(OUTCOMES)}.",
        ("queue", "outcome"), outcomes),
    Row("qbroker_queue_messages", "gauge", "messages",
        "Messages in a queue now: ready, scheduled, leased, held or quarantined (damaged on disk).",
        ("queue", "state"), depths),
    Row("qbroker_queue_oldest_ready_seconds", "gauge", "seconds",
        "Age of the oldest message that could be delivered: alert on this.", ("queue",), oldest),
    Row("qbroker_dead_letters_oldest_seconds", "gauge", "seconds",
        "For how long the oldest dead letter of a queue of dead letters has been dead.",
        ("queue",), oldest_dead),
    Row("qbroker_dead_letters_alarm", "gauge", "queues",
        "1 while a queue of dead letters has too many, or too old ones: alarm_length and "
        "alarm_age_ms say when. Alert on this.", ("queue",), alarms),
    Row("qbroker_queue_paused", "gauge", "queues",
        "Whether somebody paused the queue: half is intake or dispatch.",
        ("queue", "half"), paused),
    Row("qbroker_queue_waiting_messages", "gauge", "messages",
        "Messages that may not be handed out now, by what they wait for: due, paused, no_consumer, "
        "no_worker_knows, single_active_consumer, consumers_full, or a limit.",
        ("queue", "reason"), waiting),
    Row("qbroker_queue_consumers", "gauge", "subscriptions",
        "Subscriptions to a queue now.", ("queue",), consumers),
    Row("qbroker_routed_messages_total", "counter", "messages",
        "Messages published to exchanges, the copies they became (routed), and those dropped "
        "because no queue was bound.",
        ("outcome",), each(lambda s: s.statistics.routed)),
    Row("qbroker_keys", "gauge", "keys",
        "Unique and idempotency keys held now; unique_keys_max and idempotency_keys_max bound "
        "them.",
        ("kind",), each(lambda s: s.statistics.keys)),
    Row("qbroker_keys_met_total", "counter", "messages",
        "Messages published while their key was held, by what they said of that: return, replace, "
        "redelay or idempotency. All but replaced ones: answered, and not stored.",
        ("rule",), each(lambda s: s.statistics.keys_met)),
    Row("qbroker_cancel_notices", "gauge", "ids",
        "Cancels of ids that are not known yet, kept until their messages come; beyond "
        "cancel_notices_max the oldest go.",
        (), one(lambda s: s.statistics.notices)),
    Row("qbroker_events_total", "counter", "events",
        "Events published, delivered to listeners, and dropped because a listener was slow.",
        ("outcome",), each(lambda s: s.statistics.events)),
    Row("qbroker_event_listeners", "gauge", "listeners",
        "Who listens to events now.", (), one(lambda s: s.statistics.listeners)),
    Row("qbroker_turn_seconds", "histogram", "seconds",
        "How long the engine's turns took.", buckets=TIMES),
    Row("qbroker_log_sync_seconds", "histogram", "seconds",
        "How long the disk took to make a batch durable.", buckets=TIMES),
    Row("qbroker_log_batch_records", "histogram", "records",
        "Records that shared one write and one sync.", buckets=SIZES),
    Row("qbroker_log_bytes", "gauge", "bytes",
        "Disk space of the log.", (), one(lambda s: s.log_bytes)),
    Row("qbroker_log_segments", "gauge", "files",
        "Files of the log.", (), one(lambda s: s.log_segments)),
    Row("qbroker_disk_free_bytes", "gauge", "bytes",
        "Room left on the data folder's disk: alert on this.",
        (), one(lambda s: s.disk_free_bytes)),
    Row("qbroker_disk_level", "gauge", "",
        "What that means: 0 ok, 1 low (publishes are refused), 2 critical.",
        (), one(lambda s: s.disk_level)),
    Row("qbroker_checkpoint_batch", "gauge", "batches",
        "Last batch of the log that the newest checkpoint covers; 0 without one.",
        (), one(lambda s: s.checkpoint_batch)),
    Row("qbroker_checkpoint_age_seconds", "gauge", "seconds",
        "Since the newest checkpoint; 0 without one.", (), one(lambda s: s.checkpoint_age_s)),
    Row("qbroker_checkpoint_duration_seconds", "gauge", "seconds",
        "How long the newest checkpoint took, replay included; 0 if not since the start.",
        (), one(lambda s: s.checkpoint_s)),
    Row("qbroker_checkpoint_bytes", "gauge", "bytes",
        "Size of the newest checkpoint.", (), one(lambda s: s.checkpoint_bytes)),
    Row("qbroker_checkpoint_failures_total", "counter", "checkpoints",
        "Checkpoints that could not be written: alert on this, the journal says why.",
        (), one(lambda s: s.checkpoint_failures)),
    Row("qbroker_connections", "gauge", "connections",
        "Open connections by role; stranger before Hello.",
        ("role",), each(lambda s: s.connections)),
    Row("qbroker_sessions", "gauge", "sessions",
        "Workers' sessions that are alive.", (), one(lambda s: s.statistics.sessions)),
    Row("qbroker_leases", "gauge", "messages",
        "Messages that are handed out now.", (), one(lambda s: s.statistics.leases)),
    Row("qbroker_results", "gauge", "results",
        "Results in memory, not archived yet.", (), one(lambda s: s.statistics.results)),
    Row("qbroker_results_dropped_total", "counter", "results",
        "Results dropped from memory before they were archived, for results_max.",
        (), one(lambda s: s.statistics.results_dropped)),
    Row("qbroker_archive_rows_total", "counter", "tasks",
        "Settled tasks that were archived, since the archive was made.",
        (), one(lambda s: s.archive.rows)),
    Row("qbroker_archive_shed_total", "counter", "tasks",
        "Successes without a result that got no row, for archive_lag_bytes.",
        (), one(lambda s: s.archive.shed)),
    Row("qbroker_archive_bytes", "gauge", "bytes",
        "What the archive holds; archive_bytes_max is its limit.",
        (), one(lambda s: s.archive.bytes)),
    Row("qbroker_archive_lag_batches", "gauge", "batches",
        "Batches that are durable in the log and not archived.",
        (), one(lambda s: s.archive.lag_batches)),
    Row("qbroker_archive_lag_bytes", "gauge", "bytes",
        "Bytes of log that are not archived.", (), one(lambda s: s.archive.lag_bytes)),
    Row("qbroker_archive_transaction_seconds", "gauge", "seconds",
        "How long the archive's last transaction took.", (), one(lambda s: s.archive.seconds)),
    Row("qbroker_archive_failed", "gauge", "",
        "1 while nothing is archived: alert on this, /health and the journal say why.",
        (), one(lambda s: float(bool(s.archive.trouble)))),
    Row("qbroker_window_bytes", "gauge", "bytes",
        "Bodies kept in memory near the heads of queues.",
        (), one(lambda s: s.statistics.window_bytes)),
    Row("qbroker_inbox_bytes", "gauge", "bytes",
        "Frames waiting for a turn.", (), one(lambda s: s.inbox_bytes)),
    Row("qbroker_lease_lost_total", "counter", "messages",
        "Outcomes that came after the message had gone to somebody else.",
        (), one(lambda s: s.statistics.lease_lost)),
    Row("qbroker_protocol_errors_total", "counter", "connections",
        "Connections ended for what their peer did, by code; INTERNAL is our own fault.",
        ("code",), each(lambda s: s.protocol_errors)),
    Row("qbroker_event_loop_lag_seconds", "gauge", "seconds",
        "The latest the event loop was since the last scrape.",
        (), one(lambda s: s.loop_lag_s)),
    Row("qbroker_start_time_seconds", "gauge", "seconds",
        "When the broker started, since 1970.", (), one(lambda s: s.started_s)),
    Row("qbroker_build_info", "gauge", "",
        "Always 1; the version and the boot epoch are its labels.",
        ("version", "epoch"), lambda s, _: [((s.version, str(s.epoch)), 1.0)]),
)
# fmt: on


class QueueLabels:
    """Which queues have a label of their own (rule 2)."""

    def __init__(self, limit: int = QUEUES_MAX) -> None:
        self._limit = limit
        self._named: set[str] = set()

    def label(self, queues: Iterable[QueueStatistics]) -> Queues:
        """Every queue with its label. Sorts the newcomers while there is room."""
        room = self._limit - len(self._named)
        if room > 0:
            new = [queue for queue in queues if queue.name not in self._named]
            new.sort(key=lambda queue: -(queue.ready + queue.scheduled + queue.leased))
            self._named.update(queue.name for queue in new[:room])
        return [(queue.name if queue.name in self._named else OTHER, queue) for queue in queues]


class Metrics(Collector):
    """All metrics of one broker, in a registry of their own."""

    def __init__(self, queues_max: int = QUEUES_MAX) -> None:
        self._snapshot: Snapshot | None = None
        self._labels = QueueLabels(queues_max)
        self._registry = CollectorRegistry()
        self._histograms = {
            row.name: Histogram(row.name, row.help, row.buckets)
            for row in METRICS
            if row.read is None
        }
        self.turn_seconds = self._histograms["qbroker_turn_seconds"]
        self.sync_seconds = self._histograms["qbroker_log_sync_seconds"]
        self.batch_records = self._histograms["qbroker_log_batch_records"]
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, snapshot: Snapshot) -> bytes:
        """All of it in Prometheus's text format. Costs some walks over the snapshot's queues.

        May run in a thread, one call at a time.
        """
        self._snapshot = snapshot
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would otherwise collect while the broker is being built."""
        return []

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot
        assert snapshot is not None, "collected by text alone"
        queues = self._labels.label(snapshot.statistics.queues)
        for row in METRICS:
            if row.read is None:
                yield self._histograms[row.name].family()
            else:
                family = FAMILIES[row.kind](row.name, row.help, labels=row.labels)
                for labels, value in row.read(snapshot, queues):
                    family.add_metric(labels, value)
                yield family


FAMILIES: Mapping[str, type[CounterMetricFamily] | type[GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


def markdown() -> str:
    """The table for the docs."""
    lines = ["| metric | kind | unit | labels | what it says |", "|---|---|---|---|---|"]
    for row in METRICS:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {row.unit} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
