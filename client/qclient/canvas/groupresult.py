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
        deadline = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if deadline is None else max(deadline - time.monotonic(), 0.0)

        tasks = list(self.tasks())
        for at in range(0, len(tasks), ASKED_AT_ONCE):
            asked = [Waiting(each, left()) for each in tasks[at : at + ASKED_AT_ONCE]]
            for waiting, answer in zip(asked, answers(asked), strict=True):
                yield waiting.result._value(answer, propagate)  # noqa: SLF001

    # States.

    def _states(self) -> list[State]:
        """Those of all tasks, one round trip for so many."""
        return [State(each._look().state) for each in self.tasks()]  # noqa: SLF001

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
        for each in self.tasks():
            each.revoke(terminate, grace)

    def forget(self) -> None:
        """The broker has dropped the results of all that are finished."""
        for each in self.tasks():
            each.forget()


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
