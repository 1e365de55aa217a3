"""What a running task is replaced by: itself with other arguments, or steps that end with one task.

Either has its id, and whatever waits for the task waits for that.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qclient.canvas import builtins
from qclient.canvas.inputs import NOTHING
from qclient.canvas.packing import Packing
from qclient.canvas.plan import Members, plan
from qclient.canvas.steps import Step, chain
from qclient.recipe import Callee, make_recipe
from qclient.signature import Signature

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.context import Context


def replacement(app: "App", step: Step, request: "Context") -> tuple[bytes, ...]:
    """The messages; the last one is the task of ``request`` from then on.

    Raises ValueError if something is linked to that one: what the task had linked stays with it.
    """
    made = plan(step)
    if isinstance(made.given.tree, Members):
        collect: Signature[Any] = Signature(app.callee_of(builtins.run_collect), (), {})
        made = plan(chain(step, collect))
    if made.nodes[-1] is not made.given.tree:
        raise ValueError(
            f"{step!r:.80} has something linked to its last step: whatever runs behind "
            f"{request.task} runs behind that; link it where the task is sent, or make it a step "
            "of a chain"
        )
    now_ms = app.connection.server_ms(app.timeout_s)
    return tuple(Packing(app, lambda: now_ms, becomes=request).messages(made)[0])


def another_try(
    callee: Callee,
    request: "Context",
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> bytes:
    """The message that takes the place of ``request``'s: what is not said stays.

    So does the preview, as the caller made it: what it left out stays out.
    """
    kept = {
        "queue": request.queue,
        "priority": request.priority,
        "ignore_result": request.ignore_result,
        "acks": "early" if request.acks_early else "late",
        "time_limit": request.time_limit,
        "soft_time_limit": request.soft_time_limit,
        "headers": request.headers,
        "expires": request.expires,
        "limit_key": request.keys.limit,
        "ordering_key": request.keys.ordering,
        "fair_key": request.keys.fair,
        "weight": request.keys.weight,
        **options,
    }
    recipe = make_recipe(callee, kept, {}, request.retry_policy, preview=request.preview)
    recipe.template.root, recipe.template.parent = request.root_id, request.parent_id
    shape = NOTHING if request.is_given else None  # what it was given is among the arguments
    return recipe.pack(request.id, callee.encode(recipe, args, kwargs, shape), 0)
