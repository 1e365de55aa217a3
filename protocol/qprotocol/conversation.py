"""Who may say what, when. One machine for both ends, with no socket.

    client                         broker
                                   Greeting ------> GREETED
    Auth            --> AUTH       Challenge / Ok  --> AUTH / NAMED
    Hello           --> HELLO      Welcome         --> OPEN
    anything else <-------------> anything else        OPEN
    (settles, acks, no publishes) Goaway           --> DRAINING
    either end closes                                  CLOSED

Rule 1. All that decides whether a frame is legal is in TRANSITIONS and OPEN_FRAMES.
Rule 2. This file does not know which end it runs at.
"""

from enum import Enum, auto

from qprotocol import frames as f
from qprotocol.errors import ProtocolError
from qprotocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_AUTH

PROTOCOL_VERSION = 1


class Phase(Enum):
    """Where a conversation is."""

    NEW = auto()
    """Connected; only the broker may speak."""
    GREETED = auto()
    """The client must say who it is."""
    AUTH = auto()
    """A mechanism is under way."""
    NAMED = auto()
    """Known; the client must say what it is for."""
    HELLO = auto()
    """The broker must answer the Hello."""
    OPEN = auto()
    DRAINING = auto()
    """The broker is going away: the client settles, and publishes elsewhere."""
    CLOSED = auto()


TRANSITIONS: dict[tuple[Phase, type[f.Frame]], Phase] = {
    (Phase.NEW, f.Greeting): Phase.GREETED,
    (Phase.NEW, f.Error): Phase.CLOSED,
    (Phase.GREETED, f.Auth): Phase.AUTH,
    (Phase.AUTH, f.Challenge): Phase.GREETED,
    (Phase.AUTH, f.Ok): Phase.NAMED,
    (Phase.AUTH, f.Error): Phase.CLOSED,
    (Phase.NAMED, f.Hello): Phase.HELLO,
    (Phase.HELLO, f.Welcome): Phase.OPEN,
    (Phase.HELLO, f.Error): Phase.CLOSED,
    (Phase.OPEN, f.Goaway): Phase.DRAINING,
}
"""The frames that move a conversation on; all others leave it where it is."""

HANDSHAKE = frozenset({f.Greeting, f.Auth, f.Challenge, f.Hello, f.Welcome})
OPEN_FRAMES: dict[Phase, frozenset[type[f.Frame]]] = {
    Phase.OPEN: frozenset(set(f.FRAMES.values()) - HANDSHAKE),
    Phase.DRAINING: frozenset(
        set(f.FRAMES.values()) - HANDSHAKE - {f.Consume, f.Credit, f.Deliver, f.Goaway}
    ),
}
"""What may be said, beside the transitions."""


class Conversation:
    """One connection's phase. Both ends feed it every frame they send and receive."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.NEW

    def advance(self, frame: f.Frame, sender: str) -> None:
        """Note that ``sender`` ("client" or "server") said ``frame``.

        Raises ProtocolError(BAD_STATE) if it may not; the phase is then CLOSED.
        """
        kind = type(frame)
        after = TRANSITIONS.get((self.phase, kind))
        legal = after is not None or kind in OPEN_FRAMES.get(self.phase, ())
        if not legal or frame.SENDER not in (sender, f.BOTH):
            before, self.phase = self.phase, Phase.CLOSED
            raise ProtocolError(
                "BAD_STATE", f"{kind.__name__} from the {sender} while {before.name.lower()}"
            )
        if after is not None:
            self.phase = after

    @property
    def frame_bytes_max(self) -> int:
        """The limit for the next frame: small until the peer is known."""
        known = self.phase in (Phase.NAMED, Phase.HELLO, Phase.OPEN, Phase.DRAINING)
        return FRAME_BYTES_MAX if known else FRAME_BYTES_MAX_BEFORE_AUTH
