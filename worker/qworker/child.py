"""``python -m qworker.child``: the import process, and by fork every child.

    exec by the parent -> load the application -> report
       prefork         -> fork a child for each order, report its end       (nursery.py)
       threads, solo   -> on the order, run the runners here

It is a program of its own, not a fork of the parent, so that nothing of the parent (click, its
threads, its connection) is in it: what it imports is what every child weighs.
"""

import gc
import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from traceback import format_exception
from typing import Any

from qclient.address import Address
from qworker import logs
from qworker.agreement import describe
from qworker.control import Control
from qworker.lineage import die_with_parent
from qworker.locate import AppNotFound, find_app
from qworker.logs import note
from qworker.nursery import Nursery
from qworker.pools import POOLS
from qworker.pools.inside import Inside
from qworker.slots import Slots
from qworker.terms import Terms

EXIT_NOT_LOADED = 1


def main() -> int:
    """The process's whole life. Its exit code means something only if nothing was loaded."""
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    parent_pid = int(sys.argv[2])
    die_with_parent(parent_pid, forks=True)
    # A signal to the whole group or cgroup reaches this process too; the parent decides.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    order = control.expect("load")
    slots = Slots.open(order["slots_fd"], order["slots"])
    control.send(opened=True)
    logs.set_up(order["level"], order["log_format"], "import")
    try:
        app = load(order["app"], order["broker"])
    except BaseException as error:  # noqa: BLE001 - whatever the user's module raises
        control.send(failed=failure(error))
        return EXIT_NOT_LOADED
    control.send(loaded=describe(app))
    try:
        terms = Terms.of(control.expect("terms"))
        inside = Inside(app, terms, slots)
        if POOLS[terms.pool].forks:
            Nursery(control, inside).run()
            return 0
        start = control.expect("start")
    except EOFError:  # the parent ended, or will not go on with this application
        return 0
    inside.become(start["child"], start["slots"], parent_pid)
    return 0


def load(where: str, broker: str) -> Any:
    """The application, its memory arranged for forking: shared pages stay shared.

    What its tasks send goes to ``broker`` too, if that was said.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    gc.disable()  # pages freed by a collection before the fork would be written by children
    app = find_app(where)
    if broker:
        app.address = app.connection.address = Address.parse(broker)
    if threading.active_count() > 1:
        note(
            logging.WARNING,
            "importing the application started threads, which forked children do not have; "
            "start them in the tasks' own process, or use --pool threads or solo",
            threads=",".join(thread.name for thread in threading.enumerate()[1:]),
        )
    gc.freeze()
    gc.enable()
    return app


def failure(error: BaseException) -> dict[str, str]:
    """Why there is no application, for a person."""
    if isinstance(error, AppNotFound):
        return {"message": str(error), "traceback": ""}
    frames = "".join(format_exception(error))
    return {"message": f"{type(error).__name__}: {error}", "traceback": frames}


if __name__ == "__main__":
    sys.exit(main())
