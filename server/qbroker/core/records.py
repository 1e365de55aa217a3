"""What the log says: every record type, its fields, its bytes.

Rule 1. Whatever ``apply`` needs is in the record; it never looks at a message's bytes.
Rule 2. To change a record: give the new form a new type number, keep reading the old
        one, add a vector under tests/core/vectors, say so in the CHANGELOG.
Rule 3. Type numbers are never reused; 0 is invalid.

A body is one msgpack array of the fields in order. Records that hold messages or a
result have ``u32 length`` of that array before it and the raw bytes behind it. Over 400
lines because every record stands here, and a reader looks for it in one place.
"""

import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from struct import Struct
from typing import Any, ClassVar, cast

import msgpack

_LENGTH = Struct("<I")
_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _unpack(body: bytes) -> Any:
    return msgpack.unpackb(body, raw=False, strict_map_key=False)


Parts = tuple[bytes, ...]


_NAMES: dict[type, tuple[str, ...]] = {}
"""A record's fields, by its class, once they were asked for."""


@dataclass(slots=True)
class Record:
    """One fact. ``slots`` is how many positions it takes."""

    TYPE: ClassVar[int] = 0

    def listed(self) -> list[Any]:
        """What goes into the msgpack array, in order."""
        names = _NAMES.get(type(self))
        if names is None:
            names = _NAMES[type(self)] = tuple(each.name for each in fields(self))
        return [getattr(self, name) for name in names]

    @property
    def raw(self) -> bytes:
        """The bytes behind the array; empty for most records."""
        return b""

    @property
    def slots(self) -> int:
        """Positions taken: one, or one for each message."""
        return 1

    @property
    def lazy(self) -> bool:
        """Whether nobody waits for it to be durable: losing it costs work, not truth."""
        return False

    def parts(self) -> Parts:
        """The body, not joined: the log joins a whole batch once."""
        head = _pack(self.listed())
        return (_LENGTH.pack(len(head)) + head, self.raw) if HAS_RAW[self.TYPE] else (head,)


@dataclass(slots=True)
class Keyed:
    """What the unique and idempotency keys of messages came to."""

    taken: list[list[Any]] = field(default_factory=list)
    """[index or -1 for no message of the batch, key as keys.pack_held has it, until,
    until_ms, id behind a byte that says whether it is minted, position if the index is -1]"""
    existing: list[list[Any]] = field(default_factory=list)
    """[number in the frame, position, id as above] of what stands for messages not stored."""
    replaced: list[list[int]] = field(default_factory=list)
    """[position, run number] of messages whose place others take: Removed says so next."""
    dropped: list[int] = field(default_factory=list)
    """Of an upload: indexes of what was staged, and is not stored."""

    def listed(self) -> list[Any]:
        """All of it; the index of what was dropped only where something was."""
        dropped = [self.dropped] if self.dropped else []
        return [self.taken, self.existing, self.replaced, *dropped]


HELD = 1
"""In the place of when a message is due: it is a node of a graph, and others come before it."""


@dataclass(slots=True)
class Woven:
    """The messages of a batch as nodes of a graph: see graphs.py."""

    unmet: "array[int]" = field(default_factory=lambda: array("I"))
    """How many others each waits for."""
    out_sizes: "array[int]" = field(default_factory=lambda: array("H"))
    """How many links each is a source of."""
    out: "array[int]" = field(default_factory=lambda: array("I"))
    """Their numbers, those of one node behind those of the one before."""
    into_sizes: "array[int]" = field(default_factory=lambda: array("H"))
    """The same of the links that each is a target of."""
    into: "array[int]" = field(default_factory=lambda: array("I"))
    links: list[list[int]] = field(default_factory=list)
    """[kind, index of the first source, sources, index of the first target, targets], by number."""
    delays: list[list[int]] = field(default_factory=list)
    """[index, how long in ms it waits once it is held no more, and until when at least]"""
    sizes: list[list[Any]] = field(default_factory=list)
    """[index of the first, sizes as u32] of neighbours that are held, where bytes are limited."""

    def listed(self) -> list[Any]:
        """Numbers of each node as little-endian u32 and u16."""
        columns = self.unmet, self.out_sizes, self.out, self.into_sizes, self.into
        return [*map(_little, columns), self.links, self.delays, self.sizes]

    @classmethod
    def of(cls, listed: list[Any]) -> "Woven":
        """What ``listed`` gave."""
        *columns, links, delays, sizes = listed
        unmet, out_sizes, out, into_sizes, into = map(_read, "IHIHI", columns)
        return cls(unmet, out_sizes, out, into_sizes, into, links, delays, sizes)


