"""The pools: how many processes and runners each makes, and what each can honour.

Every pool has the same parent, slots, members and settlements; a pool is only an answer to
"which process runs which runners, in which thread". The three are rows here, each with its
code in the module of its name.

Rule 1. What a pool cannot honour it says in ``why_not``, as the end of a sentence to a person.
Rule 2. Pools run runners. They open no connection and read no frame.
"""

from dataclasses import dataclass, field

LIMITS = ("--time-limit", "--soft-time-limit", "--max-tasks-per-child", "--max-memory-per-child")


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool as data."""

    name: str
    forks: bool
    """Whether the import process forks children, or runs the runners itself."""
    runners_max: int = 1024
    honours: frozenset[str] = frozenset()
    can_kill: bool = False
    """Whether one task can be ended by killing its process, with no other task in it."""
    why_not: dict[str, str] = field(default_factory=dict)

    def children(self, concurrency: int) -> list[list[int]]:
        """The slots of each process."""
        if self.forks:
            return [[slot] for slot in range(concurrency)]
        return [list(range(concurrency))]


_ENDS_ALL = "a thread cannot be stopped, and ending the process would end the tasks beside it"
_ONE_PROCESS = "its one process is not recycled while it runs"
_THREADS_WHY = {
    "--time-limit": _ENDS_ALL,
    "--soft-time-limit": "the signal that interrupts a task reaches the main thread only",
    "--max-tasks-per-child": _ONE_PROCESS,
    "--max-memory-per-child": _ONE_PROCESS,
}
_SOLO_WHY = {
    "--time-limit": "its process holds the application, which would be loaded anew each time",
    "--max-tasks-per-child": _ONE_PROCESS,
    "--max-memory-per-child": _ONE_PROCESS,
}

POOLS = {
    pool.name: pool
    for pool in (
        Pool("prefork", forks=True, honours=frozenset(LIMITS), can_kill=True),
        Pool("threads", forks=False, why_not=_THREADS_WHY),
        Pool(
            "solo",
            forks=False,
            runners_max=1,
            honours=frozenset({"--soft-time-limit"}),
            why_not=_SOLO_WHY,
        ),
    )
}
