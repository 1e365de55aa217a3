"""The thread that waits for the disk, so that the loop does not.

    loop:    start(job) -- begun? -- goes on with its turn ........ done(result)
    thread:       '-- job(): mostly inside fdatasync, without the GIL --'

The loop waits until the thread has the job in hand: then the disk works while the loop
hands out messages, on one core too. Without that the thread would first get the
interpreter when the loop has nothing left to do, and the disk would idle meanwhile.
One job at a time; a lock in, a byte through a pipe out. An executor's future costs a lone
publisher some 40 us a confirm more.

Running the job in the loop would cost no hand-off at all, and was turned down: a disk that
hangs would then silence the whole broker, heartbeats and ``Blocked`` included.
"""

import asyncio
import os
import threading
from collections.abc import Callable

Job = Callable[[], float]
Done = Callable[[float | BaseException], None]


def do(job: Job) -> float:
    return job()


class Writer:
    """One thread, one job at a time. Belongs to one loop once ``attach``ed."""

    def __init__(self, patiently: Callable[[Job], float] = do) -> None:
        """``patiently`` does a job, again if need be: see Space."""
        self._job: Job | None = None
        self._result: float | BaseException = 0.0
        self._go, self._begun = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._begun.acquire()
        self._done, self._doing = os.pipe()
        self._thread = threading.Thread(target=self._work, name="qbroker-write", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._patiently = patiently

    def attach(self, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        """Begin; ``done`` is called in ``loop`` with what each job returned or raised."""
        self._loop = loop
        loop.add_reader(self._done, self._finished, done)
        self._thread.start()

    def start(self, job: Job) -> None:
        """``job`` has begun in the thread. Not before the last one is done."""
        assert self._job is None, "one job at a time"
        self._job = job
        self._go.release()
        self._begun.acquire()

    def stop(self) -> None:
        """The thread ends after its job; it is not waited for if the disk hangs."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._done)
        self._loop = None
        if self._job is None:
            self._go.release()
            self._thread.join()
            os.close(self._done)
            os.close(self._doing)

    def _work(self) -> None:
        while True:
            self._go.acquire()
            job = self._job
            if job is None:
                return
            self._begun.release()
            try:
                self._result = self._patiently(job)
            except BaseException as error:  # noqa: BLE001  # the loop is told, and ends the broker
                self._result = error
            os.write(self._doing, b"d")

    def _finished(self, done: Done) -> None:
        os.read(self._done, 1)
        self._job = None
        done(self._result)
