"""Copies: each message is in every queue its exchange leads to, once, whatever way it came."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digest import check_places, exact
from machine import Machine, Peer
from qbroker.core import settings as core_settings
from qbroker.core.settings import Settings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.exchanges import Binding, Destination
from qprotocol.message import Message, meta_fields, pack_fields, unpack_message

NAMES = ("e1", "e2", "e3")
QUEUES = ("q1", "q2", "q3")


def greeted(machine: Machine) -> Peer:
    peer = machine.connect()
    machine.submit(peer, f.Hello(correlation=1, protocol=1, role="consumer", client_id="t"))
    machine.settle()
    peer.received.clear()
    return peer


def ask(machine: Machine, peer: Peer, *frames: f.Frame) -> f.Frame:
    for frame in frames:
        frame.correlation = frame.correlation or 2
        machine.submit(peer, frame)
    machine.settle()
    return peer.received.pop()


def waiting(machine: Machine) -> dict[str, list[Message]]:
    """What waits, by queue, in the order it would leave."""
    state, bodies = machine.core.state, machine.bodies
    found = {}
    for queue in state.numbered:
        positions = [position for _, position in queue.waiting()]
        parts = [part for position in positions for part in state.continued.get(position, ())]
        bodies.keep(bodies.load(bodies.missing([*positions, *parts])))
        found[queue.name] = [
            unpack_message(bodies.message(position, state.continued.get(position)))
            for position in positions
        ]
    return found


# --- What a model says

ANY_OR_ALL = st.sampled_from(["any", "all"])
BINDINGS = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(["", "a", "b", "*", "#", "a.*"]),
    st.sampled_from([*QUEUES, *NAMES]),
    st.dictionaries(st.sampled_from(["h", "g", "x-match"]), ANY_OR_ALL, max_size=2),
)
MESSAGES = st.tuples(
    st.sampled_from(["", *NAMES]),
    st.sampled_from(["a", "b", "a.b", "q1"]),
    st.sampled_from(["", "task"]),
    st.integers(-1, 1),
    st.integers(0, 300),
    st.dictionaries(st.sampled_from(["h", "g"]), ANY_OR_ALL, max_size=2),
    st.sampled_from(["", "parent"]),
)


Texts = dict[str, str]


def fits(kind: str, pattern: str, key: str, wanted: Texts, headers: Texts) -> bool:
    if kind == "direct":
        return pattern == key
    if kind == "topic":
        return (
            pattern in {"#", key}
            or (pattern == "*" and "." not in key)
            or (pattern == "a.*" and key == "a.b")
        )
    rest = {name: value for name, value in wanted.items() if name != "x-match"}
    met = [headers.get(name) == value for name, value in rest.items()]
    any_one = wanted.get("x-match") == "any"
    return kind == "fanout" or (any(met) if any_one else all(met))


class Model:
    """Exchanges as lists that are searched."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = dict(zip(NAMES, kinds, strict=True))
        self.bindings: list[tuple[str, str, str, dict[str, str]]] = []

    def queues(self, exchange: str, key: str, headers: dict[str, str]) -> set[str]:
        if not exchange:
            return {key}
        found: set[str] = set()
        for name, pattern, to, wanted in self.bindings:
            if name == exchange and fits(self.kinds[name], pattern, key, wanted, headers):
                found |= {to} if to in QUEUES else self.queues(to, key, headers)
        return found


def packed(index: int, row: tuple) -> bytes:
    exchange, key, task, priority, size, headers, root = row
    if not exchange:
        key = "q1"
    raw = msgpack.packb({"user": headers}) if headers else b""
    body = f"{index}:".encode().ljust(size, b".")
    message = Message(key, body, f"id-{index}", task, exchange, priority, root=root, headers=raw)
    message.flags = wire.MAY_DROP
    return message.pack()


