"""Many calls in few frames: ``app.send_many``, streamed with bounded memory.

    signatures --chunks--> Chunk (<= 1,000 messages or one frame) --Publish--> up to IN_FLIGHT
                                                                   unconfirmed at a time
Rule 1. A chunk is all or nothing. A message too large for a frame is a chunk of its own.
Rule 2. After the first failure nothing more is taken from the caller or sent; what is under
        way is waited for, and PartialPublish says what became of each.
Rule 3. The loop in ``chunks`` is the hot path (under 3 µs a call): what calls of one task
        share is looked up when the task changes, ids are minted by the hundred.
"""

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from qclient.context import current_request
from qclient.exceptions import NotDone, OutcomeUnknown, QBrokerError
from qclient.mint import minted
from qclient.recipe import Callee, Recipe, pack_size
from qclient.result import AsyncResult
from qclient.serialization import pack_plain
from qclient.signature import Signature
from qprotocol.errors import ProtocolError
from qprotocol.frames import Frame, Publish, Published
from qprotocol.limits import FRAME_BYTES_MAX, MESSAGES_PER_FRAME_MAX
from qprotocol.uniquekeys import Existing, unpack_existing

if TYPE_CHECKING:
    from qclient.aconnection import AsyncConnection
    from qclient.app import App
    from qclient.connection import Connection
    from qclient.pending import Request

R = TypeVar("R")

IN_FLIGHT = 16
"""Unconfirmed chunks: 2 MiB at most, and enough to keep the broker's disk busy."""
CHUNK_BYTES_MAX = FRAME_BYTES_MAX - 64
"""Room for a Publish frame's header."""
ATOMIC_MESSAGES_MAX = 50_000
ATOMIC_BYTES_MAX = 64 * 1024 * 1024
"""The broker's defaults for one publish in parts."""


class PartialPublish(QBrokerError):  # noqa: N818  # says what happened
    """Not everything was published. Each list holds AsyncResults, in the order given.

    ``confirmed`` are on disk at the broker. ``refused`` were not done and never will be.
    ``unknown`` may have been done: look at their ``state``. What the iterable had left was
    not taken from it. ``__cause__`` is the first error.
    """

    def __init__(
        self,
        confirmed: list[AsyncResult[Any]],
        refused: list[AsyncResult[Any]],
        unknown: list[AsyncResult[Any]],
    ) -> None:
        super().__init__(
            f"{len(confirmed)} messages were published, {len(refused)} were not, "
            f"{len(unknown)} may have been"
        )
        self.confirmed = confirmed
        self.refused = refused
        self.unknown = unknown


class Chunk:
    """Packed messages of one Publish, and the handles of their tasks."""

    __slots__ = ("raw", "results")

    def __init__(self, pieces: list[bytes], results: list[AsyncResult[Any]]) -> None:
        self.raw = b"".join(pieces)
        self.results = results

    def publish(self) -> Publish:
        return Publish(producer=0, sequence=0, count=len(self.results), raw=self.raw)


def chunks(
    app: "App",
    signatures: Iterable[Signature[Any]],
    now_ms: Callable[[], int],
    count_max: int = MESSAGES_PER_FRAME_MAX,
    bytes_max: int = CHUNK_BYTES_MAX,
) -> Iterator[Chunk]:
    """The signatures, packed, in chunks. Raises TypeError or ValueError for a bad one."""
    request = current_request.get()
    next_id = minted(now_ms).__next__
    last: Callee | None = None
    shared: Recipe | None = None
    least, most, size = 0, -1, 0
    pieces: list[bytes] = []
    results: list[AsyncResult[Any]] = []
    for signature in signatures:
        if type(signature) is not Signature or signature.callee is not last:
            last, shared = callee_of(signature, app), None
            least, most = last.arity or (0, -1)
        args, kwargs, options = signature.args, signature.kwargs, signature.options
        if kwargs or not least <= len(args) <= most:
            last.check(args, kwargs)
        recipe, key = shared, b""
        if options or recipe is None:
            recipe, key = last.recipe_for(options, args, kwargs, request)
            shared = recipe if not options and last.recipe is not None else None
        raw_id = next_id()
        task_id: bytes | str = raw_id
        message: tuple[bytes, ...]
        if recipe.plain and "task_id" not in options:
            try:
                body = pack_plain([[*args], kwargs])
            except (TypeError, ValueError, OverflowError):
                body = last.encode(recipe, args, kwargs)
            more = recipe.rest + len(body)
            tail = recipe.tail, key, recipe.behind
            message = (pack_size(more), recipe.head, raw_id, *tail, body)
        else:
            body = last.encode(recipe, args, kwargs)
            whole, task_id = recipe.finish(body, key, options, now_ms(), raw_id)
            more = len(whole)
            message = (whole,)
        if size + more + 4 > bytes_max or len(results) == count_max:
            if results:
                yield Chunk(pieces, results)
            pieces, results, size = [], [], 0
        pieces += message
        results.append(AsyncResult(task_id, app))
        size += more + 4
    if results:
        yield Chunk(pieces, results)


def callee_of(signature: object, app: "App") -> Callee:
    """The task that is called. Raises TypeError or ValueError if this App cannot send it."""
    if not isinstance(signature, Signature):
        raise TypeError(f"send_many takes calls such as add.s(1, 2), not {signature!r:.80}")
    if signature.app is not app:
        raise ValueError(f"{signature!r:.80} belongs to {signature.app!r}, not to {app!r}")
    return signature.callee


