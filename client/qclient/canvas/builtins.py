"""Tasks that every worker has: many calls of one task in one message, a group as one task."""

from collections.abc import Iterable, Sequence
from typing import Any

from qclient.shared import current_app, shared_task


@shared_task(name="qclient.map")
def run_map(task: str, arguments: Iterable[Any]) -> list[Any]:
    """What the task returns for each, one after the other, here."""
    called = current_app().tasks[task]
    return [called(each) for each in arguments]


@shared_task(name="qclient.starmap")
def run_starmap(task: str, arguments: Iterable[Sequence[Any]]) -> list[Any]:
    """The same, each with its arguments."""
    called = current_app().tasks[task]
    return [called(*each) for each in arguments]


@shared_task(name="qclient.collect")
def run_collect(results: list[Any]) -> list[Any]:
    """What a group gave, as the result of one task."""
    return results
