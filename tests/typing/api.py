"""What a user may write, seen by mypy and basedpyright; never run.

A line that must be an error says so with a type: ignore, and both checkers complain about an
ignore that ignores nothing: so wrong calls are held to be errors.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from qclient import (
    App,
    AsyncResult,
    Broadcast,
    DeadLetter,
    Event,
    Exchange,
    Queue,
    Signature,
    Task,
    shared_task,
)

app = App("shop", broker="qbroker://localhost")
app.conf.task_preview_chars = 100
app.conf.task_preview_repr = lambda args, kwargs: f"{args[0]}"


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(queue="mail", retry_backoff=True, max_retries=5, acks="early")
def send_email(user_id: int, *, subject: str) -> str:
    return subject * user_id


@app.task(bind=True, autoretry_for=(OSError,), time_limit=10)
def fetch(self: Task[..., Any], url: str) -> bytes:
    if self.request.retries > 3:
        raise self.retry(countdown=5, exc=OSError(url))
    return url.encode()


@shared_task
def ping() -> None: ...


@shared_task(bind=True, ignore_result=True)
def note(self: Task[..., Any], text: str) -> int:
    return len(text) + self.request.retries


# Calling stays calling.
assert_type(add(1, 2), int)
assert_type(send_email(1, subject="hi"), str)
assert_type(fetch("x"), bytes)
assert_type(note("x"), int)
add("1")  # type: ignore[arg-type]
send_email(1, "hi")  # type: ignore[call-arg]
fetch()  # type: ignore[call-arg]
fetch(None, "x")  # type: ignore[call-arg,arg-type]

# Sending keeps the arguments' types, and the result's.
assert_type(add.delay(1, 2), AsyncResult[int])
assert_type(add.delay(1).get(), int)
assert_type(send_email.delay(1, subject="hi").get(timeout=5), str)
assert_type(fetch.delay("x"), AsyncResult[bytes])
assert_type(ping.delay(), AsyncResult[None])
assert_type(note.delay("x"), AsyncResult[int])
add.delay("1")  # type: ignore[arg-type]
add.delay(1, 2, 3)  # type: ignore[call-arg]
send_email.delay(1)  # type: ignore[call-arg]
fetch.delay(url=3)  # type: ignore[arg-type]
note.delay(None, "x")  # type: ignore[call-arg,arg-type]

# Options are known by name and kind.
soon = datetime.now(UTC) + timedelta(hours=1)
assert_type(add.apply_async((1, 2), countdown=5), AsyncResult[int])
add.apply_async((1,), {"y": 2}, eta=soon, expires=60, priority=5, queue="q", task_id="x")
add.apply_async((1,), headers={"trace": 1}, max_retries=None, retry_backoff=2.5)
add.apply_async((1,), countdwn=5)  # type: ignore[call-arg]
add.apply_async((1,), priority="high")  # type: ignore[arg-type]
app.conf.task_default_queue = "mail"
app.conf.task_default_queu = "mail"  # type: ignore[attr-defined]
app.conf.broker_timeout_s = "ten"  # type: ignore[assignment]


@app.task(max_retry=3)  # type: ignore[call-overload,untyped-decorator]
def misspelt() -> None: ...


# Calls as values.
assert_type(add.s(1, 2), Signature[int])
assert_type(add.s(2).delay(1), AsyncResult[int])
assert_type(add.si(1, 2), Signature[int])
assert_type(add.s(1).set(queue="q"), Signature[int])
assert_type(add.signature((1,), priority=3).apply_async(), AsyncResult[int])
add.si("1")  # type: ignore[arg-type]
add.s(1).set(queu="q")  # type: ignore[call-arg]

# Many at once, and by name.
assert_type(app.send_many(add.s(i, i) for i in range(10)), list[AsyncResult[int]])
assert_type(app.send_many([add.si(1)], atomic=True), list[AsyncResult[int]])
assert_type(app.send_task("shop.add", (1, 2), queue="q"), AsyncResult[Any])
app.send_many([add])  # type: ignore[arg-type]


async def from_asyncio() -> Sequence[int]:
    one = await add.delay_async(1, 2)
    assert_type(one, AsyncResult[int])
    assert_type(await one.get_async(timeout=5), int)
    assert_type(await add.apply_async_async((1,), countdown=1), AsyncResult[int])
    assert_type(await add.s(1).delay_async(2), AsyncResult[int])
    many = await app.send_many_async(add.s(i) for i in range(10))
    assert_type(many, list[AsyncResult[int]])
    await add.delay_async("1")  # type: ignore[arg-type]
    return [await result.get_async() for result in many]


# Results.
handle = AsyncResult[int]("an id", app=app)
assert_type(handle.get(), int)
assert_type(handle.id, str)
assert_type(handle.state, str)
assert_type(handle.ready(), bool)
assert_type(handle.traceback, str | None)
assert_type(handle.result, int | BaseException | None)

# Exchanges and events.
events = Exchange("events", "topic", unroutable="drop")
Exchange("events", "topics")  # type: ignore[arg-type]
app.conf.task_queues = [Queue("audit", events, "order.#"), Broadcast("news")]
app.declare()
app.declare(events)
assert_type(app.exchange("events").bind("audit", "order.#"), bool)
assert_type(add.apply_async((1, 2), exchange="events", routing_key="order.paid"), AsyncResult[int])
add.apply_async((1, 2), exchange=events)  # type: ignore[arg-type]
assert_type(app.events.publish("order.paid", {"id": 1}), int)
with app.events.subscribe("order.#") as subscription:
    assert_type(subscription.next(1.0), Event | None)
    for heard in subscription:
        assert_type(heard, Event)

# Dead letters.
letters = app.dead.find(task="shop.add", cause="failed", limit=5)
assert_type(letters, list[DeadLetter])
assert_type(app.dead.replay(letters, to="slow", countdown=5), int)
assert_type(app.dead.drop(queue="q", older=60.0), int)
assert_type(app.dead.edit("an id", args=(1, 2), max_retries=5), DeadLetter | None)
app.dead.find(cause="who knows")  # type: ignore[arg-type]


async def dead_from_asyncio() -> None:
    assert_type(await app.dead.find_async(error="refused"), list[DeadLetter])
    assert_type(await app.dead.replay_async(worker="0193"), int)
