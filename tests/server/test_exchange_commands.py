"""Routing by hand, from the command line to a real daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qbroker.ops.exits import Exit
from server.conftest import Daemon

pytestmark = pytest.mark.e2e


def told(daemon: Daemon, *words: str) -> Any:
    return json.loads(daemon.ask(*words, "--json").stdout)


def test_an_exchange_from_its_making_to_its_end(daemon: Daemon) -> None:
    made = daemon.ask("exchange", "declare", "events", "topic")
    assert made.stdout == "topic exchange events made\n"
    again = daemon.ask("exchange", "declare", "events", "topic")
    assert again.stdout == "topic exchange events was there already\n"
    differs = daemon.ask("exchange", "declare", "events", "direct", "--drop")
    assert differs.returncode == Exit.FAILED
    assert "kind is 'topic', not 'direct'" in differs.stderr
    assert daemon.ask("bind", "events", "audit", "--key", "order.#").stdout == "audit bound\n"
    assert daemon.ask("bind", "events", "audit", "--key", "order.#").stdout == (
        "audit was bound already\n"
    )
    sent = daemon.ask("publish", "hello", "--exchange", "events", "--key", "order.paid")
    assert sent.stdout == "published, synced\n"
    lost = daemon.ask("publish", "hello", "--exchange", "events", "--key", "invoice")
    assert lost.returncode == Exit.FAILED
    assert "NO_ROUTE" in lost.stderr
    dropped = told(daemon, "publish", "x", "--exchange", "events", "--key", "invoice", "--drop")
    assert dropped["durability"] == "synced"
    (row,) = told(daemon, "exchange", "list")
    assert row == {
        "name": "events",
        "kind": "topic",
        "alternate": "",
        "unroutable": "refuse",
        "bindings": 1,
        "counts": {"published": 2, "routed": 1, "dropped": 1},
    }
    shown = daemon.ask("exchange", "list").stdout.splitlines()
    assert shown[0].split()[:2] == ["exchange", "kind"]
    assert shown[-1].split()[:2] == ["events", "topic"]
    (line,) = [x for x in daemon.ask("bindings").stdout.splitlines() if x.startswith("events")]
    assert line.split() == ["events", "order.#", "queue", "audit"]
    assert told(daemon, "bindings", "--exchange", "other") == []
    used = daemon.ask("exchange", "delete", "events", "--if-unused")
    assert "IN_USE" in used.stderr
    assert daemon.ask("unbind", "events", "audit", "--key", "order.#").stdout == "audit unbound\n"
    assert daemon.ask("unbind", "events", "audit", "--key", "order.#").stdout == (
        "audit was not bound\n"
    )
    deleted = daemon.ask("exchange", "delete", "events")
    assert deleted.stdout == "exchange events deleted, and 0 bindings\n"
    assert daemon.ask("exchange", "delete", "events").returncode == Exit.FAILED


def test_headers_are_given_by_name_and_value(daemon: Daemon) -> None:
    assert told(daemon, "exchange", "declare", "h", "headers")["made"]
    words = ("bind", "h", "paid", "--argument", "amount=5", "--argument", "gift")
    assert told(daemon, *words, "--argument", "x-match=any")["changed"]
    (row,) = told(daemon, "bindings", "--exchange", "h")
    assert (row["match"], row["arguments"]) == ("any", {"amount": 5, "gift": None})
    assert "amount=5 gift" in daemon.ask("bindings").stdout
    assert told(daemon, "publish", "m", "--exchange", "h", "--header", "amount=5")["position"] > 0
    assert "NO_ROUTE" in daemon.ask("publish", "m", "--exchange", "h").stderr
    (found,) = told(daemon, "peek", "paid")
    assert found["body_bytes"] == 1
    assert told(daemon, "exchange", "delete", "h")["bindings"] == 1


def test_a_message_goes_somewhere_or_is_not_sent(daemon: Daemon) -> None:
    assert daemon.ask("publish", "m").returncode == Exit.USAGE
    assert daemon.ask("publish", "m", "--queue", "q").stdout == "published, synced\n"
    assert daemon.ask("publish", "m", "--queue", "q", "--priority", "101").returncode == Exit.USAGE
    large = daemon.ask("publish", "m" * 131_000, "--queue", "q")
    assert large.returncode == Exit.USAGE
    assert "sends up to" in large.stderr
    key = daemon.ask("publish", "m", "--exchange", "e", "--key", "k" * 300)
    assert "routing key has 300 bytes" in key.stderr
