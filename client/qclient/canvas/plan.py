"""A step as messages and the links between them: what one atomic publish is made of.

    lay      a step, behind what it is given --> what it gives; nodes in the order of reading
    order    nodes by depth: links lead on, and what runs side by side are neighbours
    link     from neighbours to neighbours, as few as there can be: a group is one

Rule 1. No ids, no bytes, no I/O: a plan is the same every time.
Rule 2. Members of a group are laid shallow ones first, so that those of one length end as
        neighbours. What order that is the body is told; see inputs.py.
Rule 3. Cost is linear in what is laid: a group that follows a group is one link, not a link
        for each pair.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from qclient.canvas.inputs import NOTHING, VALUE, Nest, nest_of, nested
from qclient.canvas.steps import Several, Step, chain, chord, group
from qclient.options import milliseconds
from qclient.signature import Signature
from qprotocol import graphs

DEPTH_MAX = 200
"""Steps within steps."""
FIRST = ("countdown", "eta")
"""Options of several steps that are for those that begin."""
LAST = ("task_id",)
"""Options of several steps that are for the one that ends them."""


@dataclass(eq=False, slots=True)
class Planned:
    """A message to be."""

    signature: Signature[Any]
    """With all arguments that are known now."""
    depth: int
    is_aside: bool
    """It runs behind a step, and is none that others wait for."""
    behind: "Given | None"
    """What it waits for."""
    shape: list[Any] | None = None
    """The third item of its body; see inputs.py."""
    delay_ms: int = 0
    links: list[graphs.Link] = field(default_factory=list)
    index: int = -1
    """Its number in the publish."""

    @property
    def takes(self) -> bool:
        """Whether an argument will stand in front of its own."""
        return not self.signature.immutable and self.behind is not None and bool(self.behind.leaves)


@dataclass(eq=False, slots=True)
class Members:
    """The results of a group."""

    trees: "list[Planned | Members]"
    behind: "Given | None"
    """What the group waits for."""


@dataclass(eq=False, slots=True)
class Given:
    """What a step gives to those behind it."""

    leaves: list[Planned]
    """Whose results, in the order in which they are read."""
    nest: Nest
    """The lists that these are in."""
    tree: Planned | Members
    """Whose result it is."""
    depth: int
    after: list[Planned] = field(default_factory=list)
    """Those to wait for that give nothing."""
    is_failure: bool = False
    """It gives what went wrong, if something does."""
    targets: dict[int, list[Planned]] = field(default_factory=dict)
    """By kind of link, whoever waits for the leaves."""
    followers: list[Planned] = field(default_factory=list)
    """Whoever waits for ``after``."""

    @property
    def constant(self) -> tuple[Any, ...]:
        """The argument that it is for certain: lists of nothing. Empty if it is not."""
        is_certain = not self.leaves and not self.is_failure
        return (nested(self.nest, iter(())),) if is_certain else ()


@dataclass(eq=False, slots=True)
class Plan:
    """All messages of a step, in the order in which they are published."""

    nodes: list[Planned]
    given: Given
    """What the whole gives."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step is laid."""

    given: Given | None
    """What it is behind."""
    options: Mapping[str, Any]
    """Of what it is part of."""
    is_aside: bool = False
    nesting: int = 0

    def within(self, options: Mapping[str, Any]) -> "Place":
        """Inside of a step that has these options. Raises ValueError if it is too deep."""
        if self.nesting == DEPTH_MAX:
            raise ValueError(f"steps within steps, more than {DEPTH_MAX} deep: nothing was sent")
        merged = {**self.options, **options}
        return Place(self.given, merged, self.is_aside, self.nesting + 1)

    def but(self, given: Given | None, left_out: Sequence[str] = ()) -> "Place":
        """Behind another one, without some of the options."""
        options = self.options
        if left_out:
            options = {name: value for name, value in options.items() if name not in left_out}
        return Place(given, options, self.is_aside, self.nesting)


