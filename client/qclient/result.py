"""The handle of a task that was sent: its state, its result, its end.

States are the broker's: UNKNOWN, QUEUED, SCHEDULED, HELD, STARTED, RETRY, SUCCESS, FAILURE,
REVOKED. There is no PENDING: "never heard of it" is UNKNOWN, "waits its turn" is QUEUED.

Rule 1. A handle costs an id and a reference: asking is what costs a round trip, and each
        question is one. What is final is remembered.
Rule 2. Waiting is the broker's: one Watch is answered when the task ends, nobody polls.
"""

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qclient.context import current_request
from qclient.control import grace_ms
from qclient.exceptions import NotDone, OutcomeUnknown, SyncSubtaskError, refusal
from qclient.failures import ResultTimeout, TaskRevoked, raised
from qclient.serialization import decode
from qprotocol.frames import Cancel, Forget, Ok, Result, Watch
from qprotocol.ids import unpack_id
from qprotocol.states import State

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.canvas.groupresult import GroupResult

R = TypeVar("R")

WATCH_S = 30.0
"""One Watch waits so long at most; a longer wait is several."""
GRACE_S = 1.0
"""How much longer than it was told to wait the broker may take to answer."""
FAILED = (State.FAILURE, State.REVOKED)


class AsyncResult(Generic[R]):
    """A task by its id: ``add.delay(1, 2)``, or ``AsyncResult(id, app=app)`` from anywhere."""

    # Thousands are made a second: slots, and those that are rarely needed are set late.
    __slots__ = ("_app", "_existing", "_final", "_id", "_parent", "_position")

    _app: "App | None"
    _id: bytes | str
    _position: int
    _final: Result
    _existing: bool
    _parent: "AsyncResult[Any] | GroupResult"

    def __init__(self, id: str | bytes, app: "App | None" = None) -> None:  # noqa: A002
        """The handle of task ``id``; 16 bytes are a minted id as it travels.

        Without ``app`` it is the current one's.
        """
        self._id = id
        self._app = app

    @property
    def id(self) -> str:
        """The task's id, as the worker sees it."""
        found = self._id
        if type(found) is bytes:
            found = self._id = unpack_id(found, minted=True)
        return str(found)

    @property
    def task_id(self) -> str:
        """Celery's name for ``id``."""
        return self.id

    @property
    def is_existing(self) -> bool:
        """Whether the call was not stored, because a unique or idempotency key of its was held:
        this is the task that stands for it.
        """
        return getattr(self, "_existing", False)

    @property
    def parent(self) -> "AsyncResult[Any] | GroupResult | None":
        """What it waited for, if that was published with it; None for what was there at once."""
        return getattr(self, "_parent", None)

    @property
    def app(self) -> "App":
        """The App whose broker is asked."""
        if self._app is None:
            from qclient.shared import current_app  # noqa: PLC0415  # it imports App

            self._app = current_app()
        return self._app

    def __repr__(self) -> str:
        return f"<AsyncResult {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return AsyncResult, (self.id,)

    # Asking and waiting, in the caller's thread.

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """What the task returned, once it is finished.

        ``timeout`` in seconds, None for ever. Raises ResultTimeout if it is not finished by
        then, TaskFailure if it failed, TaskRevoked if it was cancelled or expired, UnknownId
        if the broker knows nothing of it. With ``propagate=False`` a failure is returned
        instead of raised. One round trip if it is finished already; a wait can last up to a
        second longer if the broker does not answer.

        Inside a running task it raises SyncSubtaskError at once: a pool whose children all wait
        for tasks that wait for a child never ends. ``disable_sync_subtasks=False`` waits all
        the same; have workers for the other task that this one cannot use up.
        """
        if disable_sync_subtasks:
            refuse_inside_task(self.id)
        waiting = Waiting(self, timeout)
        while True:
            frame, timeout_s = waiting.question()
            try:
                answer = self.app.connection.call(frame, Result, timeout_s)
            except (NotDone, OutcomeUnknown) as error:
                waiting.failed(error)
            else:
                if waiting.answered(answer):
                    value: R = self._value(answer, propagate)
                    return value

    def _look(self) -> Result:
        final = getattr(self, "_final", None)
        if final is None:
            final = self.app.connection.call(self._watch(), Result, self.app.timeout_s)
            self._note(final)
        return final

    @property
    def state(self) -> str:
        """The name of the task's state now."""
        return State(self._look().state).name

    status = state

    @property
    def result(self) -> R | BaseException | None:
        """What it returned, or the exception it failed with; None if it is not finished."""
        value: R | BaseException | None = self._value(self._look(), propagate=False)
        return value

    @property
    def traceback(self) -> str | None:
        """The worker's traceback of the failure, or of the latest one; None without any."""
        found = self._look()
        if found.state in (State.FAILURE, State.RETRY):
            return raised(found.raw).traceback or None
        return None

    def ready(self) -> bool:
        """Whether it is finished, however it ended."""
        return State(self._look().state).finished

    def successful(self) -> bool:
        """Whether it returned."""
        return self._look().state == State.SUCCESS

    def failed(self) -> bool:
        """Whether it failed for good."""
        return self._look().state == State.FAILURE

    def forget(self) -> None:
        """The broker has dropped the result; ``get`` finds nothing after that."""
        frame = Forget(id=self.id, position=self._hint)
        self.app.connection.call(frame, Ok, self.app.timeout_s)

    def revoke(self, terminate: bool = False, grace: float = 0.0) -> str:
        """The task is REVOKED unless it was finished; its state is returned.

        A running one is told to stop; with ``terminate`` its process is killed, at once or
        ``grace`` seconds after SoftCancelled was raised in it. A grace without ``terminate`` is
        a ValueError.
        """
        frame = self._cancel(terminate, grace)
        answer = self.app.connection.call(frame, Result, self.app.timeout_s)
        self._note(answer)
        return State(answer.state).name

    # The same from asyncio.

    async def get_async(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        propagate: bool = True,
        *,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Like ``get``, without blocking the loop."""
        if disable_sync_subtasks:
            refuse_inside_task(self.id)
        waiting = Waiting(self, timeout)
        connection = self.app.async_connection()
        while True:
            frame, timeout_s = waiting.question()
            try:
                answer = await connection.call(frame, Result, timeout_s)
            except (NotDone, OutcomeUnknown) as error:
                waiting.failed(error)
            else:
                if waiting.answered(answer):
                    value: R = self._value(answer, propagate)
                    return value

    async def state_async(self) -> str:
        """Like ``state``."""
        connection = self.app.async_connection()
        answer = await connection.call(self._watch(), Result, self.app.timeout_s)
        self._note(answer)
        return State(answer.state).name

    async def forget_async(self) -> None:
        """Like ``forget``."""
        frame = Forget(id=self.id, position=self._hint)
        await self.app.async_connection().call(frame, Ok, self.app.timeout_s)

    async def revoke_async(self, terminate: bool = False, grace: float = 0.0) -> str:
        """Like ``revoke``."""
        connection = self.app.async_connection()
        answer = await connection.call(self._cancel(terminate, grace), Result, self.app.timeout_s)
        self._note(answer)
        return State(answer.state).name

    # What both are made of.

    @property
    def _hint(self) -> int:
        """Where the message is in the log, if we were told: found without a search."""
        return getattr(self, "_position", 0)

    def _watch(self, wait_ms: int = 0) -> Watch:
        return Watch(id=self.id, position=self._hint, wait_ms=wait_ms)

    def _cancel(self, terminate: bool, grace: float) -> Cancel:
        within_ms = grace_ms(terminate, grace)
        return Cancel(id=self.id, position=self._hint, terminate=terminate, grace_ms=within_ms)

    def _note(self, answer: Result) -> None:
        if State(answer.state).finished:
            self._final = answer

    def _value(self, answer: Result, propagate: bool) -> Any:
        error: Exception
        if answer.state == State.SUCCESS:
            return decode(answer.content, answer.raw) if answer.raw else None
        if answer.state == State.FAILURE:
            error = raised(answer.raw)
        elif answer.state == State.REVOKED:
            reason = raised(answer.raw).message if answer.raw else "it was cancelled or expired"
            error = TaskRevoked(f"task {self.id}: {reason}")
        else:
            return None
        if propagate:
            raise error
        return error


class Waiting:
    """One ``get``: what to ask next, and what an answer means."""

    def __init__(self, result: AsyncResult[Any], timeout: float | None) -> None:
        self.result = result
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.state = ""

    def question(self) -> tuple[Watch, float]:
        """The next Watch, and how long its answer may take."""
        if self.deadline is None:
            wait_s, grace_s = WATCH_S, self.result.app.timeout_s
        else:
            wait_s = min(max(self.deadline - time.monotonic(), 0.0), WATCH_S)
            grace_s = GRACE_S
        return self.result._watch(round(wait_s * 1000)), wait_s + grace_s  # noqa: SLF001

    def answered(self, answer: Result) -> bool:
        """Whether the wait is over. Raises UnknownId or ResultTimeout."""
        self.result._note(answer)  # noqa: SLF001
        if State(answer.state).finished:
            return True
        if answer.state == State.UNKNOWN:
            raise refusal(
                "UNKNOWN_ID",
                f"no task {self.result.id} is known: it was never sent, its result expired or "
                f"was forgotten, or it was sent with ignore_result",
            )
        self.state = State(answer.state).name
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise ResultTimeout(f"task {self.result.id} is {self.state} after {self.timeout:g} s")
        return False

    def failed(self, error: Exception) -> None:
        """The question was not answered: over, unless there is time left."""
        if self.deadline is None:
            raise error
        if time.monotonic() >= self.deadline:
            raise ResultTimeout(
                f"task {self.result.id} was {self.state or 'not heard of'} when "
                f"{self.timeout:g} s were over: {error}"
            ) from error


def refuse_inside_task(task_id: str) -> None:
    """Raise SyncSubtaskError if a task runs here."""
    request = current_request.get()
    if request is not None:
        raise SyncSubtaskError(
            f"{request.task}[{request.id}] would wait for task {task_id} and hold its place in the "
            f"pool meanwhile: if all children wait so, none is left to run what they wait for; "
            f"let that task send what comes next, or call get(disable_sync_subtasks=False)"
        )
