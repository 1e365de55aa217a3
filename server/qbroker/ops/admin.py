"""A blocking connection for the command line: one question at a time, by the protocol.

The server may not import the client (see ARCHITECTURE.md), and needs a tenth of it.

Rule 1. Every wait has the same deadline; nothing is asked twice.
"""

import json
import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from qbroker.ops.exits import Trouble
from qbroker.ops.unlike import Told, unlike
from qprotocol.codec import Assembler, Decoder, encode
from qprotocol.conversation import PROTOCOL_VERSION, Conversation
from qprotocol.errors import ProtocolError
from qprotocol.frames import (
    CLIENT,
    SERVER,
    Auth,
    Error,
    Frame,
    Greeting,
    Hello,
    Inspect,
    Ok,
    Part,
    Report,
    Welcome,
)

F = TypeVar("F", bound=Frame)

SCHEME = "qbroker://"
PORT = 7717
TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 256 * 1024 * 1024


class Unreachable(Exception):  # noqa: N818  # a state of the world
    """There is no broker there, or it stopped talking."""


class RefusedByBroker(Exception):  # noqa: N818  # the broker's word, not a fault of ours
    """The broker answered with an Error; ``code`` is from qprotocol.errors."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code = error.code


def split_url(url: str) -> tuple[str, int]:
    """Host and port of ``qbroker://host[:port]``; IPv6 in brackets. Raises ValueError."""
    rest = url.removeprefix(SCHEME).rstrip("/")
    host, colon, port = rest.rpartition(":") if not rest.endswith("]") else (rest, "", "")
    if not colon:
        host, port = rest, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    known = url.startswith(SCHEME) or "://" not in url
    if not (known and host and port.isdecimal() and 0 < int(port) < 65_536) or set(host) & set(
        "/@"
    ):
        raise ValueError(f'the broker\'s address is "{url}": write {SCHEME}localhost:{PORT}')
    return host, int(port)


