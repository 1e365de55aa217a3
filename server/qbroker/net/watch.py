"""One timer for all connections: late handshakes, silence, heartbeats, stalled peers.

Each tick looks at one slice of the connections, so that ten thousand of them cost the
loop well under a millisecond at a time, and everybody is looked at once a round.

Rule 1. The watch's clock stands still while the loop does (a hung disk, SIGSTOP): peers
        are not blamed for words that were waiting in our own sockets.
Rule 2. Movement is read off byte counters, so the hot path needs no clock.
Rule 3. A peer that is not read for the moment is not silent.
Rule 4. Whose Hello waits for a disk that hangs is told so: it is not to blame, and a Welcome would
        promise what the broker cannot do.
"""

import asyncio
from collections.abc import Callable, Mapping

from qbroker.net.connection import LINGER_S, STALL_S, Connection, Limits

SLICES = 8
TICK_S_MIN, TICK_S_MAX = 0.005, 0.125
ROUNDS_A_HEARTBEAT = 4

DISK_STALLED = (
    "the broker's disk does not answer, and nothing can be promised before it does: "
    "try again later, and look at the disk of the broker's machine"
)


class Watch:
    """The timer. ``handshakes`` is in the order of arrival; both maps are the listener's.

    ``relieve`` is called at each tick, to read those again who need not wait any more.
    """

    def __init__(
        self,
        connections: Mapping[int, Connection],
        handshakes: Mapping[int, Connection],
        limits: Limits,
        wall_ms: Callable[[], int],
        relieve: Callable[[], None],
    ) -> None:
        self.lag_s = 0.0
        """How late the last tick was: what a frame waits for the loop."""
        self.lag_s_max = 0.0
        """The latest tick since ``take_lag``."""
        self.now = 0.0
        """Seconds on the watch's own clock (rule 1)."""
        self._connections = connections
        self._handshakes = handshakes
        self._limits = limits
        self._wall_ms = wall_ms
        self._relieve = relieve
        tick = limits.heartbeat_ms / 1000 / ROUNDS_A_HEARTBEAT / SLICES
        self._tick_s = min(max(tick, TICK_S_MIN), TICK_S_MAX)
        self._heartbeat_s = limits.heartbeat_ms / 1000 - SLICES * self._tick_s
        self._silence_s = limits.session_timeout_ms / 1000
        self._slice = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.disk_hangs: Callable[[], bool] = lambda: False
        self.on_tick: Callable[[float], None] | None = None
        """Called with the seconds since the last tick, for others who need a timer."""

    def start(self) -> None:
        """Ticks until ``stop``. Needs a running loop."""
        self._due = asyncio.get_running_loop().time()
        self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take_lag(self) -> float:
        """The latest tick's lateness since the last call, in seconds."""
        lag, self.lag_s_max = max(self.lag_s_max, self.lag_s), 0.0
        return lag

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._tick_s
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        late = max(0.0, asyncio.get_running_loop().time() - self._due)
        self._again()
        self.lag_s = late
        self.lag_s_max = max(self.lag_s_max, late)
        self.now += self._tick_s + min(late, self._tick_s)
        self._hurry_strangers()
        self._relieve()
        self._slice = (self._slice + 1) % SLICES
        for number in [n for n in self._connections if n % SLICES == self._slice]:
            connection = self._connections.get(number)
            if connection is not None:
                self.look(connection)
        if self.on_tick is not None:
            self.on_tick(self._tick_s + late)

    def _hurry_strangers(self) -> None:
        """All have the same time, so whoever came first is late first."""
        late = []
        for connection in self._handshakes.values():
            if self.now - connection.came_at < self._limits.handshake_timeout_ms / 1000:
                break
            late.append(connection)
        for connection in late:
            if not connection.hanging_up:
                connection.fail(
                    "TIMED_OUT",
                    f"no Hello within {self._limits.handshake_timeout_ms} ms of connecting",
                )

    def look(self, connection: Connection) -> None:
        """Judge one connection by what moved since the last look."""
        if connection.hanging_up:
            self._see_off(connection)
            return
        if connection.unanswered and self.disk_hangs():
            connection.turn_away("DISK_STALLED", DISK_STALLED)
            return
        self._listen_to(connection)
        self._speak_to(connection)
        self._see_it_read(connection)

    def _see_off(self, connection: Connection) -> None:
        connection.hanging_up_at = connection.hanging_up_at or self.now
        if self.now - connection.hanging_up_at > LINGER_S:
            connection.abort()

    def _listen_to(self, connection: Connection) -> None:
        heard = connection.received_bytes
        if heard != connection.heard_bytes or connection.blocked:
            connection.heard_bytes, connection.heard_at = heard, self.now
        elif connection.must_speak and self.now - connection.heard_at > self._silence_s:
            connection.fail("TIMED_OUT", f"silent for {self._limits.session_timeout_ms} ms")

    def _speak_to(self, connection: Connection) -> None:
        spoken = connection.sent_bytes
        if spoken != connection.spoken_bytes:
            connection.spoken_bytes, connection.spoke_at = spoken, self.now
        elif connection.wants_heartbeats and self.now - connection.spoke_at >= self._heartbeat_s:
            connection.heartbeat(self._wall_ms())
            connection.spoken_bytes, connection.spoke_at = connection.sent_bytes, self.now

    def _see_it_read(self, connection: Connection) -> None:
        if not connection.unsent_bytes:
            connection.flushed_at = self.now
            return
        flushed = connection.sent_bytes - connection.untaken_bytes
        if flushed != connection.flushed_bytes:
            connection.flushed_bytes, connection.flushed_at = flushed, self.now
        elif not connection.may_stall and self.now - connection.flushed_at > STALL_S:
            connection.stalled()
