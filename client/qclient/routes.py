"""Which queue a task goes to, by ``app.conf.task_routes``.

    {"shop.mail": "mail"}                 a name
    {"feed.*": {"queue": "feeds"}}        a pattern; the first that fits in the dict's order,
                                          after an exact name
    def router(name, args, kwargs, options, task=None) -> "queue" | {"queue": ...} | None
    [router, {...}, ...]                  the first that says anything

Rule 1. A route says a queue and perhaps a priority; everything else is the task's or the call's.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from qclient.options import SEND, check

ROUTED = {name: SEND[name] for name in ("queue", "priority")}


def route(
    routes: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Queue and priority for a call of task ``name``; empty if no route speaks of it.

    Raises TypeError or ValueError for a route that is not one.
    """
    if isinstance(routes, Mapping):
        found = by_name(routes, name)
    elif callable(routes):
        found = routes(name, args, kwargs, options)
    else:
        for one in routes:
            said = route(one, name, args, kwargs, options)
            if said:
                return said
        return {}
    if found is None:
        return {}
    if isinstance(found, str):
        return {"queue": found}
    if not isinstance(found, Mapping):
        raise TypeError(f"the route of {name} is {found!r}: a queue's name or a dict")
    check(found, ROUTED, f"the route of {name}")
    return found


def by_name(routes: Mapping[str, Any], name: str) -> Any:
    exact = routes.get(name)
    if exact is not None:
        return exact
    return next((said for pattern, said in routes.items() if fnmatchcase(name, pattern)), None)


def is_static(routes: Any) -> bool:
    """Whether the same task always takes the same route."""
    if isinstance(routes, Mapping):
        return True
    return not callable(routes) and all(map(is_static, routes))
