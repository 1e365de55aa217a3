"""Every frame that crosses the wire, each defined once.

On the wire a frame is ``u32 length | u16 header length | header | raw section``; the
length counts everything after itself. The header is one msgpack array
``[type, correlation, *fields]``, fields in the order written here. header.py makes and
judges headers, codec.py turns frames into bytes and back; nothing else knows the bytes.
PROTOCOL.md tells the whole conversation, with a table generated from this file. Over
400 lines because every frame stands here, and a reader looks for it in one place.

Rule 1. A field is added at the end, with a default. Older peers ignore a tail they do
        not know and newer peers fill one they did not get: no version bump is due.
Rule 2. Type numbers are never reused.
Rule 3. A request carries a correlation id above 0, and its answer the same one. A push
        carries 0, or the number of the Part frames that go before it. What is a request,
        and what answers it, is conversation.ANSWERS.
Rule 4. ``raw`` is never decoded by the codec; wire.py says what is in it.
"""

from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, TypeVar, dataclass_transform

CLIENT, SERVER, BOTH = "client", "server", "both"


@dataclass(slots=True)
class Frame:
    """What every frame has."""

    TYPE: ClassVar[int] = 0
    SENDER: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[str, ...]] = ()
    KINDS: ClassVar[tuple[type, ...]] = ()
    REQUIRED: ClassVar[int] = 0
    """How many of FIELDS a peer must send; they come first."""
    DEFAULTS: ClassVar[tuple[Any, ...]] = ()
    """A default for each of FIELDS; of no meaning for the required ones."""
    NESTED: ClassVar[bool] = False
    """Whether a field is a list or map, which encoding looks into."""
    HEADER: ClassVar["attrgetter[tuple[Any, ...]]"]
    """The header's items of a frame."""

    correlation: int = 0
    raw: bytes = b""


F = TypeVar("F", bound=type[Frame])
FRAMES: dict[int, type[Frame]] = {}
"""Every frame by its type number."""

_KINDS: dict[str, type] = {
    "int": int,
    "str": str,
    "bytes": bytes,
    "bool": bool,
    "list[str]": list,
    "dict[str, Any]": dict,
}


@dataclass_transform(kw_only_default=True)
def frame(number: int, sender: str) -> Any:
    """Register a frame class under its type number."""

    def register(cls: F) -> F:
        # Slots, not frozen: a frozen dataclass costs four times as much to build,
        # and one is built for every frame. Nobody assigns to a frame once sent.
        made: Any = dataclass(slots=True, kw_only=True)(cls)
        assert number not in FRAMES, f"{cls.__name__} reuses {number:#04x}"
        own = [f for f in fields(made) if f.name not in ("correlation", "raw")]
        made.TYPE, made.SENDER = number, sender
        made.FIELDS = tuple(f.name for f in own)
        made.KINDS = tuple(_KINDS[str(f.type)] for f in own)
        made.DEFAULTS = tuple(f.default for f in own)
        made.REQUIRED = made.DEFAULTS.count(MISSING)
        assert MISSING not in made.DEFAULTS[made.REQUIRED :], "what is required comes first"
        made.NESTED = list in made.KINDS or dict in made.KINDS
        made.HEADER = attrgetter("TYPE", "correlation", *made.FIELDS)
        FRAMES[number] = made
        return made  # type: ignore[no-any-return]

    return register


# The handshake.


@frame(0x01, SERVER)
class Greeting(Frame):
    """The broker's first word: who it is, what it speaks, and how much of it."""

    product: "str"
    version: "str"
    protocol_min: "int"
    protocol_max: "int"
    limits: "dict[str, Any]"
    features: "list[str]"
    mechanisms: "list[str]"
    nonce: "bytes"
    cluster: "str"
    node: "str"
    epoch: "int"
    server_ms: "int"


@frame(0x02, CLIENT)
class Auth(Frame):
    """Who I am, by one mechanism. Answered by Ok, Challenge or Error(AUTH_FAILED)."""

    mechanism: "str"
    data: "bytes" = b""


@frame(0x03, SERVER)
class Challenge(Frame):
    """The mechanism's next step; answered by another Auth."""

    data: "bytes"


