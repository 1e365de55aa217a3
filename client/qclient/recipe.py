"""From a call to a packed message: what calls of one task share is packed once.

    | size | version .. headers length | route | id | meta | headers | body |
     per     `------------- head -----------'   per  `---- tail ----'   per
     message  of the recipe                   message  of the recipe   message

    with a unique key    | id | tail: meta .. length of the key | key | behind: headers | body |

Rule 1. A Recipe is made from merged options and never changes; settings that change make
        new ones. Tests hold its bytes against Message.pack.
        Calls that differ in nothing but their unique keys share one, for each length of these.
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
from qclient.uniqueness import are_keyed, fields_of, has_keys, own_keys
from qprotocol import wire
from qprotocol.ids import unpack_id
from qprotocol.lanekeys import LaneKeys
from qprotocol.limits import BODY_BYTES_HARD_MAX
from qprotocol.message import NO_NAMES, Message, pack_route
from qprotocol.options import RetryPolicy
from qprotocol.uniquekeys import packed_key

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
    """All of a message but its id, body and moments, and its unique key if it has one."""

    __slots__ = (
        "_fields",
        "_lineage",
        "behind",
        "by_length",
        "content",
        "due",
        "expires",
        "head",
        "plain",
        "rest",
        "tail",
        "template",
    )

    head: bytes
    """wire.MESSAGE without its size, then the route."""
    tail: bytes
    """What stands behind the id; with a unique key what is before that."""
    behind: bytes
    """What stands behind the unique key; empty without."""
    rest: int
    """What ``size`` counts beside the body: head, id, tail, unique key and what is behind."""
    plain: bool
    """Whether the fast path may be taken: no due, no expiry, msgpack."""

    def __init__(self, template: Message, due: Any = None, expires: Any = None) -> None:
        sample = replace(template, id="00000000-0000-7000-8000-000000000000", body=b"").pack()
        n_route = len(pack_route(template.exchange, template.queue, template.task, template.keys))
        self.begin(template, template.fields, due, expires)
        self.head = sample[SIZE_BYTES : wire.MESSAGE.size + n_route]
        self.tail, self.behind = sample[wire.MESSAGE.size + n_route + ID_BYTES :], b""
        self.rest = len(self.head) + ID_BYTES + len(self.tail)

    def begin(self, template: Message, fields: bytes, due: Any, expires: Any) -> None:
        """All but the bytes."""
        self.template = template
        """The message, but for its keys, id, body and moments."""
        self._fields = fields
        self.content = template.content
        self.due = due
        self.expires = expires
        self.plain = due is None and expires is None and template.content == MSGPACK
        self._lineage: tuple[Context, Recipe] | None = None
        self.by_length: dict[int, Recipe] = {}
        """Those for the same calls with unique keys, by their length."""

    def with_fields(self, fields: bytes, key_bytes: int = 0) -> "Recipe":
        """The recipe for calls that are like this one's, which have none, but for these fields.

        So many bytes at their end are a unique key: each call says its own.
        """
        made = Recipe.__new__(Recipe)
        made.begin(self.template, fields[: len(fields) - key_bytes], self.due, self.expires)
        *fixed, n_meta, n_headers = wire.MESSAGE.unpack_from(_NO_SIZE + self.head)
        fixed[_FLAGS] |= wire.MARKED
        names = self.tail[:n_meta] or NO_NAMES
        fixed += len(names) + len(fields), n_headers
        route = self.head[wire.MESSAGE.size - SIZE_BYTES :]
        made.head = wire.MESSAGE.pack(*fixed)[SIZE_BYTES:] + route
        made.tail, made.behind = names + made._fields, self.tail[n_meta:]
        made.rest = len(made.head) + ID_BYTES + len(made.tail) + key_bytes + len(made.behind)
        return made

    def within(self, request: Context | None) -> "Recipe":
        """The recipe for calls made by the running task ``request``: its children."""
        if request is None or not request.id:
            return self
        known = self._lineage
        if known is None or known[0] is not request:
            child = replace(self.template, root=request.root_id or request.id, parent=request.id)
            known = self._lineage = (request, Recipe(child, self.due, self.expires))
        return known[1]

    def pack(self, task_id: str, body: bytes, now_ms: int, key: bytes = b"") -> bytes:
        """A whole message. ``now_ms`` is the broker's clock: delays count from it."""
        due = 0 if self.due is None else moment_ms(self.due, now_ms)
        expires = 0 if self.expires is None else moment_ms(self.expires, now_ms)
        fields = self._fields + key
        message = replace(self.template, id=task_id, body=body, due_ms=due, expires_ms=expires)
        return (replace(message, fields=fields) if fields else message).pack()

    def finish(
        self, body: bytes, key: bytes, options: Mapping[str, Any], now_ms: int, raw_id: bytes
    ) -> tuple[bytes, bytes | str]:
        """A whole message and its id: the chosen one, or ``raw_id``, freshly minted."""
        chosen = options.get("task_id")
        if self.plain and chosen is None:
            size = pack_size(self.rest + len(body))
            pieces = size, self.head, raw_id, self.tail, key, self.behind, body
            return b"".join(pieces), raw_id
        task_id = unpack_id(raw_id, minted=True) if chosen is None else chosen
        return self.pack(task_id, body, now_ms, key), task_id


