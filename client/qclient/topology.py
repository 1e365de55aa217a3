"""Exchanges, and the queues that get copies of what is published to them.

    events = Exchange("events", "topic")
    app.conf.task_queues = [
        Queue("audit", events, "order.#"),
        Broadcast("news"),
    ]
    app.declare()

Values: nothing here talks to the broker. ``App.declare`` does, and a worker before its first
task; what is there already and the same is no news.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from qprotocol.exchanges import Binding as CheckedBinding
from qprotocol.exchanges import Destination, ExchangeOptions
from qprotocol.frames import (
    Bind,
    ChangeQueue,
    Declare,
    DeclareExchange,
    DeleteExchange,
    DeleteQueue,
    Frame,
    Purge,
    Unbind,
)
from qprotocol.names import check_exchange_name, check_queue_name
from qprotocol.options import QueueOptions as CheckedOptions

if TYPE_CHECKING:
    from qclient.app import App

Kind = Literal["direct", "topic", "fanout", "headers"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange: what is published to it goes to the queues that are bound for it.

    ``type``: direct (the key is the routing key), topic (the key is a pattern, with ``*`` for a
    word and ``#`` for any number), fanout (all), headers (the arguments are among the headers).
    ``alternate`` names the exchange that gets what no binding takes. ``unroutable``: a message
    that reaches no queue is an error (refuse), or dropped and counted (drop).
    """

    name: str
    type: Kind = "direct"
    alternate: str = ""
    unroutable: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        """Raises ValueError for a name or an option that no exchange may have."""
        check_exchange_name(self.name)
        ExchangeOptions.parse(self.options)

    @property
    def options(self) -> dict[str, Any]:
        """As the broker takes them."""
        return {"alternate": self.alternate, "unroutable": self.unroutable}

    def frames(self) -> Iterator[Frame]:
        """What declares it. The empty one needs nothing."""
        if self.name:
            yield DeclareExchange(exchange=self.name, kind=self.type, options=self.options)


class QueueOptions(TypedDict, total=False):
    """The options of a queue; what is not named is left to policies and defaults."""

    fsync: Literal["always", "interval", "never"]
    durability: Literal["durable", "transient"]
    retries_max: int
    backoff_ms: int
    backoff_max_ms: int
    poison_max: int
    deliveries_max: int
    max_length: int
    max_bytes: int
    overflow: Literal["reject", "dead_letter_oldest"]
    message_ttl_ms: int
    expires_ms: int
    min_priority: int
    max_priority: int
    oldest_every: int
    fair_weights: str
    single_active_consumer: bool
    auto_delete: bool
    exclusive: bool
    dead_letter_queue: str
    alarm_length: int
    alarm_age_ms: int
    history: Literal["all", "failures", "none"]


