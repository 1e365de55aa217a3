"""Orders and reports between a worker's parent and its import process: JSON, a line each.

    parent -> import process     {"load": {...}}   {"terms": {...}}   {"start": {"child": 3, ...}}
    import process -> parent     {"loaded": {...}} | {"failed": {...}}
                                 {"started": {"child": 3, "pid": 4711}}
                                 {"ended": {"child": 3, "pid": 4711, "status": 11}}

Rare and small: nothing of a task goes this way. The end of the stream is the end of the peer.
"""

import json
import socket
from typing import Any

LINE_BYTES_MAX = 4 * 1024 * 1024
"""A line is at most a traceback or the names of an application's tasks."""


class Control:
    """One end of the stream."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._left = b""
        self._early: list[tuple[str, Any]] = []

    def send(self, **message: Any) -> bool:
        """The message is on its way; False if the peer is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[tuple[str, Any]] | None:
        """What has arrived, waiting for at least some of it; None at the peer's end.

        Only once ``early`` has been taken.
        """
        assert not self._early
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > LINE_BYTES_MAX:
            raise ValueError(f"a control line of over {LINE_BYTES_MAX} bytes")
        return [item for line in lines for item in json.loads(line).items()]

    def expect(self, wanted: str) -> Any:
        """The peer's next message, which is ``wanted``. Raises EOFError at the peer's end."""
        while not self._early:
            received = self.receive()
            if received is None:
                raise EOFError(f"the other end closed where {wanted} was due")
            self._early = received
        kind, value = self._early.pop(0)
        assert kind == wanted, f"{kind} where {wanted} was due"
        return value

    def early(self) -> list[tuple[str, Any]]:
        """What came together with the last message that ``expect`` gave."""
        found, self._early = self._early, []
        return found

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
