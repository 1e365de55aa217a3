"""Apps that talk to a scripted peer, and a real broker for those tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.daemon import Daemon
from qclient import App
from scriptedpeer import Peer


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that confirms every publish until the test says otherwise."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def app(peer: Peer) -> Iterator[App]:
    """An App that talks to the peer."""
    with App("shop", broker=peer.url) as app:
        yield app


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One real broker for all tests of this room that need one."""
    daemon = Daemon(tmp_path_factory.mktemp("broker"))
    yield daemon.start()
    daemon.close()
