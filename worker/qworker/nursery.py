"""The import process after loading: forks children on the parent's order, reports their ends.

It runs no task and holds no connection. While it waits it touches nothing, so that its pages
stay shared with the children.
"""

import os
import select
import signal
from typing import Any

from qworker.control import Control
from qworker.pools.inside import Inside


class Nursery:
    """Forks and reaps."""

    def __init__(self, control: Control, inside: Inside) -> None:
        self.control, self.inside = control, inside
        self.children: dict[int, int] = {}
        """Numbers of children by process id."""

    def run(self) -> None:
        """Until the parent closes the stream, which ends every child still alive."""
        bell, rope = os.pipe()
        os.set_blocking(rope, False)
        os.set_blocking(bell, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self.control.fileno(), select.POLLIN)
        poll.register(bell, select.POLLIN)
        for _kind, order in self.control.early():
            self._start(order, (bell, rope))
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if bell in ready:
                os.read(bell, 4096)
            self._reap()
            if self.control.fileno() in ready:
                orders = self.control.receive()
                if orders is None:
                    break
                for _kind, order in orders:
                    self._start(order, (bell, rope))
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)

    def _start(self, order: dict[str, Any], ours: tuple[int, int]) -> None:
        number, parent = order["child"], os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no process left: the parent tries again later
            self.control.send(ended={"child": number, "pid": 0, "status": 0, "why": str(error)})
            return
        if pid:
            self.children[pid] = number
            self.control.send(started={"child": number, "pid": pid})
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in ours:
                os.close(fd)
            self.control.close()
            self.inside.become(number, order["slots"], parent)
            code = 0
        finally:
            self.inside.end(code)

    def _reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self.children.pop(pid, None)
            if number is not None:
                self.control.send(ended={"child": number, "pid": pid, "status": status})
