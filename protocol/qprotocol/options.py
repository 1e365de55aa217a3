"""Options of queues and retries: each with its kind, unit, bounds, default and reason.

Rule 1. An option of a queue is one field of QueueOptions; all that is known of it stands in its
        row, and documents, errors, policies and the command line read it there.
Rule 2. What is checked is what was given: defaults need no check.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from struct import error as struct_error
from typing import Any, Self, TypeVar

from qprotocol import wire
from qprotocol.limits import NAME_BYTES_MAX, PRIORITY_MAX, PRIORITY_MIN, QUEUE_WEIGHT_MAX
from qprotocol.names import check_queue_name

Value = str | int | bool
T = TypeVar("T", str, int, bool)

FSYNC_MODES = ("always", "interval", "never")
HISTORY = ("all", "failures", "none")
REJECT, DEAD_LETTER_OLDEST = OVERFLOW = ("reject", "dead_letter_oldest")
STRICT, WEIGHTED = QUEUE_ORDERS = ("strict", "weighted")
"""How several queues of a consumer take turns."""
DURABLE, TRANSIENT = DURABILITY = ("durable", "transient")
DEAD_SUFFIX = ".dead"
"""A queue's dead letters are in the queue of the same name with this behind it."""
NUMBER_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed message runs again.

    Attempt ``n`` (1 is the first retry) waits ``backoff_ms * factor ** (n - 1)``, at most
    ``backoff_max_ms``; with jitter, a deterministic point between half of that and all of it.
    """

    retries_max: int = 3
    """Retries after the first failure; 0 is none, 65,535 is for ever. Default 3, as in Celery."""
    backoff_ms: int = 1_000
    """Milliseconds before the first retry."""
    backoff_max_ms: int = 600_000
    """The longest wait. Default 600 s, Celery's retry_backoff_max."""
    factor: float = 2.0
    """1 keeps the delay constant; from 0 to 655.35, kept to two decimals on the wire."""
    jitter: bool = True
    """Spreads retries, so that what failed together does not come back together."""

    def allows(self, failures: int) -> bool:
        """Whether a message that has failed ``failures`` times gets another run."""
        return self.retries_max == RETRIES_FOREVER or failures <= self.retries_max

    def delay_ms(self, failures: int, entropy: int) -> int:
        """Milliseconds to wait after failure number ``failures`` (1 is the first).

        ``entropy`` is any integer; the same one gives the same delay, so that a replay
        of the log and the live run agree.
        """
        exponent = max(0, min(failures - 1, 64))
        delay = min(self.backoff_ms * self.factor**exponent, self.backoff_max_ms)
        if self.jitter:
            delay *= 0.5 + (mix(entropy) & 0xFFFF) / 0x1FFFE
        return int(delay)

    def pack(self) -> bytes:
        """Thirteen bytes, ``wire.POLICY``. Raises ValueError naming what is out of bounds."""
        if not 0 <= self.factor <= FACTOR_MAX:  # also false for NaN
            raise ValueError(f"factor is {self.factor!r}: from 0 to {FACTOR_MAX}")
        hundredths = round(self.factor * 100)
        try:
            return wire.POLICY.pack(
                self.retries_max, self.backoff_ms, self.backoff_max_ms, hundredths, self.jitter
            )
        except struct_error as error:
            raise wire.too_wide(self, _POLICY_BITS) from error

    @classmethod
    def unpack(cls, raw: bytes, at: int = 0) -> Self:
        """The policy packed at offset ``at``. Raises ValueError if too few bytes are left."""
        if len(raw) - at < wire.POLICY.size:
            raise ValueError(f"a retry policy has {wire.POLICY.size} bytes, not {len(raw) - at}")
        retries, backoff, cap, hundredths, jitter = wire.POLICY.unpack_from(raw, at)
        return cls(retries, backoff, cap, hundredths / 100, bool(jitter))


RETRIES_FOREVER = 0xFFFF
FACTOR_MAX = 655.35
_POLICY_BITS = {"retries_max": 16, "backoff_ms": 32, "backoff_max_ms": 32, "jitter": 8}


