"""Options of queues and retries: each with its unit, bound, default and reason."""

from dataclasses import dataclass, fields
from difflib import get_close_matches
from struct import error as struct_error
from typing import Any, Self

from qprotocol import wire

FSYNC_MODES = ("always", "interval", "never")
HISTORY = ("all", "failures", "none")
CHOICES = {"fsync": FSYNC_MODES, "history": HISTORY}
"""Options that are words: these, or empty for the default."""


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
class QueueOptions:
    """What a queue may be told when it is declared. Queues are also made on first use."""

    fsync: str = ""
    """always, interval or never; empty takes the broker's --fsync."""
    retries_max: int = 0
    """Retries where neither worker nor message says anything. Default 0: no retry."""
    backoff_ms: int = 1_000
    """Milliseconds before the first retry; doubled for each one after it."""
    backoff_max_ms: int = 600_000
    """The longest wait between two retries, in milliseconds."""
    poison_max: int = 0
    """Crashes after which a message is dead; 0 takes the broker's poison_max (3)."""
    history: str = ""
    """Of which settled messages the archive keeps a row: all, failures or none. Empty is all for
    tasks and none for plain messages. Results and failures are kept for result_ttl_ms anyway."""

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Self:
        """The options in ``given``. Raises ValueError naming what is wrong and what was meant."""
        known = {f.name: f.type for f in fields(cls)}
        for name, value in given.items():
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"unknown queue option {name!r}: {hint}")
            if name in CHOICES:
                if value not in ("", *CHOICES[name]):
                    raise ValueError(f"{name} is {value!r}: one of {', '.join(CHOICES[name])}")
            elif type(value) is not int or not 0 <= value < 2**32:
                raise ValueError(f"{name} is {value!r}: an integer from 0 to 4294967295")
        if given.get("retries_max", 0) > RETRIES_FOREVER:
            raise ValueError(f"retries_max is {given['retries_max']}: at most {RETRIES_FOREVER}")
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """Every option by name, as ``parse`` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def retry(self) -> RetryPolicy:
        """The queue's own retry policy."""
        return RetryPolicy(self.retries_max, self.backoff_ms, self.backoff_max_ms)
