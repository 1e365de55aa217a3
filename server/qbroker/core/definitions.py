"""What people have defined here, as rows for JSON: what an export holds and an import makes again.

Rule 1. A table's rows are enough to make its things anew, and say nothing of messages.
Rule 2. What belongs to one connection, an exclusive queue, is nobody's definition.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from qbroker.core.declaring import described
from qbroker.core.state import BrokerState

Rows = Iterator[dict[str, Any]]


def queue_rows(state: BrokerState) -> Rows:
    """A row a queue: what its declaration named, and what operators have set."""
    for queue in state.queues.values():
        terms = queue.terms
        if not terms.owner:
            yield {
                "name": queue.name,
                "options": dict(terms.declared),
                "set": dict(terms.changed),
            }


def policy_rows(state: BrokerState) -> Rows:
    """A row a policy, those of operators last, by priority."""
    policies = state.catalogue.policies.values()
    for each in sorted(policies, key=lambda each: (each.operator, -each.priority, each.name)):
        yield {**asdict(each), "options": dict(each.options)}


def exchange_rows(state: BrokerState) -> Rows:
    """A row an exchange."""
    for each in state.exchanges.by_name.values():
        yield {"name": each.name, "kind": each.kind, "options": each.options.as_dict()}


def binding_rows(state: BrokerState) -> Rows:
    """A row a binding; bytes among its arguments are {"hex": digits}."""
    for exchange in state.exchanges.by_name.values():
        for destination, key, arguments in exchange.bindings:
            yield {
                "exchange": exchange.name,
                "key": key,
                "destination": destination.name,
                "to_exchange": destination.to_exchange,
                "arguments": {
                    name: {"hex": value.hex()} if isinstance(value, bytes) else value
                    for name, value in arguments
                },
            }


TENANT_ROWS_MAX = 100
"""Tenants that are shown of one queue, those with most messages."""


def limit_rows(state: BrokerState) -> Rows:
    """A row a limit that an operator has set; what is declared in code comes with the workers."""
    for name, each in sorted(state.limits.by_name.items()):
        if each.operator:
            yield {"name": name, "rule": each.operator.as_dict()}


DEFINITIONS: dict[str, Callable[[BrokerState], Rows]] = {
    "policies": policy_rows,
    "queues": queue_rows,
    "exchanges": exchange_rows,
    "bindings": binding_rows,
    "limits": limit_rows,
}
"""The tables of an export, in the order in which they are to be made again."""


def definitions(state: BrokerState) -> dict[str, list[dict[str, Any]]]:
    """All tables, by name."""
    return {name: list(rows(state)) for name, rows in DEFINITIONS.items()}


def queue_described(state: BrokerState, name: str) -> dict[str, Any] | None:
    """One queue: its books, its consumers, and every option with where it came from."""
    queue = state.queues.get(name)
    if queue is None:
        return None
    weights = state.catalogue.weights.get(queue.number)
    return {
        "name": queue.name,
        "ready": queue.ready,
        "scheduled": queue.scheduled,
        "leased": queue.leased,
        "consumers": len(state.listening[queue.number]),
        "bytes": weights.bytes if weights else None,
        "exclusive": bool(queue.terms.owner),
        "counts": dict(queue.counts),
        "options": described(state, queue),
        "tenants": queue.shares.rows(TENANT_ROWS_MAX) if queue.shares else [],
    }
