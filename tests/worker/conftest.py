"""A real broker for the room, and a workshop for each test."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.workshop import Broker, Workshop

COUNTER = itertools.count(1)
POOLS = ["prefork", "threads", "solo"]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for all tests that do not harm it."""
    folder = tmp_path_factory.mktemp("broker")
    made = Broker(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Makes brokers that a test may kill."""
    made: list[Broker] = []

    def make(*flags: str) -> Broker:
        made.append(Broker(tmp_path / f"broker-{len(made)}", *flags))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=POOLS)
def shop(request: pytest.FixtureRequest, tmp_path: Path, broker: Broker) -> Iterator[Workshop]:
    """A workshop in each of the pools: what is tried here, all of them do alike."""
    made = Workshop(tmp_path, broker, request.param, f"q{next(COUNTER)}")
    yield made
    made.close()


@pytest.fixture
def prefork(tmp_path: Path, broker: Broker) -> Iterator[Workshop]:
    """A workshop in the prefork pool."""
    made = Workshop(tmp_path, broker, "prefork", f"q{next(COUNTER)}")
    yield made
    made.close()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Callable[..., Workshop]]:
    """Makes workshops at a test's own broker."""
    made: list[Workshop] = []

    def make(broker: Broker, pool: str = "prefork") -> Workshop:
        made.append(Workshop(tmp_path / f"shop-{len(made)}", broker, pool, f"q{next(COUNTER)}"))
        return made[-1]

    yield make
    for each in made:
        each.close()