@frame(0x04, CLIENT)
class Hello(Frame):
    """What I am for. Raw: tokens (wire.TOKEN) that this session or member still runs.

    ``session`` names a worker's session and outlives connections; the parent and its
    members share one, and ``member`` is 0 for the parent. Empty: no session, and what
    this connection consumes is held for as long as the connection lives.
    Answered by Welcome.
    """

    protocol: "int"
    role: "str"
    client_id: "str"
    name: "str" = ""
    host: "str" = ""
    pid: "int" = 0
    language: "str" = ""
    library: "str" = ""
    app: "str" = ""
    session: "bytes" = b""
    member: "int" = 0
    heartbeat_ms: "int" = 0


@frame(0x05, SERVER)
class Welcome(Frame):
    """The conversation is open. Raw: those of Hello's tokens that are not valid any more."""

    protocol: "int"
    heartbeat_ms: "int"
    session_timeout_ms: "int"
    server_ms: "int"


@frame(0x06, BOTH)
class Heartbeat(Frame):
    """I live. From a worker's parent, raw: the tokens that run now (wire.TOKEN). No answer."""

    sent_ms: "int" = 0


@frame(0x07, BOTH)
class Part(Frame):
    """A piece of the raw section of a later frame with the same correlation id.

    The raw section of that frame is all its parts in order and then its own. Nothing
    is true before that frame. ``index`` counts from 0; ``of`` is the type number of the
    frame they belong to. No answer of its own.
    """

    index: "int"
    of: "int" = 0


@frame(0x08, SERVER)
class Ok(Frame):
    """Done, and durable as the request asked."""

    count: "int" = 0


@frame(0x09, SERVER)
class Error(Frame):
    """Not done (``definite``) or not known (else). With correlation 0 the connection ends."""

    code: "str"
    message: "str"
    retryable: "bool" = False
    definite: "bool" = True
    retry_after_ms: "int" = 0
    details: "dict[str, Any]" = None  # type: ignore[assignment]


# Publishing.


@frame(0x10, CLIENT)
class Publish(Frame):
    """Put ``count`` messages where their routes say, all or none. Raw: packed messages.

    ``producer`` is 64 random bits a process, ``sequence`` counts its chunks from 1: a
    chunk sent again is recognised and answered as a duplicate. Answered by Published
    once it would survive a crash (or as its queues' fsync option says).
    """

    producer: "int"
    sequence: "int"
    count: "int"


@frame(0x11, SERVER)
class Published(Frame):
    """Confirmed. The i-th message that was stored has position ``first + i``.

    With ``duplicate`` the chunk was here before, and ``first`` is 0. ``existing`` messages of the
    chunk were not stored, because a unique or idempotency key of theirs was held: raw has a row
    for each (uniquekeys.pack_existing) with the id of the message that stands for it.
    """

    first: "int"
    count: "int"
    durability: "str"
    duplicate: "bool" = False
    existing: "int" = 0


# Consuming.


@frame(0x20, CLIENT)
class Consume(Frame):
    """Hand me messages of these queues, up to ``credit`` unsettled ones. Answered by Ok.

    Raw: u8-counted names of the tasks that the consumer knows. It gets messages of these and no
    others; what nobody knows waits. Without names it knows all, and plain messages; the empty
    name stands for those. ``order`` says how several queues take turns: "strict" as they are
    named, or "weighted" by ``weights``, a map of queue names; 1 is the default.
    """

    subscription: "int"
    queues: "list[str]"
    credit: "int"
    order: "str" = "weighted"
    weights: "dict[str, Any]" = None  # type: ignore[assignment]


@frame(0x21, CLIENT)
class Credit(Frame):
    """From now on at most ``credit`` unsettled. No answer.

    Below what is out nothing is taken back, and nothing more comes until it is settled.
    """

    subscription: "int"
    credit: "int"


@frame(0x22, CLIENT)
class Unsubscribe(Frame):
    """No more deliveries; what is out stays leased. Answered by Ok."""

    subscription: "int"


@frame(0x23, SERVER)
class Deliver(Frame):
    """``count`` messages under one grant.

    Raw: ``runs`` position runs (wire.RUN), ``touched`` rows (wire.TOUCHED) for those
    handed out before, then the packed messages in the order of the runs.
    """

    subscription: "int"
    grant: "int"
    count: "int"
    runs: "int"
    touched: "int"


