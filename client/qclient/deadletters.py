"""``app.dead``: dead letters looked through, replayed, edited and dropped.

    for letter in app.dead.find(task="shop.mail", error="refused"):
        print(letter.id, letter.cause, letter.message)
    app.dead.replay(task="shop.mail", error="refused")
    app.dead.edit(letter, kwargs={"to": "ana"})

Each verb has an asyncio twin. Both are the same steps: a generator that yields what it asks.
"""

import base64
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from qclient.serialization import decode, decode_call, encode_call, pack
from qprotocol import wire
from qprotocol.frames import DeadLetters, DropDead, EditDead, Frame, Ok, ReplayDead, Report
from qprotocol.limits import LETTERS_MAX
from qprotocol.message import Message, renewed, unpack_message
from qprotocol.options import RETRIES_FOREVER, RetryPolicy
from qprotocol.wire import NUMBERS, ROWS, WHOLE

if TYPE_CHECKING:
    from qclient.app import App

T = TypeVar("T")
Cause = Literal[
    "failed",
    "retries_exhausted",
    "rejected",
    "max_crashes",
    "worker_lost",
    "max_deliveries",
    "length_limit",
    "other",
]
PAGE = 200
Steps = Generator[tuple[Frame, type[Frame]], Any, T]
"""What is asked, with the kind of its answer; what is sent in is the answer."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them. Its position and number name it for ever: dead once more, it has another."""

    position: int
    number: int
    id: str | None
    task: str
    queue: str
    """Where it died, and where a replay sends it."""
    dead_queue: str
    priority: int
    cause: Cause
    reason: str
    error: str
    """The error's kind; empty if there was none."""
    message: str
    worker: str
    died_ms: int
    deliveries: int
    failures: int
    crashes: int
    due_ms: int
    expires_ms: int
    is_leased: bool
    body_bytes: int | None


class Filter(TypedDict, total=False):
    """Which are meant: those for which all that is said is true."""

    queue: str
    task: str
    cause: Cause
    error: str
    """Any part of the error or the reason."""
    worker: str
    older: float
    """Seconds since they died, or longer."""


class DeadLetterBox:
    """An App's dead letters. Each call raises what ``send`` raises."""

    def __init__(self, app: "App") -> None:
        self._app = app

    # Blocking.

    def find(self, *, limit: int = 0, **which: Unpack[Filter]) -> list[DeadLetter]:
        """Those that are meant, who died first first; ``limit`` of them at most, 0 for all."""
        return self._run(found(which, ROWS, limit))

    def get(self, id: str) -> DeadLetter | None:  # noqa: A002  # as in AsyncResult
        """The dead letter with that id."""
        return self._run(one(id))

    def count(self, **which: Unpack[Filter]) -> int:
        """How many are meant."""
        return len(self._run(found(which, NUMBERS)))

    def replay(
        self,
        letters: Iterable[DeadLetter] | None = None,
        *,
        to: str = "",
        countdown: float = 0.0,
        **which: Unpack[Filter],
    ) -> int:
        """These, or those that are meant, wait to run again, as if they never had; how many.

        In the queues where they died, or in ``to``; after ``countdown`` seconds. Exact: those that
        were replayed already are passed over, and what dies meanwhile is not met.
        """
        return self._run(replayed(letters, which, to, countdown, self._app.name))

    def drop(self, letters: Iterable[DeadLetter] | None = None, **which: Unpack[Filter]) -> int:
        """These, or those that are meant, are over; how many."""
        return self._run(dropped(letters, which, self._app.name))

    def edit(
        self,
        id: str,  # noqa: A002  # as in AsyncResult
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_retries: int | None = None,
    ) -> DeadLetter | None:
        """The dead letter says this instead, and is dead until it is replayed.

        What it is now; None if there is none with that id. Raises TypeError for arguments that
        cannot be sent.
        """
        to = Edit(args, kwargs, queue, priority, max_retries)
        return self._run(edited(id, to, self._app.name))

    def _run(self, steps: Steps[T]) -> T:
        answer: Any = None
        while True:
            try:
                frame, kind = steps.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            answer = self._app.connection.call(frame, kind, self._app.timeout_s)

    # From asyncio.

    async def find_async(self, *, limit: int = 0, **which: Unpack[Filter]) -> list[DeadLetter]:
        """Like ``find``, from asyncio."""
        return await self._run_async(found(which, ROWS, limit))

    async def get_async(self, id: str) -> DeadLetter | None:  # noqa: A002
        """Like ``get``, from asyncio."""
        return await self._run_async(one(id))

    async def count_async(self, **which: Unpack[Filter]) -> int:
        """Like ``count``, from asyncio."""
        return len(await self._run_async(found(which, NUMBERS)))

    async def replay_async(
        self,
        letters: Iterable[DeadLetter] | None = None,
        *,
        to: str = "",
        countdown: float = 0.0,
        **which: Unpack[Filter],
    ) -> int:
        """Like ``replay``, from asyncio."""
        return await self._run_async(replayed(letters, which, to, countdown, self._app.name))

    async def drop_async(
        self, letters: Iterable[DeadLetter] | None = None, **which: Unpack[Filter]
    ) -> int:
        """Like ``drop``, from asyncio."""
        return await self._run_async(dropped(letters, which, self._app.name))

    async def edit_async(
        self,
        id: str,  # noqa: A002
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_retries: int | None = None,
    ) -> DeadLetter | None:
        """Like ``edit``, from asyncio."""
        to = Edit(args, kwargs, queue, priority, max_retries)
        return await self._run_async(edited(id, to, self._app.name))

    async def _run_async(self, steps: Steps[T]) -> T:
        answer: Any = None
        while True:
            try:
                frame, kind = steps.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
            connection = self._app.async_connection()
            answer = await connection.call(frame, kind, self._app.timeout_s)


