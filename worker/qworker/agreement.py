"""What a worker's options and its application say together, or why they cannot.

The parent never sees the application, only ``description``: plain values that the import
process reports.
"""

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qclient.options import limit_rule
from qprotocol.codec import encode
from qworker.options import OptionError, WorkerOptions
from qworker.pools import Pool
from qworker.terms import Terms
from qworker.topology import declared, frames, own_queue


@dataclass(frozen=True, slots=True)
class Description:
    """An application as its worker's parent knows it. Limits in seconds, 0 for none."""

    name: str
    broker: str
    queue: str
    """Where its tasks go that are not routed."""
    tasks: list[str]
    time_limit_s: float
    soft_time_limit_s: float
    limited: Mapping[str, list[float]]
    """Hard and soft limits of those tasks that declare one."""
    declared: list[str]
    """Frames that declare its exchanges and queues; see topology.py."""
    broadcasts: list[str]
    """Names of its Broadcasts: each worker that consumes one has a queue of its own."""
    rules: Mapping[str, dict[str, Any]]
    """Limit rules of those tasks that declare a rate or a concurrency."""


def describe(app: Any) -> dict[str, Any]:
    """The application's description, as JSON takes it. Called in the import process."""
    conf, limited, rules = app.conf, {}, {}
    for name, task in app.tasks.items():
        rule = limit_rule(name, task.options)
        if rule is not None:
            rules[name] = rule.as_dict()
        limits = [task.options.get(key) or 0.0 for key in ("time_limit", "soft_time_limit")]
        if any(limits):
            limited[name] = limits
    return {
        "name": app.name,
        "broker": str(app.address),
        "queue": conf.task_default_queue,
        "tasks": sorted(app.tasks),
        "time_limit_s": conf.task_time_limit or 0.0,
        "soft_time_limit_s": conf.task_soft_time_limit or 0.0,
        "limited": limited,
        **declared(app),
        "rules": rules,
    }


def agree(options: WorkerOptions, pool: Pool, app: Description) -> Terms:
    """The terms on which the worker's members work.

    Raises OptionError if the application asks for what the pool cannot do, ValueError if the
    broker's address is none.
    """
    for name, (hard, soft) in app.limited.items():
        must_honour(pool, f"the task {name} declares time_limit", hard, "--time-limit")
        must_honour(pool, f"the task {name} declares soft_time_limit", soft, "--soft-time-limit")
    must_honour(pool, "app.conf sets task_time_limit", app.time_limit_s, "--time-limit")
    must_honour(
        pool, "app.conf sets task_soft_time_limit", app.soft_time_limit_s, "--soft-time-limit"
    )
    session = secrets.token_hex(16)
    wanted = list(dict.fromkeys(options.queues)) or [app.queue]
    broadcasts = [name for name in app.broadcasts if name in wanted]
    terms = Terms(
        broker=options.broker or app.broker,
        session=session,
        name=options.name,
        host=socket.gethostname(),
        app=app.name,
        queues=[own_queue(x, session) if x in app.broadcasts else x for x in wanted],
        queue_order=options.queue_order,
        queue_weights={
            own_queue(x, session) if x in app.broadcasts else x: weight
            for x, weight in options.queue_weights.items()
        },
        level=options.level,
        log_format=options.log_format,
        pool=options.pool,
        max_tasks_per_child=options.max_tasks_per_child,
        topology=[encode(each).hex() for each in frames(app.declared, broadcasts, session)],
    )
    _ = terms.address  # complains if it is none
    return terms


def must_honour(pool: Pool, what: str, value: float, option: str) -> None:
    """Raises OptionError if the pool cannot do what the application says."""
    if value and option not in pool.honours:
        raise OptionError(
            f"{what}={value:g}, and the {pool.name} pool cannot honour it: "
            f"{pool.why_not[option]}; use --pool prefork"
        )
