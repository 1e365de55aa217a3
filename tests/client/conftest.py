"""Apps that talk to a scripted peer, and a real broker for those tests that need one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from qclient import App
from scriptedpeer import WAIT_S, Peer


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


class Daemon:
    """A real broker on a free port."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.listen = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "qbroker", "serve", "--data", self.data]
        command += ["--listen", self.listen, "--http", ""]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        told = ""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            line = self.process.stderr.readline()
            told += line
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found:
                self.listen = found[0]
                self.url = f"qbroker://{found[0]}"
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
            if not line:
                break
        raise AssertionError(f"the broker did not start: {told}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One real broker for all tests of this room that need one."""
    daemon = Daemon(os.fspath(tmp_path_factory.mktemp("data")))
    yield daemon
    daemon.stop()
