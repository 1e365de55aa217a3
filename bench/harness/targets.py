"""Every figure of the bench: its unit, which way is better, and what it must reach.

A target is either a multiple of what Celery + Redis does in the same run (`times`) or a number of
its own (`absolute`). A figure without a target is there to be known. The scenarios, in the order
in which they run, are the keys of `SCENARIOS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OURS = "qbroker"
THEIRS = "celery"


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    text: str
    unit: str
    better: Literal["higher", "lower"] = "higher"
    times: float | None = None
    absolute: float | None = None
    ours_only: bool = False

    @property
    def target_text(self) -> str:
        """The target as the table shows it."""
        sign = "≥" if self.better == "higher" else "≤"
        if self.times is not None:
            return f"{sign} {self.times:g} ×"
        if self.absolute is not None:
            return f"{sign} {self.absolute:,g} {self.unit}"
        return ""

    def verdict(self, ours: float | None, theirs: float | None) -> str:
        """`reached`, `not reached`, or nothing when there is no target or no figure."""
        if ours is None:
            return ""
        if self.absolute is not None:
            value, limit = ours, self.absolute
        elif self.times is not None and theirs:
            value, limit = ours / theirs, self.times
        else:
            return ""
        good = value >= limit if self.better == "higher" else value <= limit
        return "reached" if good else "not reached"


@dataclass(frozen=True)
class Scenario:
    """One file of `scenarios/` and the figures it returns."""

    figures: tuple[Figure, ...]
    sides: tuple[str, ...] = (THEIRS, OURS)
    durable: bool = True  # our figure contains a sync, so the disk's own is measured beside it
    group: str = "core"  # which of the bench's tables it belongs to


def _raw(verb: str) -> tuple[Figure, ...]:
    figures = []
    for peers in (1, 8):
        for batch in (1, 100):
            for size in (100, 1024):
                goal = 250_000 if (batch, size) == (100, 100) and peers == 1 else None
                figures.append(
                    Figure(
                        f"peers_{peers}_batch_{batch}_bytes_{size}",
                        f"raw {verb}, {peers} connection{'s' * (peers > 1)}, {batch} × {size} B",
                        "messages/s",
                        absolute=goal,
                        ours_only=True,
                    )
                )
    return tuple(figures)


CHAINS = (1_000, 3_000, 10_000)
CHORDS = (1_000, 10_000, 100_000)
"""Sizes of workflows."""

SCENARIOS: dict[str, Scenario] = {
    "delay_one_caller": Scenario(
        (Figure("rate", "`.delay()`, one caller, one at a time", "calls/s", times=1.3),)
    ),
    "delay_8_threads": Scenario(
        (Figure("rate", "`.delay()` from 8 threads of one process", "calls/s", times=4),)
    ),
    "send_many": Scenario((Figure("rate", "`send_many`", "calls/s", times=50),)),
    "drain": Scenario((Figure("rate", "drain, one child, results ignored", "tasks/s", times=15),)),
    "end_to_end": Scenario(
        (Figure("rate", "end to end, producer in batches", "tasks/s", times=15),)
    ),
    "latency": Scenario(
        (
            Figure("p50_ms", "latency at 50 tasks/s, p50", "ms", "lower", times=0.4),
            Figure("p99_ms", "latency at 50 tasks/s, p99", "ms", "lower", times=0.5),
        )
    ),
    "call_and_wait": Scenario(
        (Figure("rate", "call and wait for the result", "calls/s", times=2.5),)
    ),
    "worker_memory": Scenario(
        (
            Figure("child_pss_mb", "PSS of a worker child", "MB", "lower", times=0.4),
            Figure("tree_pss_mb", "PSS of the whole worker, one child", "MB", "lower"),
        ),
        durable=False,
    ),
    "raw_publish": Scenario(_raw("publish"), sides=(OURS,)),
    "raw_consume": Scenario(_raw("consume + ack"), sides=(OURS,)),
    "queue_memory": Scenario(
        (
            Figure(
                "bytes_a_message",
                "broker RAM per queued 200-B message",
                "B",
                "lower",
                absolute=40,
            ),
            Figure("start_s", "start with 1 M queued", "s", "lower", ours_only=True),
        ),
    ),
    "info_log_cost": Scenario(
        (
            Figure("rate_info", "drain at `-l INFO`", "tasks/s"),
            Figure("slower_percent", "cost of `-l INFO` on the drain", "%", "lower"),
        )
    ),
    "chord": Scenario(
        (Figure("rate", "chord of 1,000 trivial tasks, call to result", "chords/s", times=20),),
        group="workflows",
    ),
    "workflow_sizes": Scenario(
        (
            *(Figure(f"chain_{n}", f"chain of {n:,} steps", "steps/s") for n in CHAINS),
            *(Figure(f"chord_{n}", f"chord of {n:,} tasks", "tasks/s") for n in CHORDS),
            Figure("others_p99_times", "p99 of another queue meanwhile", "×", "lower", absolute=2),
            Figure("turns_over_5_ms", "turns over 5 ms meanwhile", "of 1,000", "lower", absolute=0),
            Figure("bytes_a_node", "broker RAM per held node", "B", "lower", absolute=200),
        ),
        sides=(OURS,),
        group="workflows",
    ),
    "storage_start": Scenario(
        (
            Figure("start_empty_s", "start with nothing queued", "s", "lower"),
            Figure("start_killed_s", "start with 1 M after kill -9", "s", "lower", absolute=1.5),
            Figure(
                "start_clean_s", "start with 1 M after a clean stop", "s", "lower", absolute=0.5
            ),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "storage_backlog": Scenario(
        (
            Figure("bytes_a_message", "RAM a queued message at 10 M", "B", "lower", absolute=16),
            Figure("all_bytes_a_message", "the same, the broker's children too", "B", "lower"),
            Figure("peak_mb", "most memory in use, page cache too, of 512 MiB", "MB", "lower"),
            Figure("publish_percent", "publishing with 10 M behind, of empty", "%", absolute=90),
            Figure("hot_take_percent", "taking what is new, of empty", "%", absolute=90),
            Figure("cold_take_percent", "taking the cold backlog, of empty", "%", absolute=70),
            Figure(
                "others_p99_times", "p99 of others while it drains", "times", "lower", absolute=2
            ),
            Figure("turns_over_5_ms", "turns over 5 ms meanwhile", "of 1,000", "lower", absolute=0),
            Figure("turns_over_10_ms", "turns over 10 ms", "of 1,000", "lower"),
            Figure("lookup_p99_ms", "look-up by id at 10 M, p99", "ms", "lower", absolute=5),
            Figure("start_killed_s", "start with 10 M after kill -9", "s", "lower", absolute=10),
            Figure("start_clean_s", "start with 10 M after a clean stop", "s", "lower", absolute=3),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "storage_churn": Scenario(
        (
            Figure("disk_times", "log on disk for each live byte", "times", "lower", absolute=2.5),
            Figure("disk_times_peak", "the same, at most", "times", "lower"),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "storage_delayed": Scenario(
        (
            Figure("bytes_a_message", "RAM a delayed message at 1 M", "B", "lower", absolute=24),
            Figure("lateness_p99_ms", "lateness under load, p99", "ms", "lower", absolute=20),
            Figure("earliest_ms", "earliest", "ms", absolute=0),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "storage_results": Scenario(
        (
            Figure("bytes_a_result", "RAM a result kept at 1 M", "B", "lower", absolute=2),
            Figure("get_p99_ms", "an old result by id, p99", "ms", "lower", absolute=5),
            Figure("archive_bytes_a_result", "archive on disk a result", "B", "lower"),
            Figure("results_a_second", "tasks with results, archived", "tasks/s"),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "storage_archive_cost": Scenario(
        (
            Figure("rate_without", "end to end without the archive", "tasks/s"),
            Figure("lost_percent", "less with the archive", "%", "lower", absolute=10),
            Figure(
                "lost_searched_percent", "less again while it is searched", "%", "lower", absolute=5
            ),
        ),
        sides=(OURS,),
        group="storage",
    ),
    "lanes_cost": Scenario(
        (
            Figure("rate_plain", "end to end without any limit", "tasks/s"),
            Figure("limited_percent", "less with limits", "%", "lower", absolute=15),
            Figure("unique_percent", "less with unique keys", "%", "lower", absolute=15),
            Figure("fair_percent", "less with fair shares", "%", "lower", absolute=15),
            Figure("all_percent", "less with all three", "%", "lower", absolute=15),
        ),
        sides=(OURS,),
        group="lanes",
    ),
    "lanes_dispatch": Scenario(
        (
            Figure("limited_rate", "raw dispatch and ack with limits", "messages/s", absolute=60e3),
            Figure("limited_percent", "the same, of without", "%"),
        ),
        sides=(OURS,),
        group="lanes",
    ),
    "lanes_head": Scenario(
        (
            Figure(
                "limited_percent", "others' rate, 1 M of a limited lane before", "%", absolute=90
            ),
            Figure(
                "unknown_percent", "others' rate, 1 M of an unknown task before", "%", absolute=90
            ),
        ),
        sides=(OURS,),
        group="lanes",
    ),
    "lanes_many": Scenario(
        (
            Figure("one_rate", "published and taken, one key, limited", "messages/s"),
            Figure("keys_percent", "with 100,000 keys, of one", "%", absolute=80),
            Figure("bytes_a_key", "RAM a key", "B", "lower", absolute=1024),
            Figure("queues_percent", "with 10,000 queues, of one", "%", absolute=80),
            Figure("bytes_a_queue", "RAM a queue", "B", "lower", absolute=1024),
        ),
        sides=(OURS,),
        group="lanes",
    ),
}
"""In the order in which they run."""


def of_group(group: str) -> list[str]:
    """The names of a group's scenarios."""
    return [name for name, scenario in SCENARIOS.items() if scenario.group == group]
