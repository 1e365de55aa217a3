"""From a call to a packed message: what calls of one task share is packed once.

    | size | version .. headers length | route | id | meta | headers | body |
     per     `------------- head -----------'   per  `---- tail ----'   per
     message  of the recipe                   message  of the recipe   message

Rule 1. A Recipe is made from merged options and never changes; settings that change make
        new ones. Tests hold its bytes against Message.pack.
        Calls whose options differ in nothing but their keys share one, with other fields each.
Rule 2. The fast path is for a minted id without due or expiry; ``pack`` is for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qclient.context import Context, current_request, pack_headers
from qclient.options import KEYS, RETRY, moment_ms, retry_policy
from qclient.preview import preview_of_call
from qclient.routes import destination, is_static, route
from qclient.serialization import CONTENTS, MSGPACK, encode_call
from qclient.topology import Broadcast
from qclient.uniqueness import check_keyed, has_keys, key_fields
from qprotocol import wire
from qprotocol.ids import unpack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.limits import BODY_BYTES_HARD_MAX
from qprotocol.message import NO_NAMES, Message, pack_route
from qprotocol.options import RetryPolicy

if TYPE_CHECKING:
    from qclient.app import App
    from qclient.signature import Signature

ID_BYTES = 16
SIZE_BYTES = wire.SIZE.size
pack_size = wire.SIZE.pack
"""The first field of wire.MESSAGE, alone."""
_NO_SIZE = bytes(SIZE_BYTES)
_FLAGS = 4
"""Which field of wire.MESSAGE they are."""
SHARED_MAX = 1_000
"""Recipes that a task remembers for calls with options."""
OWN = frozenset(("unique_key", "idempotency_key", "task_id"))
"""Options of a call that are no part of its recipe, or of its fields alone."""


class Recipe:
    """All of a message but its id, body and moments."""

    __slots__ = (
        "_fields",
        "_lineage",
        "_template",
        "content",
        "due",
        "expires",
        "head",
        "plain",
        "rest",
        "tail",
    )

    head: bytes
    """wire.MESSAGE without its size, then the route."""
    tail: bytes
    rest: int
    """What ``size`` counts beside the body: head, id and tail."""
    plain: bool
    """Whether the fast path may be taken: no due, no expiry, msgpack."""

    def __init__(self, template: Message, due: Any = None, expires: Any = None) -> None:
        sample = replace(template, id="00000000-0000-7000-8000-000000000000", body=b"").pack()
        n_route = len(pack_route(template.exchange, template.queue, template.task, template.keys))
        self.begin(template, template.fields, due, expires)
        self.head = sample[SIZE_BYTES : wire.MESSAGE.size + n_route]
        self.tail = sample[wire.MESSAGE.size + n_route + ID_BYTES :]
        self.rest = len(self.head) + ID_BYTES + len(self.tail)

    def begin(self, template: Message, fields: bytes, due: Any, expires: Any) -> None:
        """All but the bytes."""
        self._template = template
        self._fields = fields
        self.content = template.content
        self.due = due
        self.expires = expires
        self.plain = due is None and expires is None and template.content == MSGPACK
        self._lineage: tuple[Context, Recipe] | None = None

    @property
    def route(self) -> Message:
        """The message, but for its id, body and moments."""
        if self._fields == self._template.fields:
            return self._template
        return replace(self._template, fields=self._fields)

    def with_fields(self, fields: bytes) -> "Recipe":
        """The recipe for calls that are like this one's, which have none, but for these fields."""
        made = Recipe.__new__(Recipe)
        made.begin(self._template, fields, self.due, self.expires)
        *fixed, n_meta, n_headers = wire.MESSAGE.unpack_from(_NO_SIZE + self.head)
        fixed[_FLAGS] |= wire.MARKED
        meta = (self.tail[:n_meta] or NO_NAMES) + fields
        route = self.head[wire.MESSAGE.size - SIZE_BYTES :]
        made.head = wire.MESSAGE.pack(*fixed, len(meta), n_headers)[SIZE_BYTES:] + route
        made.tail = meta + self.tail[n_meta:]
        made.rest = len(made.head) + ID_BYTES + len(made.tail)
        return made

    def within(self, request: Context | None) -> "Recipe":
        """The recipe for calls made by the running task ``request``: its children."""
        if request is None or not request.id:
            return self
        known = self._lineage
        if known is None or known[0] is not request:
            child = replace(self.route, root=request.root_id or request.id, parent=request.id)
            known = self._lineage = (request, Recipe(child, self.due, self.expires))
        return known[1]

    def pack(self, task_id: str, body: bytes, now_ms: int) -> bytes:
        """A whole message. ``now_ms`` is the broker's clock: delays count from it."""
        due = 0 if self.due is None else moment_ms(self.due, now_ms)
        expires = 0 if self.expires is None else moment_ms(self.expires, now_ms)
        return replace(self.route, id=task_id, body=body, due_ms=due, expires_ms=expires).pack()

    def finish(
        self, body: bytes, options: Mapping[str, Any], now_ms: int, raw_id: bytes
    ) -> tuple[bytes, bytes | str]:
        """A whole message and its id: the chosen one, or ``raw_id``, freshly minted."""
        chosen = options.get("task_id")
        if self.plain and chosen is None:
            size = pack_size(self.rest + len(body))
            return b"".join((size, self.head, raw_id, self.tail, body)), raw_id
        task_id = unpack_id(raw_id, minted=True) if chosen is None else chosen
        return self.pack(task_id, body, now_ms), task_id


