"""The benchmark's tasks on qbroker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import task_bodies

import qclient
from qclient import App

app = App("bench", broker=os.environ["BENCH_URL"])
app.conf.task_default_queue = "q"

chain, chord = qclient.chain, qclient.chord

noop = app.task(ignore_result=True)(task_bodies.noop)
tick = app.task(ignore_result=True)(task_bodies.tick)
stamp = app.task(ignore_result=True)(task_bodies.stamp)
report_pid = app.task(ignore_result=True)(task_bodies.report_pid)
echo = app.task(task_bodies.echo)
total = app.task(task_bodies.total)

_TASKS = {"noop": noop, "tick": tick}


def send_many(name: str, arguments: Iterable[int | str]) -> None:
    """One call for each argument, published in confirmed batches."""
    task = _TASKS[name]
    app.send_many(task.s(argument) for argument in arguments)


def send_many_with(
    name: str, arguments: Iterable[int | str], options: Callable[[int], dict[str, str]]
) -> None:
    """The same, each call with the options of its number."""
    task = _TASKS[name]
    calls = (task.s(argument) for argument in arguments)
    app.send_many(call.set(**options(number)) for number, call in enumerate(calls))