def _little(numbers: "array[int]") -> bytes:
    return _swapped(numbers).tobytes()


def _read(typecode: str, raw: bytes) -> "array[int]":
    return _swapped(array(typecode, raw))


def _swapped(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "big":  # pragma: no cover  # no such machine has run it
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


@dataclass(slots=True)
class MessageBatch:
    """Messages that become true together, and what apply must know of them."""

    runs: list[list[int]] = field(default_factory=list)
    """[lane number, priority, how many, due_ms or 0], in the messages' order."""
    expiring: list[list[int]] = field(default_factory=list)
    """[index, expires_ms]"""
    named: list[list[Any]] = field(default_factory=list)
    """[index, id bytes] of messages whose id was chosen by the caller."""
    raw: bytes = b""
    count: int = 0
    sizes: list[list[Any]] = field(default_factory=list)
    """[index, the sizes of neighbours from there on as u32] where a queue's bytes are limited."""
    keyed: Keyed | None = None
    """If any of them has a key."""
    revoked: list[list[Any]] = field(default_factory=list)
    """[index, id behind a byte that says whether it is minted] of messages that were cancelled
    before they came: Removed says so next."""
    woven: Woven | None = None
    """If they are nodes of a graph."""
    offsets: "array[int] | None" = None
    """Volatile: where each message begins in ``raw``."""
    keys: tuple[int, int] = (0, 0)
    """Volatile: earliest and latest mint time of the ids, for the log's index."""
    marks: list[Any] = field(default_factory=list)
    """Volatile: keys.Mark of those that say something of keys, until it is decided."""

    def listed(self) -> list[Any]:
        """The durable part, as a list."""
        if not (self.sizes or self.keyed or self.revoked or self.woven):
            return [self.runs, self.expiring, self.named]
        more = [
            self.sizes,
            self.keyed.listed() if self.keyed else [],
            self.revoked,
            self.woven.listed() if self.woven else [],
        ]
        while more and not more[-1]:
            more.pop()
        return [self.runs, self.expiring, self.named, *more]

    @classmethod
    def of(cls, listed: list[Any], raw: bytes) -> "MessageBatch":
        """The batch whose durable part is ``listed``."""
        runs, expiring, named, *more = listed
        sizes = more[0] if more else []
        keyed = Keyed(*more[1]) if len(more) > 1 and more[1] else None
        revoked = more[2] if len(more) > 2 else []
        woven = Woven.of(more[3]) if len(more) > 3 else None
        count = sum(run[2] for run in runs)
        return cls(runs, expiring, named, raw, count, sizes, keyed, revoked, woven)


@dataclass(slots=True)
class Booted(Record):
    """The broker started; tokens of this boot carry ``epoch``. Uploads under way are void."""

    TYPE: ClassVar[int] = 1
    epoch: int
    wall_ms: int
    version: str


@dataclass(slots=True)
class QueueOpened(Record):
    """A queue exists under this number; its declaration named these options, or all there were."""

    TYPE: ClassVar[int] = 2
    number: int
    name: str
    options: dict[str, Any]
    owner: bytes = b""
    """Whose it is alone, if it is exclusive."""

    def listed(self) -> list[Any]:
        """The owner only where there is one."""
        return [self.number, self.name, self.options, *([self.owner] if self.owner else [])]


@dataclass(slots=True)
class LaneOpened(Record):
    """A lane exists: messages of one task with the same keys in one queue."""

    TYPE: ClassVar[int] = 3
    number: int
    queue: int
    task: str
    keys: bytes


@dataclass(slots=True)
class LanesClosed(Record):
    """Lanes in which nothing was are gone: their numbers may be those of others from now on."""

    TYPE: ClassVar[int] = 22
    numbers: list[int]

    @property
    def lazy(self) -> bool:
        """Nobody waits for it."""
        return True


@dataclass(slots=True)
class Published(Record):
    """Messages were accepted. Message i has this record's position plus i."""

    TYPE: ClassVar[int] = 4
    producer: int
    sequence: int
    wall_ms: int
    batch: MessageBatch

    def listed(self) -> list[Any]:
        """Producer, chunk, time, and the batch."""
        return [self.producer, self.sequence, self.wall_ms, self.batch.listed()]

    @property
    def raw(self) -> bytes:
        """The packed messages."""
        return self.batch.raw

    @property
    def slots(self) -> int:
        """One a message, at least one: no queue may have got any."""
        return max(1, self.batch.count)


@dataclass(slots=True)
class PartStored(Record):
    """A piece of a publish that is not true yet. Message i that begins here has position + i.

    The first ``lead`` bytes of ``raw`` belong to a message that began in an earlier piece.
    """

    TYPE: ClassVar[int] = 5
    connection: int
    correlation: int
    begins: bool
    """The first piece: what came before under the same numbers is void."""
    lead: int
    batch: MessageBatch

    def listed(self) -> list[Any]:
        """The upload, the lead, and the messages that begin here."""
        return [self.connection, self.correlation, self.begins, self.lead, self.batch.listed()]

    @property
    def raw(self) -> bytes:
        """Bytes of packed messages."""
        return self.batch.raw

    @property
    def slots(self) -> int:
        """One a message that begins here, at least one."""
        return max(1, self.batch.count)


@dataclass(slots=True)
class PartsCommitted(Record):
    """The pieces of an upload are true now, all of them but what keys dropped."""

    TYPE: ClassVar[int] = 6
    connection: int
    correlation: int
    producer: int
    sequence: int
    wall_ms: int
    keyed: Keyed | None = None
    """By number of the message among all that the pieces bring."""

    def listed(self) -> list[Any]:
        """What keys came to only where there are any."""
        keyed = [self.keyed.listed()] if self.keyed else []
        known = self.connection, self.correlation, self.producer, self.sequence, self.wall_ms
        return [*known, *keyed]


@dataclass(slots=True)
class Granted(Record):
    """Messages were leased to a member. Logged without anybody waiting for it."""

    TYPE: ClassVar[int] = 7
    grant: int
    session: bytes
    member: int
    entries: list[list[int]]
    """[lane number, priority, first position, how many]"""
    adopted: bool = False
    """Claimed by a worker that held them before a crash; they may be anywhere in their runs."""
    wall_ms: ClassVar[int] = 0
    """Of no use: no gate was charged."""

    @property
    def lazy(self) -> bool:
        """A grant that is lost can be claimed; a claim must not be lost."""
        return not self.adopted


@dataclass(slots=True)
class GrantedExactly(Record):
    """As Granted, of lanes with gates: it is certain, and so is what is left of their limits."""

    TYPE: ClassVar[int] = 21
    grant: int
    session: bytes
    member: int
    entries: list[list[int]]
    """[lane number, priority, first position, how many]"""
    wall_ms: int
    """When: a rate is counted by it."""
    adopted: bool = False


@dataclass(slots=True)
class Acked(Record):
    """Leases ended well, with nothing to keep: [grant, first position, how many]."""

    TYPE: ClassVar[int] = 8
    runs: list[list[int]]


# What a Settled record did to its message.
SUCCEEDED = 1
RETRIED = 2
FAILED = 3
RELEASED = 4
CRASHED = 5
REJECTED = 6
POISONED = 7
DEAD = (FAILED, REJECTED, POISONED)
"""These made it a dead letter."""


@dataclass(slots=True)
class Settled(Record):
    """A lease ended: what became of the message, its result or error, and what follows.

    Follow-on message i has this record's position plus 1 plus i. With ``replaced`` the
    first of them takes the message's place, counters and id.
    """

    TYPE: ClassVar[int] = 9
    change: int
    position: int
    grant: int
    state: int
    finished_ms: int
    run_ms: int
    content: int
    keep_until_ms: int
    """When the result is forgotten; 0 keeps none."""
    due_ms: int
    """RETRIED, RELEASED: when it is ready again; 0 is at once."""
    lane: int
    """The lane of the dead-letter queue it moves to, if it does."""
    reason: str
    result: bytes
    replaced: bool
    follow_on: MessageBatch

    def listed(self) -> list[Any]:
        """All but the raw bytes; the length of the result tells them apart."""
        return [
            self.change,
            self.position,
            self.grant,
            self.state,
            self.finished_ms,
            self.run_ms,
            self.content,
            self.keep_until_ms,
            self.due_ms,
            self.lane,
            self.reason,
            len(self.result),
            self.replaced,
            self.follow_on.listed(),
        ]

    @property
    def raw(self) -> bytes:
        """The result or error, then the follow-on messages."""
        return self.result + self.follow_on.raw

    @property
    def slots(self) -> int:
        """One for the record and one a follow-on message."""
        return 1 + self.follow_on.count


@dataclass(slots=True)
class Returned(Record):
    """Leases ended without an outcome: the messages are ready again, uncounted."""

    TYPE: ClassVar[int] = 10
    positions: list[int]
    awaited: bool = field(default=False, repr=False)
    """Volatile: their holder said goodbye and waits for the answer; it will not come again."""

    def listed(self) -> list[Any]:
        """The positions."""
        return [self.positions]

    @property
    def lazy(self) -> bool:
        """Lost, their sessions give them back once more."""
        return not self.awaited


@dataclass(slots=True)
class Started(Record):
    """These leased messages run now. ``early``: never to be run again (acks early)."""

    TYPE: ClassVar[int] = 11
    positions: list[int]
    early: bool

    @property
    def lazy(self) -> bool:
        """User code waits for an early one; the others are for the day their worker is lost."""
        return not self.early


@dataclass(slots=True)
class Removed(Record):
    """Messages ended without having run to their end: cancelled or expired."""

    TYPE: ClassVar[int] = 12
    positions: list[list[int]]
    """[position, lane number, priority]"""
    reason: str
    finished_ms: int
    keep_until_ms: int
    terminate: bool = False
    """Whoever runs one of them now is to be killed, not asked."""
    grace_ms: int = field(default=0, repr=False)
    """Volatile: asked first, and killed after so long."""

    def listed(self) -> list[Any]:
        """What is durable."""
        times = self.finished_ms, self.keep_until_ms
        return [self.positions, self.reason, *times, self.terminate]


@dataclass(slots=True)
class CancelNoted(Record):
    """Ids were cancelled that nobody knows: their messages are over when they come.

    Of what was noted before, the ``lapsed`` oldest are over.
    """

    TYPE: ClassVar[int] = 40
    ids: list[bytes]
    """Each behind a byte that says whether it is minted."""
    until_ms: int
    lapsed: int = 0

    @property
    def lazy(self) -> bool:
        """Time ends a notice without a record, too."""
        return not self.ids


@dataclass(slots=True)
class Purged(Record):
    """Every waiting message of a queue was dropped."""

    TYPE: ClassVar[int] = 13
    queue: int


@dataclass(slots=True)
class CameDue(Record):
    """The first ``count`` delayed messages, all due by ``wall_ms``, are ready."""

    TYPE: ClassVar[int] = 14
    wall_ms: int
    count: int

    @property
    def lazy(self) -> bool:
        """Lost, they come due once more."""
        return True


@dataclass(slots=True)
class Forgotten(Record):
    """Results were dropped because somebody asked for it."""

    TYPE: ClassVar[int] = 15
    positions: list[int]


@dataclass(slots=True)
class Archived(Record):
    """The archive holds what was settled up to the record at ``upto``: memory need not."""

    TYPE: ClassVar[int] = 16
    upto: int

    @property
    def lazy(self) -> bool:
        """Lost, it is said once more."""
        return True


@dataclass(slots=True)
class Quarantined(Record):
    """The bytes of these leased messages are damaged on disk: nobody will get them."""

    TYPE: ClassVar[int] = 18
    positions: list[int]
    why: str
    """Where the damage is, and what it is."""
    evidence: str
    """The file in which the damaged bytes are kept; empty if they could not be."""
    finished_ms: int
    keep_until_ms: int


@dataclass(slots=True)
class UploadDropped(Record):
    """An upload was given up: its pieces are void, as if they had never come."""

    TYPE: ClassVar[int] = 19
    connection: int
    correlation: int

    @property
    def lazy(self) -> bool:
        """Lost, the next start makes it void."""
        return True


@dataclass(slots=True)
class HandedDown(Record):
    """Leases that a worker's parent had claimed are those of its child, which came for them."""

    TYPE: ClassVar[int] = 20
    session: bytes
    member: int
    positions: list[int]

    @property
    def lazy(self) -> bool:
        """Lost, the child names them once more."""
        return True


@dataclass(slots=True)
class QueuePaused(Record):
    """The queue takes nothing in, or hands nothing out, or both, until it is resumed."""

    TYPE: ClassVar[int] = 37
    queue: int
    intake: bool
    dispatch: bool
    reason: str
    author: str
    since_ms: int
    until_ms: int
    """When a record resumes it by itself; 0 is never."""


@dataclass(slots=True)
class QueueResumed(Record):
    """The queue takes in, or hands out, or both, again."""

    TYPE: ClassVar[int] = 38
    queue: int
    intake: bool
    dispatch: bool


@dataclass(slots=True)
class ExchangeDeclared(Record):
    """An exchange exists, of this kind, with these options."""

    TYPE: ClassVar[int] = 29
    name: str
    kind: str
    options: dict[str, Any]


@dataclass(slots=True)
class ExchangeDeleted(Record):
    """An exchange is gone, and with it every binding from and to it."""

    TYPE: ClassVar[int] = 30
    name: str


@dataclass(slots=True)
class Bound(Record):
    """Messages of an exchange that fit go to a queue, or to another exchange."""

    TYPE: ClassVar[int] = 31
    exchange: str
    to_exchange: bool
    destination: str
    key: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Unbound(Record):
    """A binding is gone."""

    TYPE: ClassVar[int] = 32
    exchange: str
    to_exchange: bool
    destination: str
    key: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Moved(Record):
    """Messages that waited in one queue wait in another, with all that is known of them."""

    TYPE: ClassVar[int] = 39
    ready: list[list[int]]
    """[lane number, priority, lane number it is now, first position, how many]"""
    scheduled: list[list[int]]
    """[lane number, priority, lane number it is now, position, due_ms]"""
    held: list[list[int]] = field(default_factory=list)
    """[lane number, priority, lane number it is now, position] of nodes of graphs."""

    def listed(self) -> list[Any]:
        """Without what there is none of."""
        return [self.ready, self.scheduled, *([self.held] if self.held else [])]


@dataclass(slots=True)
class QueueChanged(Record):
    """An operator set these options of a queue; what is None is as it was before."""

    TYPE: ClassVar[int] = 33
    queue: int
    options: dict[str, Any]


@dataclass(slots=True)
class QueueDeleted(Record):
    """A queue is no more, and nothing waits in it. What is handed out may be finished."""

    TYPE: ClassVar[int] = 34
    queue: int
    why: str


@dataclass(slots=True)
class Overflowed(Record):
    """Waiting messages became dead letters, because their queue was over a limit of its."""

    TYPE: ClassVar[int] = 35
    entries: list[list[int]]
    """[lane number, priority, first position, how many, the lane they go to or -1 for none, the
    time that they wait for or 0]"""
    reason: str
    finished_ms: int
    keep_until_ms: int


@dataclass(slots=True)
class PolicySet(Record):
    """There is a policy with that name, or with ``dropped`` there is none any more."""

    TYPE: ClassVar[int] = 36
    name: str
    pattern: str
    priority: int
    operator: bool
    options: dict[str, Any]
    dropped: bool = False


@dataclass(slots=True)
class PoliciesReached(Record):
    """Queues numbered below ``before`` are as the policies say, the changed ones too."""

    TYPE: ClassVar[int] = 48
    before: int


@dataclass(slots=True)
class HistorySet(Record):
    """The queue's option ``history`` is this one by now, whoever gave it: for the archive."""

    TYPE: ClassVar[int] = 49
    queue: int
    history: str


@dataclass(slots=True)
class LimitSet(Record):
    """A limit rule is in force under its name, or kept behind an operator's."""

    TYPE: ClassVar[int] = 25
    name: str
    origin: str
    rule: dict[str, Any]
    wall_ms: int
    """The time of limits (buckets.LimitClock), as in all records about them."""


@dataclass(slots=True)
class LimitDropped(Record):
    """The rule of that name and origin is gone."""

    TYPE: ClassVar[int] = 26
    name: str
    origin: str
    wall_ms: int


@dataclass(slots=True)
class Replayed(Record):
    """Dead letters wait to run again, as if they never had."""

    TYPE: ClassVar[int] = 44
    entries: list[list[int]]
    """[lane number, priority, lane number it is now, position, due_ms it waited for or 0]"""
    due_ms: int
    """When they are ready; 0 is at once."""
    author: str
    wall_ms: int


@dataclass(slots=True)
class LetterEdited(Record):
    """The message of this batch, at this record's position, takes a dead letter's place."""

    TYPE: ClassVar[int] = 45
    letter: int
    """The position of the dead letter."""
    home: str
    """Where a replay sends it."""
    author: str
    wall_ms: int
    batch: MessageBatch

    def listed(self) -> list[Any]:
        """All but the message."""
        said = self.letter, self.home, self.author, self.wall_ms
        return [*said, self.batch.listed()]

    @property
    def raw(self) -> bytes:
        """The packed message."""
        return self.batch.raw


@dataclass(slots=True)
class LettersDropped(Record):
    """Dead letters are over. What became of their tasks is what it was."""

    TYPE: ClassVar[int] = 46
    positions: list[list[int]]
    """[position, lane number, priority]"""
    author: str
    wall_ms: int


@dataclass(slots=True)
class Redelayed(Record):
    """Messages that wait, and nobody was ever handed, are due at another time."""

    TYPE: ClassVar[int] = 41
    entries: list[list[Any]]
    """[lane number, priority, position, due_ms or 0 for ready, due_ms from now on or 0, key]"""


@dataclass(slots=True)
class KeysDropped(Record):
    """These keys are free: their time is over, or somebody said so."""

    TYPE: ClassVar[int] = 42
    keys: list[bytes]
    lapsed: bool

    @property
    def lazy(self) -> bool:
        """Time frees a key without a record, too."""
        return self.lapsed


@dataclass(slots=True)
class Advanced(Record):
    """Nodes that have ended are news to those behind them: so many steps of that are done."""

    TYPE: ClassVar[int] = 50
    steps: int
    wall_ms: int
    keep_until_ms: int
    ends: list[list[int]]
    """[position, lane number, priority, state, the position of the one before, where the failure
    is that it has from there] of nodes that end by it; the state 0 is that nobody needs it."""
    expiring: list[list[int]]
    """[position, until when it may begin] of nodes that are let go, where their queue says so."""
    again: list[list[int]]
    """[position, lane number] of nodes that had ended with others, and are held again."""


@dataclass(slots=True)
class NodesSwept(Record):
    """Nodes were looked at after a purge; those that were purged have ended."""

    TYPE: ClassVar[int] = 51
    wall_ms: int
    keep_until_ms: int
    ends: list[list[int]]
    """[position, lane number, priority]"""
    graph: int
    """The graph that is next, by its first position, and the node; 0 if all were looked at."""
    node: int


@dataclass(slots=True)
class GraphsLetGo(Record):
    """Graphs that were kept for their dead letters alone are gone: those are by themselves."""

    TYPE: ClassVar[int] = 52
    graphs: list[int]
    """First position of each."""


@dataclass(slots=True)
class Kept(Record):
    """What cleaning has left of a record with messages or a result: bytes, no history.

    It stands in the record's place and is never applied: the checkpoints know what was.
    """

    TYPE: ClassVar[int] = 17
    own: int
    """Slots before the first message: 1 if the record was a Settled, else 0."""
    count: int
    """Messages that began in the record."""
    runs: list[list[int]]
    """[index, how many] of those whose bytes are left."""
    head: bytes
    """The result or error, or a part's end of an earlier message; empty if it is not left."""
    messages: bytes

    def listed(self) -> list[Any]:
        """All but the raw bytes; the length of the head tells them apart."""
        return [self.own, self.count, self.runs, len(self.head)]

    @property
    def raw(self) -> bytes:
        """The head, then the messages."""
        return self.head + self.messages

    @property
    def slots(self) -> int:
        """As many as the record took."""
        return max(1, self.own + self.count)


RECORDS: dict[int, type[Record]] = {cls.TYPE: cls for cls in Record.__subclasses__()}
WITH_RAW = (Published, PartStored, Settled, LetterEdited, Kept)
HAS_RAW = {number: cls in WITH_RAW for number, cls in RECORDS.items()}
NAMES = {number: cls.__name__ for number, cls in RECORDS.items()}


def split(body: bytes) -> tuple[list[Any], bytes]:
    """The field list and the raw bytes of a body that has both."""
    (length,) = _LENGTH.unpack_from(body)
    return _unpack(body[4 : 4 + length]), body[4 + length :]


def raw_at(body: bytes) -> int:
    """Where the raw bytes begin in such a body."""
    (length,) = _LENGTH.unpack_from(body)
    return 4 + int(length)


def unpack(number: int, body: bytes) -> Record:
    """The record with that type number and body. Raises KeyError for a type not known."""
    cls: Any = RECORDS[number]
    if not HAS_RAW[number]:
        values = _unpack(body)
        if cls is PartsCommitted:
            values[5:] = [Keyed(*each) for each in values[5:]]
        record: Record = cls(*values)
        return record
    values, raw = split(body)
    if cls is Kept:
        own, count, runs, n_head = values
        return Kept(own, count, runs, raw[:n_head], raw[n_head:])
    if cls is Settled:
        n_result, tail = values[11], values[13]
        values[11], values[13] = raw[:n_result], MessageBatch.of(tail, raw[n_result:])
    else:
        values[-1] = MessageBatch.of(values[-1], raw)
    return cast("Record", cls(*values))


def describe(number: int, body: bytes) -> str:
    """One line for people: the record's name and fields, its bytes as lengths."""
    record = unpack(number, body)
    shown = []
    for each in (each for each in fields(record) if each.repr):
        name, value = each.name, getattr(record, each.name)
        if isinstance(value, MessageBatch):
            value = f"{value.count} messages in {len(value.raw)} bytes, runs {value.runs}"
        elif isinstance(value, bytes):
            value = value.hex() if each.name == "session" else f"{len(value)} bytes"
        shown.append(f"{name}={value}")
    return f"{type(record).__name__} {' '.join(shown)}"
