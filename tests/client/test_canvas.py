"""What canvases come to, against a plain evaluation in Python: no broker, the messages alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qclient import App, GroupResult, Signature, chain, chord, group
from qclient.canvas.inputs import arguments
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


class Failed(Exception):
    """A step failed: the names of those that may be said to be the reason."""

    def __init__(self, why: set[Any]) -> None:
        self.why = why


# What plain Python makes of a step.


@dataclass
class Plain:
    """An evaluation, and what else ran."""

    calls: Counter[str] = field(default_factory=Counter)
    """What ran, with which arguments."""

    def value(self, step: Step, *given: Any) -> Any:
        """What the step gives. Raises Failed."""
        try:
            found = self._value(step, *given)
        except Failed as failed:
            self.hang(step.errors, ("failed", failed.why), step)
            raise
        self.hang(step.links, found, step)
        return found

    def _value(self, step: Step, *given: Any) -> Any:
        if isinstance(step, Signature):
            args = step.args if step.immutable else (*given, *step.args)
            self.calls[repr((step.task, args))] += 1
            if step.task.endswith("boom"):
                raise Failed({repr(args)})
            return ["f", *args]
        if isinstance(step, chain):
            found = given
            for each in step.steps:
                found = (self.value(each, *found),)
            return found[0]
        if isinstance(step, group):
            return self.all_of(step, *given)
        assert isinstance(step, chord)
        return self.value(step.body, self.value(step.header, *given))

    def all_of(self, step: group, *given: Any) -> list[Any]:
        values, why = [], set[Any]()
        for each in step.steps:
            try:
                values.append(self.value(each, *given))
            except Failed as failed:
                why |= failed.why
        if why:
            raise Failed(why)
        return values

    def hang(self, steps: tuple[Step, ...], _given: Any, _of: Step) -> None:
        assert not steps, "told elsewhere: see test_callbacks"


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
        self.calls[repr((node.message.task, args))] += 1
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
        assert fleet.calls <= plain.calls or fleet.calls == plain.calls