class Callee:
    """A task as those who send it need it: its name, options and parameters.

    A task known by name alone (``send_task``) has no parameters to check.
    """

    __slots__ = ("app", "arity", "name", "options", "parameters", "recipe", "shared", "signature")

    def __init__(
        self,
        app: "App",
        name: str,
        options: Mapping[str, Any],
        signature: Any = None,
    ) -> None:
        self.app = app
        self.name = name
        self.options = options
        self.signature = signature
        self.parameters: tuple[str, ...] = ()
        self.arity: tuple[int, int] | None = None
        """Fewest and most arguments a call by position may have; None if it takes more."""
        self.recipe: Recipe | None = None
        """For calls without options; None until made, and after settings changed."""
        self.shared: dict[tuple[tuple[str, Any], ...], Recipe] = {}
        """For calls with keys or options, by these options less their keys."""
        if signature is not None:
            self._measure(signature)

    def _measure(self, signature: Any) -> None:
        kinds = list(signature.parameters.values())
        by_place = [p for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.parameters = tuple(p.name for p in by_place)
        needed = sum(p.default is p.empty for p in by_place)
        if not any(
            p.kind is p.VAR_POSITIONAL or (p.kind is p.KEYWORD_ONLY and p.default is p.empty)
            for p in kinds
        ):
            self.arity = needed, len(by_place)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Nothing, if the task can be called so. Raises TypeError as the call itself would."""
        arity = self.arity
        if not kwargs and arity is not None and arity[0] <= len(args) <= arity[1]:
            return
        if self.signature is not None:
            try:
                self.signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.name}{self.signature}: {error}") from None

    def recipe_for(
        self, options: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Recipe:
        """The recipe for a call with these options (checked before)."""
        if not options and self.recipe is not None:
            return self.recipe
        alike = tuple([item for item in options.items() if item[0] not in OWN])
        try:
            recipe = self.shared.get(alike)
        except TypeError:  # a value that cannot be looked up by, as headers
            recipe, alike = None, ()
        is_keyed = has_keys(self.options) or has_keys(options)
        if recipe is None:
            recipe, is_same = self._made(options, args, kwargs)
            if is_same and not options and not is_keyed:
                self.recipe = recipe
            elif is_same and (alike or options.keys() <= OWN):
                if len(self.shared) >= SHARED_MAX:
                    self.shared.clear()
                self.shared[alike] = recipe
        if not is_keyed:
            if options:
                check_keyed(self, options)
            return recipe
        fields = key_fields(self, options, args, kwargs)
        return recipe.with_fields(fields) if fields else recipe

    def _made(
        self, options: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple["Recipe", bool]:
        """The recipe without keys; whether it is that of all calls with these options."""
        conf = self.app.conf
        routed = route(conf.task_routes, self.name, args, kwargs, options)
        said = {
            "preview_chars": conf.task_preview_chars,
            "preview_repr": conf.task_preview_repr,
            **self.options,
            **options,
        }
        preview = preview_of_call(self.name, args, kwargs, said)
        recipe = make_recipe(self, options, routed, preview=preview)
        return recipe, not said["preview_chars"] and is_static(conf.task_routes)

    def forget_recipes(self) -> None:
        """Settings changed: what was made of them is not true any more."""
        self.recipe = None
        self.shared.clear()

    def encode(self, recipe: Recipe, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """A call's body. Raises TypeError or ValueError naming the argument."""
        body = encode_call(self.name, args, kwargs, recipe.content, self.parameters)
        if len(body) > BODY_BYTES_HARD_MAX:
            raise ValueError(
                f"the arguments of {self.name} are {len(body)} bytes: at most "
                f"{BODY_BYTES_HARD_MAX}; keep them elsewhere and send where"
            )
        return body

    def prepare(self, signature: "Signature[Any]") -> tuple[Recipe, bytes]:
        """A call's recipe and body: all that can be wrong with it is found here."""
        args, kwargs = signature.args, signature.kwargs
        self.check(args, kwargs)
        recipe = self.recipe_for(signature.options, args, kwargs).within(current_request.get())
        return recipe, self.encode(recipe, args, kwargs)

    def replacement(
        self,
        request: Context,
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
        recipe = make_recipe(self, kept, {}, request.retry_policy, preview=request.preview)
        recipe.route.root, recipe.route.parent = request.root_id, request.parent_id
        return recipe.pack(request.id, self.encode(recipe, args, kwargs), 0)


def make_recipe(
    callee: Callee,
    options: Mapping[str, Any],
    routed: Mapping[str, Any],
    policy: RetryPolicy | None = None,
    *,
    preview: str = "",
) -> Recipe:
    """The recipe for calls of ``callee`` with these options and that route; without keys.

    A message that replaces another has the keys of that one.
    """
    conf = callee.app.conf
    said = {**callee.options, **routed, **options}
    if not RETRY.keys().isdisjoint(options):
        policy = retry_policy(said)
    ignore = said.get("ignore_result", conf.task_ignore_result)
    early = said.get("acks", conf.task_acks) == "early"
    levels = (options, routed, callee.options)
    broadcasts = {each.name for each in conf.task_queues if isinstance(each, Broadcast)}
    exchange, key = destination(callee.name, levels, conf.task_default_queue, broadcasts)
    flags = wire.IGNORE_RESULT if ignore else 0
    flags |= wire.ACK_EARLY if early else 0
    flags |= 0 if said.get("mandatory", True) else wire.MAY_DROP
    template = Message(
        queue=key,
        exchange=exchange,
        body=b"",
        task=callee.name,
        priority=said.get("priority", conf.task_default_priority),
        keys=keys_of(said),
        flags=flags,
        content=CONTENTS[said.get("serializer", conf.task_serializer)],
        headers=pack_headers(options, policy, preview),
    )
    return Recipe(template, due_of(options), said.get("expires"))


def keys_of(said: Mapping[str, Any]) -> bytes:
    """The lane keys of a call, packed."""
    if KEYS.keys().isdisjoint(said):
        return b""
    return LaneKeys(
        said.get("limit_key", ""),
        said.get("ordering_key", ""),
        said.get("fair_key", ""),
        said.get("weight", 1),
    ).pack()


def due_of(options: Mapping[str, Any]) -> Any:
    """``eta`` or ``countdown``; None for at once. Raises ValueError for both."""
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise ValueError(f"countdown={countdown!r} and eta={eta!r}: say one of them")
    return eta if countdown is None else countdown or None
