"""What a seed is made of: which features are used, which faults happen, and how much of each.

A generator that always tries everything never tries anything alone. Each seed switches
a random half of the features and faults on, and draws how often they happen.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from qbroker.config import Config

HOPELESS_MS = 3_000
"""How long the disk may refuse a batch before the broker gives up what is in it."""
EVERY = 20
"""The default of oldest_every."""
FEATURES = (
    "tasks",
    "priorities",
    "delays",
    "expiry",
    "named ids",
    "minted ids",
    "acks early",
    "results",
    "retries",
    "release",
    "reject",
    "crash outcome",
    "replacement",
    "follow-on",
    "uploads",
    "large bodies",
    "relaxed",
    "watch",
    "cancel",
    "forget",
    "purge",
    "peek",
    "pause",
    "consumers",
    "unsubscribe",
    "credit changes",
    "running",
    "double settle",
    "stale settle",
    "resend",
    "leap",
    "bye",
    "hot queue",
    "lengths",
    "single consumer",
    "delete",
    "checkpoints",
    "archive",
    "routing",
    "limits",
    "ordering keys",
    "queue order",
    "claims of parents",
    "intake pauses",
    "restores",
    "known tasks",
    "moves",
    "cancels of many",
    "unique keys",
    "untils of keys",
    "key conflicts",
    "fair keys",
    "passing keys",
    "dead letters",
    "workflows",
)
FAULTS = (
    "power cut",
    "kill",
    "cut at a site",
    "cut on an answer",
    "clean restart",
    "eio",
    "short write",
    "disk full",
    "bit flip",
    "bad sectors",
    "rot",
    "slow sync",
    "hung sync",
    "freeze",
    "wall jump",
    "reset",
    "storm",
    "half close",
    "blackhole",
    "worker crash",
    "worker stall",
    "member crash",
    "slow network",
    "long turns",
    "archivist killed",
    "archivist stalled",
    "archivist slow",
)


@dataclass
class Swarm:
    """One seed's choices. Times in microseconds where they say ``us``."""

    features: frozenset[str]
    faults: frozenset[str]
    config: dict[str, Any]
    segment_bytes: int
    batch_bytes_max: int
    queues: dict[str, dict[str, Any]]
    """Declared queues and their options; the first is where most things go if it is hot."""
    dead: dict[str, dict[str, Any]]
    """Options of queues of dead letters."""
    publishers: int
    consume: dict[str, Any]
    """How the queues of a consumer take turns: fields of Consume."""
    workers: int
    members: int
    consumers: int
    chunks: int
    """Chunks of each publisher."""
    chunk_messages: int
    think_us: int
    """Between two chunks of a publisher."""
    run_us: tuple[int, int]
    """How long a task runs, mostly."""
    credit: int
    fault_every_us: int
    sync_us: tuple[int, int]
    read_us: tuple[int, int]
    delay_us: tuple[int, int]
    """Of one delivery of bytes."""
    rechunk: float
    """How often less than all that waits is delivered."""
    slow_sync: float
    hung_sync: float
    long_turn: float
    live_percent: int
    """Segments with less that is alive are cleaned; 0 cleans none."""

    def has(self, feature: str) -> bool:
        return feature in self.features

    def fails(self, fault: str) -> bool:
        return fault in self.faults

    @property
    def calm(self) -> bool:
        """Nothing goes wrong: then all counters must be exact."""
        return not self.faults and not self.features & {"bye", "unsubscribe"}

    def config_of(self, data: Path) -> Config:
        known = {each.name for each in fields(Config)}
        rows = {name: value for name, value in self.config.items() if name in known}
        assert rows.keys() == self.config.keys(), self.config.keys() - known
        return Config(data=data, http="", **rows)

    def lines(self) -> list[str]:
        """For the transcript."""
        out = []
        for each in fields(self):
            value = getattr(self, each.name)
            shown = sorted(value) if isinstance(value, frozenset) else value
            out.append(f"{each.name} = {shown!r}")
        return out


def some(rng: Random, names: tuple[str, ...], share: float) -> frozenset[str]:
    return frozenset(name for name in names if rng.random() < share)


