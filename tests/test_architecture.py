"""Who may import whom, as a table. Newcomers: read MAY_IMPORT, then ARCHITECTURE.md.

Imports are absolute everywhere, so that this check and its readers can see what they mean.
Imports for type checkers only count too: knowing a type is knowing its room.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["protocol/qprotocol", "client/qclient", "worker/qworker", "server/qbroker"]

IO = {
    *("asyncio", "concurrent", "multiprocessing", "selectors", "signal", "socket", "ssl"),
    *("importlib", "logging", "os", "random", "secrets", "subprocess", "threading", "time"),
}

# The longest prefix that fits a module says what it may import besides itself, and which of the
# standard library it may not.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    # The vocabulary: it means the same anywhere, in any loop.
    "qprotocol": ({"msgpack"}, IO),
    # A web application must not carry a broker.
    "qclient": ({"qprotocol", "msgpack"}, set()),
    # A worker must run against any broker that speaks the protocol.
    "qworker": ({"qprotocol", "qclient", "click"}, set()),
    # User code and the network never meet.
    "qworker.pools": ({"qprotocol", "qworker", "gevent", "eventlet", "greenlet"}, {"socket"}),
    # cli, server and engine: they build things and hand them over. The broker knows no tasks.
    "qbroker": ({"qprotocol", "click", "uvloop", "prometheus_client"}, set()),
    "qbroker.config": ({"qbroker.kinds"}, IO),
    "qbroker.kinds": (set(), IO),
    # Determinism: commands and the time come in, records and effects go out.
    "qbroker.core": ({"qprotocol", "msgpack"}, IO),
    # It stores bytes. It has never heard of a queue.
    "qbroker.log": (set(), {"asyncio", "socket"}),
    # Beside the engine, never in it: the keeper has a core and a log of its own.
    "qbroker.checkpoint": (
        {
            *("qprotocol", "qbroker.core", "qbroker.log"),
            *("qbroker.ages", "qbroker.replaying"),
            *("qbroker.ops.journal", "qbroker.ops.exits", "qbroker.ops.niceness"),
        },
        {"socket"},
    ),
    # A session cannot touch a queue: it submits commands and is sent effects.
    "qbroker.net": ({"qprotocol"}, set()),
    # Settled tasks, in SQLite: follows the log by itself, and is asked for rows.
    # It copies files beside the broker; that they are a log it has from the log's own room.
    "qbroker.backup": ({"qbroker.log", "qbroker.ops.overlay"}, {"asyncio", "socket"}),
    "qbroker.archive": (
        {"qprotocol", "qbroker.core", "qbroker.log", "qbroker.bodies", "qbroker.ops.niceness"},
        {"asyncio", "socket"},
    ),
    # A person's look at one message, or event: the broker itself never opens a body.
    "qbroker.ops.lettertexts": ({"qprotocol", "msgpack"}, IO),
    "qbroker.ops.eventtexts": ({"qprotocol", "msgpack", "qbroker.ops"}, IO),
    # Looking must not change.
    "qbroker.ops": (
        {"qprotocol", "qbroker.core.statistics", "prometheus_client", "aiohttp"},
        set(),
    ),
}


def within(name: str, prefix: str) -> bool:
    return (name + ".").startswith(prefix + ".")


def imports(source: str) -> Iterator[str]:
    """Every name that is imported, in full: ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            yield from (f"{home}.{alias.name}" for alias in node.names)


def faults(module: str, source: str) -> list[str]:
    """What ``module`` imports though its row does not allow it."""
    home = max((prefix for prefix in MAY_IMPORT if within(module, prefix)), key=len)
    allowed, banned = MAY_IMPORT[home]
    found = []
    for name in imports(source):
        top = name.split(".")[0]
        stdlib = top in sys.stdlib_module_names and top not in banned
        ours = any(within(name, prefix) for prefix in {home, *allowed})
        if not (stdlib or ours):
            found.append(f"{module} must not import {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        room = (ROOT / package).parent
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(room).with_suffix("").parts), path


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(name, path, id=name) for name, path in modules()]
)
def test_imports(module: str, path: Path) -> None:
    assert faults(module, path.read_text(encoding="utf-8")) == []


def test_every_room_of_the_broker_has_a_row() -> None:
    rooms = {path.parent.name for path in (ROOT / "server/qbroker").glob("*/__init__.py")}
    assert {room for room in rooms if f"qbroker.{room}" not in MAY_IMPORT} == set()


def test_the_table_names_no_package_of_its_own_twice() -> None:
    assert {prefix.split(".")[0] for prefix in MAY_IMPORT} == {Path(p).name for p in PACKAGES}


PLANTED = [
    ("qprotocol.codec", "import socket", "socket"),
    ("qprotocol.codec", "from os import path", "os.path"),
    ("qprotocol.codec", "import qclient", "qclient"),
    ("qclient.app", "from qbroker.config import load", "qbroker.config.load"),
    ("qclient.app", "import click", "click"),
    ("qworker.cli", "import qbroker", "qbroker"),
    ("qworker.pools.process", "import socket", "socket"),
    ("qbroker.server", "from qclient import App", "qclient.App"),
    ("qbroker.core.records", "import time", "time"),
    ("qbroker.core.records", "from time import time", "time.time"),
    ("qbroker.core.records", "import asyncio.events", "asyncio.events"),
    ("qbroker.core.broker", "from qbroker import log", "qbroker.log"),
    ("qbroker.core.broker", "def f():\n    import logging", "logging"),
    ("qbroker.log.__init__", "from qbroker.core import broker", "qbroker.core.broker"),
    ("qbroker.log.format", "import qprotocol.wire", "qprotocol.wire"),
    ("qbroker.net.session", "from qbroker.core.broker import Broker", "qbroker.core.broker.Broker"),
    ("qbroker.net.session", "from qbroker.core import queues", "qbroker.core.queues"),
    ("qbroker.ops.http", "import qbroker.engine", "qbroker.engine"),
    ("qbroker.core.queues", "from . import records", "..records"),
    ("qbroker.core.queues", "from .records import Publish", ".records.Publish"),
    (
        "qbroker.net.session",
        "if TYPE_CHECKING:\n    from qbroker.engine import Engine",
        "qbroker.engine.Engine",
    ),
]


@pytest.mark.parametrize(("module", "source", "name"), PLANTED)
def test_the_check_sees_a_planted_import(module: str, source: str, name: str) -> None:
    assert faults(module, source) == [f"{module} must not import {name}"]


def test_the_check_lets_the_rooms_talk_as_the_table_says() -> None:
    fine = [
        ("qbroker.engine", "from qbroker.core.broker import Broker\nimport qbroker.log.log"),
        ("qbroker.net.session", "import qprotocol.frames\nfrom qbroker.net import watch"),
        ("qbroker.core.beat", "from __future__ import annotations\nimport heapq, qprotocol.wire"),
        ("qbroker.log.disk", "import os, threading\nfrom qbroker.log.format import HEADER"),
    ]
    assert [faults(module, source) for module, source in fine] == [[], [], [], []]
