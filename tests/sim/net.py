"""TCP as it is when it is bad: late, in other pieces, half dead, or gone.

Bytes are never lost, reordered or changed within a connection: TCP does not do that. What
happens: delay, re-chunking, resets, an end in the middle of a frame, and a direction that
carries nothing for a while (packets dropped, and sent again later).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from sim.loop import SimLoop
from sim.swarm import Swarm
from sim.world import MS, Mark, World

KERNEL_BYTES = 16 * 1024
"""What the kernels between hold; more is in the sender's own buffer."""


class End(Protocol):
    """A client, as its connection sees it."""

    name: str

    def connected(self, wire: Wire) -> None: ...
    def received(self, data: bytes, mark: Mark) -> None: ...
    def lost(self, wire: Wire, why: str) -> None: ...
    def ghost(self, data: bytes, mark: Mark) -> None: ...


class Pipe:
    """One direction of a connection."""

    def __init__(self, wire: Wire, deliver: Callable[[list[Any]], None]) -> None:
        self.wire = wire
        self.deliver = deliver
        self.pieces: deque[tuple[bytes, Any]] = deque()
        self.bytes = 0
        self.ended = False
        """An end follows what waits."""
        self.done = False
        self.paused = False
        self.dark_until = 0
        self.scheduled = False

    def write(self, data: bytes, mark: Any) -> None:
        if not self.done and not self.ended:
            self.pieces.append((data, mark))
            self.bytes += len(data)
            self.kick()

    def end(self) -> None:
        self.ended = True
        self.kick()

    def kick(self) -> None:
        if self.scheduled or self.done or self.paused or not (self.pieces or self.ended):
            return
        self.scheduled = True
        world, net = self.wire.world, self.wire.net
        delay = net.rng.randint(*net.delay_us)
        world.after(max(delay, self.dark_until - world.now), self.carry)

    def carry(self) -> None:
        """Deliver what has arrived by now."""
        self.scheduled = False
        if self.done or self.paused:
            return
        if self.dark_until > self.wire.world.now:
            self.kick()
            return
        if self.pieces:
            self.deliver(self.take())
        if not self.done:
            if not self.pieces and self.ended:
                self.done = True
                self.wire.ended(self)
            else:
                self.kick()

    def take(self) -> list[tuple[bytes, Any]]:
        net = self.wire.net
        room = self.bytes
        if room > 1 and net.rng.random() < net.swarm.rechunk:
            room = net.rng.randint(1, room)
        out = []
        while room and self.pieces:
            data, mark = self.pieces.popleft()
            if len(data) > room:
                self.pieces.appendleft((data[room:], mark))
                data = data[:room]
            out.append((data, mark))
            room -= len(data)
            self.bytes -= len(data)
        return out


class Wire:
    """One connection: a client, the broker's protocol object, and two pipes."""

    def __init__(self, net: Net, client: End, loop: SimLoop, protocol: Any) -> None:
        self.net = net
        self.world = net.world
        self.client = client
        self.loop = loop
        self.protocol = protocol
        self.life = net.world.life
        self.up = Pipe(self, self._to_broker)
        self.down = Pipe(self, self._to_client)
        self.arriving: deque[tuple[bytes, Mark]] = deque()
        """What has reached the client, and waits for what came before to be heard."""
        self.transport = Transport(self)
        self.over = False
        self.broken_at = 0
        """The tick at which something was first done to it that a lease may not survive.

        That the broker hung up is no excuse by itself: it must have had a reason.
        """

    def hurt(self) -> None:
        self.broken_at = self.broken_at or self.world.tick

    # Bytes.

    def _to_broker(self, pieces: list[tuple[bytes, Any]]) -> None:
        data = b"".join(data for data, _ in pieces)
        if self.loop.frozen_until > self.world.now:
            self.up.pieces.appendleft((data, None))
            self.up.bytes += len(data)
            self.up.dark_until = max(self.up.dark_until, self.loop.frozen_until)
            return
        self.loop._run(self.loop_handle(self.protocol.data_received, data))

    def loop_handle(self, do: Callable[..., Any], *args: Any) -> Any:
        return _Now(do, args)

    def _to_client(self, pieces: list[tuple[bytes, Mark]]) -> None:
        self.arriving.extend(pieces)
        while self.arriving and not self.over:
            self.client.received(*self.arriving.popleft())
        if not self.over:
            self.transport.drained()

    # Ends.

    def ended(self, pipe: Pipe) -> None:
        """A direction has come to its end in order."""
        if pipe is self.up:
            self.loop.call_soon(self._eof)
        elif not self.over:
            self.over = True
            self.up.done = True
            self.client.lost(self, "closed by the broker")
            self.loop.call_soon(self.transport.gone, None)

    def _eof(self) -> None:
        if not self.transport.closing and not self.over:
            self.protocol.eof_received()
            self.transport.close()

    def close(self) -> None:
        """By the client, in order: what was sent arrives."""
        self.hurt()
        self.up.end()

    def cut_short(self, keep: int) -> None:
        """The client's end comes after only so many of the bytes that wait: inside a frame."""
        self.hurt()
        data = b"".join(data for data, _ in self.up.pieces)[:keep]
        self.up.pieces.clear()
        self.up.bytes = 0
        if data:
            self.up.pieces.append((data, None))
            self.up.bytes = len(data)
        self.up.end()

    def reset(self, why: str, *, tell_client: bool = True, by_broker: bool = False) -> None:
        """Both ends learn that it is over; what was on its way is lost."""
        if self.over:
            return
        if not by_broker:
            self.hurt()
        self.over = True
        self._haunt()
        self.up.done = self.down.done = True
        self.loop.call_soon(self.transport.gone, ConnectionResetError("simulated"))
        if tell_client:
            self.client.lost(self, why)

    def _haunt(self) -> None:
        """What the broker said and nobody will hear: whoever keeps the books must know."""
        for data, mark in (*self.arriving, *self.down.pieces):
            self.client.ghost(data, mark)
        self.arriving.clear()
        self.down.pieces.clear()
        self.down.bytes = 0