@frame(0x24, SERVER)
class Inputs(Frame):
    """What a node of a graph is given: ``count`` of ``total`` inputs, from number ``first`` on.

    Raw: of each wire.INPUT and the bytes of a result, or of a packed failure. The first of them
    come before the Deliver of the node, on the same connection; the others answer FetchInputs.
    """

    position: "int"
    grant: "int"
    total: "int"
    first: "int"
    count: "int"


@frame(0x25, CLIENT)
class FetchInputs(Frame):
    """The inputs of a node that was delivered, from number ``first`` on. Answered by Inputs."""

    position: "int"
    grant: "int"
    first: "int"


# Settling.


@frame(0x30, CLIENT)
class Ack(Frame):
    """Done, nothing to keep. Raw: runs (wire.ACK_RUN). Answered by Settled."""

    session: "bytes" = b""


@frame(0x31, CLIENT)
class Settle(Frame):
    """How ``count`` deliveries ended, one by one. Raw: packed outcomes. Answered by Settled.

    Each outcome is atomic with its result and follow-on messages.
    """

    count: "int"


@frame(0x32, SERVER)
class Settled(Frame):
    """Confirmed. Raw: positions (u64) that were not yours any more; nothing was done to those."""

    durability: "str"
    lost: "int" = 0


@frame(0x33, CLIENT)
class Running(Frame):
    """These tokens (raw, wire.TOKEN) have begun to run. No answer.

    If the worker is lost, that counts as a crash of these and only these.
    """


# Results.


@frame(0x40, CLIENT)
class Watch(Frame):
    """What became of a task; waits up to ``wait_ms`` for its end. Answered by Result.

    ``position`` is the one from Published, or 0 if only the id is known.
    """

    id: "str"
    position: "int" = 0
    wait_ms: "int" = 0


@frame(0x41, SERVER)
class Result(Frame):
    """A task's state, and in raw its result (SUCCESS) or packed failure (RETRY, FAILURE, REVOKED).

    ``state`` is a number of states.State, ``content`` how the result is encoded. Of an unknown task
    that was cancelled, ``noticed_until_ms`` says until when its message is over if it comes.
    """

    id: "str"
    state: "int"
    position: "int" = 0
    content: "int" = 0
    failures: "int" = 0
    finished_ms: "int" = 0
    run_ms: "int" = 0
    stored: "bool" = False
    noticed_until_ms: "int" = 0


@frame(0x42, CLIENT)
class Forget(Frame):
    """Drop the task's result. Answered by Ok; count is 1 if there was one."""

    id: "str"
    position: "int" = 0


@frame(0x43, CLIENT)
class Cancel(Frame):
    """Settle a task as REVOKED if it is not finished. Answered by Result with its state.

    A running one is told to stop by a Revoke push; with ``terminate`` its process is killed,
    at once or ``grace_ms`` after it was asked to stop. Of one that nobody knows a notice is kept:
    if its message comes within cancel_notice_ttl_ms it is confirmed, and REVOKED at once.
    """

    id: "str"
    position: "int" = 0
    terminate: "bool" = False
    grace_ms: "int" = 0


# Orders about queues.


@frame(0x44, CLIENT)
class PauseQueue(Frame):
    """Take nothing in (``intake``), hand nothing out (``dispatch``), or both. Answered by Ok.

    What is leased goes on, and what follows on it is let in. ``for_ms`` 0 is until ResumeQueue.
    Said again, it replaces what was said before. ``count`` is how many of the two were not
    paused before.
    """

    queue: "str"
    intake: "bool" = False
    dispatch: "bool" = False
    reason: "str" = ""
    author: "str" = ""
    for_ms: "int" = 0


@frame(0x45, CLIENT)
class ResumeQueue(Frame):
    """Take in and hand out again. Answered by Ok; count is how many of the two were paused."""

    queue: "str"
    intake: "bool" = False
    dispatch: "bool" = False


