"""The client's half of a conversation, with no socket: bytes in, frames out, and back.

Both shells (link.py blocking, aconnection.py for asyncio) hold one for each connection:

    bytes --feed--> frames --reply (until open)--> the next frame of the handshake
    frames --encode--> bytes

Rule 1. Every frame, sent or received, passes the Conversation here and nowhere else.
Rule 2. After an exception a dialogue is of no use: close the connection.
"""

import time

from qclient.exceptions import RefusedError, refusal
from qprotocol.codec import Assembler, Decoder, encode_in_parts
from qprotocol.conversation import PROTOCOL_VERSION, Conversation
from qprotocol.errors import ProtocolError
from qprotocol.frames import Auth, Error, Frame, Greeting, Hello, Ok, Part, Welcome
from qprotocol.limits import BODY_BYTES_HARD_MAX

ASSEMBLED_BYTES_MAX = 2 * BODY_BYTES_HARD_MAX
"""Parts that may be waiting for their frame: the largest result, and as much of another."""
HANDSHAKE_REQUESTS = 2
"""Correlation ids 1 and 2 belong to Auth and Hello."""


class Dialogue:
    """One connection's frames, its greeting and its welcome."""

    greeting: Greeting
    welcome: Welcome

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.open = False
        self._conversation = Conversation()
        self._decoder = Decoder(self._conversation.frame_bytes_max)
        self._assembler = Assembler(ASSEMBLED_BYTES_MAX)
        self._offset_ms = 0

    def encode(self, *frames: Frame) -> bytes:
        """The frames' bytes, those over the frame limit in parts. The frames stay as they are.

        Raises ProtocolError if one is not allowed at this point.
        """
        pieces: list[bytes] = []
        for frame in frames:
            self._conversation.advance(frame, "client")
            raw = frame.raw
            pieces += encode_in_parts(frame, self._conversation.frame_bytes_max)
            frame.raw = raw  # encoding in parts leaves only the last one in it
        return b"".join(pieces)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes, parts put together. Raises ProtocolError."""
        found: list[Frame] = []
        for frame in self._decoder.feed(data):
            self._conversation.advance(frame, "server")
            self._decoder.frame_bytes_max = self._conversation.frame_bytes_max
            if type(frame) is Part:
                self._assembler.add(frame)
            else:
                found.append(self._assembler.complete(frame))
        return found

    def reply(self, frame: Frame) -> Frame | None:
        """What the handshake says next to ``frame``; None once it is ``open``.

        Raises RefusedError by its code if the broker will not have us.
        """
        if isinstance(frame, Error):
            raise refused(frame)
        if isinstance(frame, Greeting):
            self.greeting = frame
            if not frame.protocol_min <= PROTOCOL_VERSION <= frame.protocol_max:
                raise refusal(
                    "UNSUPPORTED_VERSION",
                    f"the broker {frame.product} {frame.version} speaks protocol "
                    f"{frame.protocol_min} to {frame.protocol_max}, this client "
                    f"{PROTOCOL_VERSION}: upgrade the older one",
                )
            return Auth(mechanism="none", correlation=1)
        if isinstance(frame, Ok):
            self.hello.correlation = 2
            return self.hello
        if not isinstance(frame, Welcome):
            raise ProtocolError("BAD_STATE", f"{type(frame).__name__} within the handshake")
        self.welcome = frame
        self._offset_ms = frame.server_ms - time.monotonic_ns() // 1_000_000
        self.open = True
        return None

    def server_ms(self) -> int:
        """The broker's wall clock now, in ms since 1970: told once, then counted on here.

        Late by half the handshake's round trip; a change of the local clock is no matter.
        """
        return time.monotonic_ns() // 1_000_000 + self._offset_ms


def refused(error: Error) -> RefusedError:
    """The exception for an Error frame."""
    return refusal(
        error.code,
        error.message,
        error.retryable,
        error.retry_after_ms,
        error.details,
        definite=error.definite,
    )
