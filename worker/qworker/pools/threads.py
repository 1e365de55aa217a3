"""One process with a thread for each runner: for tasks that wait more than they compute.

Each thread is a member with a slot and a connection of its own, so that what is in the hand of
a busy one can be recalled for an idle one as between processes. The main thread only waits, so
that signals are heard at once.
"""

import threading
from queue import SimpleQueue

from qworker.runner import Runner


def run(runners: list[Runner]) -> None:
    """Every runner has run in a thread until told to stop; one that fails ends the process."""
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def guarded(runner: Runner) -> None:
        try:
            runner.run()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            ends.put(error)
        else:
            ends.put(None)

    for number, runner in enumerate(runners, 1):
        name = f"runner-{number}"
        threading.Thread(target=guarded, args=(runner,), name=name, daemon=True).start()
    for _ in runners:
        failure = ends.get()
        if failure is not None:
            raise failure
