"""``App``: the address, the settings, the tasks by name, and one connection a process.

    app = App("shop", broker="qbroker://localhost")

Rule 1. Making an App does no I/O: the first call connects.
Rule 2. Everything that is sent goes through ``send``, ``send_many`` or their asyncio twins.
"""

import os
import socket
import sys
import threading
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from qclient import shared
from qclient.address import SCHEME, Address
from qclient.batches import atomic_chunk, chunks, chunks_async, confirm, send_many, send_many_async
from qclient.canvas.packing import Packing, handles
from qclient.canvas.plan import plan
from qclient.canvas.steps import Step
from qclient.canvas.stored import from_dict
from qclient.connection import Connection
from qclient.control import Control
from qclient.deadletters import DeadLetterBox
from qclient.decorator import TaskDecorator
from qclient.events import Events
from qclient.mint import mint_one
from qclient.options import CALL, CallOptions, check
from qclient.recipe import Callee
from qclient.result import AsyncResult
from qclient.settings import Settings
from qclient.signature import Signature
from qclient.task import Task
from qclient.topology import (
    Declarable,
    Exchange,
    ExchangeHandle,
    Kind,
    Queue,
    QueueHandle,
    QueueOptions,
    declarations,
)
from qprotocol import __version__
from qprotocol.conversation import PROTOCOL_VERSION
from qprotocol.frames import Frame, Hello, Ok, Publish, Published
from qprotocol.limits import TASK_BYTES_MAX

if TYPE_CHECKING:  # asyncio weighs 4 MB in every worker child: loaded by who uses it
    from asyncio import AbstractEventLoop

    from qclient.aconnection import AsyncConnection

R = TypeVar("R")