class Drawing:
    """A plan in the making."""

    def __init__(self) -> None:
        self.nodes: list[Planned] = []
        self.givens: list[Given] = []
        self.heights: dict[int, int] = {}
        """Steps by identity: one may be laid more than once."""

    def lay(self, step: Step, place: Place) -> Given:
        """The step's messages; what it gives."""
        if isinstance(step, Signature):
            found = self.lay_call(step, place)
        else:
            assert isinstance(step, Several)
            found = LAYERS[type(step)](self, step, place.within(step.options))
        if step.links or step.errors:
            self.hang(step, found, place)
        return found

    def lay_call(self, call: Signature[Any], place: Place) -> Given:
        """One message."""
        given, merged = place.given, {**place.options, **call.options}
        node = Planned(call, given.depth + 1 if given else 0, place.is_aside, given)
        args = call.args
        if given:
            node.shape = shape_of(call, given)
            if given.leaves or given.after:
                node.delay_ms = delay_of(merged.pop("countdown", None))
            if not call.immutable:
                args = (*given.constant, *args)
            given.targets.setdefault(kind_of(call, given), []).append(node)
            given.followers.append(node)
        node.signature = Signature(call.callee, args, call.kwargs, merged, call.immutable)
        self.nodes.append(node)
        return self.gives([node], VALUE, node, node.depth)

    def lay_chain(self, step: Several, place: Place) -> Given:
        """One behind the other."""
        found, last = place.given, len(step.steps) - 1
        for number, each in enumerate(step.steps):
            left_out = (*(FIRST if number else ()), *(LAST if number < last else ()))
            found = self.lay(each, place.but(found, left_out))
        assert found is not None
        return found

    def lay_group(self, step: Several, place: Place) -> Given:
        """Side by side."""
        if any(name in place.options for name in LAST):
            raise ValueError(f"task_id of a group: it is {len(step)} steps; say it of one of them")
        given = place.given
        found: dict[int, Given] = {}
        for number in sorted(range(len(step)), key=lambda nth: self.height(step.steps[nth])):
            found[number] = self.lay(step.steps[number], place)
        members = [found[number] for number in range(len(step))]
        after = dict.fromkeys(node for each in members for node in each.after)
        if given and not members:
            after = dict.fromkeys((*given.leaves, *given.after))
        return self.gives(
            [leaf for each in members for leaf in each.leaves],
            nest_of([each.nest for each in members]),
            Members([each.tree for each in members], given),
            max((each.depth for each in members), default=given.depth if given else -1),
            after=list(after),
        )

    def lay_chord(self, step: Several, place: Place) -> Given:
        """A group, and its body."""
        assert isinstance(step, chord)
        header = self.lay(step.header, place.but(place.given, LAST))
        return self.lay(step.body, place.but(header, FIRST))

    def gives(
        self, leaves: list[Planned], nest: Nest, tree: Planned | Members, depth: int, **more: Any
    ) -> Given:
        """What is given, and who waits for it will be linked."""
        made = Given(leaves, nest, tree, depth, **more)
        self.givens.append(made)
        return made

    def hang(self, step: Step, given: Given, place: Place) -> None:
        """What runs behind the step, be its end good or bad, and gives nothing to the others."""
        for leaf in given.leaves:
            for steps, is_failure in ((step.links, False), (step.errors, True)):
                if steps:
                    one = self.gives([leaf], VALUE, leaf, leaf.depth, is_failure=is_failure)
                    inherited = place.within(step.options).but(one, (*FIRST, *LAST))
                    beside = replace(inherited, is_aside=True)
                    for each in steps:
                        self.lay(each, beside)

    def height(self, step: Step) -> int:
        """How many messages run one behind the other in the step."""
        if isinstance(step, Signature):
            return 1
        assert isinstance(step, Several)
        known = self.heights.get(id(step))
        if known is None:
            each = [self.height(one) for one in step.steps]
            known = max(each, default=0) if isinstance(step, group) else sum(each)
            self.heights[id(step)] = known
        return known

    # Behind all of it.

    def finish(self, given: Given) -> Plan:
        """Nodes are numbered, and linked."""
        end = given.tree  # if it is one, and nothing waits for it, it comes last
        is_awaited = any(each.leaves == [end] and each.targets for each in self.givens)

        def place(node: Planned) -> tuple[bool, int, bool]:
            return node is end and not is_awaited, node.depth, node.is_aside

        nodes = sorted(self.nodes, key=place)
        for index, node in enumerate(nodes):
            node.index = index
        for each in self.givens:
            self.connect(each)
        return Plan(nodes, given)

    def connect(self, given: Given) -> None:
        """Whoever waits for what is given is linked to it."""
        for kind, targets in given.targets.items():
            link(kind, given.leaves, targets)
            if kind == graphs.SUCCESS and len(given.leaves) > 1:
                self.say_order(given, targets)
        link(graphs.AFTER, given.after, given.followers)

    def say_order(self, given: Given, targets: Iterable[Planned]) -> None:
        """Inputs come in the order of the publish: where this is another, the bodies say so."""
        indexes = [leaf.index for leaf in given.leaves]
        published = sorted(indexes)
        if indexes == published:
            return
        number_of = {index: number for number, index in enumerate(published)}
        order = [number_of[index] for index in indexes]
        for target in targets:
            if target.shape:
                target.shape = [target.shape[0], order]


LAYERS: dict[type[Several], Callable[[Drawing, Any, Place], Given]] = {
    chain: Drawing.lay_chain,
    group: Drawing.lay_group,
    chord: Drawing.lay_chord,
}


def plan(step: Step) -> Plan:
    """The step's messages. Raises ValueError or TypeError for what cannot be."""
    drawing = Drawing()
    return drawing.finish(drawing.lay(step, Place(None, {})))


def kind_of(call: Signature[Any], given: Given) -> int:
    """The kind of link by which a call waits for what it is given."""
    if given.is_failure:
        return graphs.ERROR
    return graphs.AFTER if call.immutable else graphs.SUCCESS


def shape_of(call: Signature[Any], given: Given) -> list[Any] | None:
    """The third item of the body of a call that is given that."""
    if call.immutable:
        return NOTHING if given.is_failure else None
    return [given.nest] if given.nest != VALUE and given.leaves else None


def delay_of(countdown: float | timedelta | None) -> int:
    """In ms, from when it is held no more."""
    return 0 if countdown is None else milliseconds(countdown)


def link(kind: int, sources: list[Planned], targets: list[Planned]) -> None:
    """Each of the sources to each of the targets, neighbours at once."""
    if not sources or not targets:
        return
    behind = list(neighbours(targets))
    by_index = {node.index: node for node in sources}
    for first, count in neighbours(sources):
        by_index[first].links += [graphs.Link(kind, at, count, many) for at, many in behind]


def neighbours(nodes: Iterable[Planned]) -> Iterator[tuple[int, int]]:
    """The first index of each row of neighbours, and how many they are."""
    indexes = sorted(node.index for node in nodes)
    first = count = 0
    for index in indexes:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
