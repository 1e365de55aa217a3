"""From a call to the bytes of its message: every field where the options put it."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qclient import App, Context
from qclient.batches import chunks
from qclient.context import running
from qclient.mint import mint_many, mint_one, minted
from qprotocol import wire
from qprotocol.ids import minted_ms, unpack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Delivery, Message, meta_fields, unpack_message, walk
from qprotocol.options import RETRIES_FOREVER, RetryPolicy
from qprotocol.uniquekeys import IdempotencyKey, UniqueKey

NOW_MS = 1_800_000_000_000
RAW_ID = mint_one(NOW_MS)
KEY_DEFAULTS = {"limit_key": "", "ordering_key": "", "fair_key": "", "weight": 1}
KEYS = st.text(max_size=20) | st.just("é" * 127)
UNIQUE_KEYS = KEYS.filter(bool)


@pytest.fixture
def shop() -> App:
    """An App that is never connected."""
    return App("shop", set_as_current=False)


def packed(app: App, signature) -> Message:
    """The message a signature becomes, by the path of a single call."""
    recipe, body, key = signature.callee.prepare(signature)
    raw, _ = recipe.finish(body, key, signature.options, NOW_MS, RAW_ID)
    return unpack_message(raw)


def request_of(message: Message, failures: int = 0) -> Context:
    return Context.from_delivery(Delivery(message, 1, 1, failures=failures), "here")


@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "queue": st.sampled_from(["a", "mail", "x" * 200]),
            "priority": st.integers(-100, 100),
            "ignore_result": st.booleans(),
            "acks": st.sampled_from(["late", "early"]),
            "headers": st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
            "task_id": st.text(min_size=1, max_size=50),
            "countdown": st.integers(0, 1000),
            "expires": st.floats(0, 1000),
            "serializer": st.sampled_from(["msgpack", "json"]),
            "limit_key": KEYS,
            "ordering_key": KEYS,
            "fair_key": KEYS,
            "weight": st.integers(1, 0xFFFF),
            "unique_key": UNIQUE_KEYS,
            "unique_conflict": st.sampled_from(["return", "replace"]),
            "idempotency_key": UNIQUE_KEYS,
        },
    ),
    args=st.lists(st.integers() | st.text(), max_size=3),
    inside=st.booleans(),
)
def test_both_paths_pack_what_the_protocol_packs(options, args, inside) -> None:
    """The prepared bytes of a recipe are those of Message.pack, alone and in a batch."""
    app = App("shop", set_as_current=False)
    if "unique_key" not in options:
        options.pop("unique_conflict", None)
    signature = app.signature("shop.t", args, **options)
    with running(Context(id="root-1", root_id="root-0" if inside else "")):
        message = packed(app, signature)
        (chunk,) = chunks(app, [signature], lambda: NOW_MS)
    batched = unpack_message(chunk.raw)
    assert batched.pack() == chunk.raw
    assert list(walk(chunk.raw)) == [(0, len(chunk.raw))]
    batched.id = message.id
    assert batched == message
    assert message.task == "shop.t"
    assert message.queue == options.get("queue", "default")
    assert message.priority == options.get("priority", 0)
    assert (message.root, message.parent) == ("root-0" if inside else "root-1", "root-1")
    assert bool(message.flags & wire.IGNORE_RESULT) is options.get("ignore_result", False)
    assert bool(message.flags & wire.ACK_EARLY) is (options.get("acks") == "early")
    countdown = options.get("countdown", 0)
    assert message.due_ms == (NOW_MS + countdown * 1000 if countdown else 0)
    if "expires" in options:
        assert message.expires_ms == NOW_MS + round(options["expires"] * 1000)
    request = request_of(message)
    assert request.keys == LaneKeys(*(options.get(n, d) for n, d in KEY_DEFAULTS.items()))
    assert request.args == tuple(args)
    assert request.headers == options.get("headers", {})
    fields = meta_fields(message.fields)
    key, conflict = options.get("unique_key"), options.get("unique_conflict", "return")
    unique = UniqueKey(key, conflict=conflict).pack() if key else None
    assert fields.get(wire.UNIQUE) == unique
    window = options.get("idempotency_key")
    assert fields.get(wire.IDEMPOTENCY) == (IdempotencyKey(window).pack() if window else None)
    if "task_id" in options:
        assert message.id == options["task_id"]


def test_calls_that_share_a_recipe_have_their_own_keys(shop: App) -> None:
    """Keys of one length and of others, in one batch, outside of a task and within one."""
    keys = ["a", "b", "été", None, "four", "a" * 255, "5678"]
    calls = [shop.signature("t", (each,), unique_key=each, fair_key="f") for each in keys]
    whole = b""
    for request in (Context(), Context(id="root-1")):
        with running(request):
            (chunk,) = chunks(shop, calls, lambda: NOW_MS)
            whole += chunk.raw
    found = [unpack_message(whole, at) for at, _ in walk(whole)]
    assert [each.root for each in found] == [""] * len(keys) + ["root-1"] * len(keys)
    for key, message in zip(keys * 2, found, strict=True):
        unique = UniqueKey(key).pack() if key else None
        assert meta_fields(message.fields).get(wire.UNIQUE) == unique
        assert request_of(message).args == (key,)
        assert request_of(message).keys.fair == "f"


def test_a_whole_chunk_walks_as_its_messages(shop: App) -> None:
    signatures = [shop.signature("t", (i,), priority=i % 2) for i in range(100)]
    (chunk,) = chunks(shop, signatures, lambda: NOW_MS)
    messages = [unpack_message(chunk.raw, a) for a, _ in walk(chunk.raw)]
    assert [request_of(m).args for m in messages] == [(i,) for i in range(100)]
    assert [m.id for m in messages] == [r.id for r in chunk.results]


def test_minted_ids_are_uuid7_of_the_brokers_time() -> None:
    stream = minted(lambda: NOW_MS)
    block = mint_many(NOW_MS, 100)
    ids = [mint_one(NOW_MS), *(block[i : i + 16] for i in range(0, 1600, 16))]
    ids += [next(stream) for _ in range(1000)]
    assert len(set(ids)) == 1101
    for raw in ids:
        known = uuid.UUID(bytes=raw)
        assert (known.version, known.variant) == (7, uuid.RFC_4122)
        assert minted_ms(raw) == NOW_MS
    assert len({raw[6:8] for raw in ids}) > 500  # the twelve bits beside the version vary too


def test_a_forked_child_mints_other_ids_than_its_parent() -> None:
    mint_one(NOW_MS)  # whose block has more
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, mint_one(NOW_MS))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 16) != mint_one(NOW_MS)
    os.close(reading)
    os.close(writing)


def test_a_chosen_uuid7_travels_as_sixteen_bytes(shop: App) -> None:
    chosen = unpack_id(RAW_ID, minted=True)
    message = packed(shop, shop.signature("t", task_id=chosen))
    assert message.id == chosen
    assert message.flags & wire.ID_MINTED


def test_moments_are_told_by_the_brokers_clock(shop: App) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    message = packed(shop, shop.signature("t", eta=at, expires=at + timedelta(hours=1)))
    assert message.due_ms == at.timestamp() * 1000
    assert message.expires_ms == message.due_ms + 3_600_000
    request = request_of(message)
    assert (request.eta, request.expires) == (at, at + timedelta(hours=1))
    by_delta = packed(shop, shop.signature("t", countdown=timedelta(seconds=2)))
    assert by_delta.due_ms == NOW_MS + 2000


def test_eta_and_countdown_together_are_refused(shop: App) -> None:
    with pytest.raises(ValueError, match="say one of them"):
        packed(shop, shop.signature("t", eta=datetime.now(UTC), countdown=1))


def test_limits_and_retries_of_one_call_travel_with_it(shop: App) -> None:
    @shop.task(max_retries=9, time_limit=100)
    def work() -> None: ...

    request = request_of(packed(shop, work.signature(time_limit=5, soft_time_limit=4.5)))
    assert request.timelimit == (5, 4.5)
    assert request.retry_policy is None
    request = request_of(packed(shop, work.signature(retry_backoff=2)))
    assert request.retry_policy == RetryPolicy(9, 2000, 600_000, 2.0, True)
    assert request.timelimit == (None, None)
    request = request_of(packed(shop, work.signature(max_retries=None)))
    assert request.retry_policy == RetryPolicy(RETRIES_FOREVER, 180_000, 180_000, 1.0, False)


def test_headers_that_cannot_travel_are_named(shop: App) -> None:
    with pytest.raises(TypeError, match='argument "user" of headers=: an object of class object'):
        packed(shop, shop.signature("t", headers={"user": object()}))
    with pytest.raises(ValueError, match="at most 65535; send them as an argument"):
        packed(shop, shop.signature("t", headers={"x": "y" * 70_000}))


def test_arguments_beyond_any_limit_are_refused_here(shop: App, monkeypatch) -> None:
    monkeypatch.setattr("qclient.recipe.BODY_BYTES_HARD_MAX", 100)
    with pytest.raises(ValueError, match="keep them elsewhere"):
        packed(shop, shop.signature("t", ("x" * 200,)))


def test_call_beats_route_beats_task_beats_settings(shop: App) -> None:
    @shop.task(name="feed.update", queue="of-task", priority=1)
    def update() -> None: ...

    @shop.task(name="plain")
    def plain() -> None: ...

    assert packed(shop, plain.s()).queue == "default"
    shop.conf.task_default_queue = "of-settings"
    assert packed(shop, plain.s()).queue == "of-settings"
    assert packed(shop, update.s()).queue == "of-task"
    shop.conf.task_routes = {"feed.*": {"queue": "of-route", "priority": 7}}
    assert (packed(shop, update.s()).queue, packed(shop, update.s()).priority) == ("of-route", 7)
    assert packed(shop, update.s().set(queue="of-call")).queue == "of-call"


def test_routes_may_be_names_patterns_functions_or_a_list(shop: App) -> None:
    def by_tenant(name, args, kwargs, options, task=None):
        return f"tenant-{args[0]}" if args else None

    shop.conf.task_routes = [by_tenant, {"feed.*": "feeds", "feed.fast": "fast"}]
    assert packed(shop, shop.signature("feed.slow", (3,))).queue == "tenant-3"
    assert packed(shop, shop.signature("feed.slow")).queue == "feeds"
    assert packed(shop, shop.signature("feed.fast")).queue == "fast"
    assert packed(shop, shop.signature("other")).queue == "default"


def test_a_route_that_is_none_is_an_error_where_it_is_used(shop: App) -> None:
    shop.conf.task_routes = lambda *a: 7
    with pytest.raises(TypeError, match="the route of t is 7: a queue's name or a dict"):
        packed(shop, shop.signature("t"))
    shop.conf.task_routes = {"t": {"que": "x"}}
    with pytest.raises(TypeError, match="the route of t has no option 'que': did you mean 'queue'"):
        packed(shop, shop.signature("t"))


def test_a_chunk_is_closed_by_count_and_by_bytes(shop: App) -> None:
    many = [shop.signature("t", (i,)) for i in range(2500)]
    assert [len(c.results) for c in chunks(shop, many, lambda: NOW_MS)] == [1000, 1000, 500]
    large = [shop.signature("t", ("x" * 60_000,)) for _ in range(5)]
    sizes = [(len(c.results), len(c.raw)) for c in chunks(shop, large, lambda: NOW_MS)]
    assert [count for count, _ in sizes] == [2, 2, 1]
    assert all(size <= 128 * 1024 - 64 for _, size in sizes)
    huge = [shop.signature("t", ("x" * n,)) for n in (1, 300_000, 1)]
    assert [len(c.results) for c in chunks(shop, huge, lambda: NOW_MS)] == [1, 1, 1]


def test_a_batch_refuses_what_is_no_call_of_its_app(shop: App) -> None:
    other = App("other", set_as_current=False)
    with pytest.raises(ValueError, match="t.. belongs to <App other"):
        list(chunks(shop, [other.signature("t")], lambda: NOW_MS))
    with pytest.raises(TypeError, match="takes calls such as add.s"):
        list(chunks(shop, [len], lambda: NOW_MS))
