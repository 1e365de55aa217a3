"""Who dies with whom: no process of a worker outlives its parent, even after a kill -9.

Linux tells a process of its parent's death by a signal it chose (PR_SET_PDEATHSIG); it holds
for the parent's thread that made it, which here is always the main thread.

Elsewhere (macOS) two things stand in for it. The import process sees the end of its control
stream (nursery.py, child.py), and starts no thread, because it forks. Whoever runs tasks has a
thread that looks every LOOK_S whether it has another parent now; C code that holds the
interpreter's lock delays it as long as it runs.
"""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
LOOK_S = 0.5
AVAILABLE = sys.platform == "linux"


def die_with_parent(parent_pid: int, *, forks: bool = False) -> None:
    """From now on this process is killed when ``parent_pid`` ends; at once if it has.

    One that ``forks`` has to see that for itself where the kernel does not do it.
    """
    if AVAILABLE:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    end_orphan(parent_pid)
    if not AVAILABLE and not forks:
        arguments = parent_pid, threading.Event()
        threading.Thread(target=look_on, args=arguments, name="lineage", daemon=True).start()


def look_on(parent_pid: int, pause: threading.Event) -> None:
    """Until the parent has ended."""
    while not pause.wait(LOOK_S):
        end_orphan(parent_pid)


def end_orphan(parent_pid: int) -> None:
    """This process is killed if it has another parent by now."""
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