@given(
    st.tuples(*[st.sampled_from(["direct", "topic", "fanout", "headers"])] * 3),
    st.lists(BINDINGS, max_size=12),
    st.lists(MESSAGES, min_size=1, max_size=12),
    st.lists(st.floats(0, 1), max_size=5),
)
def test_every_message_is_once_in_every_queue_of_its(kinds, bindings, rows, cuts) -> None:
    """In one frame, or in parts cut anywhere; and after a crash the same."""
    machine, model = Machine(), Model(kinds)
    peer = greeted(machine)
    for name, kind in model.kinds.items():
        ask(machine, peer, f.DeclareExchange(exchange=name, kind=kind, options={}))
    for name, key, to, given_arguments in bindings:
        arguments = given_arguments if model.kinds[name] == "headers" else {}
        frame = f.Bind(
            exchange=name, key=key, destination=to, to_exchange=to in NAMES, arguments=arguments
        )
        answer = ask(machine, peer, frame)
        if isinstance(answer, f.Ok) and answer.count:
            model.bindings.append((name, key, to, arguments))
    pieces = [packed(index, row) for index, row in enumerate(rows)]
    raw = b"".join(pieces)
    edges = sorted({0, *(int(cut * len(raw)) for cut in cuts), len(raw)})
    parts = [raw[start:end] for start, end in pairwise(edges)]
    frames: list[f.Frame] = [
        f.Part(index=index, of=f.Publish.TYPE, raw=part, correlation=9)
        for index, part in enumerate(parts[:-1])
    ]
    last = f.Publish(producer=1, sequence=1, count=len(rows), raw=parts[-1], correlation=9)
    answer = ask(machine, peer, *frames, last)
    assert isinstance(answer, f.Published), answer
    held(machine, model, rows)
    check_places(machine.core.state)
    before = exact(machine.core.state)
    machine.kill()
    after = exact(machine.core.state)
    assert {**after, "epochs": 0, "uploads": 0} == {**before, "epochs": 0, "uploads": 0}
    held(machine, model, rows)


def held(machine: Machine, model: Model, rows: list[tuple]) -> None:
    """Each queue has what it should, as often, in order, with its origin."""
    found = waiting(machine)
    wanted = {queue: [] for queue in QUEUES}
    for index, (exchange, key, _, priority, _, headers, _) in enumerate(rows):
        for queue in model.queues(exchange, key if exchange else "q1", headers):
            wanted[queue].append((-priority, index, exchange, key if exchange else ""))
    for queue in QUEUES:
        here = [(-m.priority, int(m.body.split(b":")[0]), *m.origin) for m in found.get(queue, [])]
        assert here == sorted(wanted[queue]), queue
    for messages in found.values():
        for message in messages:
            index = int(message.body.split(b":")[0])
            before = unpack_message(packed(index, rows[index]))
            assert message.exchange == ""
            for name in ("body", "id", "task", "priority", "headers", "root", "flags"):
                mine = getattr(message, name)
                assert (mine & ~wire.MARKED if name == "flags" else mine) == getattr(before, name)


# --- By name


def test_a_message_that_goes_on_in_the_next_part_is_the_last_of_its_own() -> None:
    """Whatever the copies beside it are for."""
    machine = Machine()
    peer = bound(machine, "b")
    whole = [Message("a", b"1"), Message("k", b"2", exchange="e"), Message("a", b"3" * 100)]
    raw = b"".join(message.pack() for message in whole)
    part = f.Part(index=0, of=f.Publish.TYPE, raw=raw[:-50], correlation=9)
    last = f.Publish(producer=0, sequence=0, count=3, raw=raw[-50:], correlation=9)
    assert isinstance(ask(machine, peer, part, last), f.Published)
    found = {queue: [m.body for m in messages] for queue, messages in waiting(machine).items()}
    assert found == {"a": [b"1", b"3" * 100], "b": [b"2"]}


def test_copies_wait_for_their_own_time(machine: Machine) -> None:
    peer = bound(machine, "a", "b")
    later = [machine.wall_ms + ms for ms in (0, 5_000, 9_000, 0, 0)]
    ask(machine, peer, publish(*[Message("", b"", exchange="e", due_ms=due) for due in later]))
    books = {q.name: (q.ready, q.scheduled) for q in machine.core.state.numbered}
    assert books == {"a": (3, 2), "b": (3, 2)}
    machine.wait(6_000)
    books = {q.name: (q.ready, q.scheduled) for q in machine.core.state.numbered}
    assert books == {"a": (4, 1), "b": (4, 1)}


@pytest.fixture
def machine() -> Machine:
    return Machine(settings=Settings(copies_max=10))


def bound(machine: Machine, *queues: str, kind: str = "fanout", key: str = "") -> Peer:
    peer = greeted(machine)
    ask(machine, peer, f.DeclareExchange(exchange="e", kind=kind, options={}))
    for queue in queues:
        answer = ask(machine, peer, f.Bind(exchange="e", key=key, destination=queue))
        assert isinstance(answer, f.Ok), answer
    return peer


def publish(*messages: Message) -> f.Publish:
    raw = b"".join(message.pack() for message in messages)
    return f.Publish(producer=0, sequence=0, count=len(messages), raw=raw)


