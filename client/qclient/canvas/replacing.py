"""What a running task is replaced by: steps that end with one task, which takes its id."""

from typing import TYPE_CHECKING, Any

from qclient.canvas import builtins
from qclient.canvas.packing import Packing
from qclient.canvas.plan import Members, plan
from qclient.canvas.steps import Step, chain
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