def mix(value: int) -> int:
    """A 64-bit integer that looks random and depends on ``value`` alone (splitmix64)."""
    z = (value + 0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF_FFFF_FFFF
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & 0xFFFF_FFFF_FFFF_FFFF
    return z ^ (z >> 31)


@dataclass(frozen=True, slots=True)
class OptionRow:
    """All that is known of one option."""

    name: str
    kind: type
    default: Value
    why: str
    unit: str = ""
    least: int = 0
    most: int = NUMBER_MAX
    choices: tuple[str, ...] = ()
    """Of a word: one of these. Empty text is the default, where that is empty."""
    bounds: bool = False
    """An operator's policy bounds it: the lower value counts, and 0 is none."""
    declared_only: bool = False
    """It belongs to who declares the queue: no policy and no operator can give it."""

    only_dead: bool = False
    """It is of queues of dead letters, and says nothing of others."""

    @property
    def wants(self) -> str:
        """What a value must be, in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is int:
            unit = f" {self.unit}" if self.unit else ""
            return f"an integer from {self.least} to {self.most}{unit}"
        return f"one of {', '.join(self.choices)}" if self.choices else self.unit

    def check(self, value: object) -> None:
        """Raise ValueError for a value that the option cannot have."""
        if type(value) is not self.kind:
            raise ValueError(f"{self.name} is {value!r}: {self.wants}")
        if isinstance(value, int) and self.kind is int and not self.least <= value <= self.most:
            raise ValueError(f"{self.name} is {value!r}: {self.wants}")
        if self.choices and value != self.default and value not in self.choices:
            raise ValueError(f"{self.name} is {value!r}: {self.wants}")


def option(default: T, why: str, **row: Any) -> T:
    """A field of QueueOptions with its row."""
    return field(default=default, metadata={"why": why, **row})


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What a queue may be told when it is declared. Queues are also made on first use."""

    # fmt: off
    fsync: str = option("", "When a confirm may leave: empty takes the broker's --fsync.",
        choices=FSYNC_MODES)
    durability: str = option(DURABLE, "transient: nothing in it outlives the broker, and no "
        "confirm waits for the disk (fsync is never).", choices=DURABILITY)
    retries_max: int = option(0, "Retries where neither worker nor message says anything. "
        f"0 is none, {RETRIES_FOREVER} for ever.", most=RETRIES_FOREVER)
    backoff_ms: int = option(1_000, "Before the first retry; doubled for each one after it.",
        unit="ms")
    backoff_max_ms: int = option(600_000, "The longest wait between two retries.", unit="ms")
    poison_max: int = option(0, "Crashes after which a message is dead; 0 takes the broker's "
        "poison_max (3).", unit="crashes")
    deliveries_max: int = option(0, "Times a message is handed out: when one of them ends, "
        "and the message is not done, it is dead. 0 is no limit. What is given back unbegun "
        "is looked at when it ends otherwise.", unit="deliveries", bounds=True)
    max_length: int = option(0, "Messages in the queue: waiting, delayed and handed out. "
        "0 is no limit.", unit="messages", bounds=True)
    max_bytes: int = option(0, "Bytes of those messages, heads and bodies, as far as they came "
        "while there was such a limit. 0 is none.", unit="bytes", most=2**50, bounds=True)
    overflow: str = option(REJECT, "What happens over max_length or max_bytes: the publish is "
        "refused, or the oldest ready messages become dead letters.", choices=OVERFLOW)
    message_ttl_ms: int = option(0, "The longest a message waits from its publish, or from its "
        "due time, until it expires; a shorter expiry of its own counts. In a dead-letter "
        "queue: from its death. 0 is no limit.", unit="ms", bounds=True)
    expires_ms: int = option(0, "A queue that nobody consumes, publishes to or declares for "
        "so long, and of which nothing is handed out, is deleted with what waits in it, at most "
        "a quarter later. A start of the broker is a use. 0 is never.", unit="ms", bounds=True)
    min_priority: int = option(PRIORITY_MIN, "A publish with a lower priority is refused.",
        least=PRIORITY_MIN, most=PRIORITY_MAX)
    max_priority: int = option(PRIORITY_MAX, "A publish with a higher priority is refused.",
        least=PRIORITY_MIN, most=PRIORITY_MAX)
    oldest_every: int = option(20, "Of so many messages handed out while messages of several "
        "priorities wait, one is the oldest, whatever its priority: so none waits for ever. "
        "0 is never: strict priorities.", unit="messages")
    fair_weights: str = option("", "Shares of fair keys that are not 1. Those that have messages "
        "share the run time of what is handed out by these numbers, within a priority.",
        unit="key=weight with commas, weights from 1 to 1000")
    single_active_consumer: bool = option(False, "One consumer at a time gets messages, the "
        "first that came; the next one when it has gone and holds nothing any more.")
    auto_delete: bool = option(False, "Deleted when its last consumer has gone and nothing of "
        "it is handed out.")
    exclusive: bool = option(False, "Of the connection that declares it, or its session: others "
        "may publish to it and no more, and it is deleted when that has gone.",
        declared_only=True)
    dead_letter_queue: str = option("", "Where its dead letters go; empty is the queue's own "
        f"name with {DEAD_SUFFIX} behind it.", unit=f"a queue's name that ends in {DEAD_SUFFIX}")
    alarm_length: int = option(1_000, "Of a queue of dead letters: so many messages in it are an "
        "alarm, until an eighth of them has gone. 0 is never.", unit="messages", only_dead=True)
    alarm_age_ms: int = option(0, "Of a queue of dead letters: one that has been dead for so long "
        "is an alarm. 0 is never.", unit="ms", only_dead=True)
    history: str = option("", "Of which settled messages the archive keeps a row. Empty is all "
        "for tasks and none for plain messages. Results and failures are kept for "
        "result_ttl_ms anyway.", choices=HISTORY)
    # fmt: on

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raise ValueError naming what is wrong in ``given`` and what was meant."""
        for name, value in given.items():
            row_of(name).check(value)
        parse_weights(given.get("fair_weights", ""))
        target = given.get("dead_letter_queue")
        if target:
            check_queue_name(target)
            if not is_dead_queue(target):
                raise ValueError(
                    f"dead_letter_queue is {target!r}: {OPTIONS['dead_letter_queue'].wants}"
                )
        low, high = (given.get(n, OPTIONS[n].default) for n in ("min_priority", "max_priority"))
        if low > high:
            raise ValueError(f"min_priority is {low} and max_priority {high}: nothing fits")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """The options in ``given``. Raises ValueError naming what is wrong and what was meant."""
        cls.check(given)
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """Every option by name, as ``parse`` takes them."""
        return {name: getattr(self, name) for name in OPTIONS}

    @property
    def retry(self) -> RetryPolicy:
        """The queue's own retry policy."""
        return RetryPolicy(self.retries_max, self.backoff_ms, self.backoff_max_ms)

    @property
    def shares(self) -> dict[str, int]:
        """The weights of fair keys that do not weigh 1."""
        return parse_weights(self.fair_weights)

    @property
    def is_bounded(self) -> bool:
        """Whether there is a limit to what may be in the queue."""
        return bool(self.max_length or self.max_bytes)


def parse_weights(text: str) -> dict[str, int]:
    """Fair keys and their weights. Raises ValueError for what is no list of them."""
    weights = {}
    for each in text.split(",") if text else ():
        key, sign, digits = each.rpartition("=")
        if not sign or not digits.isdecimal() or not 1 <= int(digits) <= QUEUE_WEIGHT_MAX:
            raise ValueError(
                f"fair_weights has {each!r}: {OPTIONS['fair_weights'].unit}, as in gold=5,free=1"
            )
        weights[key.strip()] = int(digits)
    return weights


def _rows() -> Iterator[tuple[str, OptionRow]]:
    for each in fields(QueueOptions):
        default: Any = each.default
        yield each.name, OptionRow(each.name, type(default), default, **each.metadata)


OPTIONS: dict[str, OptionRow] = dict(_rows())
"""Every option of a queue by its name, in the order of the documents."""


def row_of(name: object) -> OptionRow:
    """The row of the option with that name. Raises ValueError saying what was meant."""
    row = OPTIONS.get(str(name))
    if row is None:
        near = get_close_matches(str(name), OPTIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OPTIONS)}"
        raise ValueError(f"unknown queue option {name!r}: {hint}")
    return row


def is_dead_queue(name: str) -> bool:
    """Whether the queue with that name is one of dead letters: its name alone says so."""
    return name.endswith(DEAD_SUFFIX)


def check_place(name: str, given: Iterable[str]) -> None:
    """Raise ValueError for options that a queue with such a name, or pattern, cannot have."""
    if not is_dead_queue(name):
        for each in given:
            if OPTIONS[each].only_dead:
                raise ValueError(
                    f"{each} is of queues of dead letters, and {name!r} is none: give it to "
                    f"{(name + DEAD_SUFFIX)!r}, or to the queue where its dead letters go"
                )


def dead_queue(name: str, options: QueueOptions) -> str:
    """Where a queue's dead letters go; those of a dead-letter queue stay where they are."""
    if is_dead_queue(name):
        return name
    if options.dead_letter_queue:
        return options.dead_letter_queue
    return name[: NAME_BYTES_MAX - len(DEAD_SUFFIX)] + DEAD_SUFFIX