class Admin:
    """An open conversation in the role of an admin. Use as a context manager."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        """Connected and welcomed. Raises ValueError, Unreachable, RefusedByBroker, Trouble."""
        self._where, self._version = url, ""
        self._conversation = Conversation()
        self._decoder = Decoder(self._conversation.frame_bytes_max)
        self._assembler = Assembler(ANSWER_BYTES_MAX)
        self._frames: list[Frame] = []
        self._asked = 0
        address = split_url(url)
        try:
            self._socket = socket.create_connection(address, timeout_s)
        except OSError as error:
            raise Unreachable(
                f"no broker at {url}: {error.strerror or error}; start one with "
                '"qbroker serve", or say where it is with --broker'
            ) from error
        try:
            greeting = self._expect(Greeting, 0)
            self._version = greeting.version
            if not greeting.protocol_min <= PROTOCOL_VERSION <= greeting.protocol_max:
                spoken = f"{greeting.protocol_min} to {greeting.protocol_max}"
                raise self._unlike(f"it speaks protocol {spoken}, this command {PROTOCOL_VERSION}")
            self.ask(Auth(mechanism="none"), Ok)
            hello = Hello(protocol=PROTOCOL_VERSION, role="admin", client_id="", name="qbroker")
            welcome = self.ask(hello, Welcome)
        except BaseException:
            self._socket.close()
            raise
        self._ahead_ms = welcome.server_ms - time.time_ns() // 1_000_000

    def wall_ms(self) -> int:
        """What the broker's clock says, whatever this machine's does."""
        return time.time_ns() // 1_000_000 + self._ahead_ms

    def ask(self, request: Frame, answer: type[F]) -> F:
        """The broker's answer to ``request``. A round trip.

        Raises Unreachable, RefusedByBroker, and Trouble if it does not know such a request.
        """
        self._asked += 1
        request.correlation = self._asked
        self._conversation.advance(request, CLIENT)
        try:
            self._socket.sendall(encode(request))
        except OSError as error:
            raise Unreachable(f"{self._where} hung up: {error}") from error
        return self._expect(answer, self._asked)

    def ask_all(self, requests: Sequence[Frame], answer: type[F], wait_s: float) -> list[F]:
        """The answers to all of them, asked at once, in their order.

        The broker may take ``wait_s`` longer than usual for each. Raises as ``ask`` does.
        """
        first = self._asked + 1
        for request in requests:
            self._asked += 1
            request.correlation = self._asked
            self._conversation.advance(request, CLIENT)
        usual_s = self._socket.gettimeout() or TIMEOUT_S
        self._socket.settimeout(usual_s + wait_s)
        try:
            self._socket.sendall(b"".join(map(encode, requests)))
            found: dict[int, F] = {}
            while len(found) < len(requests):
                frame = self._receive()
                if type(frame) is Error:
                    raise self._refusal(frame)
                if isinstance(frame, answer):
                    found[frame.correlation] = frame
        except OSError as error:
            raise Unreachable(f"{self._where} hung up: {error}") from error
        finally:
            self._socket.settimeout(usual_s)
        return [found[number] for number in range(first, self._asked + 1)]

    def inspect(self, what: str, name: str = "") -> Any:
        """The broker's table of that name. Raises as ``ask`` does."""
        try:
            return self.report(Inspect(what=what, name=name))
        except RefusedByBroker as refused:
            if refused.code != "BAD_REQUEST":
                raise
            raise self._unlike(f'it has no table "{what}"') from refused

    def report(self, request: Frame) -> Any:
        """What the Report says that answers ``request``. Raises as ``ask`` does.

        What is missing in it raises Trouble when it is asked for (Told).
        """
        raw = self.ask(request, Report).raw
        return json.loads(raw, object_hook=lambda each: Told(each, self._where, self._version))

    def _unlike(self, what: str) -> Trouble:
        return unlike(self._where, self._version, what)

    def _refusal(self, error: Error) -> Exception:
        """What to raise. A frame that it finds bad is a good one, which it does not know."""
        if error.code == "BAD_FRAME":
            return self._unlike(f"it does not understand what was asked ({error.message})")
        return RefusedByBroker(error)

    def push(self, kind: type[F], wait_s: float | None) -> F | None:
        """The next push of that kind, since the last answer or from now on; None if there is none
        within ``wait_s``, which is for ever if it is None. Raises Unreachable.
        """
        end_s = None if wait_s is None else time.monotonic() + wait_s
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if isinstance(frame, kind):
                    return frame
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            if not select.select([self._socket], [], [], left_s)[0]:
                return None
            self._frames.append(self._receive())

    def _expect(self, answer: type[F], correlation: int) -> F:
        """The next frame with that correlation; pushes are none of our business."""
        while True:
            frame = self._receive()
            if type(frame) is Part:
                self._assembler.add(frame)
            elif type(frame) is Error and frame.correlation in (0, correlation):
                raise self._refusal(frame)
            elif isinstance(frame, answer) and frame.correlation == correlation:
                return self._assembler.complete(frame)  # type: ignore[return-value]

    def _receive(self) -> Frame:
        while not self._frames:
            try:
                data = self._socket.recv(65_536)
                if not data:
                    raise Unreachable(f"{self._where} hung up")
                for frame in self._decoder.feed(data):
                    self._conversation.advance(frame, SERVER)
                    self._decoder.frame_bytes_max = self._conversation.frame_bytes_max
                    self._frames.append(frame)
            except TimeoutError as error:
                timeout = self._socket.gettimeout()
                raise Unreachable(f"{self._where} did not answer within {timeout:g} s") from error
            except OSError as error:
                raise Unreachable(f"{self._where} hung up: {error}") from error
            except ProtocolError as error:
                raise Unreachable(f"{self._where} is no broker we understand: {error}") from error
        return self._frames.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
