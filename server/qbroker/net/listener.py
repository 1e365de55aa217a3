"""The door: who may connect, who waits while the broker is busy, and the goodbye.

    listen -> accept -> came -> (handshake) -> known -> left
                          |                      |
                          too many: told         engine.submit ... crowded -> block -> drained

Rule 1. Strangers are counted apart: they cannot use up the room of those who are known.
Rule 2. While the inbox is over its limit those who publish are not read, and told so.
        Those who settle are read up to twice the limit: acks make room, publishes take it.
"""

import asyncio
import logging
import resource
import socket
from collections import Counter

from qbroker.net.complaints import Complaints
from qbroker.net.connection import Connection, Engine, Limits
from qbroker.net.session import Terms
from qbroker.net.watch import Watch
from qprotocol.frames import Goaway

BACKLOG = 1024
FILES_BESIDE_CONNECTIONS = 256
"""Segments, the archive, the loop's own, HTTP."""
GOODBYE_S = 1.0
"""After a Goaway, how long those who hold no leases may go on. An idle client hears nothing, and
would keep the broker from stopping, and everybody else's calls from the one that comes after it."""

_log = logging.getLogger("qbroker.net")


class Listener:
    """All connections of one broker. Nobody is let in before ``listen``."""

    def __init__(self, engine: Engine, terms: Terms, limits: Limits) -> None:
        self.engine = engine
        self.terms = terms
        self.limits = limits
        self.complaints = Complaints()
        self.connections: dict[int, Connection] = {}
        self._handshakes: dict[int, Connection] = {}
        self.watch = Watch(self.connections, self._handshakes, limits, terms.wall_ms, self._relieve)
        self._blocked: dict[Connection, None] = {}
        """In the order they were blocked: they are read again in it."""
        self.closed = ""
        """Why nothing new is taken in from anybody; empty if it is."""
        self._accepted = 0
        self._server: asyncio.Server | None = None
        self._emptied: asyncio.Event | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        engine.on_drained = self.drained

    # The life of the door.

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Connections are accepted at the address returned: ``port`` 0 takes a free one.

        Raises OSError if the address cannot be had.
        """
        allow_files(self.limits.connections_max + FILES_BESIDE_CONNECTIONS)
        loop = asyncio.get_running_loop()
        if port == 0:  # a name with two addresses must not get two ports
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            host = str(found[0][4][0])
        self._server = await loop.create_server(self._accept, host, port, backlog=BACKLOG)
        self.watch.start()
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    def quiesce(self) -> None:
        """Nobody new is accepted, and nobody is handed anything more.

        Deliveries that wait for the disk still go out; a Goaway must come after them.
        """
        self._shut()
        for connection in list(self.connections.values()):
            connection.feed_up()

    def goaway(self, reason: str, deadline_ms: int) -> None:
        """Everybody is told to come back later. Call ``quiesce`` a moment before.

        Those who hold no leases have a second for it; what they publish is kept meanwhile.
        """
        self._shut()
        for connection in list(self.connections.values()):
            connection.leave(Goaway(reason=reason, deadline_ms=deadline_ms))
        self._goodbye = asyncio.get_running_loop().call_later(GOODBYE_S, self._send_off)

    def _send_off(self) -> None:
        for connection in list(self.connections.values()):
            role = connection.session.role
            if role is None or role.may_hold:
                continue
            if connection.unsent_bytes:
                connection.hang_up()  # answers are still on their way
            else:
                connection.abort()

    async def emptied(self, timeout_s: float) -> bool:
        """Whether all connections were gone within ``timeout_s``."""
        if self.connections:
            self._emptied = asyncio.Event()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()
            except TimeoutError:
                return False
        return True

    async def close(self, timeout_s: float) -> None:
        """All connections are gone: what was sent is flushed, within ``timeout_s``."""
        self._shut()
        for connection in list(self.connections.values()):
            connection.hang_up()
        if not await self.emptied(timeout_s):
            self.abort()
        self.watch.stop()

    def abort(self) -> None:
        """All connections end now, with nothing more said."""
        self._shut()
        self.watch.stop()
        for connection in list(self.connections.values()):
            connection.abort()

    def counts(self) -> Counter[str]:
        """Connections by role; those without one are "stranger"."""
        roles = (each.session.role for each in self.connections.values())
        return Counter(role.name if role else "stranger" for role in roles)

    # What connections call.

    def came(self, connection: Connection) -> None:
        """Let a new connection begin its handshake, or tell it that there is no room."""
        limits = self.limits
        self.connections[connection.number] = connection
        self._handshakes[connection.number] = connection
        for what, count, limit in (
            ("connections", len(self.connections), limits.connections_max),
            ("handshakes", len(self._handshakes), limits.handshakes_max),
        ):
            if count > limit:
                message = f"{limit} {what} are open, the limit: try again, or raise {what}_max"
                connection.fail("TOO_MANY_CONNECTIONS", message)
                if count > 2 * limit:  # a flood: no room even for goodbyes
                    connection.abort()
                return

    def known(self, connection: Connection) -> None:
        """It said Hello: no stranger any more."""
        self._handshakes.pop(connection.number, None)

    def crowded(self, connection: Connection) -> None:
        """It sent something while the inbox is over its limit."""
        role = connection.session.role
        if role is None:
            return  # a stranger's words do not go into the inbox
        limit = self.limits.inbox_bytes_max * (1 if role.paused_first else 2)
        if self.engine.inbox_bytes > limit and not connection.hanging_up:
            if not self._blocked:
                _log.warning(
                    "%d bytes wait for a turn, %d are allowed: publishers are not read",
                    *(self.engine.inbox_bytes, self.limits.inbox_bytes_max),
                )
            self._blocked[connection] = None
            connection.block()

    def drained(self) -> None:
        """The inbox has room again: everybody is read."""
        blocked, self._blocked = self._blocked, {}
        for connection in blocked:
            connection.unblock()

    def close_to_publishes(self, why: str) -> None:
        """All who publish are told that nothing is taken, and why; empty: that it is again."""
        self.closed = why
        for connection in list(self.connections.values()):
            connection.tell()

    def left(self, connection: Connection) -> None:
        """It is gone."""
        del self.connections[connection.number]
        self._handshakes.pop(connection.number, None)
        self._blocked.pop(connection, None)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def _relieve(self) -> None:
        """The engine's word that it has drained is an edge; a missed one must not hold for ever."""
        if self._blocked and self.engine.inbox_bytes < self.limits.inbox_bytes_max // 2:
            self.drained()

    def _shut(self) -> None:
        if self._goodbye is not None:
            self._goodbye.cancel()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self) -> Connection:
        self._accepted += 1
        return Connection(self, self._accepted, self.watch.now)


def allow_files(needed: int) -> None:
    """Raise the soft limit of open files as far as the hard one lets us; warn if it is short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    best = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
    if best < needed:
        _log.warning(
            "%d files may be open, connections_max asks for %d: the last connections will fail; "
            "raise the limit (LimitNOFILE in systemd, ulimit -n) or lower connections_max",
            *(best, needed),
        )
