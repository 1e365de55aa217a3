"""`qbroker` on a disk whose syncs take 3 ms, and hang for as long as a file exists.

python hanging_disk.py FILE serve --data DIR ...
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from qbroker.cli import main
from qbroker.log.disk import OsFile
from qbroker.ops import health

hang = Path(sys.argv[1])
health.STALLED_S = 0.5
really_sync = OsFile.sync_data


def sync_slowly(self: OsFile) -> None:
    pause = threading.Event()
    pause.wait(0.003)
    while hang.exists():
        pause.wait(0.005)
    really_sync(self)


OsFile.sync_data = sync_slowly
main(sys.argv[2:])
