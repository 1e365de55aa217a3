"""Effects to connections: in order for each, read ahead from the log where they are cold.

Rule 1. What one connection is to get is sent in the order it was released.
Rule 2. A connection that waits for the disk delays nobody else.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Protocol

from qbroker.ages import Ages
from qbroker.archive.errors import ArchiveError
from qbroker.bodies import Bodies, Cold, Damaged, Loaded
from qbroker.core import effects as e
from qbroker.core.results import Found, Remembered
from qbroker.core.survey import id_of
from qbroker.log.errors import LogFailed, NoSuchPosition, TrimmedError, UnreadableError
from qbroker.minted import damage_beside, find_minted
from qbroker.outgoing import Outgoing
from qprotocol import frames as f
from qprotocol.codec import encode
from qprotocol.ids import pack_id
from qprotocol.wire import batch_of

logger = logging.getLogger("qbroker.delivery")

UNREAD = (
    "the broker could not read from its log what it was to send on this connection; what was "
    "handed out on it goes back to its queues, answers are lost: reconnect and ask again, and see "
    "the broker's journal for the cause"
)


class Connection(Protocol):
    """What the engine sees of a connection."""

    number: int

    @property
    def unsent_bytes(self) -> int: ...
    def send(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def welcomed(self) -> None: ...
    def refused(self) -> None: ...


class Archive(Protocol):
    """Settled tasks that are not in memory any more."""

    def find(self, name: bytes, *, minted: bool) -> Remembered | None:
        """What is known of the task with that id. For a thread. Raises ArchiveError."""


class Delivery:
    """Sends effects. Belongs to the engine's loop."""

    def __init__(
        self,
        bodies: Bodies,
        connections: Mapping[int, Connection],
        readers: Executor,
        archive: Archive | None = None,
        ages: Ages | None = None,
    ) -> None:
        self._ages = ages or Ages()
        self._archive = archive
        self._bodies = bodies
        self._connections = connections
        self._readers = readers
        self._outgoing = Outgoing(bodies)
        self.on_damaged: Callable[[list[int], str, str], None] | None = None
        """Called with messages that were to be delivered and are damaged, why, and the evidence."""
        self.on_failed: Callable[[LogFailed], None] | None = None
        """Called when the log has failed: nothing can be read any more."""
        self._waiting: dict[int, deque[e.Effect]] = {}
        """Connections whose next effect waits for the disk."""
        self._read: dict[int, Loaded] = {}
        """What was read for that effect so far: the window may be too small for all of it."""

    def send(self, effects: Iterable[e.Effect]) -> None:
        """Send what can be sent now, one write a connection; keep the rest in order.

        Each connection's in order; among connections, who was thought of last comes first.
        """
        out: dict[int, list[bytes]] = {}
        for effect in effects:
            if isinstance(effect, e.Lookup):
                continue
            queued = self._waiting.get(effect.connection)
            if queued is not None:
                queued.append(effect)
            elif effect.connection in self._connections:
                self._add(out, effect)
        # A turn answers first and hands out last. Sent the other way round: a worker can begin
        # while publishers learn that theirs is confirmed, which nobody's work waits for.
        for number, pieces in reversed(out.items()):
            connection = self._connections.get(number)
            if connection and pieces:  # none is left if all of them are damaged
                connection.send(b"".join(pieces) if len(pieces) > 1 else pieces[0])

    def _add(self, out: dict[int, list[bytes]], effect: e.Effect) -> None:
        number = effect.connection
        connection = self._connections[number]
        if isinstance(effect, e.Close):
            self._flush(out, number)
            connection.refused()
            connection.close()
            return
        if isinstance(effect, e.Send):
            frame = effect.frame
            if type(frame) is f.Welcome:
                connection.welcomed()
            elif type(frame) is f.Error and not frame.correlation:
                self._flush(out, number)
                connection.send(encode(frame))
                connection.close()
                return
        try:
            out.setdefault(number, []).extend(self._frames(effect))
        except Cold:
            if not out[number]:
                del out[number]
            self._waiting[number] = deque((effect,))
            self._load(number, effect)

    def _frames(self, effect: e.Effect) -> list[bytes]:
        """The bytes of an effect, less what is damaged on disk. Raises Cold."""
        while True:
            try:
                return self._outgoing.frames(effect)
            except Damaged as damaged:
                lost = self._outgoing.leave_out(effect, damaged)
                if lost and self.on_damaged:
                    self.on_damaged(lost, damaged.lost.why, damaged.lost.evidence)

    def _flush(self, out: dict[int, list[bytes]], number: int) -> None:
        pieces = out.pop(number, None)
        if pieces:
            self._connections[number].send(b"".join(pieces))

    def _load(self, number: int, effect: e.Effect) -> None:
        """Read what the connection waits for, then go on with it."""
        loop = asyncio.get_running_loop()
        missing = self._bodies.missing(self._outgoing.needs(effect))
        future = loop.run_in_executor(self._readers, self._bodies.load, missing)

        def done(future: asyncio.Future[Loaded]) -> None:
            if future.cancelled():
                return
            if failure := future.exception():
                self._give_up(number, failure)
                return
            queued = self._waiting.pop(number, None)
            loaded = self._read.pop(number, {}) | future.result()
            # Not shrunk before it is sent: what one effect shows may be more than the window.
            self._bodies.keep(loaded)
            if queued:
                self.send(queued)
                again = self._waiting.get(number)
                if again and again[0] is effect:  # what was in memory was dropped meanwhile
                    self._read[number] = loaded
            self._bodies.shrink()

        future.add_done_callback(done)

    def _give_up(self, number: int, failure: BaseException) -> None:
        """What the connection waits for cannot be read: it ends, and its leases go back.

        If no read will succeed any more, the broker is told instead.
        """
        self.drop(number)
        if isinstance(failure, LogFailed) and self.on_failed:
            self.on_failed(failure)
            return
        logger.error("what a connection was to get cannot be read: %s", failure, exc_info=failure)
        connection = self._connections.get(number)
        if connection:
            connection.send(encode(f.Error(code="DISK_STALLED", message=UNREAD, retryable=True)))
            connection.close()

    def drop(self, number: int) -> None:
        """The connection is gone."""
        self._waiting.pop(number, None)
        self._read.pop(number, None)

    def find_here(self, lookup: e.Lookup) -> Found:
        """Those of the messages that ``lookup`` names by position which are in memory.

        A message at a position that bears another id than was asked for is none of them.
        """
        if lookup.moment_ms:
            return Found(before=self._ages.before(lookup.moment_ms))
        found: dict[int, bytes] = {}
        for position in lookup.positions:
            with contextlib.suppress(Cold, Damaged, IndexError):
                found[position] = self._bodies.message(position)
        return Found(wanted(found, lookup.id))

    def finder(self, lookup: e.Lookup, found: Found) -> Callable[[], Found]:
        """What reads the rest of what ``lookup`` asks for, in a thread.

        Where the log knows nothing of an id, or cannot say, the archive is asked at once.
        """
        cold = [position for position in lookup.positions if position not in found.messages]
        unwritten = list(self._bodies.unwritten()) if lookup.id else []
        bodies = self._bodies

        def search() -> Found:
            read = {position: read_message(bodies, position) for position in cold}
            out = Found(found.messages | wanted(read, lookup.id))
            if lookup.id and not out.messages:
                name, minted = pack_id(lookup.id)
                in_log = minted and not lookup.archive
                if in_log:
                    hits = find_minted(bodies, name, unwritten)
                    out.messages, out.trouble = hits.messages, hits.unread
                if not out.messages or out.trouble:
                    self._remember(out, name, minted=minted)
                    if in_log and not (out.remembered or out.trouble):
                        out.damage = damage_beside(bodies, name)
            return out

        def find() -> Found:
            try:
                return search()
            except UnreadableError as error:  # that it cannot be read says nothing of it
                return Found(found.messages, trouble=str(error))

        return find

    def _remember(self, found: Found, name: bytes, *, minted: bool) -> None:
        """Put in what the archive says of the task."""
        found.asked = True
        try:
            found.remembered = self._archive.find(name, minted=minted) if self._archive else None
        except ArchiveError as error:
            found.trouble = str(error)


def wanted(found: dict[int, bytes], task_id: str) -> dict[int, bytes]:
    """The messages that bear the id; all of them if none is asked for."""
    if not task_id:
        return found
    name = pack_id(task_id)[0]
    return {position: raw for position, raw in found.items() if raw and id_of(raw) == name}


def read_message(bodies: Bodies, position: int) -> bytes:
    """The message at ``position`` as far as its own record holds it; empty if there is none.

    Raises UnreadableError, LogFailed: neither says that there is none.
    """
    try:
        loaded = bodies.load([position])
    except (TrimmedError, NoSuchPosition):
        return b""
    for body in loaded.get(batch_of(position), ()):
        if body.first <= position < body.first + body.count:
            return body.message(position)
    return b""
