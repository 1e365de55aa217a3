"""What canvases come to, against a plain evaluation in Python: no broker, the messages alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvases import Failed, Plain, call
from qclient import App, AsyncResult, DecodeError, GroupResult, chain, chord, group
from qclient.canvas.inputs import arguments, nest_of, nested
from qclient.canvas.packing import Packing, handles
from qclient.canvas.plan import plan
from qclient.canvas.steps import Step
from qclient.serialization import decode_shaped
from qprotocol import graphs, wire
from qprotocol.message import Message, meta_fields, unpack_message, walk

NOW_MS = 1_800_000_000_000
app = App("canvas", set_as_current=False)


@app.task
def f(*given: Any) -> Any:
    return ["f", *given]


@app.task
def boom(*given: Any) -> Any:
    raise ValueError(given)


# What a broker and workers make of its messages.


@dataclass
class Node:
    message: Message
    links: tuple[graphs.Link, ...]
    into: list[tuple[int, range]] = field(default_factory=list)
    """Kind and sources of each link that leads here."""
    state: str = "held"
    value: Any = None


class Fleet:
    """Runs messages in any order that their links allow."""

    def __init__(self, raw: bytes, rng: Random) -> None:
        self.nodes = [self.node(raw[a:b]) for a, b in walk(raw)]
        for index, node in enumerate(self.nodes):
            for kind, first, sources, targets in node.links:
                assert index + sources <= first
                for target in self.nodes[first : first + targets]:
                    target.into.append((kind, range(index, index + sources)))
        self.calls = Counter[str]()
        while ready := [node for node in self.nodes if node.state == "held" and self.is_told(node)]:
            self.settle(rng.choice(ready))
        assert all(node.state != "held" for node in self.nodes)

    @staticmethod
    def node(raw: bytes) -> Node:
        message = unpack_message(raw)
        return Node(message, graphs.Node.unpack(meta_fields(message.fields)[wire.NODE]).links)

    def is_told(self, node: Node) -> bool:
        """Whether its links are met, or one cannot be."""
        return self.void(node) is not None or all(
            self.nodes[at].state != "held" for _, sources in node.into for at in sources
        )

    def void(self, node: Node) -> Node | None:
        """A source that has ended as its link does not want it."""
        for kind, sources in node.into:
            for at in sources:
                source = self.nodes[at]
                bad = "failed" if kind != graphs.ERROR else "done"
                if source.state in (bad, "skipped"):
                    return source
        return None

    def settle(self, node: Node) -> None:
        cause = self.void(node)
        if cause is not None:
            node.state = "failed" if cause.state == "failed" else "skipped"
            node.value = cause.value
            return
        args, kwargs, shape = decode_shaped(node.message.content, node.message.body)
        brought = [at for kind, each in node.into if kind in graphs.BRINGS for at in each]
        assert not kwargs
        args = (*arguments(shape, [self.nodes[at].value for at in brought]), *args)
        self.calls[call(node.message.task, args)] += 1
        if node.message.task.endswith("boom"):
            node.state, node.value = "failed", repr(args)
        else:
            node.state, node.value = "done", ["f", *args]

    def by_id(self) -> dict[str, Node]:
        return {node.message.id: node for node in self.nodes}

    def value(self, handle: Any) -> Any:
        """What ``get`` of the handle would give. Raises Failed."""
        if isinstance(handle, GroupResult):
            values, why = [], set[Any]()
            for each in [*handle.awaited(), *handle]:
                try:
                    values.append(self.value(each))
                except Failed as failed:
                    why |= failed.why
            if why:
                raise Failed(why)
            return values[len(values) - len(handle) :]
        node = self.by_id()[handle.id]
        if node.state == "failed":
            raise Failed({node.value})
        assert node.state == "done"
        return node.value


def run(step: Step, rng: Random | None = None) -> tuple[Fleet, Any]:
    """The fleet that ran it, and its handle."""
    made = plan(step)
    chunk = Packing(app, lambda: NOW_MS).pack(made)
    return Fleet(chunk.raw, rng or Random(0)), handles(made, chunk.results)


def outcome(of: Any, *args: Any) -> tuple[str, Any]:
    try:
        return "value", of(*args)
    except Failed as failed:
        return "failed", failed.why


numbers = st.integers(0, 9)
calls = st.one_of(
    st.builds(f.s, numbers),
    st.builds(f.s, numbers),
    st.builds(f.si, numbers),
    st.builds(boom.s, numbers),
)
steps = st.recursive(
    calls,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=5).map(chain),
        st.lists(inner, max_size=8).map(group),
        st.builds(chord, st.lists(inner, max_size=8), inner),
    ),
    max_leaves=40,
)


@given(steps, st.randoms(use_true_random=False))
@settings(max_examples=400)
def test_a_canvas_gives_what_plain_python_gives(step: Step, rng: Random) -> None:
    plain = Plain()
    wanted = outcome(plain.value, step)
    made = plan(step)
    if not made.nodes:
        assert wanted == ("value", made.given.constant[0])
        return
    fleet, handle = run(step, rng)
    found = outcome(fleet.value, handle)
    if wanted[0] == "value":
        assert found == wanted
        assert fleet.calls == plain.calls
    else:
        assert found[0] == "failed"
        assert found[1] <= wanted[1], "one of those that failed is the reason"
        assert fleet.calls <= plain.calls, "nothing ran that would not have"


# One by one.


def values(step: Step) -> Any:
    fleet, handle = run(step)
    return fleet.value(handle)


def test_a_group_of_none_or_one_is_a_list_in_a_chain_too() -> None:
    """CANV-10 differs: what comes behind is given a list, however many members there are."""
    assert values(chain(f.s(1), group(), f.s(2))) == ["f", [], 2]
    assert values(chain(f.s(1), group(f.s()), f.s(2))) == ["f", [["f", ["f", 1]]], 2]
    assert values(chord([], f.s(2))) == ["f", [], 2]


def test_an_empty_group_holds_its_place_in_a_chain() -> None:
    fleet, handle = run(chain(boom.s(1), group(), f.s(2)))
    assert outcome(fleet.value, handle) == ("failed", {"(1,)"})
    fleet, handle = run(chain(boom.s(1), group()))
    assert outcome(fleet.value, handle) == ("failed", {"(1,)"})


def test_a_group_followed_by_a_step_is_a_chord() -> None:
    """CANV-11"""
    wanted = ["f", [["f", 1], ["f", 2]], 3]
    assert values(group(f.s(1), f.s(2)) | f.s(3)) == wanted
    assert values(chord([f.s(1), f.s(2)], f.s(3))) == wanted


def test_an_immutable_call_takes_nothing() -> None:
    """CANV-02"""
    assert values(f.s(1) | f.si(2) | f.s(3)) == ["f", ["f", 2], 3]


def test_arguments_go_in_front_of_the_steps_that_begin() -> None:
    """CANV-03"""
    assert values((f.s(1) | f.s(2)).completed([0], {}, {})) == ["f", ["f", 0, 1], 2]
    assert values(group(f.s(1), f.si(2)).completed([0], {}, {})) == [["f", 0, 1], ["f", 2]]


def test_what_is_linked_runs_behind_and_gives_nothing() -> None:
    """CANV-05, CANV-06, CANV-09"""
    fleet, handle = run(group(f.s(1), boom.s(2)).link(f.s("then")).link_error(f.s("else")))
    assert outcome(fleet.value, handle) == ("failed", {"(2,)"})
    ran = {call for call in fleet.calls if "then" in call or "else" in call}
    assert ran == {
        call(f.name, (["f", 1], "then")),
        call(f.name, ("(2,)", "else")),
    }


def test_what_is_linked_to_a_failure_of_a_chain_runs_once() -> None:
    fleet, _ = run(chain(f.s(1), boom.s(2), f.s(3)).on_error(f.s("else"), f.si("anyway")))
    ran = {call: count for call, count in fleet.calls.items() if "else" in call or "any" in call}
    failed = repr((["f", 1], 2))
    assert ran == {call(f.name, (failed, "else")): 1, call(f.name, ("anyway",)): 1}


def test_a_wide_canvas_has_few_links() -> None:
    """A group is one link, whatever follows it; members of one length end side by side."""
    wide = 2_000
    made = plan(chain(f.s(), group(f.s() | f.s() for _ in range(wide)), f.s()))
    assert sum(len(node.links) for node in made.nodes) == wide + 2
    made = plan(group(f.s() for _ in range(wide)) | group(f.s() for _ in range(wide)))
    assert sum(len(node.links) for node in made.nodes) == 1
    mixed = group(f.s() | f.s() if nth % 2 else f.s() for nth in range(wide)) | f.s()
    made = plan(mixed)
    assert len(made.nodes[-1].shape or ()) == 2
    assert sum(len(node.links) for node in made.nodes) == wide // 2 + 2


def test_options_of_several_steps_are_for_all_and_moments_for_the_first() -> None:
    step = chain(f.s(1), f.s(2).set(queue="own"), f.s(3)).set(queue="q", countdown=5, task_id="t")
    chunk = Packing(app, lambda: NOW_MS).pack(plan(step))
    messages = [unpack_message(chunk.raw[a:b]) for a, b in walk(chunk.raw)]
    assert [m.queue for m in messages] == ["q", "own", "q"]
    assert [m.due_ms for m in messages] == [NOW_MS + 5_000, 0, 0]
    assert messages[-1].id == "t"
    assert {m.root for m in messages[1:]} == {messages[0].id}
    with pytest.raises(ValueError, match="task_id of a group: it is 2 steps"):
        plan(group(f.s(), f.s()).set(task_id="t"))


def test_a_countdown_inside_counts_from_when_it_is_let_go() -> None:
    chunk = Packing(app, lambda: NOW_MS).pack(plan(f.s(1) | f.s(2).set(countdown=7)))
    second = unpack_message([chunk.raw[a:b] for a, b in walk(chunk.raw)][1])
    assert second.due_ms == 0
    assert graphs.Node.unpack(meta_fields(second.fields)[wire.NODE]).delay_ms == 7_000


def test_members_of_a_group_are_seconds_apart() -> None:
    """CANV-08"""
    made = plan(group(f.s() for _ in range(5)).skew(1, 4))
    assert [node.signature.options["countdown"] for node in made.nodes] == [1, 2, 3, 1, 2]


def test_a_unique_key_is_refused_inside() -> None:
    with pytest.raises(ValueError, match="unique or idempotency key, and is part of several"):
        Packing(app, lambda: NOW_MS).pack(plan(f.s(1) | f.s(2).set(unique_key="k")))


def test_a_result_that_a_step_takes_is_sent_though_nobody_asks_for_it() -> None:
    """CANV-12 differs: the broker brings it, and drops it after that."""
    step = f.s(1).set(ignore_result=True) | f.s(2).set(ignore_result=True)
    chunk = Packing(app, lambda: NOW_MS).pack(plan(step))
    flags = [unpack_message(chunk.raw[a:b]).flags & wire.IGNORE_RESULT for a, b in walk(chunk.raw)]
    assert flags == [0, wire.IGNORE_RESULT]


def test_handles_know_what_they_waited_for() -> None:
    """CANV-07, CANV-22"""
    _, handle = run(f.s(1) | group(f.s(2), f.s(3)) | f.s(4))
    assert isinstance(handle, AsyncResult)
    members = handle.parent
    assert isinstance(members, GroupResult)
    first = members.parent
    assert isinstance(first, AsyncResult)
    assert members[0].parent == first
    assert first.parent is None


def test_a_group_result_travels_as_ids() -> None:
    _, handle = run(group(f.s(1), group(f.s(2), f.s(3))))
    assert GroupResult.from_list(handle.as_list(), app) == handle
    assert len(list(handle.tasks())) == 3


@given(steps)
def test_a_step_is_kept_as_plain_data(step: Step) -> None:
    """CANV-01, CANV-21"""
    linked = step.link(f.s(1)).on_error(f.si(2)).set(priority=3)
    data = linked.as_dict()
    again = app.step(data)
    assert again.as_dict() == data
    assert repr(again) == repr(linked)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"type": "ring"}, "a step of type 'ring': there are call, chain, group, chord"),
        ({"type": "call", "task": "x"}, "this one differs in args, errors"),
    ],
)
def test_data_that_is_no_step_is_told(data: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        app.step(data)


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^3 is no step: steps are calls such as add\.s\(1, 2\)"):
        chain(f.s(1), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a chain of no steps"):
        chain()
    with pytest.raises(ValueError, match="has no body"):
        plan(chord([f.s()]))
    deep: Step = f.s()
    for _ in range(300):
        deep = group(deep)
    with pytest.raises(ValueError, match="more than 200 deep"):
        plan(deep)


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [([[2, 0]], [1]), ([[1, 0]], [1, 2]), ([[1]], [1]), ([3], [1]), ([[1, 0], [4]], [1])],
)
def test_a_shape_that_does_not_fit_is_told(shape: list[Any], inputs: list[int]) -> None:
    with pytest.raises(DecodeError):
        arguments(shape, inputs)


def test_a_long_list_has_a_short_shape() -> None:
    nest = nest_of([0] * 100_000)
    assert nest == [100_000, 0]
    assert nested(nest, iter(range(100_000))) == list(range(100_000))
