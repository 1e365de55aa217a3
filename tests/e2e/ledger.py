"""The application that the fleets of the stories run: tasks that leave a trace in files.

LEDGER           a folder: each run of a task appends a line with its id to the file ``runs``
LEDGER_BROKER    where the broker is
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

from qclient import App, group

FOLDER = Path(os.environ.get("LEDGER", "."))
PATIENCE_S = 300.0

app = App("ledger", broker=os.environ.get("LEDGER_BROKER", "qbroker://localhost"))


def write_down(line: str, name: str = "runs") -> None:
    """One line, whole, whoever else writes."""
    fd = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


@app.task(ignore_result=True)
def note(mark: str) -> None:
    """Leaves its mark."""
    write_down(mark)


@app.task
def echo(value: Any) -> Any:
    return value


@app.task(bind=True)
def wait_for(self: Any, name: str) -> int:
    """Begins, waits until a file of that name is there, and ends: how often it was delivered."""
    write_down(name, "begun")
    deadline = time.monotonic() + PATIENCE_S
    while not (FOLDER / name).exists():
        assert time.monotonic() < deadline, "nobody made the file"
        time.sleep(0.01)  # tidy: a task that takes as long as the story wants
    write_down(name)
    return int(self.request.deliveries)


@app.task(bind=True)
def hold_interpreter(self: Any, seconds: float) -> tuple[float, int]:
    """One call of C code that lets no other Python thread run, for that long.

    Returns the longest time in which a second thread got no turn, in seconds, and how often the
    task was delivered.
    """
    write_down(self.request.id, "begun")
    gaps, over = [0.0], threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not over.wait(0.005):
            now = time.monotonic()
            gaps.append(now - last)
            last = now
        gaps.append(time.monotonic() - last)

    thread = threading.Thread(target=tick)
    thread.start()
    # A PyDLL keeps the interpreter's lock while its functions run, as many C extensions do.
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))
    over.set()
    thread.join()
    write_down(self.request.id)
    return max(gaps), int(self.request.deliveries)


# Steps of canvases: see canvases.py.


@app.task
def f(*given: Any) -> list[Any]:
    write_down("f")
    return ["f", *given]


@app.task(autoretry_for=(OSError,), default_retry_delay=0.02, max_retries=50)
def flaky(*given: Any) -> list[Any]:
    """Half of its runs fail."""
    write_down("flaky")
    if os.urandom(1)[0] & 1:
        raise OSError("not this time")
    return ["f", *given]


@app.task(bind=True)
def becomes(self: Any, *given: Any) -> Any:
    """A chain, a group, or one call, in its place: all give the same."""
    kind = os.urandom(1)[0] % 3
    if kind == 0:
        raise self.replace(f.s(*given))
    if kind == 1:
        raise self.replace(f.si(0) | f.si(*given))
    raise self.replace(group(f.si(1), f.si(2)) | f.si(*given))


@app.task(max_retries=0, autoretry_for=())
def boom(*given: Any) -> None:
    raise ValueError(repr(given))


@app.task(ignore_result=True)
def told(error: Exception, mark: str) -> None:
    """Leaves a mark of what went wrong before it."""
    write_down(f"{mark}:{getattr(error, 'kind', type(error).__name__)}")


@app.task(bind=True)
def run_step(self: Any, data: dict[str, Any]) -> None:
    raise self.replace(app.step(data))
