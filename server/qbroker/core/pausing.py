"""Pause and resume: the intake of a queue and its dispatch, apart.

    intake paused      publishes are refused, with the reason; what follows on a settlement, comes
                       back, comes due or is moved here is let in: the broker has it already
    dispatch paused    nothing is handed out; what is leased goes on, and may be claimed

A pause with an end is over by a record when its time has come, like everything that time does.
"""

from collections.abc import Iterable

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.moment import Now
from qbroker.core.pauses import DISPATCH, HALVES, INTAKE, Pause
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError, check_text, queue_named
from qbroker.core.settings import AUTHOR_BYTES_MAX, REASON_BYTES_MAX, RETRY_AFTER_MS
from qbroker.core.state import BrokerState
from qprotocol.frames import Ok, PauseQueue, ResumeQueue


def decide_pause(state: BrokerState, now: Now, _connection: int, frame: PauseQueue) -> Decision:
    """The queue is paused as the frame says; a pause that was there is replaced."""
    queue = halved(state, frame)
    most_ms = state.settings.delay_max_ms
    if not 0 <= frame.for_ms <= most_ms:
        raise RefusedError(
            "BAD_REQUEST",
            f"a pause of {frame.for_ms} ms: 0 until it is resumed, at most delay_max_ms, {most_ms}",
        )
    check_text("a reason", frame.reason, REASON_BYTES_MAX)
    check_text("an author", frame.author, AUTHOR_BYTES_MAX)
    until_ms = now.wall_ms + frame.for_ms if frame.for_ms else 0
    said = frame.intake, frame.dispatch, frame.reason, frame.author, now.wall_ms, until_ms
    fresh = named(frame) - state.pauses.of(queue.number).keys()
    return Decision([r.QueuePaused(queue.number, *said)], Ok(count=len(fresh)))


def decide_resume(state: BrokerState, _now: Now, _connection: int, frame: ResumeQueue) -> Decision:
    """What the frame names of the queue's pauses is over."""
    queue = halved(state, frame)
    over = named(frame) & state.pauses.of(queue.number).keys()
    if not over:
        return Decision(reply=Ok())
    return Decision([resumed(queue.number, over)], Ok(count=len(over)))


def halved(state: BrokerState, frame: PauseQueue | ResumeQueue) -> Queue:
    """The queue of a frame that names a half of it. Raises RefusedError."""
    queue = queue_named(state, frame.queue)
    if not (frame.intake or frame.dispatch):
        raise RefusedError("BAD_REQUEST", "neither intake nor dispatch: say which, or both")
    return queue


def named(frame: PauseQueue | ResumeQueue | r.QueuePaused | r.QueueResumed) -> set[str]:
    """The halves that a frame or record is about."""
    return {half for half in HALVES if getattr(frame, half)}


def resumed(queue: int, halves: set[str]) -> r.QueueResumed:
    """The record for these halves of the queue."""
    return r.QueueResumed(queue, INTAKE in halves, DISPATCH in halves)


def records_over(state: BrokerState, wall_ms: int, limit: int) -> list[r.Record]:
    """Records for pauses whose time is over."""
    return [resumed(queue, {half}) for queue, half in state.pauses.over(wall_ms, limit)]


def apply_paused(state: BrokerState, _position: int, record: r.QueuePaused) -> None:
    """Nothing comes in, or nothing goes out."""
    pause = Pause(record.reason, record.author, record.since_ms, record.until_ms)
    for half in named(record):
        if half == DISPATCH and record.queue not in state.pauses.dispatch:
            state.numbered[record.queue].held += 1
        state.pauses.set(record.queue, half, pause)


def apply_resumed(state: BrokerState, _position: int, record: r.QueueResumed) -> None:
    """As if it had never been paused."""
    for half in named(record):
        del state.pauses.half(half)[record.queue]
        if half == DISPATCH:
            state.let_out(state.numbered[record.queue])


# Publishes.


def check_intake(state: BrokerState, now: Now, queues: Iterable[int]) -> None:
    """Raise RefusedError if one of these queues takes nothing in."""
    for number in queues:
        pause = state.pauses.intake.get(number)
        if pause:
            raise refused(state.numbered[number], pause, now.wall_ms)


def refused(queue: Queue, pause: Pause, wall_ms: int) -> RefusedError:
    """The answer to a publish."""
    left_ms = max(1, pause.until_ms - wall_ms) if pause.until_ms else 0
    over = f"over in {-(-left_ms // 1000)} s" if left_ms else "over once somebody resumes it"
    return RefusedError(
        "QUEUE_PAUSED",
        f"{pause.told(queue.name, INTAKE)}; that is {over}, try again then",
        retry_after_ms=min(left_ms or RETRY_AFTER_MS, RETRY_AFTER_MS),
        queue=queue.name,
        reason=pause.reason,
        author=pause.author,
        until_ms=pause.until_ms,
    )
