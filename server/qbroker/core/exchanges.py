"""Exchanges and their bindings: by which queues a message goes into, and what was found before.

    exchange, routing key, headers --> bindings --> queues, each once
                                  none  '--> the alternate exchange

Rule 1. Which queues is decided when a message is published, once.
Rule 2. What was found is kept until any binding changes; then all of it is forgotten.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from qbroker.core.settings import RESOLVED_ROUTES_MAX
from qbroker.core.topics import Topics
from qprotocol.exchanges import Binding, Destination, ExchangeOptions

Headers = Callable[[], Mapping[str, Any]]
"""A message's headers, decoded when they are asked for."""


class Index(Protocol):
    """The bindings of an exchange, as its kind looks for them."""

    def add(self, binding: Binding) -> None: ...
    def discard(self, binding: Binding) -> None: ...
    def match(self, key: str, headers: Headers) -> Iterable[Destination]: ...


class ByKey:
    """direct: the key is the routing key."""

    def __init__(self) -> None:
        self._found: dict[str, dict[Destination, None]] = {}

    def add(self, binding: Binding) -> None:
        self._found.setdefault(binding.key, {})[binding.destination] = None

    def discard(self, binding: Binding) -> None:
        found = self._found[binding.key]
        del found[binding.destination]
        if not found:
            del self._found[binding.key]

    def match(self, key: str, _headers: Headers) -> Iterable[Destination]:
        return self._found.get(key, ())


class ByPattern:
    """topic: the key is a pattern."""

    def __init__(self) -> None:
        self._topics: Topics[Destination] = Topics()

    def add(self, binding: Binding) -> None:
        self._topics.add(binding.key, binding.destination)

    def discard(self, binding: Binding) -> None:
        self._topics.discard(binding.key, binding.destination)

    def match(self, key: str, _headers: Headers) -> Iterable[Destination]:
        return self._topics.match(key)


class All:
    """fanout: every binding."""

    def __init__(self) -> None:
        self._found: dict[Binding, None] = {}

    def add(self, binding: Binding) -> None:
        self._found[binding] = None

    def discard(self, binding: Binding) -> None:
        del self._found[binding]

    def match(self, _key: str, _headers: Headers) -> Iterable[Destination]:
        return dict.fromkeys(binding.destination for binding in self._found)


class ByHeaders:
    """headers: each argument is looked for by itself; a binding fits if enough of its are there."""

    def __init__(self) -> None:
        self._wanting: dict[object, dict[Binding, None]] = {}
        """What a header must be, to the bindings that want it."""
        self._any: dict[Binding, None] = {}
        """Those that want nothing: they take every message."""

    def add(self, binding: Binding) -> None:
        for sign in map(sign_of, binding.wants):
            self._wanting.setdefault(sign, {})[binding] = None
        if not binding.wants:
            self._any[binding] = None

    def discard(self, binding: Binding) -> None:
        self._any.pop(binding, None)
        for sign in map(sign_of, binding.wants):
            wanting = self._wanting[sign]
            del wanting[binding]
            if not wanting:
                del self._wanting[sign]

    def match(self, _key: str, headers: Headers) -> Iterable[Destination]:
        met = Counter(b for sign in signs(headers()) for b in self._wanting.get(sign, ()))
        fits = [b for b, count in met.items() if b.any_will_do or count == len(b.wants)]
        return dict.fromkeys(binding.destination for binding in (*self._any, *fits))


def sign_of(wanted: tuple[str, Any]) -> object:
    """What a header must be; 1, 1.0 and True are three things."""
    name, value = wanted
    return name if value is None else (name, type(value), value)


def signs(headers: Mapping[str, Any]) -> Iterator[object]:
    """What each header is: there, and what it says, if that is no list or map."""
    for name, value in headers.items():
        yield name
        if value is not None and not isinstance(value, list | dict):
            yield name, type(value), value


INDEXES: dict[str, Callable[[], Index]] = {
    "direct": ByKey,
    "topic": ByPattern,
    "fanout": All,
    "headers": ByHeaders,
}


class Exchange:
    """One exchange. Durable but ``counts``."""

    __slots__ = ("bindings", "counts", "index", "kind", "name", "options")

    def __init__(self, name: str, kind: str, options: ExchangeOptions) -> None:
        self.name = name
        self.kind = kind
        self.options = options
        self.bindings: dict[Binding, None] = {}
        self.index = INDEXES[kind]()
        self.counts: Counter[str] = Counter()
        """Since the start: messages published to it, copies they became, and how many reached
        no queue and were dropped."""


class Resolved(NamedTuple):
    """Where messages with one exchange and routing key go."""

    exchange: Exchange
    queues: tuple[str, ...]
    by_headers: bool
    """Whether it depends on the message's headers, too."""


