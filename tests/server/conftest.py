"""A real door on a real port, with an engine behind it that only writes down what it is given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from qbroker.net.connection import Connection, Limits
from qbroker.net.listener import Listener
from qbroker.net.session import Terms
from qprotocol.codec import Decoder, encode
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.frames import Auth, Error, Frame, Greeting, Hello, Ok, Welcome

PATIENCE_S = 10.0
T = TypeVar("T")

LIMITS: dict[str, int] = {
    "connections_max": 100,
    "handshakes_max": 50,
    "handshake_timeout_ms": 5_000,
    "heartbeat_ms": 10_000,
    "session_timeout_ms": 30_000,
    "inbox_bytes_max": 1 << 20,
    "output_bytes_max": 1 << 20,
}

TERMS = Terms(
    product="qbroker",
    version="1.2.3",
    cluster="c",
    node="n",
    epoch=7,
    limits={"frame_bytes_max": 131_072},
    mechanisms=("none",),
    wall_ms=lambda: time.time_ns() // 1_000_000,
)


def until(what: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first true value of ``what``, looked at again and again."""
    deadline, pause = time.monotonic() + patience_s, threading.Event()
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.002)


class Notebook:
    """An engine's face towards the net. Welcomes everybody, writes down the rest."""

    def __init__(self) -> None:
        self.inbox_bytes = 0
        self.on_drained: Callable[[], None] | None = None
        self.connections: dict[int, Connection] = {}
        self.gone: list[int] = []
        self.welcomes: list[int] = []
        self.submitted: list[tuple[int, Frame]] = []
        self.writes: list[tuple[int, bool]] = []
        self.on_hello: Callable[[Connection, Hello], None] = welcome
        self.on_frame: Callable[[Connection, Frame], None] = lambda *_: None

    def connected(self, connection: Connection) -> None:
        self.connections[connection.number] = connection

    def arrived(self) -> None: ...

    def welcomed(self, connection: Connection) -> None:
        self.welcomes.append(connection.number)

    def submit(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Hello):
            self.on_hello(connection, frame)
        else:
            self.submitted.append((connection.number, frame))
            self.on_frame(connection, frame)

    def disconnected(self, connection: Connection) -> None:
        del self.connections[connection.number]
        self.gone.append(connection.number)

    def writable(self, connection: Connection, is_writable: bool) -> None:
        self.writes.append((connection.number, is_writable))

    def frames(self) -> list[Frame]:
        return [frame for _, frame in self.submitted]


def welcome(connection: Connection, hello: Hello) -> None:
    connection.welcomed()
    answer = Welcome(
        correlation=hello.correlation,
        protocol=PROTOCOL_VERSION,
        heartbeat_ms=10_000,
        session_timeout_ms=30_000,
        server_ms=1,
    )
    connection.send(encode(answer))


class Peer:
    """A client that says exactly what it is told to, and blocks."""

    def __init__(self, address: tuple[str, int], kernel_bytes: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if kernel_bytes:  # before connecting: it decides the window
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernel_bytes)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def say(self, *frames: Frame) -> None:
        self.socket.sendall(b"".join(map(encode, frames)))

    def hear(self) -> Frame | None:
        """The next frame; None once the broker has hung up."""
        while not self._frames:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def expect(self, kind: type[Any]) -> Any:
        frame = self.hear()
        assert isinstance(frame, kind), frame
        return frame

    def refusal(self) -> Error:
        """The Error that ends the conversation, after whatever else was said."""
        frame = self.hear()
        while not isinstance(frame, Error) or frame.correlation:
            assert frame is not None, "hung up without a word"
            frame = self.hear()
        assert self.hear() is None
        return frame

    def shake_hands(self, role: str = "producer", **hello: Any) -> Peer:
        self.expect(Greeting)
        self.say(Auth(correlation=1, mechanism="none"))
        self.expect(Ok)
        self.say(
            Hello(correlation=2, protocol=PROTOCOL_VERSION, role=role, client_id="test", **hello)
        )
        self.expect(Welcome)
        return self

    def close(self) -> None:
        self.socket.close()


