"""Slots and tokens: how much of a limit is taken, in whole numbers.

    slots    taken by a lease, given back at its end
    tokens   taken when a message is handed out; they come back with time, never sooner

What is missing from a full bucket is counted in parts of a token: ``window_ms`` of them are a
token, and ``rate`` of them come back each millisecond. So nothing is ever rounded.

    messages begun in any T ms  <=  burst + rate * T / window_ms
"""

from qbroker.core.moment import Now
from qprotocol.limitrules import LimitRule

JUMP_MS = 20
"""A wall clock that is ahead by more was set: what waits for its time is looked at anew."""
ROOM_MAX = 2**32
"""What a bucket without slots or tokens to count has room for."""


class LimitClock:
    """The time of limits: the wall's, but it never goes back, nor slower than time itself.

    A wall clock that is set back stops no limit, and no time is counted twice; one that is set
    forward fills buckets, once. Records carry this time, so a replay counts as it was counted.
    A start goes on from the latest that is remembered.
    """

    __slots__ = ("_was_set", "at_ms", "mono_ms")

    def __init__(self, at_ms: int = 0) -> None:
        self.at_ms = at_ms
        """The latest that was told."""
        self.mono_ms = 0
        """When that was; 0 if nobody has read it in this life."""
        self._was_set = False

    def read(self, now: Now) -> int:
        """The time now."""
        if self.mono_ms:
            self.at_ms += now.mono_ms - self.mono_ms
        if now.wall_ms > self.at_ms:
            self._was_set = self._was_set or now.wall_ms > self.at_ms + JUMP_MS
            self.at_ms = now.wall_ms
        self.mono_ms = now.mono_ms
        return self.at_ms

    def was_set(self) -> bool:
        """Whether the wall was set forward since this was asked last."""
        found, self._was_set = self._was_set, False
        return found

    def told(self, at_ms: int) -> None:
        """It was that late before."""
        self.at_ms = max(self.at_ms, at_ms)


class Bucket:
    """What is taken of one rule, by all it covers or by one key. Durable."""

    __slots__ = ("at_ms", "missing", "used")

    def __init__(self, used: int = 0, missing: int = 0, at_ms: int = 0) -> None:
        self.used = used
        """Slots: the weight that is out."""
        self.missing = missing
        """Parts of tokens that a full bucket has more, as of ``at_ms``."""
        self.at_ms = at_ms

    def left(self, rule: LimitRule, at_ms: int) -> int:
        """Parts that are still missing then."""
        if not self.missing or not rule.rate:
            return 0
        return max(0, self.missing - max(0, at_ms - self.at_ms) * rule.rate)

    def is_idle(self, rule: LimitRule, at_ms: int) -> bool:
        """Whether it is as good as new."""
        return not self.used and not self.left(rule, at_ms)

    def room(self, rule: LimitRule, weight: int, at_ms: int) -> int:
        """How many messages of that weight may be handed out now."""
        found = ROOM_MAX
        if rule.concurrency:
            found = max(0, rule.concurrency - self.used) // weight
        if rule.rate and found:
            full = rule.burst * rule.window_ms
            found = min(found, (full - self.left(rule, at_ms)) // (weight * rule.window_ms))
        return found

    def lends(self, weight: int) -> None:
        """That many slots are taken. There may be none: what is out stays out."""
        self.used += weight

    def gets_back(self, weight: int) -> None:
        """That many slots are free again."""
        self.used -= weight
        assert self.used >= 0, f"{self.used} slots are taken"

    def spends(self, rule: LimitRule, weight: int, at_ms: int) -> None:
        """That many tokens are taken. There were so many: ``room`` said so."""
        if rule.rate:
            self.missing = self.left(rule, at_ms) + weight * rule.window_ms
            self.at_ms = max(self.at_ms, at_ms)

    def opens_ms(self, rule: LimitRule, weight: int) -> int:
        """When there are tokens for that weight; 0 if it is no token that lacks."""
        over = self.missing - (rule.burst - weight) * rule.window_ms
        if not rule.rate or over <= 0:
            return 0
        return self.at_ms - (-over // rule.rate)

    def follows(self, old: LimitRule, new: LimitRule, at_ms: int) -> None:
        """The rule has changed: what was spent is still spent, but a bucket is empty at most."""
        left = -(-self.left(old, at_ms) * new.window_ms // old.window_ms)
        self.missing = min(left, new.burst * new.window_ms) if new.rate else 0
        self.at_ms = max(self.at_ms, at_ms)