def test_the_empty_exchange_needs_no_declaration(machine: Machine) -> None:
    peer = greeted(machine)
    answer = ask(machine, peer, f.DeclareExchange(exchange="", kind="direct"))
    assert isinstance(answer, f.Error)
    assert "exists by itself" in answer.message
    bound(machine)
    answer = ask(machine, peer, f.Bind(exchange="e", key="", destination="", to_exchange=True))
    assert isinstance(answer, f.Error)
    assert "cannot be bound to" in answer.message


def test_conflicts_are_told_field_by_field(machine: Machine) -> None:
    peer = bound(machine)
    frame = f.DeclareExchange(exchange="e", kind="topic", options={"unroutable": "drop"})
    answer = ask(machine, peer, frame)
    assert isinstance(answer, f.Error)
    assert answer.details == {"kind": ["fanout", "topic"], "unroutable": ["refuse", "drop"]}
    answer = ask(
        machine, peer, f.DeclareExchange(exchange="e", kind="topic", options={"alternate": 5})
    )
    assert isinstance(answer, f.Error)
    assert "alternate is 5: the name of an exchange" in answer.message


def test_what_has_no_route_names_exchange_and_key(machine: Machine) -> None:
    peer = bound(machine, "q", kind="direct", key="k")
    messages = [Message(key, b"", exchange="e") for key in "kl"]
    answer = ask(machine, peer, publish(*messages))
    assert isinstance(answer, f.Error)
    assert (answer.code, answer.details) == ("NO_ROUTE", {"index": 1, "exchange": "e", "key": "l"})
    assert waiting(machine) == {"q": []}


def test_copies_of_a_frame_are_bounded(machine: Machine, monkeypatch) -> None:
    monkeypatch.setattr("qbroker.core.copying.ROUTED_MESSAGES_MAX", 10)
    peer = bound(machine, "a", "b", "c")
    message = Message("k", b"m", exchange="e")
    answer = ask(machine, peer, publish(*[message] * 4))
    assert isinstance(answer, f.Error)
    assert answer.code == "BATCH_TOO_LARGE"
    assert isinstance(ask(machine, peer, publish(*[message] * 3)), f.Published)
    answer = ask(machine, peer, publish(*[message] * 60))
    assert isinstance(answer, f.Error)
    assert answer.code == "BATCH_TOO_LARGE"
    monkeypatch.setattr("qbroker.core.copying.ROUTED_BYTES_MAX", 200)
    assert isinstance(ask(machine, peer, publish(message)), f.Published)
    answer = ask(machine, peer, publish(message, message))
    assert isinstance(answer, f.Error)
    assert answer.code == "BATCH_TOO_LARGE"


def test_a_meta_section_with_no_room_for_the_origin_is_refused(machine: Machine) -> None:
    peer = bound(machine, "a")
    full = Message("k", b"", exchange="e", fields=pack_fields({200: bytes(65_525)}))
    answer = ask(machine, peer, publish(full))
    assert isinstance(answer, f.Error)
    assert "no room for its origin" in answer.message


def test_bytes_behind_the_names_do_not_become_fields(machine: Machine) -> None:
    """A message that is not marked may have a tail there; its copy is marked."""
    peer = bound(machine, "a")
    raw = bytearray(Message("k", b"", exchange="e", root="r", fields=pack_fields({9: b"x"})).pack())
    raw[7] &= ~wire.MARKED
    answer = ask(machine, peer, f.Publish(producer=0, sequence=0, count=1, raw=bytes(raw)))
    assert isinstance(answer, f.Published)
    (message,) = waiting(machine)["a"]
    assert (message.root, message.origin) == ("r", ("e", "k"))
    assert list(meta_fields(message.fields)) == [wire.ORIGIN]


def test_what_was_found_for_routes_is_kept_within_bounds(machine: Machine, monkeypatch) -> None:
    monkeypatch.setattr("qbroker.core.exchanges.RESOLVED_ROUTES_MAX", 3)
    peer = bound(machine, "a", kind="topic", key="#")
    for number in range(10):
        ask(machine, peer, publish(Message(f"k{number}", b"", exchange="e")))
        assert len(machine.core.state.exchanges.resolved) <= 3
        assert len(machine.core.state.exchanges.recipes) <= 3
    assert len(waiting(machine)["a"]) == 10
    ask(machine, peer, f.Bind(exchange="e", key="#", destination="b"))
    assert not machine.core.state.exchanges.resolved
    assert not machine.core.state.exchanges.recipes
    ask(machine, peer, publish(Message("k9", b"", exchange="e")))
    assert len(waiting(machine)["b"]) == 1