class App:
    """One application: its tasks, and the broker they go to."""

    def __init__(
        self, name: str, broker: str = f"{SCHEME}localhost", *, set_as_current: bool = True
    ) -> None:
        """An App. Raises ValueError if ``broker`` is not ``qbroker://host[:port]``."""
        self.name = name
        self.address = Address.parse(broker)
        self.conf = Settings()
        """The settings: see settings.py."""
        self.conf.changed = self._settings_changed
        self.task = TaskDecorator(self._register)
        """``@app.task`` or ``@app.task(option=...)``: makes a task of a function."""
        self.connection = Connection(self.address, self.hello)
        """The blocking connection of this process, shared by its threads."""
        self.events = Events(self)
        """What is said to whoever listens now: see events.py."""
        self.control = Control(self)
        """Orders about many tasks at once, and about queues."""
        self.dead = DeadLetterBox(self)
        """Tasks that failed for good: see deadletters.py."""
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._callees: dict[str, Callee] = {}
        self._loops: weakref.WeakKeyDictionary[AbstractEventLoop, AsyncConnection]
        self._loops = weakref.WeakKeyDictionary()
        self._registering = threading.Lock()
        if set_as_current:
            self.set_current()

    def __repr__(self) -> str:
        return f"<App {self.name} at {self.address}>"

    def set_current(self) -> None:
        """Shared tasks are sent by this App from now on."""
        shared.set_current(self)

    # Tasks.

    @property
    def tasks(self) -> "Tasks":
        """The tasks by name, those of ``@shared_task`` too."""
        return Tasks(self._tasks)

    def _register(
        self, function: Callable[..., Any], bind: bool, options: dict[str, Any]
    ) -> Task[Any, Any]:
        name = options.pop("name", None) or self.gen_task_name(function)
        task: Task[Any, Any] = Task(function, name, options, bind, self)
        with self._registering:
            shared.refuse_another(self._tasks.get(name), task)
            self._tasks[name] = task
            self._callees[name] = task.callee
        return task

    def gen_task_name(self, function: Callable[..., Any]) -> str:
        """``module.function``; the App's name stands for ``__main__``."""
        module = function.__module__
        return f"{self.name if module == '__main__' else module}.{function.__name__}"

    def callee_of(self, task: Task[Any, Any]) -> Callee:
        """How this App sends a shared task."""
        callee = self._callees.get(task.name)
        if callee is None or callee.options is not task.options:
            callee = self._callees[task.name] = task.callee_for(self)
        return callee

    def _named(self, name: str) -> Callee:
        """How this App sends a task it may know by name alone."""
        task = self.tasks.get(name)
        if task is not None:
            return self.callee_of(task)
        if not 1 <= len(name.encode()) <= TASK_BYTES_MAX:
            raise ValueError(f"a task's name is 1 to {TASK_BYTES_MAX} bytes, not {name!r:.300}")
        callee = self._callees.get(name)
        if callee is None:
            callee = self._callees[name] = Callee(self, name, {})
        return callee

    def _settings_changed(self) -> None:
        for callee in list(self._callees.values()):
            callee.forget_recipes()

    # Sending.

    @property
    def timeout_s(self) -> float:
        """How long a call may take."""
        return self.conf.broker_timeout_s

    def send(self, signature: Signature[R]) -> AsyncResult[R]:
        """The call is on disk at the broker, or as its queue's fsync says.

        Raises TypeError or ValueError for arguments that do not fit or cannot be sent,
        NotDone or OutcomeUnknown within ``timeout_s``. One round trip.
        """
        if signature.links or signature.errors:
            linked: AsyncResult[R] = self.send_steps(signature)
            return linked
        timeout_s = self.conf.broker_timeout_s
        recipe, body, key = signature.callee.prepare(signature)
        now_ms = self.connection.server_ms(timeout_s)
        raw, task_id = recipe.finish(body, key, signature.options, now_ms, mint_one(now_ms))
        frame = Publish(producer=0, sequence=0, count=1, raw=raw)
        answer = self.connection.call(frame, Published, timeout_s)
        return self._sent(task_id, answer)

    async def send_async(self, signature: Signature[R]) -> AsyncResult[R]:
        """Like ``send``, from asyncio."""
        if signature.links or signature.errors:
            linked: AsyncResult[R] = await self.send_steps_async(signature)
            return linked
        timeout_s = self.conf.broker_timeout_s
        recipe, body, key = signature.callee.prepare(signature)
        connection = self.async_connection()
        now_ms = await connection.server_ms(timeout_s)
        raw, task_id = recipe.finish(body, key, signature.options, now_ms, mint_one(now_ms))
        frame = Publish(producer=0, sequence=0, count=1, raw=raw)
        answer = await connection.call(frame, Published, timeout_s)
        return self._sent(task_id, answer)

    def _sent(self, task_id: bytes | str, answer: Published) -> AsyncResult[Any]:
        result: AsyncResult[Any] = AsyncResult(task_id, self)
        confirm([result], answer)
        return result

    def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Send a task by its name; its code need not be known here. Like ``apply_async``."""
        return self.send(self.signature(name, args, kwargs, **options))

    async def send_task_async(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Like ``send_task``, from asyncio."""
        return await self.send_async(self.signature(name, args, kwargs, **options))

    def signature(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Unpack[CallOptions],
    ) -> Signature[Any]:
        """A call of a task known by name."""
        check(options, CALL, name)
        return Signature(self._named(name), tuple(args), kwargs or {}, options, immutable)

    def step(self, data: Mapping[str, Any]) -> Step:
        """The call or canvas that ``as_dict`` made this of.

        Raises ValueError or TypeError if it is none.
        """
        return from_dict(self, data)

    def send_many(
        self, signatures: Iterable[Signature[R]], *, atomic: bool = False
    ) -> list[AsyncResult[R]]:
        """All calls are on disk at the broker; their handles, in order.

        Streamed: the iterable is consumed as the broker confirms, in chunks of at most 1,000
        messages or 128 KiB, each all or nothing. Raises PartialPublish if one fails. With
        ``atomic`` all or none are done (at most 50,000 messages and 64 MiB), and the error
        is the one ``send`` would raise. About 3 µs a call.
        """
        timeout_s = self.conf.broker_timeout_s
        connection = self.connection

        def now_ms() -> int:
            return connection.server_ms(timeout_s)

        if not atomic:
            return send_many(connection, chunks(self, signatures, now_ms), timeout_s)
        chunk = atomic_chunk(self, signatures, now_ms)
        if chunk is None:
            return []
        confirm(chunk.results, connection.call(chunk.publish(), Published, timeout_s))
        return chunk.results

    async def send_many_async(
        self,
        signatures: Iterable[Signature[R]] | AsyncIterable[Signature[R]],
        *,
        atomic: bool = False,
    ) -> list[AsyncResult[R]]:
        """Like ``send_many``, from asyncio; takes asynchronous iterables too."""
        timeout_s = self.conf.broker_timeout_s
        connection = self.async_connection()
        await connection.server_ms(timeout_s)
        if not atomic:
            packed = chunks_async(self, signatures, connection.now_ms)
            return await send_many_async(connection, packed, timeout_s)
        if isinstance(signatures, AsyncIterable):
            signatures = [signature async for signature in signatures]
        chunk = atomic_chunk(self, signatures, connection.now_ms)
        if chunk is None:
            return []
        confirm(chunk.results, await connection.call(chunk.publish(), Published, timeout_s))
        return chunk.results

    def send_steps(self, step: Step) -> Any:
        """All messages of a canvas are on disk at the broker, or none; its handle.

        One publish, in parts where it is large. Raises what ``send`` does.
        """
        timeout_s = self.conf.broker_timeout_s
        made = plan(step)
        chunk = Packing(self, lambda: self.connection.server_ms(timeout_s)).pack(made)
        if chunk.results:
            confirm(chunk.results, self.connection.call(chunk.publish(), Published, timeout_s))
        return handles(made, chunk.results)

    async def send_steps_async(self, step: Step) -> Any:
        """Like ``send_steps``, from asyncio."""
        timeout_s = self.conf.broker_timeout_s
        connection = self.async_connection()
        await connection.server_ms(timeout_s)
        made = plan(step)
        chunk = Packing(self, connection.now_ms).pack(made)
        if chunk.results:
            confirm(chunk.results, await connection.call(chunk.publish(), Published, timeout_s))
        return handles(made, chunk.results)

    # Exchanges.

    def exchange(
        self,
        name: str,
        type: Kind = "direct",  # noqa: A002  # Celery's name
        **options: Any,
    ) -> ExchangeHandle:
        """The exchange of that name, to be declared, bound or deleted. Does no I/O."""
        return ExchangeHandle(self, Exchange(name, type, **options))

    def queue(self, name: str, **options: Unpack[QueueOptions]) -> QueueHandle:
        """The queue of that name, to be declared, changed, purged or deleted. Does no I/O."""
        return QueueHandle(self, Queue(name, options=options))

    def declare(self, *things: Declarable) -> None:
        """These exchanges and queues exist, bound as they say; without any, ``conf.task_queues``.

        Raises OptionsDiffer for one that exists and differs. A round trip for each binding.
        """
        for frame in declarations(things or self.conf.task_queues):
            self.order(frame)

    async def declare_async(self, *things: Declarable) -> None:
        """Like ``declare``, from asyncio."""
        for frame in declarations(things or self.conf.task_queues):
            await self.order_async(frame)

    def order(self, frame: Frame) -> int:
        """The broker has done what the frame says; the count in its Ok."""
        return self.connection.call(frame, Ok, self.conf.broker_timeout_s).count

    async def order_async(self, frame: Frame) -> int:
        """Like ``order``, from asyncio."""
        timeout_s = self.conf.broker_timeout_s
        return (await self.async_connection().call(frame, Ok, timeout_s)).count

    def AsyncResult(self, id: str) -> AsyncResult[Any]:  # noqa: A002, N802  # Celery's names
        """The handle of a task by its id."""
        return AsyncResult(id, self)

    # Connections.

    def async_connection(self) -> "AsyncConnection":
        """The connection of the running loop."""
        from asyncio import get_running_loop  # noqa: PLC0415  # see the import above

        from qclient.aconnection import AsyncConnection  # noqa: PLC0415

        loop = get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = AsyncConnection(self.address, self.hello)
        return found

    def hello(self) -> Hello:
        """How this process introduces itself as a producer. It promises no heartbeats."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            role="producer",
            client_id=os.urandom(8).hex(),
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            language=f"python {sys.version.split()[0]}",
            library=LIBRARY,
            app=self.name,
        )

    def close(self) -> None:
        """The blocking connection is closed; the next call opens a new one."""
        self.connection.close()

    async def close_async(self) -> None:
        """The running loop's connection is closed."""
        from asyncio import get_running_loop  # noqa: PLC0415

        connection = self._loops.pop(get_running_loop(), None)
        if connection is not None:
            await connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tasks(Mapping[str, Task[Any, Any]]):
    """An App's tasks by name, with the shared ones behind its own."""

    def __init__(self, own: Mapping[str, Task[Any, Any]]) -> None:
        self._own = own

    def __getitem__(self, name: str) -> Task[Any, Any]:
        found = self._own.get(name) or shared.shared.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter({**shared.shared, **self._own})

    def __len__(self) -> int:
        return len({**shared.shared, **self._own})


LIBRARY = f"qclient {__version__}"