# The steps.


def found(which: Filter, detail: int, limit: int = 0) -> Steps[list[DeadLetter]]:
    """A page after the other, up to who had died last when it was first asked."""
    given: dict[str, Any] = {k: v for k, v in which.items() if k != "older"}
    older_ms, last, after = round(which.get("older", 0) * 1000), 0, 0
    letters: list[DeadLetter] = []
    while True:
        size = min(PAGE, limit - len(letters)) if limit else PAGE
        frame = DeadLetters(**given, older_ms=older_ms, after=after, limit=size, detail=detail)
        report = yield frame, Report
        page = json.loads(report.raw)
        last = last or page["last"]
        letters += [letter_of(row) for row in page["letters"] if row["number"] <= last]
        after = page["next"]
        if not after or after >= last or (limit and len(letters) >= limit):
            return letters


def letter_of(row: Mapping[str, Any]) -> DeadLetter:
    """A row as a letter; what a row of numbers alone does not say is empty."""
    blank: dict[str, Any] = {each.name: "" if each.type is str else 0 for each in _FIELDS}
    return DeadLetter(**(blank | {name: row[name] for name in row if name in blank}))


_FIELDS = fields(DeadLetter)


def whole(id: str) -> Steps[dict[str, Any] | None]:  # noqa: A002
    """The row of that id, with all bytes."""
    report = yield DeadLetters(id=id, detail=WHOLE), Report
    rows: list[dict[str, Any]] = json.loads(report.raw)["letters"]
    return rows[0] if rows else None


def one(id: str) -> Steps[DeadLetter | None]:  # noqa: A002
    """The letter with that id."""
    row = yield from whole(id)
    return letter_of(row) if row else None


def chosen(letters: Iterable[DeadLetter] | None, which: Filter) -> Steps[list[bytes]]:
    """The letters that are meant, as orders name them, piece by piece. Raises ValueError."""
    if letters is not None and which:
        raise ValueError("name letters, or say which are meant: not both")
    if letters is None:
        letters = yield from found(which, NUMBERS)
    packed = [wire.LETTER.pack(each.position, each.number) for each in letters]
    return [b"".join(packed[at : at + LETTERS_MAX]) for at in range(0, len(packed), LETTERS_MAX)]


def replayed(
    letters: Iterable[DeadLetter] | None, which: Filter, to: str, countdown: float, author: str
) -> Steps[int]:
    """They wait again; how many."""
    count, due_ms = 0, round((time.time() + countdown) * 1000) if countdown else 0
    for raw in (yield from chosen(letters, which)):
        answer = yield ReplayDead(queue=to, due_ms=due_ms, author=author, raw=raw), Ok
        count += answer.count
    return count


def dropped(letters: Iterable[DeadLetter] | None, which: Filter, author: str) -> Steps[int]:
    """They are over; how many."""
    count = 0
    for raw in (yield from chosen(letters, which)):
        answer = yield DropDead(author=author, raw=raw), Ok
        count += answer.count
    return count


@dataclass(frozen=True, slots=True)
class Edit:
    """What a letter is to say instead; None leaves it."""

    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    queue: str | None
    priority: int | None
    max_retries: int | None

    def of(self, message: Message) -> Message:
        """The message with that. Raises TypeError, ValueError."""
        after = renewed(
            message,
            queue=message.queue if self.queue is None else self.queue,
            priority=message.priority if self.priority is None else self.priority,
        )
        if self.args is not None or self.kwargs is not None:
            args, kwargs = decode_call(message.content, message.body)
            args = args if self.args is None else tuple(self.args)
            kwargs = kwargs if self.kwargs is None else dict(self.kwargs)
            after.body = encode_call(message.task, args, kwargs, message.content)
        if self.max_retries is not None:
            headers = decode(1, message.headers) if message.headers else {}
            policy = RetryPolicy.unpack(headers["retry"]) if "retry" in headers else RetryPolicy()
            retries = min(self.max_retries, RETRIES_FOREVER)
            after.headers = pack(headers | {"retry": replace(policy, retries_max=retries).pack()})
        return after


def edited(id: str, to: Edit, author: str) -> Steps[DeadLetter | None]:  # noqa: A002
    """The letter says this; what it is now."""
    row = yield from whole(id)
    if row is None:
        return None
    raw = to.of(unpack_message(base64.b64decode(row["raw"]))).pack()
    frame = EditDead(position=row["position"], number=row["number"], author=author, raw=raw)
    answer = yield frame, Ok
    if not answer.count:
        return None
    return (yield from one(id))
