"""The thread that waits for the disk, so that the loop does not.

    loop:   start(job) ---- a byte ----> thread: job() ---- a byte ----> loop: done(result)

Two pipes and no queue: there is one job at a time. An executor's future and its lock
cost a lone publisher some 40 us a confirm; this hand-off costs two wake-ups. Running
the job in the loop would cost none, and was turned down: a disk that hangs would then
silence the whole broker, heartbeats and ``Blocked`` included.
"""

import asyncio
import os
import threading
from collections.abc import Callable

Job = Callable[[], float]


class Writer:
    """One thread, one job at a time. Belongs to one loop once ``attach``ed."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._result: float | BaseException = 0.0
        self._go, self._going = os.pipe()
        self._done, self._doing = os.pipe()
        self._thread = threading.Thread(target=self._work, name="qbroker-write", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(
        self, loop: asyncio.AbstractEventLoop, done: Callable[[float | BaseException], None]
    ) -> None:
        """Begin; ``done`` is called in ``loop`` with what each job returned or raised."""
        self._loop = loop
        loop.add_reader(self._done, self._finished, done)
        self._thread.start()

    def start(self, job: Job) -> None:
        """Run ``job`` in the thread. Not before the last one is done."""
        assert self._job is None, "one job at a time"
        self._job = job
        os.write(self._going, b"g")

    def stop(self) -> None:
        """The thread ends after its job; it is not waited for if the disk hangs."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._done)
        os.close(self._going)
        self._thread.join(timeout=1)
        if not self._thread.is_alive():
            for end in (self._go, self._done, self._doing):
                os.close(end)
        self._loop = None

    def _work(self) -> None:
        while os.read(self._go, 1):
            assert self._job is not None
            try:
                self._result = self._job()
            except BaseException as error:  # noqa: BLE001  # told to the loop, which ends the broker
                self._result = error
            os.write(self._doing, b"d")

    def _finished(self, done: Callable[[float | BaseException], None]) -> None:
        os.read(self._done, 1)
        self._job = None
        done(self._result)
