"""What may be said of exchanges and bindings: kinds, options, arguments; checked once, here.

direct    the binding's key is the message's routing key
topic     the binding's key is a pattern that fits it, see topics.py
fanout    every binding
headers   the binding's arguments are among the message's headers: all, or any of them
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, NamedTuple, Self

from qprotocol.names import check_exchange_name, check_queue_name
from qprotocol.topics import check_pattern, check_topic

KINDS = ("direct", "topic", "fanout", "headers")
UNROUTABLE = ("refuse", "drop")
MATCH = "x-match"
"""The argument of a binding that says whether "all" (the default) or "any" of the others count."""
MATCHES = ("all", "any")
Scalar = str | int | float | bool | bytes | None
SCALARS = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """What an exchange may be told when it is declared."""

    alternate: str = ""
    """The exchange that gets what no binding takes. It must exist; empty is none."""
    unroutable: str = "refuse"
    """What becomes of a message that reaches no queue: refuse is an error, drop counts it."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """The options in ``given``. Raises ValueError naming what is wrong and what was meant."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"unknown exchange option {name!r}: {hint}")
        options = cls(**given)
        if options.unroutable not in UNROUTABLE:
            raise ValueError(
                f"unroutable is {options.unroutable!r}: one of {', '.join(UNROUTABLE)}"
            )
        if type(options.alternate) is not str:
            raise ValueError(f"alternate is {options.alternate!r}: the name of an exchange")
        check_exchange_name(options.alternate)
        return options

    def as_dict(self) -> dict[str, Any]:
        """Every option by name, as ``parse`` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Destination(NamedTuple):
    """Where a binding leads: a queue, or another exchange."""

    to_exchange: bool
    name: str


class Binding(NamedTuple):
    """Where messages of an exchange go, and which of them. Equal ones are one."""

    destination: Destination
    key: str
    arguments: tuple[tuple[str, Scalar], ...] = ()
    """Of a headers exchange: what the headers must hold, by name; None is any value."""

    @classmethod
    def parse(
        cls, kind: str, destination: Destination, key: str, arguments: Mapping[str, Any]
    ) -> Self:
        """The binding. Raises ValueError for one that an exchange of that kind has no use for."""
        if destination.to_exchange and not destination.name:
            raise ValueError("the empty exchange cannot be bound to: it routes by queue name")
        (check_exchange_name if destination.to_exchange else check_queue_name)(destination.name)
        (check_pattern if kind == "topic" else check_topic)(key)
        if kind == "headers":
            check_arguments(arguments)
        elif arguments:
            raise ValueError(f"arguments for a binding of a {kind} exchange: only headers has use")
        return cls(destination, key, tuple(sorted(arguments.items())))

    @classmethod
    def stored(
        cls, to_exchange: bool, destination: str, key: str, arguments: Mapping[str, Any]
    ) -> Self:
        """The binding in a record, which was checked when it was made."""
        return cls(Destination(to_exchange, destination), key, tuple(sorted(arguments.items())))

    @property
    def wants(self) -> tuple[tuple[str, Scalar], ...]:
        """The arguments without x-match."""
        return tuple(item for item in self.arguments if item[0] != MATCH)

    @property
    def any_will_do(self) -> bool:
        """Whether one of them is enough."""
        return (MATCH, "any") in self.arguments


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for arguments that no headers could be held against."""
    if arguments.get(MATCH, "all") not in MATCHES:
        raise ValueError(f"{MATCH} is {arguments[MATCH]!r}: one of {', '.join(MATCHES)}")
    for name, value in arguments.items():
        if name.startswith("x-") and name != MATCH:
            raise ValueError(
                f"the argument {name!r}: of those that begin with x- only {MATCH} is known"
            )
        if type(value) not in SCALARS:
            raise ValueError(f"the argument {name} is a {type(value).__name__}: no header fits it")
    if arguments.get(MATCH) == "any" and len(arguments) == 1:
        raise ValueError(f"{MATCH} is any, and there are no other arguments: nothing would fit")
