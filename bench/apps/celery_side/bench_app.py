"""The benchmark's tasks on Celery and Redis, at Celery's normal good settings."""

from __future__ import annotations

import os
from collections.abc import Iterable

import celery
import task_bodies
from celery import Celery

app = Celery(
    "bench", broker=os.environ["BENCH_URL"], backend=os.environ["BENCH_URL"].replace("/0", "/1")
)
app.conf.task_default_queue = "q"

chord = celery.chord
app.conf.broker_connection_retry_on_startup = True
if "BENCH_PREFETCH" in os.environ:
    app.conf.worker_prefetch_multiplier = int(os.environ["BENCH_PREFETCH"])

noop = app.task(ignore_result=True)(task_bodies.noop)
tick = app.task(ignore_result=True)(task_bodies.tick)
stamp = app.task(ignore_result=True)(task_bodies.stamp)
report_pid = app.task(ignore_result=True)(task_bodies.report_pid)
echo = app.task(task_bodies.echo)
total = app.task(task_bodies.total)


def send_many(name: str, arguments: Iterable[int | str]) -> None:
    """One call for each argument, through one producer held for the whole loop.

    That is Celery's own advice for many calls. It has no batch publish: `group(...)` sends its
    members one by one through one producer too, after building them all.
    """
    task = app.tasks[f"task_bodies.{name}"]
    with app.producer_or_acquire() as producer:
        for argument in arguments:
            task.apply_async((argument,), producer=producer)