class Door:
    """A listener on a loop in a thread of its own."""

    def __init__(self, terms: Terms = TERMS, **limits: int) -> None:
        self.engine = Notebook()
        self.loop = uvloop.new_event_loop()
        self.troubles: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._peers: list[Peer] = []
        self.listener = self.do(lambda: Listener(self.engine, terms, Limits(**LIMITS | limits)))
        self.address = self.wait(self.listener.listen("127.0.0.1", 0))

    def connect(self, kernel_bytes: int = 0) -> Peer:
        peer = Peer(self.address, kernel_bytes)
        self._peers.append(peer)
        return peer

    def do(self, work: Callable[[], T]) -> T:
        """``work``'s result, done on the loop."""

        async def run() -> T:
            return work()

        return self.wait(run())

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self.wait(self.listener.close(1.0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


QBROKER = [sys.executable, "-m", "qbroker.cli"]


def qbroker(
    *arguments: object, stdin: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """What a command said, and its exit code. Settings of the outside do not reach it."""
    return subprocess.run(
        [*QBROKER, *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        env=clean_environment() | environ,
    )


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("QBROKER_")}


SMALL = ("--segment-bytes", "4MiB", "--batch-bytes-max", "4MiB")
"""Segments are allocated whole."""
CONTENT = ("--disk-low-bytes", "64MiB", "--disk-critical-bytes", "16MiB")
"""The share of a machine's disk that the defaults keep free is not the tests' business."""


class Daemon:
    """`qbroker serve` in a process of its own, on free ports."""

    def __init__(
        self, data: Path, *flags: str, python: tuple[str, ...] = ("-m", "qbroker.cli")
    ) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [
                *(sys.executable, *python, "serve", "--data", str(data)),
                *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *SMALL, *CONTENT, *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        self.said: list[str] = []
        self._peers: list[Peer] = []
        self.address = ("", 0)
        self.metrics_url = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("metrics on "):
                self.metrics_url = line.split()[-1]
            if line.startswith("listening on "):
                host, port = line.split()[-1].rsplit(":", 1)
                self.address = (host, int(port))
                break

    @property
    def url(self) -> str:
        return f"qbroker://{self.address[0]}:{self.address[1]}"

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of an HTTP answer."""
        url = self.metrics_url.replace("/metrics", path)
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def connect(self) -> Peer:
        peer = self.visitor()
        self._peers.append(peer)
        return peer

    def visitor(self) -> Peer:
        """A peer that the test closes itself."""
        assert self.address[1], self.stop()
        return Peer(self.address)

    def close(self) -> None:
        """Whatever it still does, it is gone."""
        for peer in self._peers:
            peer.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.data, ignore_errors=True)

    def ask(self, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return qbroker(*arguments, stdin=stdin, QBROKER_URL=self.url)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code, and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        out, err = self.process.communicate(timeout=PATIENCE_S + 10)
        self.said += out.splitlines(keepends=True)
        return self.process.returncode, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts brokers on the test's data folder."""
    started: list[Daemon] = []

    def start_one(*flags: str, **options: Any) -> Daemon:
        daemon = Daemon(options.pop("data", tmp_path / "data"), *flags, **options)
        started.append(daemon)
        return daemon

    yield start_one
    for daemon in started:
        daemon.close()


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A broker for tests that only look."""
    daemon = Daemon(tmp_path_factory.mktemp("shared") / "data")
    yield daemon
    daemon.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A broker that the tests of one module share, and change."""
    started = Daemon(tmp_path_factory.mktemp("daemon") / "data")
    yield started
    started.close()


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    return qbroker


@pytest.fixture
def open_door() -> Iterator[Callable[..., Door]]:
    """Opens doors with other limits than LIMITS."""
    with contextlib.ExitStack() as stack:

        def opened(**options: Any) -> Door:
            door = Door(**options)
            stack.callback(door.close)
            return door

        yield opened


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door()


@pytest.fixture(name="until")
def until_fixture() -> Callable[[Callable[[], T]], T]:
    return until


@pytest.fixture(scope="session")
def terms() -> Terms:
    return TERMS
