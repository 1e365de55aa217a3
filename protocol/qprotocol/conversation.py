"""Who may say what, when. One machine for both ends, with no socket.

    client                         broker
                                   Greeting ------> GREETED
    Auth            --> AUTH       Challenge / Ok  --> AUTH / NAMED
    Hello           --> HELLO      Welcome         --> OPEN
    anything else <-------------> anything else        OPEN
                                  Goaway           --> DRAINING
    anything else <-------------> anything else        DRAINING
    Error before OPEN, a violation, either end closes  CLOSED

Rule 1. All that decides whether a frame is legal is in TRANSITIONS, OPEN_FRAMES and ANSWERS.
Rule 2. This file does not know which end it runs at.
Rule 3. What a client may say does not depend on a push that may still be on its way to it.
"""

from enum import Enum, auto

from qprotocol import frames as f
from qprotocol.errors import ProtocolError
from qprotocol.limits import FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_AUTH

PROTOCOL_VERSION = 1


class Phase(Enum):
    """Where a conversation is."""

    # By identity: Enum's own hash is a Python function, and every frame looks a phase up.
    __hash__ = object.__hash__

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
    """Anything but the handshake."""
    DRAINING = auto()
    """The broker is going away: the client settles, and publishes elsewhere."""
    CLOSED = auto()
    """Nobody may speak: the connection is over."""


TRANSITIONS: dict[tuple[Phase, type[f.Frame]], Phase] = {
    (Phase.NEW, f.Greeting): Phase.GREETED,
    (Phase.NEW, f.Error): Phase.CLOSED,
    (Phase.GREETED, f.Auth): Phase.AUTH,
    (Phase.GREETED, f.Error): Phase.CLOSED,
    (Phase.AUTH, f.Challenge): Phase.GREETED,
    (Phase.AUTH, f.Ok): Phase.NAMED,
    (Phase.AUTH, f.Error): Phase.CLOSED,
    (Phase.NAMED, f.Hello): Phase.HELLO,
    (Phase.NAMED, f.Error): Phase.CLOSED,
    (Phase.HELLO, f.Welcome): Phase.OPEN,
    (Phase.HELLO, f.Error): Phase.CLOSED,
    (Phase.OPEN, f.Goaway): Phase.DRAINING,
}
"""The frames that move a conversation on; all others leave it where it is."""

HANDSHAKE = frozenset({f.Greeting, f.Auth, f.Challenge, f.Hello, f.Welcome})
OPEN_FRAMES: dict[Phase, frozenset[type[f.Frame]]] = {
    Phase.OPEN: frozenset(set(f.FRAMES.values()) - HANDSHAKE),
    # A client's Consume or Credit may have crossed the Goaway: refused, not a violation.
    Phase.DRAINING: frozenset(set(f.FRAMES.values()) - HANDSHAKE - {f.Goaway}),
}
"""What may be said, beside the transitions."""

ANSWERS: dict[type[f.Frame], tuple[type[f.Frame], ...]] = {
    f.Auth: (f.Ok, f.Challenge),
    f.Hello: (f.Welcome,),
    f.Publish: (f.Published,),
    f.Consume: (f.Ok,),
    f.Unsubscribe: (f.Ok,),
    f.Ack: (f.Settled,),
    f.Settle: (f.Settled,),
    f.Watch: (f.Result,),
    f.Forget: (f.Ok,),
    f.Cancel: (f.Result,),
    f.PauseQueue: (f.Ok,),
    f.ResumeQueue: (f.Ok,),
    f.CancelMany: (f.Ok,),
    f.CancelGraph: (f.Ok,),
    f.Move: (f.Ok,),
    f.Why: (f.Report,),
    f.DeadLetters: (f.Report,),
    f.ReplayDead: (f.Ok,),
    f.EditDead: (f.Ok,),
    f.DropDead: (f.Ok,),
    f.Declare: (f.Ok,),
    f.FetchInputs: (f.Inputs,),
    f.Purge: (f.Ok,),
    f.Peek: (f.Peeked,),
    f.Inspect: (f.Report,),
    f.Search: (f.Report,),
    f.ChangeQueue: (f.Ok,),
    f.DeleteQueue: (f.Ok,),
    f.SetPolicy: (f.Ok,),
    f.SetLimit: (f.Ok,),
    f.DropLimit: (f.Ok,),
    f.ForgetKey: (f.Ok,),
    f.Bye: (f.Ok,),
    f.DeclareExchange: (f.Ok,),
    f.DeleteExchange: (f.Ok,),
    f.Bind: (f.Ok,),
    f.Unbind: (f.Ok,),
    f.Listen: (f.Ok,),
    f.Notify: (f.Ok,),
}
"""Requests, and what answers them with the same correlation id; Error may answer any."""


def _steps(phase: Phase) -> dict[type[f.Frame], Phase]:
    stays = dict.fromkeys(OPEN_FRAMES.get(phase, ()), phase)
    return stays | {kind: after for (at, kind), after in TRANSITIONS.items() if at is phase}


STEPS: dict[Phase, dict[type[f.Frame], Phase]] = {phase: _steps(phase) for phase in Phase}
"""For each phase the frames that are legal in it, and the phase after: the tables above as one."""

NUMBERED = frozenset(ANSWERS) - HANDSHAKE | {f.Part}
"""What makes no sense without a correlation id: its answer could not be told from a push."""


class Conversation:
    """One connection's phase. Both ends feed it every frame they send and receive."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase = Phase.NEW

    def advance(self, frame: f.Frame, sender: str) -> None:
        """Note that ``sender`` ("client" or "server") said ``frame``.

        Raises ProtocolError if it may not (BAD_STATE) or lacks the correlation id that
        its answer needs (BAD_FRAME); the phase is then CLOSED.
        """
        kind = type(frame)
        after = STEPS[self.phase].get(kind)
        if after is None or frame.SENDER not in (sender, f.BOTH):
            before, self.phase = self.phase, Phase.CLOSED
            raise ProtocolError(
                "BAD_STATE", f"{kind.__name__} from the {sender} while {before.name.lower()}"
            )
        if not frame.correlation and kind in NUMBERED:
            self.phase = Phase.CLOSED
            raise ProtocolError(
                "BAD_FRAME", f"{kind.__name__} with correlation 0: nothing could answer it"
            )
        self.phase = after

    @property
    def frame_bytes_max(self) -> int:
        """The limit for the next frame: small until the peer is known."""
        known = self.phase in (Phase.NAMED, Phase.HELLO, Phase.OPEN, Phase.DRAINING)
        return FRAME_BYTES_MAX if known else FRAME_BYTES_MAX_BEFORE_AUTH
