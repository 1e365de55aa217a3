"""Keys of calls: what options and arguments make of them, and what a real broker answers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from e2e.daemon import Daemon
from qclient import App, NotUnique, PartialPublish
from qclient.canvas.replacing import another_try
from qclient.mint import mint_one
from qprotocol import wire
from qprotocol.message import Message, meta_fields, unpack_message
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey


@pytest.fixture
def shop() -> App:
    """An App that is never connected."""
    return App("shop", set_as_current=False)


def packed(signature: Any) -> Message:
    recipe, body, key = signature.callee.prepare(signature)
    return unpack_message(recipe.finish(body, key, signature.options, 1, mint_one(1))[0])


def unique(signature: Any) -> UniqueKey | None:
    found = meta_fields(packed(signature).fields).get(wire.UNIQUE)
    return UniqueKey.unpack(found) if found else None


def window(signature: Any) -> IdempotencyKey | None:
    found = meta_fields(packed(signature).fields).get(wire.IDEMPOTENCY)
    return IdempotencyKey.unpack(found) if found else None


def by_user(user: int, *, dry: bool = False) -> str | None:
    return None if dry else f"u{user}"


CASES: list[tuple[dict[str, Any], dict[str, Any], UniqueKey | None]] = [
    ({}, {}, None),
    ({}, {"unique_key": "k"}, UniqueKey("k")),
    ({}, {"unique_key": "{not} filled in"}, UniqueKey("{not} filled in")),
    ({"unique_key": "user-{user}"}, {}, UniqueKey("user-7")),
    ({"unique_key": "user-{user}-{dry}"}, {}, UniqueKey("user-7-False")),
    ({"unique_key": "user-{user}"}, {"unique_key": "k"}, UniqueKey("k")),
    ({"unique_key": "user-{user}"}, {"unique_key": None}, None),
    ({"unique_key": by_user}, {}, UniqueKey("u7")),
    ({"unique_key": by_user, "unique_scope": "queue"}, {}, UniqueKey("u7", "queue")),
    (
        {"unique_key": "k", "unique_until": "started"},
        {"unique_conflict": "replace"},
        UniqueKey("k", "task", "started", "replace"),
    ),
    ({"unique_key": "k"}, {"unique_until": 1.5}, UniqueKey("k", until="time", for_ms=1_500)),
    (
        {"unique_key": "k"},
        {"unique_until": timedelta(days=1), "unique_scope": "global"},
        UniqueKey("k", "global", "time", for_ms=86_400_000),
    ),
]


@pytest.mark.parametrize(("task", "call", "wanted"), CASES)
def test_a_key_is_what_the_call_says_else_the_task(shop, task, call, wanted) -> None:
    shop.task(name="t", **task)(lambda user, *, dry=False: None)
    assert unique(shop.signature("t", (7,), **call)) == wanted


def test_a_function_may_give_no_key(shop) -> None:
    shop.task(name="t", unique_key=by_user)(lambda user, *, dry=False: None)
    assert unique(shop.signature("t", (7,), {"dry": True})) is None


def test_true_means_the_arguments_as_they_are_bound(shop) -> None:
    shop.task(name="t", unique_key=True)(lambda a, b=2, **more: None)
    shop.task(name="u", unique_key=True)(lambda a, b=2, **more: None)
    same = {
        unique(shop.signature("t", *call))
        for call in (((1,),), ((1, 2),), ((), {"a": 1}), ((), {"b": 2, "a": 1}))
    }
    assert len(same) == 1
    assert len(same.pop().key) == 32
    calls = [((1, 3),), ((1,), {"c": 2}), ((2,),), (("1",),), ((1.5,),), (([1],),)]
    assert len({unique(shop.signature("t", *call)) for call in calls}) == len(calls)
    maps = [{"x": 1, "y": [{"p": 1, "q": 2}]}, {"y": [{"q": 2, "p": 1}], "x": 1}]
    assert len({unique(shop.signature("t", (each,))) for each in maps}) == 1
    assert len({unique(shop.signature("other", (1,), unique_key=True)).key for _ in "ab"}) == 1


def test_an_idempotency_key_has_a_window(shop) -> None:
    shop.task(name="t", idempotency_key="order-{order}")(lambda order: None)
    assert window(shop.signature("t", (9,))) == IdempotencyKey("order-9")
    call = shop.signature("t", (9,), idempotency_key="x", idempotency_window=60)
    assert window(call) == IdempotencyKey("x", 60_000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unique_key": "{who}"}, "which these arguments do not fill in: KeyError: 'who'"),
        ({"unique_key": "{user.x}"}, "do not fill in: AttributeError"),
        ({"unique_key": "{"}, "do not fill in: ValueError"),
        ({"unique_key": ""}, "unique_key is empty"),
        ({"unique_key": "x" * 256}, "unique_key has 256 bytes: at most 255"),
        ({"unique_key": lambda user: 7}, "unique_key of t gave 7: a text is needed, or None"),
    ],
)
def test_a_key_that_is_none_is_named(shop, options, words) -> None:
    shop.task(name="t", **options)(lambda user: None)
    with pytest.raises((ValueError, TypeError), match=words):
        packed(shop.signature("t", (7,)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("unique_key", 7),
        ("unique_scope", "lane"),
        ("unique_until", "over"),
        ("unique_until", 0),
        ("unique_until", True),
        ("unique_until", timedelta(days=400)),
        ("unique_conflict", "wait"),
        ("idempotency_window", -1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_where_it_is_written(shop, option, value) -> None:
    with pytest.raises(ValueError, match=f"{option} of t is"):
        shop.signature("t", **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("unique_scope", "queue", "unique_key"),
        ("unique_until", 5, "unique_key"),
        ("unique_conflict", "replace", "unique_key"),
        ("idempotency_window", 60, "idempotency_key"),
    ],
)
def test_what_is_said_of_a_key_that_nobody_says_is_refused(shop, option, value, key) -> None:
    task = shop.task(name="t")(lambda user: None)
    with pytest.raises(ValueError, match=f"^{option} of t without {key}: there is no key that"):
        packed(task.s(7).set(**{option: value}))
    packed(task.s(7).set(**{option: value, key: None}))
    packed(task.s(7).set(**{option: value, key: "k"}))


def test_a_retry_with_other_arguments_says_no_key(shop) -> None:
    """It has the key of the message whose place it takes."""
    from qclient.context import Context  # noqa: PLC0415

    task = shop.task(name="t", unique_key=True)(lambda user: None)
    raw = another_try(task.callee, Context(id="a", task="t", queue="q"), (7,), {}, {})
    assert unpack_message(raw).fields == b""


# --- With a real broker


@pytest.mark.e2e
def test_the_handle_is_that_of_the_task_that_is_there(broker: Daemon) -> None:
    app = App("unique", broker=broker.url, set_as_current=False)
    task = app.task(name="unique.t", queue="unique-q", unique_key=True)(lambda user: None)
    first = task.delay(1)
    again = task.delay(1)
    assert not first.is_existing
    assert again.is_existing
    assert again == first
    assert again.state == "QUEUED"
    assert again._hint == first._hint
    many = app.send_many([task.s(user) for user in (1, 2, 3, 2)])
    assert [each.is_existing for each in many] == [True, False, False, True]
    assert (many[0], many[3].id) == (first, many[1].id)
    assert many[2]._hint == many[1]._hint + 1
    assert [each.state for each in many] == ["QUEUED"] * 4
    whole = app.send_many([task.s(user) for user in (3, 4)], atomic=True)
    assert [each.is_existing for each in whole] == [True, False]
    with pytest.raises(NotUnique) as refused:
        task.apply_async((1,), unique_conflict="reject")
    assert refused.value.details["id"] == first.id
    with pytest.raises(PartialPublish):
        app.send_many([task.s(9), task.s(1).set(unique_conflict="reject")])
    newest = task.apply_async((1,), unique_conflict="replace")
    assert (first.state, newest.state) == ("REVOKED", "QUEUED")
    later = task.apply_async((1,), unique_conflict="redelay", countdown=60)
    assert later.is_existing
    assert (later.id, newest.state) == (newest.id, "SCHEDULED")
    app.close()


@pytest.mark.e2e
def test_a_large_call_has_a_key_too_and_asyncio_hears_of_it(broker: Daemon) -> None:
    app = App("unique", broker=broker.url, set_as_current=False)
    task = app.task(name="unique.big", queue="unique-big")(lambda text: None)

    async def story() -> None:
        first = await task.apply_async_async(("x" * 300_000,), idempotency_key="order-7")
        again = await task.apply_async_async(("x" * 300_000,), idempotency_key="order-7")
        assert (again.id, again.is_existing) == (first.id, True)
        many = await app.send_many_async(
            [task.s("x" * 200_000).set(idempotency_key=key) for key in ("order-8", "order-7")]
        )
        assert [each.is_existing for each in many] == [False, True]
        await app.close_async()

    asyncio.run(story())
