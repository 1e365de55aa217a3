"""``app.control``: orders about many tasks at once, and about queues."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qprotocol.frames import CancelMany, Ok, PauseQueue, ResumeQueue

if TYPE_CHECKING:
    from qclient.app import App


def grace_ms(terminate: bool, grace: float) -> int:
    """The grace of a cancel, in ms. Raises ValueError for one that nothing would end."""
    if grace and not terminate:
        raise ValueError(
            f"grace={grace:g} without terminate: it is how long a running task may go on before it "
            "is killed; say terminate=True, too, or leave it out"
        )
    return round(grace * 1000)


class Control:
    """An App's orders. Each costs a round trip, and raises what ``send`` raises."""

    def __init__(self, app: "App") -> None:
        self._app = app

    def revoke(
        self, ids: str | Iterable[str], terminate: bool = False, grace: float = 0.0
    ) -> dict[str, str]:
        """These tasks are REVOKED unless they were finished; their states, by id.

        A round trip for each. Running ones are told to stop; with ``terminate`` their process
        is killed, after ``grace`` seconds in which SoftCancelled is raised in the task. A grace
        without ``terminate`` is a ValueError.
        """
        wanted = [ids] if isinstance(ids, str) else ids
        results = map(self._app.AsyncResult, wanted)
        return {result.id: result.revoke(terminate, grace) for result in results}

    def revoke_by(
        self,
        *,
        queue: str = "",
        task: str = "",
        key: str = "",
        states: Iterable[str] = (),
        older: float = 0.0,
        terminate: bool = False,
        grace: float = 0.0,
        dry_run: bool = False,
    ) -> int:
        """All tasks for which everything that is said is true are REVOKED; how many.

        ``key`` is one of their lane keys; ``states`` are some of ready, scheduled, started and
        held, all if none is named; ``older`` is seconds since they were published. What is
        published after the order is not meant. ``dry_run`` only counts.
        """
        frame = CancelMany(
            queue=queue,
            task=task,
            key=key,
            states=",".join(states),
            older_ms=round(older * 1000),
            terminate=terminate,
            grace_ms=grace_ms(terminate, grace),
            dry_run=dry_run,
        )
        return self._app.connection.call(frame, Ok, self._app.timeout_s).count

    def pause(
        self,
        queue: str,
        *,
        intake: bool = False,
        dispatch: bool = False,
        reason: str = "",
        seconds: float = 0.0,
    ) -> None:
        """The queue takes nothing in, hands nothing out, or both; 0 seconds: until ``resume``."""
        both = not (intake or dispatch)
        frame = PauseQueue(
            queue=queue,
            intake=intake or both,
            dispatch=dispatch or both,
            reason=reason,
            author=self._app.name,
            for_ms=round(seconds * 1000),
        )
        self._app.connection.call(frame, Ok, self._app.timeout_s)

    def resume(self, queue: str, *, intake: bool = False, dispatch: bool = False) -> None:
        """The queue takes in, hands out, or both, again."""
        both = not (intake or dispatch)
        frame = ResumeQueue(queue=queue, intake=intake or both, dispatch=dispatch or both)
        self._app.connection.call(frame, Ok, self._app.timeout_s)
