"""Orders about exchanges: declare, delete, bind, unbind; and what their records do."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.exchanges import Exchange
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError, checked
from qbroker.core.settings import BINDING_ROWS_MAX
from qbroker.core.state import BrokerState
from qbroker.core.statistics import ExchangeStatistics
from qbroker.core.survey import Survey, limit
from qprotocol.exchanges import KINDS, MATCH, Binding, Destination, ExchangeOptions
from qprotocol.frames import Bind, DeclareExchange, DeleteExchange, Ok, Unbind
from qprotocol.names import check_exchange_name


def decide_declare_exchange(
    state: BrokerState, _now: Now, _connection: int, frame: DeclareExchange
) -> Decision:
    """The exchange exists with this kind and these options, or did already."""
    try:
        if not frame.exchange:
            raise ValueError("the empty exchange exists by itself: it routes by queue name")
        check_exchange_name(frame.exchange)
        if frame.kind not in KINDS:
            raise ValueError(
                f"the kind of an exchange is {frame.kind!r}: one of {', '.join(KINDS)}"
            )
        options = ExchangeOptions.parse(frame.options or {})
    except ValueError as error:
        raise RefusedError("BAD_REQUEST", str(error)) from error
    known = state.exchanges.by_name.get(frame.exchange)
    if known is not None:
        check_same(known, frame.kind, options)
        return Decision(reply=Ok())
    if options.alternate:
        exchange_named(state, options.alternate)
    if len(state.exchanges.by_name) >= state.settings.exchanges_max:
        raise limit("exchanges_max", state.settings.exchanges_max)
    declared = r.ExchangeDeclared(frame.exchange, frame.kind, options.as_dict())
    return Decision([declared], Ok(count=1))


def check_same(known: Exchange, kind: str, options: ExchangeOptions) -> None:
    """Raise RefusedError, field by field, if the exchange is another one."""
    has = {"kind": known.kind, **known.options.as_dict()}
    wanted = {"kind": kind, **options.as_dict()}
    differ: dict[str, Any] = {
        name: [has[name], wanted[name]] for name in has if has[name] != wanted[name]
    }
    if differ:
        words = ", ".join(f"{name} is {a!r}, not {b!r}" for name, (a, b) in differ.items())
        raise RefusedError(
            "OPTIONS_DIFFER",
            f"exchange {known.name!r} exists, and differs: {words}; declare it as it is, use "
            "another name, or delete it first",
            **differ,
        )


def exchange_named(state: BrokerState, name: str) -> Exchange:
    """The exchange. Raises RefusedError if there is none."""
    found = state.exchanges.by_name.get(name)
    if found is None:
        raise RefusedError("NO_EXCHANGE", f"exchange {name!r} does not exist: declare it first")
    return found


def decide_delete_exchange(
    state: BrokerState, _now: Now, _connection: int, frame: DeleteExchange
) -> Decision:
    """The exchange is gone, and every binding from and to it; count says how many."""
    exchange = exchange_named(state, frame.exchange)
    users = state.exchanges.alternates(exchange.name)
    if users:
        raise RefusedError(
            "IN_USE",
            f"exchange {exchange.name!r} is the alternate of {', '.join(users[:5])}: what they "
            "cannot route would be lost; delete those first",
        )
    into = state.exchanges.into.get(Destination(to_exchange=True, name=exchange.name), {})
    count = len(exchange.bindings) + len(into)
    if frame.if_unused and count:
        raise RefusedError(
            "IN_USE", f"exchange {exchange.name!r} has {count} bindings, and if_unused was asked"
        )
    return Decision([r.ExchangeDeleted(exchange.name)], Ok(count=count))


def binding_of(exchange: Exchange, frame: Bind | Unbind) -> Binding:
    """The binding a frame speaks of. Raises RefusedError for one that cannot be."""
    destination = Destination(to_exchange=frame.to_exchange, name=frame.destination)
    arguments = frame.arguments or {}
    return checked(Binding.parse, exchange.kind, destination, frame.key, arguments)


def decide_bind(state: BrokerState, now: Now, _connection: int, frame: Bind) -> Decision:
    """The binding exists, or did already. A queue is made if it does not exist."""
    exchange = exchange_named(state, frame.exchange)
    binding = binding_of(exchange, frame)
    if binding in exchange.bindings:
        return Decision(reply=Ok())
    if state.exchanges.count >= state.settings.bindings_max:
        raise limit("bindings_max", state.settings.bindings_max)
    survey, to = Survey(state, now), binding.destination
    if to.to_exchange:
        exchange_named(state, to.name)
        if state.exchanges.leads_to(to.name, exchange.name):
            raise RefusedError(
                "BAD_REQUEST",
                f"exchange {to.name!r} leads to {exchange.name!r} already: messages would go "
                "round in a circle",
            )
    elif to.name not in state.queues:
        survey.queue(to.name)
    bound = r.Bound(exchange.name, *to, binding.key, dict(binding.arguments))
    return Decision([*survey.opened, bound], Ok(count=1))


def decide_unbind(state: BrokerState, _now: Now, _connection: int, frame: Unbind) -> Decision:
    """There is no such binding; count says whether there was one."""
    exchange = exchange_named(state, frame.exchange)
    binding = binding_of(exchange, frame)
    if binding not in exchange.bindings:
        return Decision(reply=Ok())
    unbound = r.Unbound(exchange.name, *binding.destination, binding.key, dict(binding.arguments))
    return Decision([unbound], Ok(count=1))


# What the records do.


def apply_exchange_declared(state: BrokerState, _position: int, record: r.ExchangeDeclared) -> None:
    """The exchange exists."""
    options = ExchangeOptions.parse(record.options)
    state.exchanges.declare(record.name, record.kind, options)


def apply_exchange_deleted(state: BrokerState, _position: int, record: r.ExchangeDeleted) -> None:
    """The exchange is gone, with its bindings."""
    state.exchanges.delete(record.name)


def recorded(record: r.Bound | r.Unbound) -> Binding:
    """The binding in a record."""
    return Binding.stored(record.to_exchange, record.destination, record.key, record.arguments)


def apply_bound(state: BrokerState, _position: int, record: r.Bound) -> None:
    """The binding exists."""
    state.exchanges.bind(record.exchange, recorded(record))


def apply_unbound(state: BrokerState, _position: int, record: r.Unbound) -> None:
    """The binding is gone."""
    state.exchanges.unbind(record.exchange, recorded(record))


# For people.


def exchange_statistics(state: BrokerState) -> tuple[ExchangeStatistics, ...]:
    """A row an exchange."""
    return tuple(
        ExchangeStatistics(
            *(each.name, each.kind, each.options.alternate, each.options.unroutable),
            *(len(each.bindings), dict(each.counts)),
        )
        for each in state.exchanges.by_name.values()
    )


def binding_rows(state: BrokerState) -> list[dict[str, Any]]:
    """A row a binding, BINDING_ROWS_MAX at most."""
    return list(islice(_binding_rows(state), BINDING_ROWS_MAX))


def _binding_rows(state: BrokerState) -> Iterator[dict[str, Any]]:
    for exchange in state.exchanges.by_name.values():
        for destination, key, arguments in exchange.bindings:
            shown = {n: v.hex() if isinstance(v, bytes) else v for n, v in arguments}
            yield {
                "exchange": exchange.name,
                "key": key,
                "to": "exchange" if destination.to_exchange else "queue",
                "destination": destination.name,
                "match": shown.pop(MATCH, "all") if exchange.kind == "headers" else "",
                "arguments": shown,
            }