@frame(0x46, CLIENT)
class CancelMany(Frame):
    """Cancel all for which everything that is said is true. Answered by Ok with their count.

    Empty text asks for nothing, and one of ``queue``, ``task`` and ``key`` must be said; ``key`` is
    one of a message's lane keys. ``states`` are some of "ready,scheduled,started,held"; empty: all.
    ``older_ms``: published longer ago. What is published after the order is not meant.
    ``terminate`` and ``grace_ms`` are those of Cancel. With ``purge`` what waits is dropped, held
    nodes only if they are named, and nothing is kept of it; with ``dry_run`` it is counted alone.
    """

    queue: "str" = ""
    task: "str" = ""
    key: "str" = ""
    states: "str" = ""
    older_ms: "int" = 0
    purge: "bool" = False
    terminate: "bool" = False
    grace_ms: "int" = 0
    dry_run: "bool" = False


@frame(0x47, CLIENT)
class Move(Frame):
    """Let waiting messages of ``queue`` wait in ``to``, behind what waits there. Answered by Ok.

    Counters, order, due times and expiries are kept. ``count`` is how many. With ``id`` it is this
    message alone, ``position`` being the one from Published or 0; else all for which everything
    that is said is true: see CancelMany. Held nodes are meant if they are named.
    """

    queue: "str"
    to: "str"
    id: "str" = ""
    position: "int" = 0
    task: "str" = ""
    key: "str" = ""
    states: "str" = ""
    older_ms: "int" = 0
    dry_run: "bool" = False


@frame(0x4E, CLIENT)
class CancelGraph(Frame):
    """Cancel all of a graph that has not ended, by the id of any of its nodes. Answered by Ok with
    their count.

    Also of the graphs that its nodes go on as. ``terminate``, ``grace_ms`` and ``dry_run`` are
    those of CancelMany; of a message that is no node, or that nobody knows, nothing is cancelled.
    """

    id: "str"
    position: "int" = 0
    terminate: "bool" = False
    grace_ms: "int" = 0
    dry_run: "bool" = False


@frame(0x48, CLIENT)
class Why(Frame):
    """What does a message wait for? Answered by Report.

    {"id", "state", "position", "queue", "task", "priority", "reasons": [{"reason": word, ...}]}.
    All reasons that keep it: inputs (a node of a graph that is held: ``met`` of ``of`` before it
    have ended, the next are at ``positions``), due, unique (others have moved its time), paused,
    large_order (a cancel, purge or move by filter of its queue is under way), ordering_key (another
    with its key goes first), a limit's word, no_consumer, no_worker_knows, single_active_consumer
    (the next one waits until others hold nothing), consumers_full, fair (other tenants had less),
    behind; or started, settled, unknown (``noticed_until_ms`` if it was cancelled). None: it goes
    in a coming turn.
    """

    id: "str"
    position: "int" = 0


@frame(0x49, CLIENT)
class DeadLetters(Frame):
    """Look through the dead letters, the first that died first. Answered by Report.

    {"letters": [row, ...], "next": int, "last": int, "looked": int}. Empty text and 0 ask for
    nothing: ``queue`` is where they died, or the queue of dead letters that they are in; ``cause``
    a word of causes.py; ``error`` any part of the error or the reason; ``worker`` the beginning of
    its session; they died ``older_ms`` ago or before. The next page is asked for with ``after`` the
    number ``next``, which is 0 behind the last one; a page may be short. ``last`` is the number of
    who died last. With ``id`` it is one task, ``position`` being the one from Published or 0.
    ``detail``: 0 is positions and numbers, 1 what is known of each, 2 with all bytes, of an ``id``.
    """

    queue: "str" = ""
    task: "str" = ""
    cause: "str" = ""
    error: "str" = ""
    worker: "str" = ""
    older_ms: "int" = 0
    after: "int" = 0
    limit: "int" = 100
    detail: "int" = 1
    id: "str" = ""
    position: "int" = 0


@frame(0x4A, CLIENT)
class ReplayDead(Frame):
    """These dead letters (raw, wire.LETTER) wait to run again, as if they never had.

    Answered by Ok; ``count`` is how many: those that are replayed, dropped or handed out by now are
    passed over, so that to ask twice is to ask once. They go to the queues where they died, or to
    ``queue``; at once, or at ``due_ms`` (since 1970).
    """

    queue: "str" = ""
    due_ms: "int" = 0
    author: "str" = ""


@frame(0x4B, CLIENT)
class EditDead(Frame):
    """A dead letter is another message from now on: the raw one, under the same id. Answered by Ok.

    It stays where it is, with all that is known of it; a replay sends it to the queue that the
    message names. ``count`` is 0 if there is no dead letter ``number`` at ``position``.
    """

    position: "int"
    number: "int"
    author: "str" = ""


