"""The bytes that messages, outcomes and tokens have on the wire and in the log.

All integers are little-endian. Each layout is one ``struct.Struct``, used whole;
nothing else in the project cuts these bytes by hand. The broker walks messages
with ``MESSAGE`` and slices them; it never looks into headers or bodies.

A packed message (envelope version 1), ``MESSAGE`` and then the variable parts::

    0        4    5     6     7      8       16       24       26   27      28      30
    | size   |ver |kind |prio |flags | due   | expires| route  | id |content| meta  | headers |
    | u32    |u8  |u8   |i8   |u8    | u64 ms| u64 ms | u16 len| u8 | u8    |u16 len| u16 len |
    32: route | id | meta | headers | body (the rest)

    route    u8-counted exchange, routing key, task name; then the lane keys (lanekeys.py)
    id       16 bytes if ID_MINTED (a UUIDv7), else UTF-8, 1 to 255 bytes
    meta     u8-counted root id, parent id, principal, trace context; then, if MARKED, fields:
             tag u8 | length u16 | that many bytes, each tag once
    headers  the client's, opaque: a msgpack map; "preview", if it comes first, is a text that
             the archive may keep of the arguments (preview.py)

An id that reads as a UUIDv7 in lower case must travel as its 16 bytes: the broker
compares bytes, and one id must not have two forms. Bytes of meta after the four names of a
message that is not MARKED are skipped, and so are fields with an unknown tag.

``size`` counts the bytes after itself. ``due`` and ``expires`` are wall-clock
milliseconds since 1970, 0 for none. The namespace of exchanges and queues is
reserved: names hold no "/".

A packed outcome (how one delivery ended), ``OUTCOME`` and then its parts::

    | size u32 | outcome u8 | flags u8 | content u8 | 0 | follow-on count u16 |
    | position u64 | grant u64 | run_ms u32 | delay_ms u32 | result length u32 |
    policy (if HAS_POLICY) | result or error | follow-on messages, packed

A token is ``TOKEN``: a position and the number of the grant that leased it. The
grant number is ``boot epoch << 40 | counter``, so it names one grant for ever.
"""

from struct import Struct

MESSAGE = Struct("<IBBbBQQHBBHH")
SIZE = Struct("<I")
"""The first field of a message and of an outcome: how many bytes come after it."""
OUTCOME = Struct("<IBBBBHQQIII")
TOKEN = Struct("<QQ")
"""A token: position, grant."""
RUN = Struct("<QI")
"""A run of consecutive positions: the first, and how many."""
ACK_RUN = Struct("<QQI")
"""A run of plain acks under one grant: grant, first position, how many."""
TOUCHED = Struct("<IHHH")
"""A delivery that was handed out before: its index, deliveries, failures, crashes."""
POLICY = Struct("<HIIHB")
"""A retry policy: retries_max, backoff_ms, backoff_max_ms, factor in hundredths, jitter."""
POSITION = Struct("<Q")
PEEKED = Struct("<QQHHHBII")
"""A message looked at: position, due_ms, deliveries, failures, crashes, state, length of the
reason, length of the error."""
LETTER = Struct("<QQ")
"""A dead letter, as it is told from all others, also from the same message once it dies again:
its position, its number."""
INPUT = Struct("<BBI")
"""Before each input of a node: the state of the task that it is of, how it is encoded, its
length."""
LOST = 0
"""In the place of a state: the result cannot be read any more."""
NUMBERS, ROWS, WHOLE = range(3)
"""How much DeadLetters asks for of each: its names, what is known of it too, or all its bytes."""

ENVELOPE_VERSION = 1

KIND_PLAIN = 0
KIND_TASK = 1

# Flags of a message.
ID_MINTED = 0x01
"""The id is a UUIDv7 as 16 bytes, minted from the broker's clock."""
IGNORE_RESULT = 0x02
"""Nobody will ask for the result: keep failures only."""
ACK_EARLY = 0x04
"""Started at most once: a lost worker means FAILURE, never a redelivery."""
MARKED = 0x08
"""Its meta has fields behind the four names."""
MAY_DROP = 0x10
"""If its exchange finds no queue for it, it is dropped, counted, and no error."""
MESSAGE_FLAGS = ID_MINTED | IGNORE_RESULT | ACK_EARLY | MARKED | MAY_DROP

# Fields of a message's meta.
META_FIELD = Struct("<BH")
"""What stands before each field: its tag, its length."""
ORIGIN = 1
"""Set by the broker, refused from clients: u8-counted exchange and routing key that brought the
message into its queue."""
UNIQUE = 2
"""The unique key of the message: see uniquekeys.py."""
IDEMPOTENCY = 3
"""Its idempotency key: see uniquekeys.py."""
NODE = 4
"""Its place in a graph: see graphs.py."""

# Outcomes.
ACK = 1
"""Done. With HAS_RESULT the result is kept for those who ask."""
RELEASE = 2
"""Back to the queue after ``delay_ms``; not a failure, counts nothing."""
FAIL = 3
"""Failed: runs again as the retry policy says, else FAILURE and a dead letter. The result
is a packed failure."""
REJECT = 4
"""Not wanted: to the dead letters at once. The result is the reason, UTF-8."""
EXTEND = 5
"""Still running. Nothing is kept or prolonged: the answer says whether the lease is still valid."""
PROGRESS = 6
"""As EXTEND. The result, meant for those who watch, is checked and not kept yet."""
START = 7
"""About to run an ACK_EARLY message; it may begin once this is confirmed, and never again."""
CRASH = 8
"""The process that ran it died. Counted apart from failures; the result is a packed failure."""
OUTCOMES = {
    ACK: "ack",
    RELEASE: "release",
    FAIL: "fail",
    REJECT: "reject",
    EXTEND: "extend",
    PROGRESS: "progress",
    START: "start",
    CRASH: "crash",
}

# Flags of an outcome.
HAS_RESULT = 0x01
"""Keep the result bytes: somebody may ask for them."""
HAS_POLICY = 0x02
"""A retry policy stands before the result; it goes before the queue's."""
NO_RETRY = 0x04
"""FAIL: the failure is final, whatever any policy says."""
HAS_REPLACEMENT = 0x08
"""FAIL, RELEASE: the first follow-on message replaces envelope and body under the same id."""
IN_PARTS = 0x10
"""Reserved: parts are joined before the outcomes are read, so no outcome needs to say it."""
OUTCOME_FLAGS = HAS_RESULT | HAS_POLICY | NO_RETRY | HAS_REPLACEMENT | IN_PARTS

DELAY_BY_POLICY = 0xFFFF_FFFF
"""FAIL: take the delay from the retry policy. RELEASE: no delay."""

SLOT_BITS = 20
EPOCH_SHIFT = 40


def too_wide(value: object, bits: dict[str, int]) -> ValueError:
    """The error to raise when a Struct would not take ``value``: names the attribute at fault.

    ``bits`` gives the width of each attribute that a caller may have got wrong.
    """
    name, found, highest = next(
        (name, found, (1 << width) - 1)
        for name, width in bits.items()
        if not isinstance(found := getattr(value, name), int) or not 0 <= found < 1 << width
    )
    return ValueError(f"{name} is {found!r}: an integer from 0 to {highest}")


def batch_of(position: int) -> int:
    """The number of the batch that holds ``position``."""
    return position >> SLOT_BITS


def grant_epoch(grant: int) -> int:
    """The boot epoch in which ``grant`` was given."""
    return grant >> EPOCH_SHIFT
