"""The file that says which process the worker is, for service managers that want one."""

import contextlib
import os
from pathlib import Path
from typing import Self


class PidfileError(Exception):
    """The file belongs to another living process, or cannot be written."""


class Pidfile:
    """Holds our process id while the worker runs. An empty path is no file at all."""

    def __init__(self, path: str) -> None:
        self.path = Path(path) if path else None

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        holder = self._holder()
        if holder:
            raise PidfileError(
                f"{self.path} says that a worker runs already, as process {holder}; "
                f"stop it, or give this one another --pidfile"
            )
        try:
            self.path.write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise PidfileError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _holder(self) -> int:
        """The living process that the file names; 0 if there is none."""
        assert self.path is not None
        try:
            pid = int(self.path.read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return 0
        return pid
