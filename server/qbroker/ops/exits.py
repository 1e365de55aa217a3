"""How the ``qbroker`` command ends: its exit codes, and the sentence of one that cannot go on."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes. 64 and above are those of sysexits.h."""

    OK = 0
    FAILED = 1
    """An address cannot be had, or anything without a code of its own."""
    USAGE = 2
    """Settings, flags or commands that cannot be used."""
    CORRUPT = 65
    """The log is damaged where it had been confirmed."""
    UNAVAILABLE = 69
    """No broker answers (the commands that ask one)."""
    BUG = 70
    UNFINISHED = 75
    """What was waited for did not happen in time; trying again may help."""
    LOCKED = 73
    """The data folder is in use, or belongs to somebody else."""
    DISK = 74
    """The disk failed."""
    UNLIKE = 76
    """The broker is of another version, and does not know what the command needs."""
    INTERRUPTED = 130


class Trouble(Exception):  # noqa: N818  # what is true, not what went wrong
    """What could not be done: why, and what to do, in one line; and the exit code."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code
