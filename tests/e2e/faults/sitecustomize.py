"""A disk with faults, for a broker in another process: Python imports this at its start.

A file in FAULTS_FOLDER switches a fault on for every later sync, and its removal switches it off:

    hang    a sync does not return while the file is there
    slow    a sync takes as many seconds longer as the file says
    eio     a sync fails with EIO
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = os.environ.get("FAULTS_FOLDER", "")


def faulty(sync: Callable[[int], None]) -> Callable[[int], None]:
    folder = Path(FOLDER)
    hang, slow, eio, hangs = (folder / name for name in ("hang", "slow", "eio", "hangs"))

    def synced(fd: int) -> None:
        if slow.exists():
            time.sleep(float(slow.read_text()))  # tidy: a slow disk
        if hang.exists():
            hangs.touch()
            while hang.exists():
                time.sleep(0.005)  # tidy: a disk that hangs
        if eio.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    return synced


if FOLDER:
    os.fdatasync = faulty(os.fdatasync)
    os.fsync = faulty(os.fsync)