def draw(rng: Random, focus: frozenset[str] = frozenset()) -> Swarm:
    """A seed's swarm; with a ``focus``, of these features and faults and no others."""
    features = some(rng, FEATURES, rng.choice((0.2, 0.5, 0.5, 0.8)))
    faults = some(rng, FAULTS, rng.choice((0.0, 0.15, 0.35, 0.35, 0.7)))
    if focus:
        unknown = focus - {*FEATURES, *FAULTS}
        assert not unknown, unknown
        features, faults = focus & frozenset(FEATURES), focus & frozenset(FAULTS)
    session_ms = rng.choice((2_000, 3_000, 6_000))
    config = {
        "session_timeout_ms": session_ms,
        "heartbeat_ms": session_ms // 4,
        "grace_ms": rng.choice((2_000, 4_000, 8_000)),
        "claims_ms": rng.choice((500, 2_000, 2_000, 3_000)),
        "poison_max": rng.choice((1, 2, 3)),
        "result_ttl_ms": rng.choice((3_600_000, 86_400_000)),
        "results_max": rng.choice((20, 10_000, 10_000)),
        "named_ids_max": rng.choice((10, 10_000)),
        "window_bytes_max": rng.choice((0, 20_000, 1 << 20, 1 << 20)),
        "inbox_bytes_max": rng.choice((2_000, 64 << 20, 64 << 20)),
        "output_bytes_max": rng.choice((3_000, 8 << 20, 8 << 20)),
        "connections_max": 200,
        "handshake_timeout_ms": 2_000,
        "turn_ms": 5,
        "shutdown_timeout_ms": rng.choice((200, 2_000)),
        "body_bytes_max": 128 * 1024,
        "credit_max": 10_000,
        "fsync": "interval" if "relaxed" in features and rng.random() < 0.15 else "always",
        "fsync_interval_ms": 200,
        "archive": "archive" in features,
        "archive_ttl_ms": 86_400_000,
        "archive_lag_bytes": rng.choice((4_000, 64 << 20, 64 << 20)),
        "archive_lag_bytes_max": rng.choice((20_000, 1 << 30, 1 << 30)),
    }
    # What goes one after the other waits for all that its holder has fetched ahead of it.
    is_slow = bool(features & {"limits", "ordering keys"})
    names = ("a", "b", "c", "d")[: rng.choice((1, 2, 3, 4))]
    return Swarm(
        features=features,
        faults=faults,
        config=config,
        segment_bytes=rng.choice((8, 32, 256)) << 10,
        batch_bytes_max=rng.choice((16, 64, 1024)) << 10,
        queues={name: queue_options(rng, features) for name in names},
        dead=dead_options(rng, names) if "dead letters" in features else {},
        publishers=rng.choice((1, 1, 2, 3)),
        consume=consume_order(rng, names) if "queue order" in features else {},
        workers=rng.choice((1, 1, 2, 3)),
        members=rng.choice((1, 1, 2)),
        consumers=rng.choice((1, 2)) if "consumers" in features else 0,
        chunks=rng.choice((10, 20, 40)),
        chunk_messages=rng.choice((1, 3, 8, 20)),
        think_us=rng.choice((20_000, 100_000, 400_000)),
        run_us=rng.choice(
            ((100, 2_000), (1_000, 50_000), (10_000, 60_000 if is_slow else 400_000))
        ),
        credit=min(rng.choice((1, 3, 10, 100)), 3 if is_slow else 100),
        fault_every_us=rng.choice((300_000, 1_000_000, 3_000_000)),
        sync_us=rng.choice(((50, 300), (300, 3_000), (3_000, 15_000))),
        read_us=(50, 2_000),
        delay_us=rng.choice(((10, 100), (50, 500), (500, 5_000))),
        rechunk=rng.choice((0.0, 0.1, 0.5)),
        slow_sync=0.05 if "slow sync" in faults else 0.0,
        hung_sync=0.005 if "hung sync" in faults else 0.0,
        long_turn=0.02 if "long turns" in faults else 0.0,
        live_percent=rng.choice((0, 50, 90)),
    )


def consume_order(rng: Random, names: tuple[str, ...]) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"order": "strict"}
    return {"weights": {name: rng.choice((1, 2, 10, 1_000)) for name in names}}


def dead_options(rng: Random, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Of some queues dead letters go after a time, or by number."""
    alarms = {"alarm_length": rng.choice((1, 5)), "alarm_age_ms": rng.choice((0, 2_000))}
    ends = ({}, {}, {}, {"message_ttl_ms": 4_000}, {"max_length": 3})
    return {f"{name}.dead": alarms | rng.choice(ends) for name in names}


def oldest_every(swarm: Swarm, queue: str) -> int:
    """How often its oldest message has a turn, at most: one made on first use has the default."""
    return min(int(swarm.queues[queue].get("oldest_every") or EVERY), EVERY)


def queue_options(rng: Random, features: frozenset[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "relaxed" in features and rng.random() < 0.4:
        options["fsync"] = rng.choice(("interval", "never"))
    if "retries" in features and rng.random() < 0.5:
        options |= {"retries_max": rng.choice((1, 3)), "backoff_ms": rng.choice((0, 50, 1_000))}
    if "lengths" in features and rng.random() < 0.6:
        overflow = rng.choice(("reject", "dead_letter_oldest", "dead_letter_oldest"))
        options |= {"max_length": rng.choice((21, 30, 60)), "overflow": overflow}
    if "priorities" in features:
        options["oldest_every"] = rng.choice((0, 3, 20))
    if "fair keys" in features and rng.random() < 0.5:
        options["fair_weights"] = rng.choice(("big=9", "big=1000,small=2", "small=3"))
    if "dead letters" in features and rng.random() < 0.7:
        options["deliveries_max"] = rng.choice((1, 2, 4))
    if "single consumer" in features and rng.random() < 0.6:
        options["single_active_consumer"] = True
    return options