@dataclass(slots=True)
class Exchanges:
    """All exchanges, and what was found of routes."""

    by_name: dict[str, Exchange] = field(default_factory=dict)
    into: dict[Destination, dict[tuple[str, Binding], None]] = field(default_factory=dict)
    """A destination to the bindings that lead there, with the name of their exchange."""
    count: int = 0
    """Bindings in all."""
    counts: Counter[str] = field(default_factory=Counter)
    """Volatile: the counts of all exchanges, those that are gone too."""
    resolved: dict[object, Any] = field(default_factory=dict)
    """Volatile: what copying.py found for routes; RESOLVED_ROUTES_MAX at most."""
    recipes: dict[bytes, Any] = field(default_factory=dict)
    """Volatile: how it copies messages, by all of their heads but the size; as many."""

    def saved(self) -> list[list[Any]]:
        """A row an exchange: name, kind, options, bindings."""
        return [
            [
                *(each.name, each.kind, each.options.as_dict()),
                [[*to, key, dict(arguments)] for to, key, arguments in each.bindings],
            ]
            for each in self.by_name.values()
        ]

    def restore(self, rows: list[list[Any]]) -> None:
        """Into a new one: what ``saved`` gave."""
        for name, kind, options, _ in rows:
            self.declare(name, kind, ExchangeOptions.parse(options))
        for name, _, _, bindings in rows:
            for binding in bindings:
                self.bind(name, Binding.stored(*binding))

    def declare(self, name: str, kind: str, options: ExchangeOptions) -> None:
        """The exchange exists."""
        self.by_name[name] = Exchange(name, kind, options)
        self.forget_routes()

    def delete(self, name: str) -> None:
        """The exchange is gone, with every binding from and to it."""
        for binding in list(self.by_name[name].bindings):
            self.unbind(name, binding)
        self.forget(Destination(to_exchange=True, name=name))
        del self.by_name[name]
        self.forget_routes()

    def bind(self, name: str, binding: Binding) -> None:
        """The binding exists; it did not before."""
        exchange = self.by_name[name]
        exchange.bindings[binding] = None
        exchange.index.add(binding)
        self.into.setdefault(binding.destination, {})[name, binding] = None
        self.count += 1
        self.forget_routes()

    def unbind(self, name: str, binding: Binding) -> None:
        """The binding, which exists, is gone."""
        exchange = self.by_name[name]
        del exchange.bindings[binding]
        exchange.index.discard(binding)
        into = self.into[binding.destination]
        del into[name, binding]
        if not into:
            del self.into[binding.destination]
        self.count -= 1
        self.forget_routes()

    def forget(self, destination: Destination) -> None:
        """Nothing leads to a queue or exchange that is no more."""
        for name, binding in list(self.into.get(destination, ())):
            self.unbind(name, binding)

    def alternates(self, name: str) -> list[str]:
        """Exchanges that name this one as their alternate."""
        return [e.name for e in self.by_name.values() if e.options.alternate == name]

    def leads_to(self, start: str, wanted: str) -> bool:
        """Whether messages of the exchange ``start`` may get to ``wanted`` by bindings."""
        seen, ahead = {start}, [start]
        for name in ahead:  # grows while it is walked
            for binding in self.by_name[name].bindings:
                to = binding.destination
                if to.to_exchange and to.name not in seen:
                    seen.add(to.name)
                    ahead.append(to.name)
        return wanted in seen

    def resolve(self, exchange: Exchange, key: str, headers: Headers) -> Resolved:
        """The queues that bindings lead to, each once, in the order they are found.

        Costs what the kinds of the exchanges on the way cost: look into ``resolved`` before.
        """
        queues: dict[str, None] = {}
        by_headers, seen, ahead = False, {exchange.name}, [exchange]
        for each in ahead:  # grows while it is walked
            by_headers = by_headers or each.kind == "headers"
            found = list(each.index.match(key, headers))
            further = [to.name for to in found if to.to_exchange]
            if not found and each.options.alternate:
                further.append(each.options.alternate)
            queues.update((to.name, None) for to in found if not to.to_exchange)
            ahead += [self.by_name[name] for name in further if name not in seen]
            seen.update(further)
        return Resolved(exchange, tuple(queues), by_headers)

    def keep(self, route: object, found: object) -> None:
        """Remember what was found for a route."""
        if len(self.resolved) >= RESOLVED_ROUTES_MAX:
            self.resolved.clear()
        self.resolved[route] = found

    def keep_recipe(self, head: bytes, recipe: Any) -> None:
        """Remember how messages with that head are copied."""
        if len(self.recipes) >= RESOLVED_ROUTES_MAX:
            self.recipes.clear()
        self.recipes[head] = recipe

    def forget_routes(self) -> None:
        """What was found may not be true any more."""
        self.resolved.clear()
        self.recipes.clear()
