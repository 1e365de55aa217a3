"""Dead letters by filter, over the protocol: found a page at a time, worked on by name.

What a filter means is settled here: a page at a time, up to the letter that died last when it
was first asked. So what is replayed and dies again meanwhile is not met a second time.
"""

import base64
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from qbroker.ops.admin import Admin
from qbroker.ops.exits import Exit, Trouble
from qprotocol import wire
from qprotocol.frames import DeadLetters, DropDead, EditDead, Ok, ReplayDead, Result, Watch
from qprotocol.limits import LETTERS_MAX, WATCH_MS_MAX
from qprotocol.message import Message, unpack_message
from qprotocol.states import State
from qprotocol.wire import ROWS, WHOLE

PAGE = 2_000

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: those for which all that is said is true."""

    queue: str = ""
    task: str = ""
    cause: str = ""
    error: str = ""
    worker: str = ""
    older_ms: int = 0


def found(
    admin: Admin, which: Filter, detail: int, limit: int = 0, after: int = 0
) -> Iterator[Row]:
    """The letters that are meant, the first that died first; ``limit`` of them, 0 for all."""
    last, left = 0, limit
    while True:
        frame = DeadLetters(**asdict(which), detail=detail, limit=left or PAGE, after=after)
        page = admin.report(frame)
        last = last or page["last"]
        for row in page["letters"]:
            if row["number"] > last:
                return
            yield row
            if limit:
                left -= 1
                if not left:
                    return
        after = page["next"]
        if not after or after >= last:
            return


def one(admin: Admin, task_id: str, detail: int = ROWS) -> Row | None:
    """The dead letter with that id."""
    page = admin.report(DeadLetters(id=task_id, detail=detail))
    rows: list[Row] = page["letters"]
    return rows[0] if rows else None


def there(admin: Admin, task_id: str, detail: int = WHOLE) -> Row:
    """The dead letter with that id. Raises Trouble if there is none."""
    row = one(admin, task_id, detail)
    if row is None:
        raise Trouble(f"there is no dead letter with the id {task_id}", Exit.FAILED)
    return row


def message_of(row: Row) -> Message:
    """The message of a row with all its bytes."""
    return unpack_message(base64.b64decode(row["raw"]))


def packed(rows: Iterable[Row]) -> bytes:
    """Them as orders name them."""
    return b"".join(wire.LETTER.pack(row["position"], row["number"]) for row in rows)


@dataclass(slots=True)
class Pace:
    """So many in a time; none is as fast as the broker does it."""

    tokens: int = 0
    window_ms: int = 0
    _began_s: float = field(default_factory=time.monotonic)
    _done: int = 0

    @property
    def at_once(self) -> int:
        """How many one order is about: what a tenth of a second has room for."""
        if not self.tokens:
            return LETTERS_MAX
        return max(1, min(LETTERS_MAX, self.tokens * 100 // self.window_ms))

    def wait(self, count: int) -> None:
        """Return when so many more may be done."""
        if self.tokens:
            due_s = self._began_s + self._done * self.window_ms / self.tokens / 1000
            time.sleep(max(0.0, due_s - time.monotonic()))
        self._done += count


def pieces(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows, so many at a time."""
    left = iter(rows)
    while piece := list(islice(left, size)):
        yield piece


@dataclass(frozen=True, slots=True)
class Where:
    """Where a replay goes, when, and who asked for it."""

    queue: str = ""
    due_ms: int = 0
    author: str = ""


def replay(admin: Admin, rows: Iterable[Row], where: Where, pace: Pace) -> int:
    """They wait to run again; how many."""
    count = 0
    for piece in pieces(rows, pace.at_once):
        pace.wait(len(piece))
        frame = ReplayDead(
            queue=where.queue, due_ms=where.due_ms, author=where.author, raw=packed(piece)
        )
        count += admin.ask(frame, Ok).count
    return count


def drop(admin: Admin, rows: Iterable[Row], author: str) -> int:
    """They are over; how many."""
    return sum(
        admin.ask(DropDead(author=author, raw=packed(piece)), Ok).count
        for piece in pieces(rows, LETTERS_MAX)
    )


def edit(admin: Admin, row: Row, message: Message, author: str) -> bool:
    """The message takes the letter's place; whether it was there still."""
    frame = EditDead(
        position=row["position"], number=row["number"], author=author, raw=message.pack()
    )
    return bool(admin.ask(frame, Ok).count)


def outcomes(admin: Admin, ids: Iterable[str], timeout_s: float) -> dict[str, str]:
    """How these end, by id: a state's name. Ask before they can begin.

    Of one that ended without a trace before it was asked for, or was purged, nobody knows that it
    went well: it is UNKNOWN or REVOKED. What has not ended after ``timeout_s`` is PENDING.
    """
    wait_ms = min(WATCH_MS_MAX, max(1, round(timeout_s * 1000)))
    ids = list(ids)
    answers = admin.ask_all([Watch(id=each, wait_ms=wait_ms) for each in ids], Result, timeout_s)
    states = {name: State(answer.state) for name, answer in zip(ids, answers, strict=True)}
    return {
        name: state.name if state.finished or state is State.UNKNOWN else "PENDING"
        for name, state in states.items()
    }
