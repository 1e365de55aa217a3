"""What a worker was told to do: every option once, and what is wrong with a combination.

Rule 1. An option that the chosen pool cannot honour is an error at start-up, never ignored.
Rule 2. These are plain values: the parent hands them to its processes as JSON.
"""

import os
import re
import socket
from dataclasses import asdict, dataclass, field
from typing import Any

from qclient.address import Address
from qprotocol.limits import QUEUE_WEIGHT_MAX
from qprotocol.names import check_queue_name
from qprotocol.options import QUEUE_ORDERS, STRICT, WEIGHTED
from qworker.pools import POOLS

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("text", "json")
CONCURRENCY_MAX = 1024
"""Runners a worker may have. Each is a connection to the broker and 72 KiB of slots."""
_SIZE = re.compile(r"(\d+)\s*([kmg]?)i?b?", re.IGNORECASE)


class OptionError(ValueError):
    """An option has a value that makes no sense, or that its pool cannot honour."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options of ``qworker``; times in seconds as people type them."""

    app: str
    """Where the application is: ``module``, ``module:attribute`` or ``module.attribute``."""
    queues: list[str] = field(default_factory=list)
    """Empty: those the application says."""
    queue_order: str = WEIGHTED
    queue_weights: dict[str, int] = field(default_factory=dict)
    """Of those that weigh more than 1."""
    pool: str = "prefork"
    concurrency: int = 0
    """Tasks at once; 0 is one for each CPU this process may use (solo: 1)."""
    level: str = "INFO"
    log_format: str = "text"
    name: str = "worker@%h"
    broker: str = ""
    """Empty: the application's."""
    max_tasks_per_child: int = 0
    max_memory_per_child_kib: int = 0
    time_limit_s: float = 0.0
    soft_time_limit_s: float = 0.0
    shutdown_timeout_s: float = 25.0
    """Five less than the 30 s that Kubernetes waits between SIGTERM and SIGKILL."""

    def checked(self) -> "WorkerOptions":
        """These options with defaults filled in. Raises OptionError saying what to change."""
        pool = POOLS.get(self.pool)
        if pool is None:
            raise OptionError(f"there is no pool {self.pool!r}: one of {', '.join(POOLS)}")
        for name in self.queues:
            try:
                check_queue_name(name)
            except ValueError as error:
                raise OptionError(f"-Q: {error}; several are written -Q first,second") from None
        self._check_order()
        if self.broker:
            try:
                Address.parse(self.broker)
            except ValueError as error:
                raise OptionError(f"--broker: {error}") from None
        for option, value in (
            ("--max-tasks-per-child", self.max_tasks_per_child),
            ("--max-memory-per-child", self.max_memory_per_child_kib),
            ("--time-limit", self.time_limit_s),
            ("--soft-time-limit", self.soft_time_limit_s),
        ):
            if value < 0:
                raise OptionError(f"{option} is {value}: it cannot be negative")
            if value and option not in pool.honours:
                raise OptionError(
                    f"the {self.pool} pool cannot honour {option}: {pool.why_not[option]}; "
                    f"leave it out or use --pool prefork"
                )
        if self.time_limit_s and self.soft_time_limit_s > self.time_limit_s:
            raise OptionError(
                f"--soft-time-limit is {self.soft_time_limit_s:g} s and --time-limit "
                f"{self.time_limit_s:g} s: the soft one would never be reached; make it smaller"
            )
        if self.shutdown_timeout_s < 0:
            raise OptionError("--shutdown-timeout cannot be negative; 0 returns tasks at once")
        return replace_fields(
            self, concurrency=self._concurrency(pool.runners_max), name=expand(self.name)
        )

    def _check_order(self) -> None:
        if self.queue_order not in QUEUE_ORDERS:
            raise OptionError(f"--queue-order {self.queue_order}: {' or '.join(QUEUE_ORDERS)}")
        if self.queue_order == STRICT and self.queue_weights:
            raise OptionError(f"-Q with weights and --queue-order {STRICT}: leave one of them out")
        for name, weight in self.queue_weights.items():
            if not 1 <= weight <= QUEUE_WEIGHT_MAX:
                raise OptionError(f"-Q {name}:{weight}: a weight is from 1 to {QUEUE_WEIGHT_MAX}")

    def _concurrency(self, runners_max: int) -> int:
        if not 0 <= self.concurrency <= CONCURRENCY_MAX:
            raise OptionError(
                f"--concurrency is {self.concurrency}: from 1 to {CONCURRENCY_MAX}, "
                f"or 0 for one runner a CPU"
            )
        if self.concurrency > runners_max:
            raise OptionError(
                f"the {self.pool} pool runs one task at a time, and --concurrency is "
                f"{self.concurrency}; use --pool prefork or threads"
            )
        return self.concurrency or min(usable_cpus(), runners_max)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as the constructor takes them."""
        return asdict(self)


def split_weights(named: list[str]) -> tuple[list[str], dict[str, int]]:
    """Queues, and the weights of those written as ``name:weight``.

    A colon may be in a queue's name: what is behind the last one is a weight if it is a number.
    """
    queues, weights = [], {}
    for each in named:
        name, colon, weight = each.rpartition(":")
        if colon and weight.isdecimal():
            weights[name] = int(weight)
        queues.append(name if colon and weight.isdecimal() else each)
    return queues, weights


def replace_fields(options: WorkerOptions, **changes: Any) -> WorkerOptions:
    """The options with some of them changed."""
    return WorkerOptions(**{**options.as_dict(), **changes})


def parse_size_kib(text: str) -> int:
    """KiB in ``200MB``, ``1GB`` or a plain number, which counts KiB as in Celery."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise OptionError(f"{text!r} is not a size: write 200MB, 1GB, or a number of KiB")
    return int(found[1]) * {"": 1, "k": 1, "m": 1024, "g": 1024 * 1024}[found[2].lower()]


def expand(name: str) -> str:
    """The worker's name with %h (host), %n (first part of it) and %d (the rest) filled in."""
    host = socket.gethostname()
    first, _, domain = host.partition(".")
    for mark, value in (("%h", host), ("%n", first), ("%d", domain), ("%%", "%")):
        name = name.replace(mark, value)
    return name


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
