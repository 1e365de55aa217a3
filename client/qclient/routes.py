"""Which queue a task goes to, by ``app.conf.task_routes``.

    {"shop.mail": "mail"}                 a name
    {"feed.*": {"queue": "feeds"}}        a pattern; the first that fits in the dict's order,
                                          after an exact name
    def router(name, args, kwargs, options, task=None) -> "queue" | {"queue": ...} | None
    [router, {...}, ...]                  the first that says anything

Rule 1. A route says a queue, or an exchange and a routing key, and perhaps a priority;
        everything else is the task's or the call's.
Rule 2. The first of call, route and task that names a queue or an exchange says where to.
"""

from collections.abc import Container, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from qclient.options import SEND, check

WHERE = ("queue", "exchange", "routing_key")
ROUTED = {name: SEND[name] for name in (*WHERE, "priority")}


def route(
    routes: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Where a call of task ``name`` goes, and its priority; empty if no route speaks of it.

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


def destination(
    name: str, levels: Iterable[Mapping[str, Any]], default: str, broadcasts: Container[str]
) -> tuple[str, str]:
    """Exchange and routing key of a call of task ``name``; with the empty exchange a queue.

    ``levels`` are call, route and task. Without a routing key it is the task's name. Raises
    ValueError for a queue and an exchange at one level.
    """
    key = None
    for level in levels:
        exchange, queue = level.get("exchange"), level.get("queue")
        if exchange is not None and queue is not None:
            raise ValueError(
                f"queue={queue!r} and exchange={exchange!r} for {name}: say one of them"
            )
        key = level.get("routing_key") if key is None else key
        if exchange:
            return exchange, name if key is None else key
        if queue is not None:
            return (queue, name) if queue in broadcasts else ("", queue)
        if exchange == "" and key is not None:
            return "", key
    return "", default if key is None else key


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