@frame(0x4C, CLIENT)
class DropDead(Frame):
    """These dead letters (raw, wire.LETTER) are over. Answered by Ok; ``count`` is how many.

    What the archive knows of their end stays.
    """

    author: "str" = ""


# Looking and operating.


@frame(0x50, CLIENT)
class Declare(Frame):
    """Make a queue with options, or find it with the same ones. Answered by Ok."""

    queue: "str"
    options: "dict[str, Any]"


@frame(0x51, CLIENT)
class Purge(Frame):
    """Settle every waiting message of a queue as purged. Answered by Ok with their count."""

    queue: "str"


@frame(0x52, CLIENT)
class Peek(Frame):
    """Look at up to ``count`` waiting messages without taking them. Answered by Peeked.

    Behind those that are ready come nodes of graphs that are held and will wait in the queue.
    """

    queue: "str"
    count: "int" = 10


@frame(0x53, SERVER)
class Peeked(Frame):
    """Raw: ``count`` times wire.PEEKED, the reason, the last error, the packed message."""

    count: "int"


@frame(0x54, CLIENT)
class Inspect(Frame):
    """Ask for a table: queues, exchanges, bindings, policies, limits, keys, definitions,
    stats or quarantine.

    ``what`` may also be "queue": then ``name`` is which; of keys it may be one. Answered by Report.
    """

    what: "str"
    name: "str" = ""


@frame(0x55, SERVER)
class Report(Frame):
    """Raw: JSON in UTF-8."""


@frame(0x56, CLIENT)
class Search(Frame):
    """Look through settled tasks, newest first. Answered by Report.

    Empty text and 0 ask for nothing. ``id`` names one task, and the others are not looked
    at; its report is {"task": row or null}. Else {"tasks": rows, "next": text, "cut": bool}:
    the next page is asked for with ``after`` that text, which is empty behind the last one;
    with ``cut`` the search took too long and went no further than that place yet. ``state`` is
    a number of states.State; ``worker`` and ``error`` may be the beginning of one, ``preview``
    any part of what was shown of the arguments. Times are when
    tasks were finished, in ms since 1970: from ``since_ms`` on, before ``until_ms``.
    """

    id: "str" = ""
    task: "str" = ""
    queue: "str" = ""
    worker: "str" = ""
    state: "int" = 0
    error: "str" = ""
    since_ms: "int" = 0
    until_ms: "int" = 0
    limit: "int" = 50
    after: "str" = ""
    preview: "str" = ""


# Exchanges.


@frame(0x70, CLIENT)
class DeclareExchange(Frame):
    """Make an exchange, or find it the same. Answered by Ok; count is 1 if it was made.

    ``kind`` is direct, topic, fanout or headers.
    """

    exchange: "str"
    kind: "str"
    options: "dict[str, Any]" = None  # type: ignore[assignment]


@frame(0x71, CLIENT)
class DeleteExchange(Frame):
    """Drop an exchange and every binding from and to it. Answered by Ok with their count.

    With ``if_unused`` only if there are none.
    """

    exchange: "str"
    if_unused: "bool" = False


@frame(0x72, CLIENT)
class Bind(Frame):
    """From now on messages of the exchange that fit go to the destination, too.

    That is a queue, made if need be, or with ``to_exchange`` another exchange. ``arguments``
    are for exchanges of kind headers. Answered by Ok; count is 1 if the binding is new.
    """

    exchange: "str"
    key: "str"
    destination: "str"
    to_exchange: "bool" = False
    arguments: "dict[str, Any]" = None  # type: ignore[assignment]


@frame(0x73, CLIENT)
class Unbind(Frame):
    """Drop the binding with exactly these fields. Answered by Ok; count is 1 if there was one."""

    exchange: "str"
    key: "str"
    destination: "str"
    to_exchange: "bool" = False
    arguments: "dict[str, Any]" = None  # type: ignore[assignment]


# Events.


@frame(0x74, CLIENT)
class Listen(Frame):
    """Tell me events whose topic fits one of these patterns, from now on, as Event pushes.

    ``listener`` is a number of the client's choice; the same again takes the place of the one
    before, and no patterns end it. Nothing is kept for who is not there. Answered by Ok.
    """

    listener: "int"
    patterns: "list[str]"