@dataclass(frozen=True, slots=True)
class Binding:
    """One of several ways by which messages come into a queue."""

    exchange: Exchange
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of a headers exchange: what the headers must hold; ``x-match`` is all or any."""

    def frames(self, queue: str) -> Iterator[Frame]:
        """What declares its exchange, and binds the queue."""
        yield from self.exchange.frames()
        yield bind(self.exchange, queue, self.routing_key, self.arguments)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, and by which bindings it gets messages; also always by its name.

        Queue("mail", options={"max_length": 10_000, "message_ttl_ms": 3_600_000})

    Declared again, it must agree in each option that is named; see the broker's README for them.
    """

    name: str
    exchange: Exchange | None = None
    routing_key: str = ""
    bindings: Sequence[Binding] = ()
    """More of them."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the first binding, if its exchange is of type headers."""
    options: QueueOptions = field(default_factory=QueueOptions)

    def __post_init__(self) -> None:
        """Raises ValueError for a name, a binding or an option that cannot be."""
        check_queue_name(self.name)
        CheckedOptions.check(self.options)
        list(self.frames())

    def frames(self) -> Iterator[Frame]:
        """What declares it, its exchanges and its bindings. Without either there is nothing."""
        if self.options:
            yield Declare(queue=self.name, options=dict(self.options))
        if self.exchange is not None:
            first = Binding(self.exchange, self.routing_key or self.name, self.arguments)
            yield from first.frames(self.name)
        for binding in self.bindings:
            yield from binding.frames(self.name)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What is sent to it goes to every worker that consumes it (``-Q name``), once each.

    A fanout exchange with a queue for each worker, which goes when the worker does. What nobody
    listens to is dropped. Results of such tasks are those of some worker: ignore them.
    """

    name: str

    def __post_init__(self) -> None:
        """Raises ValueError for a name that no exchange may have."""
        check_queue_name(self.name)

    @property
    def exchange(self) -> Exchange:
        """The exchange behind it."""
        return Exchange(self.name, "fanout", unroutable="drop")

    def frames(self) -> Iterator[Frame]:
        """What declares it."""
        yield from self.exchange.frames()


Declarable = Exchange | Queue | Broadcast


def bind(
    exchange: Exchange, queue: str, key: str, arguments: Mapping[str, Any], *, undo: bool = False
) -> Bind | Unbind:
    """The frame for a binding. Raises ValueError for one that cannot be."""
    given = dict(arguments)
    CheckedBinding.parse(exchange.type, Destination(to_exchange=False, name=queue), key, given)
    kind = Unbind if undo else Bind
    return kind(exchange=exchange.name, key=key, destination=queue, arguments=given)


def declarations(things: Iterable[Declarable]) -> list[Frame]:
    """The frames that declare all of them, each once, exchanges before what names them."""
    found: list[Frame] = []
    for thing in things:
        for frame in thing.frames():
            if frame not in found:
                found.append(frame)
    return found


class ExchangeHandle:
    """An exchange of one App's broker. Made by ``app.exchange``; each verb has an asyncio twin."""

    def __init__(self, app: "App", exchange: Exchange) -> None:
        self.app = app
        self.exchange = exchange

    def __repr__(self) -> str:
        return f"<{self.exchange.type} exchange {self.exchange.name} at {self.app.address}>"

    def declare(self) -> bool:
        """The exchange exists; whether it did not before. Raises OptionsDiffer if it differs."""
        return bool(sum(self.app.order(frame) for frame in self.exchange.frames()))

    def bind(self, queue: str, routing_key: str = "", **arguments: Any) -> bool:
        """The queue gets what fits; whether the binding is new. Makes the queue if need be."""
        return bool(self.app.order(bind(self.exchange, queue, routing_key, arguments)))

    def unbind(self, queue: str, routing_key: str = "", **arguments: Any) -> bool:
        """There is no such binding; whether there was one."""
        frame = bind(self.exchange, queue, routing_key, arguments, undo=True)
        return bool(self.app.order(frame))

    def delete(self, *, if_unused: bool = False) -> int:
        """The exchange and its bindings are gone; how many. Raises NoExchange, InUse."""
        return self.app.order(DeleteExchange(exchange=self.exchange.name, if_unused=if_unused))

    async def declare_async(self) -> bool:
        """Like ``declare``, from asyncio."""
        counts = [await self.app.order_async(frame) for frame in self.exchange.frames()]
        return bool(sum(counts))

    async def bind_async(self, queue: str, routing_key: str = "", **arguments: Any) -> bool:
        """Like ``bind``, from asyncio."""
        frame = bind(self.exchange, queue, routing_key, arguments)
        return bool(await self.app.order_async(frame))

    async def unbind_async(self, queue: str, routing_key: str = "", **arguments: Any) -> bool:
        """Like ``unbind``, from asyncio."""
        frame = bind(self.exchange, queue, routing_key, arguments, undo=True)
        return bool(await self.app.order_async(frame))

    async def delete_async(self, *, if_unused: bool = False) -> int:
        """Like ``delete``, from asyncio."""
        frame = DeleteExchange(exchange=self.exchange.name, if_unused=if_unused)
        return await self.app.order_async(frame)


class QueueHandle:
    """A queue of one App's broker. Made by ``app.queue``; each verb has an asyncio twin."""

    def __init__(self, app: "App", queue: Queue) -> None:
        self.app = app
        self.queue = queue

    def __repr__(self) -> str:
        return f"<queue {self.queue.name} at {self.app.address}>"

    def _declare(self) -> Declare:
        return Declare(queue=self.queue.name, options=dict(self.queue.options))

    def declare(self) -> bool:
        """The queue exists; whether it did not before.

        Raises OptionsDiffer if it does with other options: ``details["conflicts"]`` has each.
        """
        return bool(self.app.order(self._declare()))

    def change(self, **options: Unpack[QueueOptions]) -> bool:
        """The queue has these options from now on; whether it had others. Raises NoQueue."""
        frame = ChangeQueue(queue=self.queue.name, options=dict(options))
        return bool(self.app.order(frame))

    def purge(self) -> int:
        """Nothing waits in the queue; how many messages did. Raises NoQueue."""
        return self.app.order(Purge(queue=self.queue.name))

    def delete(self, *, if_empty: bool = False, if_unused: bool = False) -> int:
        """The queue is gone; how many messages waited in it. Raises NoQueue, InUse."""
        frame = DeleteQueue(queue=self.queue.name, if_empty=if_empty, if_unused=if_unused)
        return self.app.order(frame)

    async def declare_async(self) -> bool:
        """Like ``declare``, from asyncio."""
        return bool(await self.app.order_async(self._declare()))

    async def change_async(self, **options: Unpack[QueueOptions]) -> bool:
        """Like ``change``, from asyncio."""
        frame = ChangeQueue(queue=self.queue.name, options=dict(options))
        return bool(await self.app.order_async(frame))

    async def purge_async(self) -> int:
        """Like ``purge``, from asyncio."""
        return await self.app.order_async(Purge(queue=self.queue.name))

    async def delete_async(self, *, if_empty: bool = False, if_unused: bool = False) -> int:
        """Like ``delete``, from asyncio."""
        frame = DeleteQueue(queue=self.queue.name, if_empty=if_empty, if_unused=if_unused)
        return await self.app.order_async(frame)
