"""Steps as plain data, to be kept, sent as an argument, and made anew.

    {"type": "call", "task": "shop.add", "args": [1, 2], "kwargs": {}, "options": {},
     "immutable": false, "links": [], "errors": []}
    {"type": "chain", "steps": [...], "options": {}, "links": [], "errors": []}

``group`` and ``chord`` are as ``chain``; a chord's steps are its header and its body.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qclient.canvas.steps import Several, Step, chain, chord, group
from qclient.options import CALL, check
from qclient.signature import Signature

if TYPE_CHECKING:
    from qclient.app import App

KINDS: dict[str, type[Several]] = {"chain": chain, "group": group, "chord": chord}
CALL_FIELDS = {"type", "task", "args", "kwargs", "options", "immutable", "links", "errors"}
SEVERAL_FIELDS = {"type", "steps", "options", "links", "errors"}


def as_dict(step: Step) -> dict[str, Any]:
    """The step as plain data."""
    common = {
        "options": dict(step.options),
        "links": [as_dict(each) for each in step.links],
        "errors": [as_dict(each) for each in step.errors],
    }
    if isinstance(step, Signature):
        return {
            "type": "call",
            "task": step.task,
            "args": list(step.args),
            "kwargs": dict(step.kwargs),
            "immutable": step.immutable,
            **common,
        }
    assert isinstance(step, Several)
    return {"type": type(step).__name__, "steps": [as_dict(each) for each in step], **common}


def from_dict(app: "App", data: Mapping[str, Any]) -> Step:
    """The step that ``as_dict`` was asked of.

    Raises ValueError or TypeError, naming what is wrong.
    """
    kind = str(data.get("type"))
    if kind != "call" and kind not in KINDS:
        raise ValueError(f"a step of type {kind!r}: there are call, {', '.join(KINDS)}")
    fields = CALL_FIELDS if kind == "call" else SEVERAL_FIELDS
    if data.keys() != fields:
        differing = ", ".join(sorted(map(str, data.keys() ^ fields)))
        raise ValueError(
            f"a {kind} has {', '.join(sorted(fields))}: this one differs in {differing}"
        )
    check(data["options"], CALL, data["task"] if kind == "call" else f"a {kind}")
    links = tuple(from_dict(app, each) for each in data["links"])
    errors = tuple(from_dict(app, each) for each in data["errors"])
    if kind == "call":
        args, kwargs, fixed = data["args"], data["kwargs"], bool(data["immutable"])
        made: Step = app.signature(data["task"], args, kwargs, immutable=fixed)
    else:
        several = object.__new__(KINDS[kind])
        several.steps = tuple(from_dict(app, each) for each in data["steps"])
        made = several
    return made.with_these(data["options"], links, errors)