@frame(0x75, CLIENT)
class Notify(Frame):
    """An event, in raw. It is in no log. Answered by Ok; count is how many listeners it fits."""

    topic: "str"


@frame(0x76, SERVER)
class Event(Frame):
    """An event for a listener, in raw. ``dropped`` before it, since it did not read fast enough."""

    listener: "int"
    topic: "str"
    dropped: "int" = 0


@frame(0x5C, CLIENT)
class ChangeQueue(Frame):
    """Set options of a queue, at once and over its declaration; null takes one back.

    Answered by Ok; count is 0 if that changed nothing.
    """

    queue: "str"
    options: "dict[str, Any]"


@frame(0x5D, CLIENT)
class DeleteQueue(Frame):
    """The queue is no more, nor what waits in it. Answered by Ok with the count of that.

    ``if_empty``: only if nothing waits in it or is handed out; ``if_unused``: only without
    consumers.
    """

    queue: "str"
    if_empty: "bool" = False
    if_unused: "bool" = False


@frame(0x5E, CLIENT)
class SetPolicy(Frame):
    """Options for all queues that ``pattern`` fits; with ``drop`` the policy goes.

    One of ``operator`` bounds what declarations may say, any other fills what they leave open.
    Answered by Ok; count is 0 if that changed nothing. Where there are hundreds of queues, they
    follow so many a turn.
    """

    name: "str"
    pattern: "str" = ""
    priority: "int" = 0
    operator: "bool" = False
    options: "dict[str, Any]" = None  # type: ignore[assignment]
    drop: "bool" = False


@frame(0x5F, SERVER)
class QueueGone(Frame):
    """A queue of this subscription was deleted; the subscription goes on with the others."""

    subscription: "int"
    queue: "str"
    why: "str"


@frame(0x59, CLIENT)
class SetLimit(Frame):
    """Put a limit rule in force under its name, or change it. ``rule``: limitrules.LimitRule.

    ``origin`` is "operator" or "code"; while there is an operator's rule of the name, the one
    declared in code is kept and not in force. Answered by Ok; count is 1 if anything changed.
    """

    name: "str"
    rule: "dict[str, Any]"
    origin: "str" = "operator"


@frame(0x4D, CLIENT)
class ForgetKey(Frame):
    """Free a key that is held. Answered by Ok; count is 1 if it was held.

    ``kind`` is "unique" or "idempotency"; ``scope`` one of uniquekeys.SCOPES, and ``name`` the
    queue or task that goes with it. An idempotency key has the scope "task".
    """

    key: "str"
    kind: "str" = "unique"
    scope: "str" = "task"
    name: "str" = ""


@frame(0x5A, CLIENT)
class DropLimit(Frame):
    """Drop a limit rule: the operator's if there is one, else the one declared in code.

    ``origin`` says which of them, if only that one is meant. Answered by Ok; count is 1.
    """

    name: "str"
    origin: "str" = ""


# Pushes, and the end.


@frame(0x60, SERVER)
class Goaway(Frame):
    """The broker will close this connection; settle what you have and come back."""

    reason: "str"
    deadline_ms: "int" = 0


@frame(0x61, SERVER)
class Blocked(Frame):
    """Publishes are not taken for the moment; settlements are. ``code`` is what they would get."""

    reason: "str"
    code: "str" = "BLOCKED"


@frame(0x62, SERVER)
class Unblocked(Frame):
    """Publishes are taken again."""


@frame(0x63, SERVER)
class Revoke(Frame):
    """These deliveries (raw, wire.TOKEN) were cancelled: stop them, their outcome is void.

    With ``terminate`` by force, if they still run after ``grace_ms``.
    """

    terminate: "bool" = False
    grace_ms: "int" = 0


@frame(0x64, SERVER)
class Recall(Frame):
    """Release those of these deliveries (raw, wire.TOKEN) that have not begun."""


@frame(0x65, SERVER)
class Control(Frame):
    """An order to a worker: ``verb`` is quiet, resume, drain or terminate."""

    verb: "str"
    arguments: "dict[str, Any]" = None  # type: ignore[assignment]


@frame(0x66, CLIENT)
class Bye(Frame):
    """The session ends; its leases are returned uncounted. Answered by Ok."""