class _Now:
    """A call to be made at once under the loop's rules."""

    __slots__ = ("_cancelled", "args", "do")

    def __init__(self, do: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._cancelled, self.do, self.args = False, do, args


class Transport:
    """What asyncio gives a protocol: the broker's side of a wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.closing = False
        self.told = False
        self.high = 64 * 1024
        self.paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = 64 * 1024 if high is None else high

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50_000) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return max(0, self.wire.down.bytes - KERNEL_BYTES)

    def write(self, data: bytes) -> None:
        wire = self.wire
        if wire.over or self.closing or not data:
            return
        assert not wire.down.ended, "written after the end"
        wire.down.write(bytes(data), wire.world.mark())
        if not self.paused and self.get_write_buffer_size() > self.high:
            self.paused = True
            wire.world.sometimes["a slow reader was given no more"] += 1
            wire.protocol.pause_writing()

    def drained(self) -> None:
        if self.paused and self.get_write_buffer_size() <= self.high // 4:
            self.paused = False
            self.wire.loop.call_soon(self.wire.protocol.resume_writing)

    def pause_reading(self) -> None:
        self.wire.up.paused = True

    def resume_reading(self) -> None:
        self.wire.up.paused = False
        self.wire.up.kick()

    def is_closing(self) -> bool:
        return self.closing or self.wire.over

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.wire.down.end()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.wire.up.done = True
            self.wire.down.end()

    def abort(self) -> None:
        self.closing = True
        self.wire.reset("reset by the broker", by_broker=True)

    def gone(self, error: Exception | None) -> None:
        if not self.told:
            self.told = True
            self.wire.protocol.connection_lost(error)


class Net:
    """Who can be reached, and all connections there are."""

    def __init__(self, world: World, swarm: Swarm) -> None:
        self.world = world
        self.swarm = swarm
        self.rng = world.rng("net")
        self.delay_us = swarm.delay_us
        self.wires: list[Wire] = []
        self._accept: tuple[SimLoop, Any] | None = None

    def listen(self, loop: SimLoop, factory: Any) -> Any:
        self._accept = loop, factory
        return Door(self)

    def unlisten(self) -> None:
        self._accept = None

    def connect(self, client: End) -> None:
        """``client`` is told in a moment: connected, or lost."""
        self.world.after(self.rng.randint(*self.delay_us), self._arrive, client)

    def _arrive(self, client: End) -> None:
        if self._accept is None or self._accept[0].frozen_until > self.world.now + 500 * MS:
            client.lost(None, "refused")  # type: ignore[arg-type]
            return
        loop, factory = self._accept
        self.wires = [wire for wire in self.wires if not wire.over]
        wire = Wire(self, client, loop, factory())
        self.wires.append(wire)
        loop.call_soon(wire.protocol.connection_made, wire.transport)
        client.connected(wire)

    def alive(self) -> list[Wire]:
        return [wire for wire in self.wires if not wire.over]

    def process_gone(self, *, power: bool) -> None:
        """The broker's process ended: what the kernel had still arrives, but not without power."""
        self._accept = None
        for wire in self.alive():
            wire.hurt()
            wire.up.done = True
            if power and self.rng.random() < 0.7:
                wire.over = True
                wire._haunt()
                wire.down.done = True
                self.world.after(self.rng.randint(0, 3_000 * MS), wire.client.lost, wire, "silence")
            else:
                wire.down.end()


class Door:
    """What ``create_server`` gives."""

    def __init__(self, net: Net) -> None:
        self.sockets = [self]
        self._net = net

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 7717

    def close(self) -> None:
        self._net.unlisten()