class Tally:
    """What became of the chunks of one ``send_many``."""

    def __init__(self) -> None:
        self.confirmed: list[AsyncResult[Any]] = []
        self.refused: list[AsyncResult[Any]] = []
        self.unknown: list[AsyncResult[Any]] = []
        self.error: Exception | None = None

    def answered(self, chunk: Chunk, answer: Frame | None) -> None:
        """The broker answered the chunk's Publish."""
        if type(answer) is not Published:
            self.failed(chunk, ProtocolError("BAD_FRAME", f"{answer!r:.80} to a Publish"))
            return
        confirm(chunk.results, answer)
        self.confirmed += chunk.results

    def failed(self, chunk: Chunk, error: Exception) -> None:
        """The chunk was refused, or nobody knows."""
        done = self.refused if isinstance(error, NotDone) else self.unknown
        done += chunk.results
        self.stopped(error)

    def unsent(self, chunk: Chunk) -> None:
        """The chunk was not even tried: another had failed before."""
        self.refused += chunk.results

    def stopped(self, error: Exception) -> None:
        """Take no more."""
        self.error = self.error or error

    def outcome(self) -> list[AsyncResult[Any]]:
        """All handles, in order. Raises PartialPublish, or what was wrong before any was sent."""
        if self.error is None:
            return self.confirmed
        if not self.confirmed and not self.refused and not self.unknown:
            raise self.error
        raise PartialPublish(self.confirmed, self.refused, self.unknown) from self.error


def confirm(results: list[AsyncResult[Any]], answer: Published) -> None:
    """The handles know where their messages are, and which tasks stand for them."""
    stored = results
    if answer.existing:
        found = {row.number: row for row in unpack_existing(answer.raw)}
        stored = [result for nth, result in enumerate(results) if nth not in found]
        for nth, row in found.items():
            stand_for(results[nth], row)
    if answer.first:
        for position, result in enumerate(stored, answer.first):
            result._position = position  # noqa: SLF001  # set late: see AsyncResult


def stand_for(result: AsyncResult[Any], row: Existing) -> None:
    """The handle is that of the task that was there before."""
    result._id, result._position, result._existing = row.id, row.position, True  # noqa: SLF001


def send_many(
    connection: "Connection", packed: Iterator[Chunk], timeout_s: float
) -> list[AsyncResult[Any]]:
    """All chunks are on disk at the broker. Raises PartialPublish."""
    tally = Tally()
    window: deque[tuple[Chunk, Request]] = deque()

    def settle_oldest() -> None:
        chunk, request = window.popleft()
        try:
            tally.answered(chunk, connection.wait(request))
        except (NotDone, OutcomeUnknown) as error:
            tally.failed(chunk, error)

    try:
        for chunk in packed:
            if len(window) == IN_FLIGHT:
                settle_oldest()
            if tally.error is not None:
                tally.unsent(chunk)
                break
            window.append((chunk, connection.submit(chunk.publish(), timeout_s)))
    except Exception as error:  # noqa: BLE001  # the caller's iterable, or a bad signature
        tally.stopped(error)
    while window:
        settle_oldest()
    return tally.outcome()


async def send_many_async(
    connection: "AsyncConnection", packed: AsyncIterator[Chunk], timeout_s: float
) -> list[AsyncResult[Any]]:
    """Like ``send_many``, on the connection's loop."""
    tally = Tally()
    window: deque[tuple[Chunk, Request]] = deque()

    async def settle_oldest() -> None:
        chunk, request = window.popleft()
        try:
            tally.answered(chunk, await connection.wait(request))
        except (NotDone, OutcomeUnknown) as error:
            tally.failed(chunk, error)

    try:
        async for chunk in packed:
            if len(window) == IN_FLIGHT:
                await settle_oldest()
            if tally.error is not None:
                tally.unsent(chunk)
                break
            window.append((chunk, connection.submit(chunk.publish(), timeout_s)))
    except Exception as error:  # noqa: BLE001  # the caller's iterable, or a bad signature
        tally.stopped(error)
    while window:
        await settle_oldest()
    return tally.outcome()


async def chunks_async(
    app: "App",
    signatures: Iterable[Signature[Any]] | AsyncIterable[Signature[Any]],
    now_ms: Callable[[], int],
) -> AsyncIterator[Chunk]:
    """``chunks`` of either kind of iterable. From an asynchronous one, a thousand at a time."""
    if not isinstance(signatures, AsyncIterable):
        for chunk in chunks(app, signatures, now_ms):
            yield chunk
        return
    taken: list[Signature[Any]] = []
    async for signature in signatures:
        taken.append(signature)
        if len(taken) == MESSAGES_PER_FRAME_MAX:
            for chunk in chunks(app, taken, now_ms):
                yield chunk
            taken = []
    for chunk in chunks(app, taken, now_ms):
        yield chunk


def atomic_chunk(
    app: "App", signatures: Iterable[Signature[Any]], now_ms: Callable[[], int]
) -> Chunk | None:
    """All signatures as one chunk; None without any. Raises ValueError if they are too many."""
    packed = chunks(app, signatures, now_ms, ATOMIC_MESSAGES_MAX, ATOMIC_BYTES_MAX)
    first, second = next(packed, None), next(packed, None)
    if second is not None:
        too_many()
    if first is not None and len(first.raw) > ATOMIC_BYTES_MAX:
        too_many()
    return first


def too_many() -> NoReturn:
    raise ValueError(
        f"send_many(atomic=True) takes at most {ATOMIC_MESSAGES_MAX:,} messages of "
        f"{ATOMIC_BYTES_MAX >> 20} MiB in all: nothing was sent; send fewer, or without atomic"
    )
