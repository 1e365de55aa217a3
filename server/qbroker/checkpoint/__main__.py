"""The keeper's process: ``python -m qbroker.checkpoint DATA``, started by the broker alone.

    stdin    the order, a line of JSON; then nothing, until the broker ends: so does this
    stdout   what was done, a line of JSON each
    stderr   the broker's journal

It is niced: beside a busy broker it gets a tenth of a processor, and where the kernel's
disk scheduler heeds niceness (BFQ) the disk as well. It takes no lock; in the log's folder
it writes nothing but ``*.tmp``, which the broker adopts or the next start removes.
"""

import gc
import logging
import os
import sys
import threading
from pathlib import Path

from qbroker.checkpoint.errors import CheckpointError, DamagedError
from qbroker.checkpoint.keeper import Order, Told, keep, pack_line
from qbroker.checkpoint.shelf import FOLDER, Shelf
from qbroker.log.disk import FileDisk
from qbroker.log.errors import LogError
from qbroker.ops.exits import Exit
from qbroker.ops.journal import open_journal
from qbroker.ops.niceness import give_way

NICE = 10
LOG_FOLDER = "log"

_log = logging.getLogger("qbroker.keeper")


def main() -> Exit:
    """Do what one order says; how it ended."""
    give_way(NICE)
    gc.disable()  # millions of objects are made, and none becomes garbage
    data = Path(sys.argv[1])
    order = Order.unpack(sys.stdin.readline())
    threading.Thread(target=end_with_the_broker, daemon=True).start()
    open_journal(order.log_level, order.log_format)
    shelf = Shelf(FileDisk(str(data / FOLDER)))
    try:
        keep(FileDisk(str(data / LOG_FOLDER)), shelf, order, tell)
    except (CheckpointError, DamagedError, LogError) as error:
        _log.error("%s", error)
        return Exit.CORRUPT
    except OSError as error:
        _log.error("no checkpoint was written: %s", error)
        return Exit.DISK
    return Exit.OK


def tell(told: Told) -> None:
    """The broker hears of it."""
    sys.stdout.write(pack_line(told) + "\n")
    sys.stdout.flush()


def end_with_the_broker() -> None:
    """Nobody waits for a checkpoint whose broker is gone, and the next one needs the folder."""
    sys.stdin.read()
    os._exit(Exit.FAILED)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # to free ten million messages one by one takes seconds
