"""What may be looked at: immutable values for metrics, the command line and HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qbroker.core.pauses import Pause


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """One queue, now; ``counts`` are totals of all lives of the broker, by outcome."""

    name: str
    ready: int
    scheduled: int
    leased: int
    consumers: int
    quarantined: int
    """Messages set aside because their bytes are damaged on disk."""
    oldest_ready: int
    """The position of the oldest ready message; 0 if there is none."""
    oldest_ready_ms: int
    """Its age; filled by the engine, who knows when each batch was written."""
    counts: Mapping[str, int]
    paused: Mapping[str, Pause] = field(default_factory=dict)
    """What of it is paused: intake, dispatch."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Messages that wait and may not be handed out, by reason."""
    oldest_dead_ms: int = 0
    """Of dead letters: for how long the oldest has been dead."""
    alarm: str = ""
    """Why there is an alarm about them."""
    held: int = 0
    """Nodes of graphs that will wait here once others have ended."""


@dataclass(frozen=True, slots=True)
class QuarantinedMessage:
    """One row for people. Where it was, since when it is set aside, and why."""

    position: int
    queue: str
    task: str
    since_ms: int
    why: str
    evidence: str


@dataclass(frozen=True, slots=True)
class ExchangeStatistics:
    """One exchange, now; ``counts`` are totals since the start."""

    name: str
    kind: str
    alternate: str
    unroutable: str
    bindings: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """One limit rule, now: what it says, and what is taken of it."""

    name: str
    origin: str
    declared: Mapping[str, Any] | None
    """The rule that a worker declared under that name, in force or not."""
    queue: str
    task: str
    per_key: bool
    concurrency: int
    rate: int
    window_ms: int
    burst: int
    keys: int
    """Buckets of a rule per key."""
    used: int
    """Slots taken, in all buckets."""
    next_ms: int
    """Until there is a token in one of them; 0 if there is."""
    held_back: int
    """Messages that wait for it now."""
    stuck: int
    """Lanes of messages that weigh more than it has in all: they wait for ever."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The whole broker, now."""

    queues: tuple[QueueStatistics, ...]
    connections: Mapping[str, int]
    sessions: int
    leases: int
    results: int
    results_dropped: int
    lease_lost: int
    duplicates: int
    uploads: int
    producers: int
    quarantined: tuple[QuarantinedMessage, ...] = ()
    exchanges: tuple[ExchangeStatistics, ...] = ()
    routed: Mapping[str, int] = field(default_factory=dict)
    """Messages published to exchanges, copies they became, and those no queue got."""
    keys: Mapping[str, int] = field(default_factory=dict)
    """Unique and idempotency keys that are held."""
    keys_met: Mapping[str, int] = field(default_factory=dict)
    """Messages whose key was held, by what they said of that, since the start."""
    notices: int = 0
    """Cancels of ids that nobody knows yet."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Filled by the engine: events published, delivered to listeners, and dropped."""
    listeners: int = 0
    window_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ArchiveStatistics:
    """The archive, as of its last transaction. Rows are counted since it was made."""

    batch: int = 0
    rows: int = 0
    shed: int = 0
    """Rows left out because it was too far behind."""
    bytes: int = 0
    seconds: float = 0.0
    """What the last transaction took."""
    trouble: str = ""
    """Why nothing is archived, in a sentence; empty if all is well."""
    lag_batches: int = 0
    lag_bytes: int = 0
    """Of the log, durable and not archived."""
