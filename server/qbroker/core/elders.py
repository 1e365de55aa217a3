"""The oldest ready messages of a queue that throws its oldest away, whatever their priority.

    offered --> listed under the run's head, or an earlier one --> comes up: put right, or dropped

Only queues that make room have it, and it costs the others nothing. It follows from the runs.
"""

from collections.abc import Generator, Iterator
from heapq import heapify, heappop, heappush, heapreplace

from qbroker.core.queues import Queue
from qbroker.core.runs import Run
from qbroker.core.settings import ELDERS_LANES_MAX

SPARE = 1_000
"""Entries that are not true any more, kept before they are cleared away."""


class Elders:
    """The runs of one queue in which something waits, by their heads. All volatile."""

    __slots__ = ("_heap", "_keys", "_lanes", "_most", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._lanes = queue.lanes
        """To be listed as they stand; later ones come as they fill. Some may be closed by then."""
        self._keys: dict[Run, int] = {}
        """What is true: the head under which a run is listed."""
        self._heap: list[tuple[int, Run]] = []
        self._most = SPARE

    @property
    def is_complete(self) -> bool:
        """Whether every run in which something waits is listed."""
        return not self._lanes

    def list_more(self) -> None:
        """The next lanes that were there before are listed, ELDERS_LANES_MAX at most."""
        lanes = self._lanes[-ELDERS_LANES_MAX:]
        del self._lanes[-ELDERS_LANES_MAX:]
        for lane in lanes:
            for run in lane.runs:
                if run.size:
                    self._most += 1  # it is true: there is nothing to clear away for it
                    self.offer(run)

    def list_all(self) -> None:
        """As many steps as it takes, over all lanes there are: at a start."""
        self._lanes = self._queue.lanes
        while not self.is_complete:
            self.list_more()

    def clear(self) -> None:
        """Nothing waits in the queue."""
        self._keys, self._heap, self._lanes = {}, [], []

    def offer(self, run: Run) -> None:
        """More waits in the run, which is not empty."""
        head = run.turn()
        if self._keys.get(run, head + 1) <= head:
            return
        self._keys[run] = head
        heappush(self._heap, (head, run))
        if len(self._heap) > self._most:
            self._clear_away()

    def _clear_away(self) -> None:
        """Drop what is not true; costs a step an entry, once in as many offers."""
        self._keys = {run: key for run, key in self._keys.items() if run.size and not run.is_purged}
        self._heap = [(key, run) for run, key in self._keys.items()]
        heapify(self._heap)
        self._most = 2 * len(self._heap) + SPARE

    def oldest(self) -> Generator[tuple[Run, int], None, None]:
        """Ready messages, the oldest first; the runs must not change meanwhile. Close it."""
        passed: list[tuple[int, Run]] = []
        heads: list[tuple[tuple[int, int], Run, Iterator[tuple[int, int]]]] = []
        try:
            while (run := self._leading()) or heads:
                if run and (not heads or self._keys[run] < heads[0][0][0]):
                    # Unlisted meanwhile: it may stand in the heap twice under this head.
                    heappop(self._heap)
                    passed.append((self._keys.pop(run), run))
                    waiting = run.turns()
                    heappush(heads, (next(waiting), run, waiting))
                    continue
                (_, position), run, waiting = heads[0]
                yield run, position
                following = next(waiting, None)
                if following is None:
                    heappop(heads)
                else:
                    heapreplace(heads, (following, run, waiting))
        finally:
            for key, run in passed:
                self._keys[run] = key
                heappush(self._heap, (key, run))

    def _leading(self) -> Run | None:
        """The run whose head is oldest; the top of the heap is true then."""
        heap, keys = self._heap, self._keys
        while heap:
            key, run = heap[0]
            if keys.get(run) == key:
                if run.size and not run.is_purged:
                    head = run.turn()
                    if head == key:
                        return run
                    keys[run] = head
                    heapreplace(heap, (head, run))
                    continue
                del keys[run]
            heappop(heap)
        return None
