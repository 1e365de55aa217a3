"""A scripted peer for what a broker rarely does: lost answers, refusals, silence.

It is not a broker: it greets, notes what it hears, and does what the test says next.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable

from qprotocol import frames as f
from qprotocol.codec import Assembler, Decoder, encode_in_parts

WAIT_S = 10.0
SERVER_MS = 1_800_000_000_000


class Line:
    """The peer's end of one connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number

    def say(self, *frames: f.Frame) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(b"".join(b"".join(encode_in_parts(frame)) for frame in frames))

    def confirm(self, publish: f.Frame, first: int = 1, **fields) -> None:
        self.say(
            f.Published(
                first=first,
                count=publish.count,
                durability="always",
                correlation=publish.correlation,
                **fields,
            )
        )

    def refuse(self, frame: f.Frame, code: str, **fields) -> None:
        self.say(
            f.Error(code=code, message="said the peer", correlation=frame.correlation, **fields)
        )

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def confirm(line: Line, frame: f.Frame) -> None:
    line.confirm(frame)


class Peer:
    """Greets whoever connects; ``act(line, frame)`` decides about all else."""

    def __init__(self, act: Callable[[Line, f.Frame], None] = confirm) -> None:
        self.act = act
        self.heard: list[f.Frame] = []
        self.arrived: queue.Queue[f.Frame] = queue.Queue()
        self.lines: list[Line] = []
        self.welcome = True
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"qbroker://127.0.0.1:{self._server.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                line = Line(sock, len(self.lines))
                self.lines.append(line)
                self._start(self._serve, line)

    def _serve(self, line: Line) -> None:
        decoder, assembler = Decoder(), Assembler(1 << 30)
        line.say(greeting())
        with line.sock, contextlib.suppress(OSError):
            while data := line.sock.recv(65536):
                for frame in decoder.feed(data):
                    if type(frame) is f.Part:
                        assembler.add(frame)
                    else:
                        self._hear(line, assembler.complete(frame))

    def _hear(self, line: Line, frame: f.Frame) -> None:
        if type(frame) is f.Auth:
            line.say(f.Ok(correlation=frame.correlation))
        elif type(frame) is f.Hello:
            if self.welcome:
                line.say(welcome(frame))
        else:
            self.heard.append(frame)
            self.arrived.put(frame)
            self.act(line, frame)

    def next(self) -> f.Frame:
        """The next frame it hears, within WAIT_S."""
        return self.arrived.get(timeout=WAIT_S)

    def stop_listening(self) -> None:
        # Wakes the thread in accept, which close alone does not.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def close(self) -> None:
        self.stop_listening()
        for line in self.lines:
            line.hang_up()
        for thread in self._threads:
            thread.join(WAIT_S)


def greeting(**fields) -> f.Greeting:
    said = {
        "product": "peer",
        "version": "1",
        "protocol_min": 1,
        "protocol_max": 1,
        "limits": {},
        "features": [],
        "mechanisms": ["none"],
        "nonce": b"",
        "cluster": "",
        "node": "",
        "epoch": 1,
        "server_ms": SERVER_MS,
    }
    return f.Greeting(**{**said, **fields})


def welcome(hello: f.Frame) -> f.Welcome:
    return f.Welcome(
        protocol=1,
        heartbeat_ms=10_000,
        session_timeout_ms=30_000,
        server_ms=SERVER_MS,
        correlation=hello.correlation,
    )
