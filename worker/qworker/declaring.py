"""The limits that tasks declare in code: said to the broker once, before the worker's first task.

A rule bears its task's name and covers that task everywhere. What the broker has already is not
said again; a rule of a task that declares none any more is dropped; an operator's rule of the same
name wins, and the broker says so in ``qbroker limit list``.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qclient.link import Link
from qprotocol import frames as f
from qprotocol.limitrules import CODE
from qworker.asking import ask
from qworker.logs import note

FEATURE = "limits"
"""What a broker that knows of limits says in its greeting."""
UNSAID = "which limits it has"


@dataclass(frozen=True, slots=True)
class Declared:
    """What the application says: its tasks, and the rules of those that declare one."""

    tasks: Collection[str]
    rules: Mapping[str, dict[str, Any]]


def declare(link: Link, declared: Declared) -> None:
    """The broker has the rules in ``declared``, or has refused them, which is logged.

    Raises ConnectionLost, also if the broker does not answer in time. A round trip, and one more
    if something changes.
    """
    if FEATURE not in link.greeting.features:
        if declared.rules:
            note(logging.WARNING, "this broker knows no limits", declared=len(declared.rules))
        return
    (report,) = ask(link, [f.Inspect(what="limits")], UNSAID)
    known = {}
    if isinstance(report, f.Report):
        known = {row["name"]: row["declared"] for row in json.loads(report.raw)}
    frames = list(changes(declared, known))
    for frame, answer in zip(frames, ask(link, frames, UNSAID), strict=True):
        if isinstance(answer, f.Error):
            note(logging.WARNING, "limit refused", task=frame.name, reason=answer.message)
        else:
            note(logging.INFO, "limit declared", task=frame.name, by=type(frame).__name__)


def changes(
    declared: Declared, known: Mapping[str, dict[str, Any] | None]
) -> Iterator[f.SetLimit | f.DropLimit]:
    """What is to be said to a broker that knows these rules declared in code."""
    for name, rule in declared.rules.items():
        if known.get(name) != rule:
            yield f.SetLimit(name=name, rule=rule, origin=CODE)
    for name, rule_there in known.items():
        if rule_there and name in declared.tasks and name not in declared.rules:
            yield f.DropLimit(name=name, origin=CODE)
