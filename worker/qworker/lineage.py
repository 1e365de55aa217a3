"""Who dies with whom: no process of a worker outlives its parent, even after a kill -9.

Linux tells a process of its parent's death by a signal it chose (PR_SET_PDEATHSIG); it holds
for the parent's thread that made it, which here is always the main thread. Elsewhere a
thread waits for the end of the control stream instead (nursery.py).
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
AVAILABLE = sys.platform == "linux"


def die_with_parent(parent_pid: int) -> None:
    """From now on the kernel kills this process when ``parent_pid`` ends; at once if it has."""
    if AVAILABLE:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
