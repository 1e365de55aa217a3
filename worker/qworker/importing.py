"""The parent's handle on the import process: starts it, hears of it, gives it orders."""

import os
import socket
import subprocess
import sys
from typing import Any

from qworker.control import Control
from qworker.options import WorkerOptions
from qworker.slots import Slots


class ImportProcess:
    """A process that loads the application, on the other end of a control stream."""

    def __init__(self, options: WorkerOptions, slots: Slots) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "qworker.child", str(theirs.fileno()), str(os.getpid())]
        # A group of its own: what the terminal sends to ours (^C) is for the parent to judge.
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            pass_fds=(theirs.fileno(), slots.fd),
            stdin=subprocess.DEVNULL if options.pool != "solo" else None,
            process_group=0,
        )
        theirs.close()
        self.control = Control(ours)
        self.loaded = False
        self.control.send(
            load={
                "app": options.app,
                "broker": options.broker,
                "slots_fd": slots.fd,
                "slots": slots.names,
                "level": options.level,
                "log_format": options.log_format,
            }
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def start_child(self, number: int, slots: list[int]) -> None:
        """A child with those slots will be started, and reported."""
        self.control.send(start={"child": number, "slots": slots})

    def give_terms(self, terms: dict[str, Any]) -> None:
        """The import process knows what its children need."""
        self.control.send(terms=terms)

    def end(self) -> int:
        """The process is gone, with all of its children. Its wait status, negative for a signal."""
        self.control.close()
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
