"""What a client shows of arguments: nothing unless asked, and never what was left out."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.test_recipe import NOW_MS, packed, request_of
from qclient import App
from qclient.batches import chunks
from qclient.canvas.replacing import another_try
from qclient.options import PREVIEW_CHARS_MAX
from qclient.preview import cut, written
from qprotocol.message import unpack_message
from qprotocol.preview import preview_of


@pytest.fixture
def shop() -> App:
    """An App that is never connected."""
    return App("shop", set_as_current=False)


def shown(app: App, *args: Any, **options: Any) -> str:
    """The preview of a call by name, alone and in a batch."""
    signature = app.signature("t", args, {"key": "value"}, **options)
    (chunk,) = chunks(app, [signature], lambda: NOW_MS)
    message = packed(app, signature)
    assert unpack_message(chunk.raw).headers == message.headers
    assert request_of(message).preview == preview_of(message.headers, 65_535)
    return preview_of(message.headers, 65_535)


def test_it_is_off_unless_asked_for(shop: App) -> None:
    assert packed(shop, shop.signature("t", ("secret",))).headers == b""
    assert shown(shop, 1, argsrepr="(1,)", kwargsrepr="{}") == "", "these turn nothing on"
    shop.conf.task_preview_repr = lambda args, kwargs: "shown"
    assert shown(shop, 1) == ""


def test_setting_task_and_call_say_how_much_the_nearest_first(shop: App) -> None:
    shop.conf.task_preview_chars = 100
    assert shown(shop, 1, "a") == "(1, 'a') {'key': 'value'}"
    assert shown(shop, 1, preview_chars=8) == "(1,) {'…"
    assert shown(shop, 1, preview_chars=0) == ""

    @shop.task(preview_chars=3)
    def few(*args: Any) -> None: ...

    assert preview_of(packed(shop, few.s(1, 2)).headers, 100) == "(1…"
    shop.conf.task_preview_chars = 0
    assert preview_of(packed(shop, few.s(1, 2)).headers, 100) == "(1…"
    assert shown(shop, 1) == ""


def test_each_call_shows_its_own_arguments_also_in_batches(shop: App) -> None:
    shop.conf.task_preview_chars = 10
    many = [shop.signature("t", (i,)) for i in range(3)]
    (chunk,) = chunks(shop, many, lambda: NOW_MS)
    texts = [packed(shop, each).headers for each in many]
    assert [preview_of(each, 10) for each in texts] == ["(0,)", "(1,)", "(2,)"]
    assert all(each in chunk.raw for each in texts)
    shop.conf.task_preview_chars = 0
    assert packed(shop, many[0]).headers == b""


def test_what_a_call_says_of_itself_is_all_that_is_shown(shop: App) -> None:
    shop.conf.task_preview_chars = 40
    assert shown(shop, "secret", argsrepr="(***)") == "(***)"
    assert shown(shop, "secret", kwargsrepr="{'key': …}") == "{'key': …}"
    assert shown(shop, "secret", argsrepr="(***)", kwargsrepr="{}") == "(***) {}"
    assert shown(shop, "secret", argsrepr="") == ""
    assert shown(shop, 1, argsrepr="x" * 99) == "x" * 39 + "…"


def test_a_function_may_leave_out_what_nobody_may_see(shop: App) -> None:
    shop.conf.task_preview_chars = 40
    shop.conf.task_preview_repr = lambda args, kwargs: f"{len(args)} and {sorted(kwargs)}"
    assert shown(shop, "secret") == "1 and ['key']"
    assert shown(shop, "secret", argsrepr="said") == "said"

    @shop.task(preview_repr=lambda args, kwargs: "of the task")
    def own(x: str) -> None: ...

    assert preview_of(packed(shop, own.s("secret")).headers, 99) == "of the task"

    @shop.task(preview_repr=None)
    def plain(x: str) -> None: ...

    assert preview_of(packed(shop, plain.s(1)).headers, 99) == "(1,)"
    shop.conf.task_preview_repr = lambda args, kwargs: None  # type: ignore[assignment,return-value]
    with pytest.raises(TypeError, match="preview_repr of t gave None: a text is needed"):
        packed(shop, shop.signature("t"))


def test_a_retry_with_other_arguments_keeps_the_preview_of_the_call(shop: App) -> None:
    shop.conf.task_preview_chars = 40

    @shop.task
    def work(x: str) -> None: ...

    signature = work.signature(("secret",), argsrepr="(***)")
    request = request_of(packed(shop, signature))
    again = unpack_message(another_try(work.callee, request, ("other secret",), {}, {}))
    assert request_of(again).args == ("other secret",)
    assert preview_of(again.headers, 99) == "(***)"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=3), st.dictionaries(st.text(), VALUES, max_size=2))
def test_arguments_are_shown_as_python_writes_them(args: list[Any], kwargs: dict[str, Any]) -> None:
    whole = repr(tuple(args)) + (f" {kwargs!r}" if kwargs else "")
    text = cut(written(args, kwargs, 1 << 20), 1 << 20)
    assert text == whole.encode("utf-8", "backslashreplace").decode()
    for chars_max in (1, 2, 10):
        text = cut(written(args, kwargs, chars_max), chars_max)
        assert text == whole if len(whole) <= chars_max else text == whole[: chars_max - 1] + "…"


def test_sets_numbers_and_strangers() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise OSError

    args = ({1}, frozenset({2}), set(), frozenset(), date(2026, 1, 2), 10**5_000, Rude())
    assert cut(written(args, {}, 999), 999) == (
        "({1}, frozenset({2}), set(), frozenset(set()), datetime.date(2026, 1, 2), <int>, <Rude>)"
    )


def test_it_takes_no_more_than_it_shows() -> None:
    nested: list[Any] = []
    nested.append(nested)
    assert cut(written([nested], {}, 4_000), 4_000) == f"({'[' * 20}…{']' * 20},)"
    taken = []

    def pieces() -> Any:
        for number in range(1_000):
            taken.append(number)
            yield "x"

    assert cut(pieces(), 10) == "x" * 9 + "…"
    assert len(taken) == 11


@pytest.mark.parametrize("wrong", [-1, PREVIEW_CHARS_MAX + 1, True, 1.5, "all"])
def test_wrong_amounts_are_refused_where_they_are_written(shop: App, wrong: Any) -> None:
    with pytest.raises(ValueError, match="a whole number from 0, which is none, to 4096"):
        shop.signature("t", preview_chars=wrong)
    with pytest.raises(ValueError, match="a whole number from 0, which is none, to 4096"):
        shop.conf.task_preview_chars = wrong
    with pytest.raises(ValueError, match="argsrepr of t is 7: a string"):
        shop.signature("t", argsrepr=7)  # type: ignore[arg-type]
