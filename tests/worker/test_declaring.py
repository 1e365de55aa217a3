"""Limits that tasks declare: what is said to the broker, and what is not said again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qclient.options import limit_rule
from qprotocol.frames import DropLimit, SetLimit
from qworker.agreement import describe
from qworker.declaring import Declared, changes
from worker.workshop import Broker, Workshop, until

RULE = {"task": "t", "rate": 10}
OTHER = {"task": "t", "rate": 9}


@pytest.mark.parametrize(
    ("rules", "known", "said"),
    [
        ({"t": RULE}, {}, [("SetLimit", "t")]),
        ({"t": RULE}, {"t": RULE}, []),
        ({"t": RULE}, {"t": OTHER}, [("SetLimit", "t")]),
        ({"t": RULE}, {"t": None}, [("SetLimit", "t")]),
        ({}, {"t": RULE}, [("DropLimit", "t")]),
        ({}, {"t": None, "elsewhere": RULE}, []),
    ],
)
def test_only_what_differs_is_said(
    rules: dict[str, Any], known: dict[str, Any], said: list[tuple[str, str]]
) -> None:
    """Known: what the broker has of code, None if its rule is an operator's alone."""
    frames = list(changes(Declared(["t", "u"], rules), known))
    assert [(type(frame).__name__, frame.name) for frame in frames] == said
    assert all(frame.origin == "code" for frame in frames)
    assert all(isinstance(frame, SetLimit | DropLimit) for frame in frames)


def limits(broker: Broker) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "qbroker"), "limit", "list", "--json"]
    done = subprocess.run([*command, "--broker", broker.url], capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def shown(broker: Broker) -> dict[str, tuple[str, int, int]]:
    return {row["name"]: (row["origin"], row["rate"], row["concurrency"]) for row in limits(broker)}


@pytest.mark.e2e
def test_a_task_declares_its_limits_at_the_start_and_drops_them_with_the_code(
    make_broker: Any, workshop: Any
) -> None:
    """And the worker's tasks run under them from the first one on."""
    broker = make_broker()
    shop: Workshop = workshop(broker)
    worker = shop.worker(app="rates")
    assert shown(broker) == {"rates.slow": ("code", 5, 0), "rates.alone": ("code", 0, 1)}
    results = [shop.app.send_task("rates.alone", (i,), queue=shop.queue) for i in range(3)]
    assert [each.get(timeout=20) for each in results] == [0, 1, 2]
    worker.stop()
    shop.env["RATES_ALONE"] = "none"
    shop.worker(app="rates")
    assert shown(broker) == {"rates.slow": ("code", 5, 0)}
    until(lambda: limits(broker)[0]["used"] == 0, "no slot is taken")


def test_an_application_is_described_with_its_limits() -> None:
    """As plain values."""
    from qclient import App  # noqa: PLC0415

    app = App("rates", set_as_current=False)

    @app.task(name="both", rate_limit="100/5m", concurrency_limit=3)
    def both() -> None: ...

    @app.task(name="none", rate_limit=None)
    def none() -> None: ...

    rule = limit_rule("both", both.options)
    assert rule
    assert describe(app)["rules"] == {"both": rule.as_dict()}
    assert (rule.task, rule.shown_rate, rule.concurrency) == ("both", "100/5m", 3)
