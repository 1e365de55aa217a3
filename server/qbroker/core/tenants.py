"""Tenants: the fair keys of a queue, who share what is handed out by measured run time.

    spent    what a tenant was handed, in microseconds of run time divided by its weight
    now      what a tenant would have spent that had its share all the time

Of those who have messages at the highest priority the one that has spent least is next. A message
is charged an estimate when it is handed out, and what it really took when it has ended. Who had
nothing to do has saved up some messages at most, and owes what it spent.

Messages without a fair key are one tenant, the empty key, in a queue where others have one; where
none has, there are no shares, and it costs nothing. All of it is volatile: after a start, or a
purge, all begin even.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbroker.core.levels import Level

AHEAD_MESSAGES = 16
"""What a tenant may have saved up, in messages of the queue's mean: short visits pass at once."""
LEAST_US = 1_000
"""What a message costs at least, and as long as nothing is known."""
TURN_US = 8_000
"""What a tenant is handed in a row, in run time, where its messages are known to be so short: half
of what it may have saved up."""
KEPT_MIN = 64
"""Tenants that are kept though nothing of theirs waits, before it is worth to look for them."""
_SMOOTH = 8
_LEARNT_MAX = 50
"""Of messages that ended together, so many move the estimates: then these are theirs."""
_POSITION_BITS = 64


class Tenant:
    """One fair key of a queue."""

    __slots__ = (
        "cost_us",
        "due_us",
        "ended_us",
        "key",
        "levels",
        "number",
        "open",
        "out",
        "out_us",
        "spent",
        "used_us",
        "weight",
    )

    def __init__(self, key: str, number: int, weight: int, spent: int) -> None:
        self.key = key
        self.number = number
        self.weight = weight
        self.spent = spent
        self.open = 0
        """Messages that wait, those of parked lanes left out."""
        self.out = 0
        """Messages that are handed out, and what they were charged."""
        self.out_us = 0
        self.cost_us = 0
        """What one of its messages takes, smoothed; 0 if none has ended."""
        self.used_us = 0
        """All that it was charged."""
        self.ended_us = -1
        """What was charged for the message that ended last; -1 if it was not."""
        self.due_us = 0
        """Charged too little, or, below 0, too much: not in ``spent`` yet."""
        self.levels: dict[Level, None] = {}
        """A set whose order is that in which they were made: so is the order of ties."""

    def listed(self, head: int) -> int:
        """Where a level of the tenant with that head stands among those of others."""
        return self.spent << _POSITION_BITS | head


