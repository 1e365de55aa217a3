"""Levels: the runs of one task at one priority in one queue, by age."""

from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from qbroker.core.runs import END, Run
from qbroker.core.tenants import Tenant

if TYPE_CHECKING:
    from qbroker.core.shelves import Shelf


class Level:
    """What waits of one task at one priority; of one tenant, where these share the queue."""

    __slots__ = ("heap", "number", "priority", "shelf", "tenant", "void")

    def __init__(self, shelf: "Shelf", priority: int, tenant: Tenant | None) -> None:
        self.shelf = shelf
        self.priority = priority
        self.tenant = tenant
        """Whose it is, where tenants share the queue."""
        self.number = number_of(priority, tenant)
        if tenant:
            tenant.levels[self] = None
        self.heap: list[tuple[int, Run]] = []
        """(head, run) of its runs that are not empty.

        What is true is ``run.key``; an entry with another head, or of a lane that is parked, is
        dropped when it comes up.
        """
        self.void = 0
        """Entries of runs that will never have a head again, or some more."""

    def __lt__(self, other: "Level") -> bool:
        """For heaps, where a level may be listed twice under one head."""
        return False

    def offer(self, run: Run) -> int:
        """See that a run that is not empty is listed under its head, or an earlier one.

        The head if it is the level's first now; -1 if the level leads with what it did.
        """
        head = run.turn()
        if 0 <= run.key <= head:
            return -1
        run.key = head
        heap = self.heap
        heappush(heap, (head, run))
        return head if heap[0][1] is run else -1

    def lose(self) -> None:
        """One of its runs is empty for ever. Costs a step for each entry now and then."""
        self.void += 1
        if 2 * self.void > len(self.heap):
            self.heap = [entry for entry in self.heap if entry[0] == entry[1].key]
            heapify(self.heap)
            self.void = 0

    def before_others(self) -> int:
        """The oldest head, behind its own, of what waits of the tenant at its priority in another
        task, or more than any. Costs a step for each level of the tenant.
        """
        assert self.tenant, "only tenants have turns"
        mine, least = self.heap[0][0], END
        for each in self.tenant.levels:
            if each is not self and each.priority == self.priority:
                run = each.leading()
                if run and mine < run.key < least:
                    least = run.key
        return least

    def close(self) -> None:
        """Nothing waits here. Who comes back makes another."""
        assert self.tenant, "only tenants come and go"
        self.tenant.levels.pop(self, None)
        self.shelf.drop(self)

    def leading(self) -> Run | None:
        """The run whose head is oldest, if one is not empty; the top of the heap is true then."""
        heap = self.heap
        while heap:
            key, run = heap[0]
            if key == run.key:
                if run.size and run.lane.parked is None:
                    head = run.turn()
                    if head == key:
                        return run
                    run.key = head
                    heapreplace(heap, (head, run))
                    continue
                run.key = -1
            heappop(heap)
        return None


def number_of(priority: int, tenant: Tenant | None) -> int:
    """A level's number on its shelf: the priority alone, unless it is a tenant's."""
    return priority + (tenant.number << 8) if tenant else priority
