"""Searches of the archive: in a thread of their own, so that no look-up waits for one."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qbroker.archive.errors import ArchiveError
from qbroker.archive.questions import Questions
from qbroker.archive.walking import Query
from qbroker.outgoing import report
from qprotocol.frames import Error, Frame, Search
from qprotocol.states import State

NO_ARCHIVE = "there is no archive to search: this broker runs with --no-archive"
WAITING_MAX = 100
"""Searches that wait for their turn; more are refused."""


class Searches:
    """One at a time. Belongs to the engine's loop."""

    def __init__(self, questions: Questions | None) -> None:
        """None: there is no archive, and who asks is told so."""
        self._questions = questions
        self._thread = ThreadPoolExecutor(1, "qbroker-search")
        self._waiting = 0

    def ask(
        self,
        connection: int,
        frame: Search,
        is_hidden: Callable[[int], bool],
        answer: Callable[[int, Frame], None],
    ) -> None:
        """``answer`` is called in the loop. Rows whose position ``is_hidden`` are left out.

        What the archive says was durable long ago: an answer waits for nothing.
        """
        questions = self._questions
        if questions is None:
            answer(connection, refused(frame, "BAD_REQUEST", NO_ARCHIVE))
            return
        if self._waiting >= WAITING_MAX:
            said = f"{self._waiting} searches are waiting: ask again later, and for less"
            answer(connection, refused(frame, "RESOURCE_EXHAUSTED", said))
            return
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, found_by, questions, frame)

        def finished(future: asyncio.Future[dict[str, Any] | Error]) -> None:
            self._waiting -= 1
            if future.cancelled():
                return
            found = future.result()
            if isinstance(found, Error):
                answer(connection, found)
            else:
                answer(connection, report(shown(found, is_hidden), frame.correlation))

        future.add_done_callback(finished)

    def close(self) -> None:
        """No search is waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def found_by(questions: Questions, frame: Search) -> dict[str, Any] | Error:
    """What the archive says. In the thread."""
    try:
        if frame.id:
            return {"task": questions.task(frame.id)}
        page = questions.search(query_of(frame))
    except ValueError as error:
        return refused(frame, "BAD_REQUEST", str(error))
    except ArchiveError as error:
        return refused(frame, "RESOURCE_EXHAUSTED", str(error))
    after = ":".join(map(str, page.next)) if page.next else ""
    return {"tasks": page.rows, "next": after, "cut": page.is_cut}


def query_of(frame: Search) -> Query:
    """The frame as a query. Raises ValueError."""
    if frame.state and frame.state not in SETTLED:
        known = ", ".join(f"{state.value} {state.name}" for state in SETTLED)
        raise ValueError(f"state {frame.state} is not one that settled tasks are in: {known}")
    finished_ms, _, position = frame.after.partition(":")
    try:
        after = (int(finished_ms), int(position)) if frame.after else (0, 0)
    except ValueError as error:
        raise ValueError(f"after {frame.after!r} is not a text that a Report gave") from error
    return Query(
        *(frame.task, frame.queue, frame.worker, frame.state, frame.error, frame.preview),
        *(frame.since_ms, frame.until_ms, frame.limit, after),
    )


SETTLED = tuple(state for state in State if state.finished)


def shown(found: dict[str, Any], is_hidden: Callable[[int], bool]) -> dict[str, Any]:
    """Without rows that somebody asked to be forgotten: the archive may not know yet."""
    if "task" in found:
        task = found["task"]
        return {"task": None if task and is_hidden(task["position"]) else task}
    return {**found, "tasks": [row for row in found["tasks"] if not is_hidden(row["position"])]}


def refused(frame: Search, code: str, message: str) -> Error:
    """The answer to a search that was not done."""
    retryable = code == "RESOURCE_EXHAUSTED"
    return Error(code=code, message=message, retryable=retryable, correlation=frame.correlation)
