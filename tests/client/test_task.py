"""Tasks as their users write them: decorated, called, made into signatures, retried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qclient import (
    App,
    Context,
    MaxRetriesExceededError,
    Retry,
    Signature,
    Task,
    current_app,
    shared_task,
)
from qclient import shared as shared_module
from qclient.context import running
from qclient.options import (
    CALL,
    RETRY,
    SEND,
    TASK,
    CallOptions,
    RetryOptions,
    SendOptions,
    TaskOptions,
)
from qclient.settings import ELSEWHERE, TABLE
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import unpack_message
from qprotocol.options import RETRIES_FOREVER, RetryPolicy


@pytest.fixture
def shop(monkeypatch) -> App:
    """A new App, current, in a process without shared tasks."""
    monkeypatch.setattr(shared_module, "shared", {})
    monkeypatch.setattr(shared_module, "_current", [])
    return App("shop")


def test_calling_stays_calling(shop: App) -> None:
    @shop.task
    def add(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    assert (add(1, 2), add(1), add(x=3, y=4), add.run(1, 2)) == (3, 2, 7, 3)
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    assert add.name == f"{__name__}.add"
    assert shop.tasks[add.name] is add


def test_a_bound_task_gets_itself(shop: App) -> None:
    @shop.task(bind=True)
    def who(self: Task, x: int) -> tuple[str, int, bool]:
        return self.name, x, self.request.called_directly

    assert who(5) == (who.name, 5, True)
    with running(Context(id="1", task=who.name, retries=2)):
        assert who(5) == (who.name, 5, False)
        assert who.request.retries == 2
    with running(Context(id="1", task="another")):
        assert who.request.called_directly


def test_a_bound_task_needs_a_parameter_for_itself(shop: App) -> None:
    with pytest.raises(TypeError, match="its first parameter is the task"):
        shop.task(bind=True)(lambda: None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_retry": 3}, "a task has no option 'max_retry': did you mean 'max_retries'?"),
        ({"bnd": True}, "did you mean 'bind'?"),
        ({"max_retries": -1}, "max_retries of a task is -1: a number of retries"),
        ({"priority": 101}, "a whole number from -100 to 100"),
        ({"acks": "never"}, '"late" or "early"'),
        ({"autoretry_for": "ValueError"}, "an exception class or a tuple of them"),
        ({"serializer": "pickle"}, "'msgpack' or 'json'"),
        ({"time_limit": 0}, "seconds above 0, or None"),
        ({"bind": 1}, "True or False"),
        ({"rate_limit": "ten a second"}, '"10/s", "100/m", "1000/h"'),
        ({"rate_limit": 0}, '"10/s", "100/m", "1000/h"'),
        ({"rate_limit": True}, '"10/s", "100/m", "1000/h"'),
        ({"rate_limit": [10]}, '"10/s", "100/m", "1000/h"'),
        ({"concurrency_limit": 0}, "how many run at once"),
        ({"countdown": 1}, "a task has no option 'countdown'"),
    ],
)
def test_options_are_checked_where_they_are_written(shop: App, options, told: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        shop.task(**options)
    assert told in str(caught.value)


def test_a_name_is_not_given_by_position(shop: App) -> None:
    with pytest.raises(TypeError, match="a name is given by name="):
        shop.task("shop.add")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"countdwn": 1}, "has no option 'countdwn': did you mean 'countdown'?"),
        ({"eta": datetime(2030, 1, 1)}, "a datetime with a time zone, such as"),  # noqa: DTZ001
        ({"expires": datetime(2030, 1, 1)}, "or a datetime with a time zone"),  # noqa: DTZ001
        ({"countdown": -1}, "seconds, 0 or more"),
        ({"task_id": ""}, "a string of 1 to 255 bytes"),
        ({"task_id": "é" * 200}, "a string of 1 to 255 bytes"),
        ({"headers": {1: 2}}, "a dict keyed by strings"),
        ({"queue": ""}, "the name of a queue"),
    ],
)
def test_options_of_a_call_are_checked_at_the_caller(shop: App, options, told: str) -> None:
    @shop.task
    def add() -> None: ...

    with pytest.raises((TypeError, ValueError)) as caught:
        add.apply_async(**options)
    assert told in str(caught.value)


def test_arguments_are_checked_at_the_caller(shop: App) -> None:
    @shop.task(name="add")
    def add(x: int, y: int, *, z: int = 0) -> int:
        return x

    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"q": 1}), ((1, 2), {"x": 1})]:
        with pytest.raises(TypeError, match=r"^add\(x"):
            add.delay(*args, **kwargs)
    with pytest.raises(TypeError, match='argument "y" of add'):
        add.delay(1, object())


def test_the_tables_of_options_are_the_types_of_options() -> None:
    """What the type checker allows is what the check at run time allows."""
    assert set(RETRY) == set(RetryOptions.__annotations__)
    assert set(SEND) == set(SendOptions.__annotations__)
    assert set(TASK) == set(TaskOptions.__annotations__)
    assert set(CALL) == set(CallOptions.__annotations__)


def test_two_tasks_cannot_have_one_name_but_one_may_be_imported_twice(shop: App) -> None:
    def make(number: int):
        def same() -> int:
            return number

        return same

    shop.task(name="same")(make(1))
    again = shop.task(name="same")(make(2))
    assert shop.tasks["same"] is again
    with pytest.raises(ValueError, match="two tasks are named same"):
        shop.task(name="same")(lambda: 3)


def test_a_signature_is_a_value(shop: App) -> None:
    @shop.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    partial = add.s(2, y=3)
    assert repr(partial) == "add(2, y=3)"
    assert (partial.args, partial.kwargs, partial.task) == ((2,), {"y": 3}, "add")
    longer = partial.completed((1,), {"y": 4}, {"queue": "q"})
    assert (longer.args, longer.kwargs, longer.options) == ((1, 2), {"y": 4}, {"queue": "q"})
    assert partial.set(priority=5).options == {"priority": 5}
    assert partial.options == {}
    fixed = add.si(1, 2)
    assert fixed.completed((9,), {"z": 1}, {}).args == (1, 2)
    assert isinstance(add.signature((1, 2), immutable=True, queue="q"), Signature)
    with pytest.raises(TypeError, match="did you mean 'queue'"):
        add.s(1).set(queu="x")


def test_a_shared_task_belongs_to_every_app_and_is_sent_by_the_current_one(shop: App) -> None:
    @shared_task(queue="mail")
    def send(x: int) -> int:
        return x

    other = App("other", set_as_current=False)
    assert send(1) == 1
    assert shop.tasks[send.name] is other.tasks[send.name] is send
    assert send.app is shop
    other.set_current()
    assert send.app is other
    assert send.s(1).app is other
    assert len(other.tasks) == 1
    assert list(other.tasks) == [send.name]
    with pytest.raises(KeyError):
        other.tasks["nothing"]


def test_a_shared_task_without_any_app_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr(shared_module, "_current", [])
    monkeypatch.setattr(shared_module, "shared", {})

    @shared_task
    def lonely() -> None: ...

    with pytest.raises(RuntimeError, match="make one, app = App"):
        lonely.delay()
    with pytest.raises(RuntimeError, match="there is no App yet"):
        current_app()


def test_retry_policies_as_celery_spells_them(shop: App) -> None:
    def policy(**options) -> RetryPolicy:
        return shop.task(**options)(lambda: None).retry_policy

    # Each lambda is the same function to the registry: it may be registered again.
    assert policy() == RetryPolicy(3, 180_000, 180_000, 1.0, False)
    assert policy(default_retry_delay=2) == RetryPolicy(3, 2000, 2000, 1.0, False)
    assert policy(retry_backoff=True) == RetryPolicy(3, 1000, 600_000, 2.0, True)
    assert policy(retry_backoff=5, retry_backoff_max=60, retry_jitter=False, max_retries=7) == (
        RetryPolicy(7, 5000, 60_000, 2.0, False)
    )
    assert policy(max_retries=None).retries_max == RETRIES_FOREVER


def test_a_task_says_which_errors_it_retries(shop: App) -> None:
    def task(**options) -> Task:
        return shop.task(**options)(lambda: None)

    assert not task().retries_on(ValueError())
    assert not task(max_retries=5).retries_on(ValueError())
    assert task(retry_backoff=True).retries_on(ValueError())
    assert not task(retry_backoff=True).retries_on(KeyboardInterrupt())
    assert task(autoretry_for=OSError).retries_on(TimeoutError())
    picky = task(autoretry_for=(OSError,), dont_autoretry_for=[TimeoutError])
    assert picky.retries_on(OSError())
    assert not picky.retries_on(TimeoutError())
    assert not picky.retries_on(ValueError())


def retried(task: Task, request: Context, **how) -> Retry:
    with running(request), pytest.raises(Retry) as caught:
        task.retry(**how)
    return caught.value


def test_retry_says_when_and_why(shop: App) -> None:
    @shop.task(name="work", bind=True, max_retries=2)
    def work(self, x: int) -> None: ...

    request = Context(id="1", task="work", args=(1,), retries=1)
    plain = retried(work, request)
    assert (plain.delay_ms, plain.replacement, plain.policy) == (None, None, work.retry_policy)
    error = OSError("gone")
    assert retried(work, request, exc=error, countdown=1.5).exc is error
    assert retried(work, request, countdown=timedelta(seconds=2)).delay_ms == 2000
    late = retried(work, request, eta=datetime.now(UTC) + timedelta(hours=1))
    assert 3_590_000 < late.delay_ms <= 3_600_000
    assert retried(work, request, max_retries=9).policy.retries_max == 9
    assert retried(work, request, eta=datetime(2000, 1, 1, tzinfo=UTC)).delay_ms == 0


def test_retry_ends_when_all_retries_are_used_up(shop: App) -> None:
    @shop.task(name="work", bind=True, max_retries=2)
    def work(self, x: int) -> None: ...

    with running(Context(id="1", task="work", retries=2)):
        with pytest.raises(MaxRetriesExceededError, match=r"work\[1\] has had its 2 retries"):
            work.retry()
        with pytest.raises(OSError, match="gone"):
            work.retry(exc=OSError("gone"))
        with pytest.raises(Retry):
            work.retry(max_retries=3)
    never = Context(id="1", task="work", retry_policy=RetryPolicy(0))
    with running(never), pytest.raises(MaxRetriesExceededError):
        work.retry()
    with pytest.raises(OSError, match="direct"):
        work.retry(exc=OSError("direct"))
    with running(Context(id="1", task="work")), pytest.raises(TypeError, match="'countdown'"):
        work.retry(count_down=1)


def test_retry_with_other_arguments_replaces_the_message_under_its_id(shop: App) -> None:
    @shop.task(name="work", bind=True)
    def work(self, x: int, y: int = 0) -> None: ...

    request = Context(
        id="chosen",
        task="work",
        args=(1,),
        kwargs={"y": 2},
        queue="q",
        priority=4,
        keys=LaneKeys("account-1", "order-1", "tenant-1", 3),
        root_id="r",
        parent_id="p",
        headers={"a": 1},
        time_limit=9.0,
        ignore_result=True,
        retry_policy=RetryPolicy(5),
    )
    message = unpack_message(retried(work, request, args=(7,)).replacement)
    assert (message.id, message.queue, message.priority) == ("chosen", "q", 4)
    assert (message.root, message.parent, message.task) == ("r", "p", "work")
    from qprotocol.message import Delivery  # noqa: PLC0415  # what a worker makes of it

    again = Context.from_delivery(Delivery(message, 1, 1))
    assert (again.args, again.kwargs, again.headers) == ((7,), {"y": 2}, {"a": 1})
    assert (again.time_limit, again.ignore_result, again.retry_policy) == (
        9.0,
        True,
        RetryPolicy(5),
    )
    moved = unpack_message(retried(work, request, queue="slow").replacement)
    assert (moved.queue, moved.priority) == ("slow", 4)
    assert LaneKeys.unpack(moved.keys) == request.keys
    other = unpack_message(retried(work, request, limit_key="account-2", fair_key="").replacement)
    assert LaneKeys.unpack(other.keys) == LaneKeys("account-2", "order-1", "", 3)
    with running(request), pytest.raises(TypeError, match=r"^work\(x"):
        work.retry(args=(1, 2, 3))


def test_settings_are_checked_where_they_are_set(shop: App) -> None:
    with pytest.raises(AttributeError, match="did you mean 'task_default_queue'"):
        shop.conf.task_default_que = "x"
    with pytest.raises(AttributeError, match="qbroker serve --result-ttl-ms"):
        shop.conf.update(result_expires=5)
    with pytest.raises(AttributeError, match="has no setting 'nothing'"):
        _ = shop.conf.nothing
    with pytest.raises(ValueError, match="broker_timeout_s is 0: seconds above 0"):
        shop.conf.broker_timeout_s = 0
    with pytest.raises(AttributeError):
        shop.conf.update({"task_default_queue": "x", "nope": 1})
    assert shop.conf.task_default_queue == "default"
    shop.conf.update(task_default_queue="x", task_acks="early")
    assert shop.conf.as_dict()["task_default_queue"] == "x"
    assert TABLE.keys() == shop.conf.as_dict().keys()
    assert not ELSEWHERE.keys() & TABLE.keys()


def test_a_task_known_by_name_alone_takes_any_arguments(shop: App) -> None:
    signature = shop.signature("elsewhere.task", (1, 2), {"z": 3})
    signature.callee.check(signature.args, signature.kwargs)
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        shop.signature("")


def test_celerys_view_of_the_request() -> None:
    request = Context(queue="q", priority=2, deliveries=2, time_limit=3)
    assert request.delivery_info["redelivered"]
    assert request.delivery_info["routing_key"] == "q"
    assert request.timelimit == (3, None)