class Shares:
    """The tenants of one queue."""

    __slots__ = (
        "_numbered",
        "_pruned",
        "_weights",
        "changed",
        "mean_us",
        "now",
        "tenants",
        "waiting",
    )

    def __init__(self, weights: dict[str, int]) -> None:
        self._weights = weights
        self.tenants: dict[str, Tenant] = {}
        self.changed: dict[Tenant, None] = {}
        """A set of those of whom something is due, in the order in which it was."""
        self.now = 0
        self.mean_us = LEAST_US
        self.waiting = 0
        """The weights of all that have messages waiting."""
        self._numbered = 0
        self._pruned = 0

    def tenant(self, key: str) -> Tenant:
        """The tenant with that key, made on first use. The empty key has number 0."""
        found = self.tenants.get(key)
        if found is None:
            if len(self.tenants) > 2 * self._pruned + KEPT_MIN:
                self._prune()
            self._numbered += bool(key)
            number = self._numbered if key else 0
            found = Tenant(key, number, self._weights.get(key, 1), self._start())
            self.tenants[key] = found
        return found

    def weigh(self, weights: dict[str, int]) -> None:
        """The weights are these from now on."""
        self._weights = weights
        for tenant in self.tenants.values():
            before, tenant.weight = tenant.weight, weights.get(tenant.key, 1)
            if tenant.open:
                self.waiting += tenant.weight - before

    def _start(self) -> int:
        """What a tenant has spent that had nothing to do for long."""
        return max(0, self.now - AHEAD_MESSAGES * self.mean_us)

    def _prune(self) -> None:
        """Forget who has nothing here and owes nothing."""
        self.tenants = {
            key: each
            for key, each in self.tenants.items()
            if not key or each.open or each.out or each.spent > self.now
        }
        self._pruned = len(self.tenants)

    # What waits.

    def offered(self, key: str, count: int) -> Tenant:
        """So many more messages of the tenant wait."""
        tenant = self.tenant(key)
        if count and not tenant.open:
            self.waiting += tenant.weight
            tenant.spent = max(tenant.spent, self._start())
        tenant.open += count
        return tenant

    def less(self, key: str, count: int) -> None:
        """So many wait no more."""
        tenant = self.tenants[key]
        tenant.open -= count
        if count and not tenant.open:
            self.waiting -= tenant.weight

    # What is handed out.

    def turn(self, tenant: Tenant, limit: int, lead: int) -> int:
        """Messages of the tenant until the next one's turn, who has spent ``lead`` more.

        Of ``limit`` that one consumer is handed, half a share at a time, or a whole one of what is
        known to take no more than TURN_US: turns are few, then.
        """
        share = limit * tenant.weight // (self.waiting or 1)
        short_us = TURN_US * tenant.weight
        short = min(share, short_us // tenant.cost_us) if tenant.cost_us else 0
        return max(1, share // 2, short) + lead * tenant.weight // self._cost(tenant)

    def hand_out(self, tenant: Tenant, count: int) -> None:
        """So many of its messages are handed out. It is told before ``less``."""
        charged = count * self._cost(tenant)
        tenant.out += count
        tenant.out_us += charged
        self._charge(tenant, charged)

    def _cost(self, tenant: Tenant) -> int:
        return tenant.cost_us or self.mean_us

    def _charge(self, tenant: Tenant, us: int) -> None:
        tenant.used_us += us
        tenant.spent += us // tenant.weight
        self.now += us // (self.waiting or tenant.weight)

    # What has ended.

    def ended(self, key: str, count: int) -> None:
        """So many are not handed out any more; what they were charged stands unless it is said."""
        tenant = self.tenants.get(key)
        if tenant:
            count = min(count, tenant.out)
            tenant.ended_us = tenant.out_us * count // tenant.out if count else -1
            if count:
                tenant.out -= count
                tenant.out_us -= tenant.ended_us

    def measured(self, key: str, run_ms: int, *, ran: bool, count: int = 1) -> None:
        """What ended last of the tenant took so long each; if it ``ran``, others will, too."""
        tenant = self.tenants.get(key)
        if tenant is None or tenant.ended_us < 0:
            return
        took = max(LEAST_US, run_ms * 1_000) if ran else 0
        for _ in range(min(count, _LEARNT_MAX) if ran else 0):
            tenant.cost_us += (took - tenant.cost_us) // (_SMOOTH if tenant.cost_us else 1)
            self.mean_us = max(LEAST_US, self.mean_us + (took - self.mean_us) // _SMOOTH)
        tenant.due_us += count * took - tenant.ended_us
        tenant.ended_us = -1
        self.changed[tenant] = None

    def settle(self) -> Iterator["Level"]:
        """What is due is spent; the levels of tenants that have spent less now."""
        changed, self.changed = self.changed, {}
        for tenant in changed:
            before, due_us, tenant.due_us = tenant.spent, tenant.due_us, 0
            self._charge(tenant, due_us)
            tenant.spent = max(tenant.spent, min(before, self._start()))
            if tenant.spent < before:
                yield from tenant.levels

    # For people.

    def before(self, key: str) -> int:
        """How many tenants with messages have spent less: they are served before it."""
        mine = self.tenants[key].spent
        return sum(each.open > 0 and each.spent < mine for each in self.tenants.values())

    def rows(self, most: int) -> list[dict[str, Any]]:
        """The tenants that have most, as JSON has them."""
        tenants = sorted(self.tenants.values(), key=lambda each: (-each.out - each.open, each.key))
        return [
            {
                "key": each.key,
                "weight": each.weight,
                "open": each.open,
                "leased": each.out,
                "used_ms": each.used_us // 1_000,
                "message_ms": each.cost_us / 1_000,
            }
            for each in tenants[:most]
        ]
