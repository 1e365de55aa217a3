"""How much of a processor a process takes that works beside the broker."""

import contextlib
import os
from pathlib import Path

AUTOGROUP = Path("/proc/self/autogroup")


def give_way(nice: int) -> None:
    """This process takes a busy processor only as that niceness has it.

    Linux shares a processor among sessions first, and niceness counts within a session alone: see
    autogroups in sched(7). So a process in a session of its own makes that nice, too. Where there
    are no autogroups, or somebody else's rules hold, its own niceness is all there is.
    """
    os.nice(nice)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(nice), encoding="ascii")
