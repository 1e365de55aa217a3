"""The handle of a group: those of its members, in their order.

Rule 1. It is what its members say; the broker knows of no group. So it can be made of any
        handles, and travels as their ids.
Rule 2. Questions about many members are asked at once: so many under way, one round trip.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from qclient.exceptions import NotDone, OutcomeUnknown
from qclient.result import AsyncResult, Waiting, refuse_inside_task
from qprotocol.frames import Result
from qprotocol.states import State

if TYPE_CHECKING:
    from qclient.app import App

ASKED_AT_ONCE = 256
"""Questions under way."""


class GroupResult:
    """Some handles, of tasks and of groups."""

    __slots__ = ("parent", "results")

    def __init__(self, results: "Sequence[AsyncResult[Any] | GroupResult]") -> None:
        self.results = list(results)
        self.parent: AsyncResult[Any] | GroupResult | None = None
        """What they waited for, if it was published with them."""

    @property
    def children(self) -> "list[AsyncResult[Any] | GroupResult]":
        """Celery's name for ``results``."""
        return self.results

    def __repr__(self) -> str:
        return f"<GroupResult of {len(self.results)}>"

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> "Iterator[AsyncResult[Any] | GroupResult]":
        return iter(self.results)

    def __getitem__(self, index: int) -> "AsyncResult[Any] | GroupResult":
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupResult) and other.results == self.results

    __hash__ = None  # type: ignore[assignment]  # it is a list

    def tasks(self) -> Iterator[AsyncResult[Any]]:
        """The handles of all tasks, those of groups within included."""
        for each in self.results:
            if isinstance(each, GroupResult):
                yield from each.tasks()
            else:
                yield each

    def awaited(self) -> "Iterator[AsyncResult[Any] | GroupResult]":
        """What groups of no members, this one or those within, have waited for."""
        if not self.results and self.parent is not None:
            yield self.parent
        for each in self.results:
            if isinstance(each, GroupResult):
                yield from each.awaited()

    def as_list(self) -> list[Any]:
        """Ids, in lists as the groups are: ``from_list`` makes the handle of them."""
        return [each.as_list() if isinstance(each, GroupResult) else each.id for each in self]

    @classmethod
    def from_list(cls, ids: Sequence[Any], app: "App | None" = None) -> Self:
        """The handle that ``as_list`` was asked of."""
        return cls(
            [
                AsyncResult(each, app) if isinstance(each, str) else cls.from_list(each, app)
                for each in ids
            ]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupResult.from_list, (self.as_list(),)

    # Values.

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """What the members returned, in their order, once all are finished.

        Raises what ``AsyncResult.get`` does, of the first member in that order whose end is no
        success; with ``propagate=False`` exceptions stand in the list.
        """
        if disable_sync_subtasks:
            refuse_inside_task("a group")
        for each in self.awaited():
            each.get(timeout, propagate, disable_sync_subtasks=False)
        return self.nested(self._values(timeout, propagate))

    join = get

    def nested(self, values: Iterator[Any]) -> list[Any]:
        """The next values, one for each task, in lists as the groups are."""
        return [
            each.nested(values) if isinstance(each, GroupResult) else next(values)
            for each in self.results
        ]

    def _values(self, timeout: float | None, propagate: bool) -> Iterator[Any]:
        deadline = Deadline(timeout)
        for some in batches(list(self.tasks())):
            asked = [Waiting(each, deadline.left_s) for each in some]
            for waiting, answer in zip(asked, answers(asked), strict=True):
                yield waiting.result._value(answer, propagate)  # noqa: SLF001

    async def get_async(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> list[Any]:
        """Like ``get``, without blocking the loop."""
        from asyncio import create_task  # noqa: PLC0415  # it weighs 4 MB

        if disable_sync_subtasks:
            refuse_inside_task("a group")
        for each in self.awaited():
            await each.get_async(timeout, propagate, disable_sync_subtasks=False)
        deadline = Deadline(timeout)
        values: list[Any] = []
        for some in batches(list(self.tasks())):
            asked = [
                create_task(each.get_async(deadline.left_s, propagate, disable_sync_subtasks=False))
                for each in some
            ]
            try:
                values += [await answer for answer in asked]
            finally:
                for answer in asked:
                    answer.cancel()
        return self.nested(iter(values))

    # States.

    def _states(self) -> list[State]:
        """Those of all tasks, one round trip for so many."""
        return [State(each.state) for some in batches(list(self.tasks())) for each in look(some)]

    def ready(self) -> bool:
        """Whether all are finished, however they ended."""
        return all(state.finished for state in self._states())

    def waiting(self) -> bool:
        """Whether one is not finished."""
        return not self.ready()

    def successful(self) -> bool:
        """Whether all have returned."""
        return all(state is State.SUCCESS for state in self._states())

    def failed(self) -> bool:
        """Whether one has failed for good."""
        return any(state is State.FAILURE for state in self._states())

    def completed_count(self) -> int:
        """How many tasks have returned."""
        return sum(state is State.SUCCESS for state in self._states())

    def revoke(self, terminate: bool = False, grace: float = 0.0) -> None:
        """All that is not finished is REVOKED; see ``AsyncResult.revoke``."""
        tasks = list(self.tasks())
        if tasks:
            ids = [each.id for each in tasks]
            tasks[0].app.control.revoke(ids, terminate=terminate, grace=grace)

    def forget(self) -> None:
        """The broker has dropped the results of all that are finished."""
        for each in self.tasks():
            each.forget()


class Deadline:
    """How much of a timeout is left."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    @property
    def left_s(self) -> float | None:
        """Seconds, 0 or more; None is for ever."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)


def batches(tasks: list[AsyncResult[Any]]) -> Iterator[list[AsyncResult[Any]]]:
    """As many as are asked about at once."""
    for at in range(0, len(tasks), ASKED_AT_ONCE):
        yield tasks[at : at + ASKED_AT_ONCE]


def look(tasks: list[AsyncResult[Any]]) -> Iterator[Result]:
    """What is known of each that is final, and what the broker says of the others now.

    All are asked before the first answer is read.
    """
    connection, timeout_s = tasks[0].app.connection, tasks[0].app.timeout_s
    final: list[Any] = [getattr(each, "_final", None) for each in tasks]
    asked = [
        None if known else connection.submit(each._watch(), timeout_s)  # noqa: SLF001
        for each, known in zip(tasks, final, strict=True)
    ]
    for each, known, request in zip(tasks, final, asked, strict=True):
        if request is None:
            yield known
            continue
        answer = connection.wait(request)
        assert isinstance(answer, Result)
        each._note(answer)  # noqa: SLF001
        yield answer


def answers(asked: list[Waiting]) -> Iterator[Result]:
    """What each waits for, in order: all are asked before the first is waited for."""
    under_way = deque(ask(waiting) for waiting in asked)
    for waiting in asked:
        answer = under_way.popleft()()
        while answer is None or not waiting.answered(answer):
            answer = ask(waiting)()
        yield answer


def ask(waiting: Waiting) -> Callable[[], Result | None]:
    """The question is on its way; what is called for its answer: None is to ask once more."""
    frame, timeout_s = waiting.question()
    connection = waiting.result.app.connection
    request = connection.submit(frame, timeout_s)

    def answered() -> Result | None:
        try:
            answer = connection.wait(request)
        except (NotDone, OutcomeUnknown) as error:
            waiting.failed(error)
            return None
        assert isinstance(answer, Result)
        return answer

    return answered
