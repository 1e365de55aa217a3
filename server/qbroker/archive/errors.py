"""What can go wrong with the archive: a class for each, and a sentence for a person.

As in the log, a sentence says what happened, what it means, and what to do.
"""

from typing import ClassVar


class ArchiveError(Exception):
    """The archive cannot be used. ``kind`` is for programs."""

    kind: ClassVar[str] = "unusable"
    lasting: ClassVar[bool] = False
    """Whether another try, without a person's help, must end the same way."""


class DamagedError(ArchiveError):
    """Its file is not what was written."""

    kind: ClassVar[str] = "damaged"
    lasting: ClassVar[bool] = True

    def __init__(self, file: str, why: str) -> None:
        super().__init__(
            f"{file} is damaged: {why}; what it held of settled tasks cannot be trusted, tasks go "
            "on without it; restore it from a backup, or start the broker with "
            "--move-archive-aside: it is kept under another name, and a new one begins with what "
            "the log still has"
        )


class ForeignError(ArchiveError):
    """It belongs to another log, or to another time of this one."""

    kind: ClassVar[str] = "foreign"
    lasting: ClassVar[bool] = True

    def __init__(self, file: str, difference: str) -> None:
        super().__init__(
            f"{file} does not belong to this log: {difference}; folders were mixed, or only one of "
            "log and archive was restored; restore both from the same backup, or start the broker "
            "with --move-archive-aside"
        )


class NewerError(ArchiveError):
    """A newer version wrote it."""

    kind: ClassVar[str] = "newer"
    lasting: ClassVar[bool] = True

    def __init__(self, file: str, found: int, known: int) -> None:
        super().__init__(
            f"{file} has schema {found}, this version reads schema {known}; it was written by a "
            "newer version and is left untouched; start that version, or a later one"
        )


class OlderError(ArchiveError):
    """An older version wrote it, and the archivist has not brought it up to date yet."""

    kind: ClassVar[str] = "older"

    def __init__(self, file: str, found: int, known: int) -> None:
        super().__init__(
            f"{file} has schema {found}, searches need schema {known}: the archivist makes it that "
            "when it starts; ask again in a moment, and if it stays so see /health"
        )


class BusyError(ArchiveError):
    """Another process writes it, or the disk has no room, or hangs: it may be better later."""

    kind: ClassVar[str] = "unwritable"

    def __init__(self, file: str, why: str) -> None:
        super().__init__(
            f"{file} cannot be used now: {why}; the log keeps what is not archived yet, and it is "
            "tried again; see to room and health of the disk"
        )
