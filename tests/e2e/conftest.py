"""Brokers and workers for the stories: made on demand, gone afterwards, each in its own folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.daemon import Daemon
from e2e.fleet import Fleet


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes brokers that are not started, with settings of their own."""
    with contextlib.ExitStack() as stack:

        def made(name: str = "broker", **settings: object) -> Daemon:
            daemon = Daemon(tmp_path / name, **settings)
            stack.callback(daemon.close)
            return daemon

        yield made


@pytest.fixture
def broker(make_broker: Callable[..., Daemon]) -> Daemon:
    """A running broker that gives lost leases back soon, so that no story waits for it."""
    return make_broker(grace_ms=500).start()


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets of real workers for a broker."""
    with contextlib.ExitStack() as stack:

        def made(broker: Daemon, *flags: str) -> Fleet:
            fleet = Fleet(tmp_path / "fleet", broker, *flags)
            stack.callback(fleet.close)
            return fleet

        yield made