def test_a_queue_that_is_gone_is_bound_to_nothing(machine: Machine) -> None:
    """What deleting a queue does to exchanges."""
    bound(machine, "a", "b", key="")
    exchanges = machine.core.state.exchanges
    exchanges.forget(Destination(to_exchange=False, name="a"))
    exchanges.forget(Destination(to_exchange=False, name="never"))
    assert [b.destination.name for b in exchanges.by_name["e"].bindings] == ["b"]
    assert exchanges.count == 1


def test_values_of_headers_are_told_apart_by_kind(machine: Machine) -> None:
    peer = greeted(machine)
    ask(machine, peer, f.DeclareExchange(exchange="e", kind="headers", options={}))
    for queue, value in {"one": 1, "true": True, "float": 1.0, "text": "1"}.items():
        ask(machine, peer, f.Bind(exchange="e", key="", destination=queue, arguments={"n": value}))
    for value in (1, True, 1.0, "1"):
        headers = msgpack.packb({"user": {"n": value, "list": [1], "none": None}})
        body = repr(value).encode()
        ask(machine, peer, publish(Message("", body, exchange="e", headers=headers)))
    found = {queue: [m.body for m in messages] for queue, messages in waiting(machine).items()}
    assert found == {"one": [b"1"], "true": [b"True"], "float": [b"1.0"], "text": [b"'1'"]}
    plain = msgpack.packb({"user": "no map"})
    answer = ask(machine, peer, publish(Message("", b"", exchange="e", headers=plain)))
    assert isinstance(answer, f.Error)
    assert answer.code == "NO_ROUTE"


def test_tables_of_exchanges_and_bindings(machine: Machine, monkeypatch) -> None:
    peer = bound(machine, "a", "b")
    ask(machine, peer, f.DeclareExchange(exchange="h", kind="headers", options={}))
    arguments = {"x-match": "any", "raw": b"\xff", "n": 1}
    ask(machine, peer, f.Bind(exchange="h", key="", destination="a", arguments=arguments))
    ask(machine, peer, f.Bind(exchange="h", key="", destination="e", to_exchange=True))
    ask(machine, peer, publish(Message("k", b"", exchange="e")))
    statistics = machine.core.statistics()
    assert [(e.name, e.kind, e.bindings) for e in statistics.exchanges] == [
        ("e", "fanout", 2),
        ("h", "headers", 2),
    ]
    assert statistics.routed == Counter(published=1, routed=2)
    rows = machine.core.bindings()
    assert rows[2] == {
        "exchange": "h",
        "key": "",
        "to": "queue",
        "destination": "a",
        "match": "any",
        "arguments": {"n": 1, "raw": "ff"},
    }
    assert (rows[3]["to"], rows[3]["match"], rows[0]["match"]) == ("exchange", "all", "")
    monkeypatch.setattr("qbroker.core.binding.BINDING_ROWS_MAX", 1)
    assert machine.core.bindings() == rows[:1]


def test_limits_of_settings_are_those_of_the_log() -> None:
    """A record's slots are counted in 16 bits, and its bytes are bounded."""
    assert core_settings.ROUTED_MESSAGES_MAX < 65_535
    assert core_settings.ROUTED_BYTES_MAX + (1 << 20) < 64 << 20


def test_a_binding_with_a_long_key_or_a_wrong_argument_is_refused(machine: Machine) -> None:
    peer = bound(machine, kind="topic")
    wrong = {
        "has 300 bytes": f.Bind(exchange="e", key="k" * 300, destination="a"),
        "has 33 words": f.Bind(exchange="e", key=".".join(["a"] * 33), destination="a"),
    }
    for words, frame in wrong.items():
        answer = ask(machine, peer, frame)
        assert isinstance(answer, f.Error)
        assert words in answer.message
    with pytest.raises(ValueError, match="is a list: no header fits it"):
        Binding.parse("headers", Destination(to_exchange=False, name="q"), "", {"a": [1]})


def test_parts_of_a_frame_that_never_reaches_the_core_are_let_go(machine: Machine) -> None:
    peer = greeted(machine)
    machine.submit(peer, f.Part(index=0, of=f.Notify.TYPE, correlation=7, raw=b"half"))
    machine.settle()
    assert machine.core.had_parts(peer.number, 7)
    assert not machine.core.had_parts(peer.number, 7)
