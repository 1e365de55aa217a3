"""A plan as one publish: ids are minted, messages packed, and handles made of what it gives.

Cost: some 5 µs a message whose links are like those of the one before, 15 µs for others.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qclient.batches import ATOMIC_BYTES_MAX, Chunk
from qclient.canvas.groupresult import GroupResult
from qclient.canvas.inputs import NOTHING
from qclient.canvas.plan import Members, Plan, Planned
from qclient.context import current_request
from qclient.mint import minted
from qclient.recipe import Recipe
from qclient.result import AsyncResult
from qclient.uniqueness import are_keyed
from qprotocol import wire
from qprotocol.graphs import BRINGS, Node
from qprotocol.ids import unpack_id
from qprotocol.message import pack_fields

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.context import Context

STEPS_MAX = 1_000_000
"""The broker's default for the nodes of all graphs (graph_nodes_max)."""
_PLAIN = Node().pack()
"""Of a message without links."""


class Packing:
    """One publish of a plan."""

    def __init__(
        self, app: "App", now_ms: Callable[[], int], becomes: "Context | None" = None
    ) -> None:
        self.app = app
        self.now_ms = now_ms
        self.request: Context | None = current_request.get()
        self.becomes = becomes
        """The call whose place the last message takes."""
        self.root = ""
        """The id of the first message, for those behind it."""
        self.woven: dict[tuple[Recipe, bytes, bool], Recipe] = {}

    def pack(self, plan: Plan) -> Chunk:
        """The plan's messages. Raises TypeError or ValueError for one that cannot be sent."""
        pieces, results = self.messages(plan)
        size = sum(map(len, pieces))
        if len(pieces) > STEPS_MAX or size > ATOMIC_BYTES_MAX:
            raise ValueError(
                f"{len(pieces)} messages of {size} bytes in one publish: at most "
                f"{STEPS_MAX:,} of {ATOMIC_BYTES_MAX >> 20} MiB; nothing was sent: make "
                "several of it, or let a task send what comes behind it"
            )
        return Chunk(pieces, results)

    def messages(self, plan: Plan) -> tuple[list[bytes], list[AsyncResult[Any]]]:
        """The bytes and the handle of each."""
        ids = minted(self.now_ms)
        pieces: list[bytes] = []
        results: list[AsyncResult[Any]] = []
        for node in plan.nodes:
            raw, task_id = self.message(node, next(ids), is_last=node is plan.nodes[-1])
            if not pieces and self.request is None:
                self.root = task_id if isinstance(task_id, str) else unpack_id(task_id, minted=True)
            pieces.append(raw)
            results.append(AsyncResult(task_id, self.app))
        return pieces, results

    def message(self, node: Planned, raw_id: bytes, *, is_last: bool) -> tuple[bytes, bytes | str]:
        """A node's bytes and id."""
        call, shape = node.signature, node.shape
        if is_last and self.becomes:
            call = call.set(task_id=self.becomes.id)
            if not node.takes:
                shape = NOTHING  # what the other one was given comes for it as well
        callee = call.callee
        callee.check((None, *call.args) if node.takes else call.args, call.kwargs)
        if are_keyed(callee, call.options):
            raise ValueError(
                f"{call!r:.80} has a unique or idempotency key, and is part of several: one that "
                "is not stored would leave a hole; let a task send it"
            )
        bare, _ = callee.recipe_for(call.options, call.args, call.kwargs, None)
        says = node.links or node.delay_ms
        field = Node(tuple(node.links), node.delay_ms).pack() if says else _PLAIN
        is_taken = any(link.kind in BRINGS for link in node.links)
        recipe = self.recipe(bare, field, is_taken)
        if is_last and self.becomes:
            own = replace(recipe.template, root=self.becomes.root_id, parent=self.becomes.parent_id)
            recipe = Recipe(own, bare.due, bare.expires)
        body = callee.encode(recipe, call.args, call.kwargs, shape)
        return recipe.finish(body, b"", call.options, self.now_ms(), raw_id)

    def recipe(self, bare: Recipe, field: bytes, is_taken: bool) -> Recipe:
        """The recipe of a node with that field; a result that somebody takes is one to be sent."""
        found = self.woven.get((bare, field, is_taken))
        if found is None:
            template, request = bare.template, self.request
            flags = template.flags & ~wire.IGNORE_RESULT if is_taken else template.flags
            made = replace(
                template,
                fields=pack_fields({wire.NODE: field}),
                flags=flags | wire.MARKED,
                root=(request.root_id or request.id) if request else self.root,
                parent=request.id if request else "",
            )
            found = Recipe(made, bare.due, bare.expires)
            if made.root:
                self.woven[bare, field, is_taken] = found
        return found


def handles(plan: Plan, results: list[AsyncResult[Any]]) -> AsyncResult[Any] | GroupResult:
    """The handle of the whole, with those before it as its parents."""
    groups: dict[int, GroupResult] = {}

    def of(tree: Planned | Members) -> AsyncResult[Any] | GroupResult:
        if isinstance(tree, Planned):
            return results[tree.index]
        found = groups.get(id(tree))
        if found is None:
            found = groups[id(tree)] = GroupResult([of(each) for each in tree.trees])
            found.parent = of(tree.behind.tree) if tree.behind else None
        return found

    for node in plan.nodes:
        if node.behind is not None:
            results[node.index]._parent = of(node.behind.tree)  # noqa: SLF001  # see AsyncResult
    return of(plan.given.tree)