class Callee:
    """A task as those who send it need it: its name, options and parameters.

    A task known by name alone (``send_task``) has no parameters to check.
    """

    __slots__ = (
        "app",
        "arity",
        "is_keyed",
        "name",
        "options",
        "parameters",
        "recipe",
        "shared",
        "signature",
    )

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
        self.is_keyed = has_keys(options)
        """Whether its calls have unique or idempotency keys unless they say that they have not."""
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
        self,
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        request: Context | None,
    ) -> tuple[Recipe, bytes]:
        """The recipe for a call with these options (checked before), and the call's unique key.

        The key is empty for calls without, and for those that have an idempotency key, too.
        """
        is_keyed = are_keyed(self, options)
        if self.recipe is not None and not options:
            recipe = self.recipe
        else:
            alike = tuple([item for item in options.items() if item[0] not in OWN])
            try:
                found = self.shared.get(alike)
            except TypeError:  # a value that cannot be looked up by, as headers
                found, alike = None, ()
            recipe = found or self._remembered(options, alike, args, kwargs, is_keyed=is_keyed)
        if request is not None:
            recipe = recipe.within(request)
        return self._keyed(recipe, options, args, kwargs) if is_keyed else (recipe, b"")

    def _remembered(
        self,
        options: Mapping[str, Any],
        alike: tuple[tuple[str, Any], ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        is_keyed: bool,
    ) -> Recipe:
        """A recipe without keys, made now; it is found again where it is that of other calls."""
        recipe, is_same = self._made(options, args, kwargs)
        if is_same and not options and not is_keyed:
            self.recipe = recipe
        elif is_same and (alike or options.keys() <= OWN):
            if len(self.shared) >= SHARED_MAX:
                self.shared.clear()
            self.shared[alike] = recipe
        return recipe

    def _keyed(
        self,
        recipe: Recipe,
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Recipe, bytes]:
        """The recipe for calls with such keys as this one, and its unique key if that is all."""
        unique, window = own_keys(self, options, args, kwargs)
        if unique is None and window is None:
            return recipe, b""
        key = b"" if unique is None or window is not None else packed_key("unique_key", unique)
        found = recipe.by_length.get(len(key))
        if found is None:
            said = {**self.options, **options}
            found = recipe.with_fields(fields_of(unique, window, said), len(key))
            if key:
                recipe.by_length[len(key)] = found
        return found, key

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

    def encode(
        self,
        recipe: Recipe,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        shape: Sequence[Any] | None = None,
    ) -> bytes:
        """A call's body. Raises TypeError or ValueError naming the argument."""
        body = encode_call(self.name, args, kwargs, recipe.content, self.parameters, shape=shape)
        if len(body) > BODY_BYTES_HARD_MAX:
            raise ValueError(
                f"the arguments of {self.name} are {len(body)} bytes: at most "
                f"{BODY_BYTES_HARD_MAX}; keep them elsewhere and send where"
            )
        return body

    def prepare(self, signature: "Signature[Any]") -> tuple[Recipe, bytes, bytes]:
        """A call's recipe, body and unique key: all that can be wrong with it is found here."""
        args, kwargs, request = signature.args, signature.kwargs, current_request.get()
        self.check(args, kwargs)
        recipe, key = self.recipe_for(signature.options, args, kwargs, request)
        return recipe, self.encode(recipe, args, kwargs), key


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
