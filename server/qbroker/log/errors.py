"""What can go wrong in the log: a class for each, and a sentence for a person.

Every message has three parts: what happened, with the values; what it means; what to
do. Nothing here is retried by the log itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from qbroker.log.salvage import Damage


class LogError(Exception):
    """Any trouble of the log. Catch the ones below, unless the reaction is to stop."""


class LogFailed(LogError):  # noqa: N818  # an event, not a mistake
    """The disk refused, and the log is fenced: no later call will succeed.

    What was not durable before may or may not be on disk. Only a new start can tell.
    `cause` is the operating system's error.
    """

    def __init__(self, doing: str, cause: OSError) -> None:
        super().__init__(
            f"{doing} failed: {cause}; nothing more is written, because after a failed write or "
            "sync only a new start can tell what the disk holds; see to the disk (space, health, "
            "permissions), then start again"
        )
        self.cause = cause


class NoRoom(LogError):  # noqa: N818  # a state of the disk, not a mistake
    """There is no room for a segment. Nothing was written and nothing is lost: commit it again.

    Not fenced: all that was written stays as durable as it was, and can be read.
    """

    def __init__(self, doing: str, cause: OSError) -> None:
        super().__init__(
            f"{doing} finds no room: {cause}; it waits, and so does everybody who asked for what "
            "is in it; free some room on the disk, and it goes on by itself"
        )
        self.cause = cause


class CorruptError(LogError):
    """Bytes that were once confirmed cannot be read back as they were written.

    Never raised for a torn tail: that was never confirmed and is cut (see LOG.md).
    """

    sentence: ClassVar[str] = (
        "{file} is damaged at byte {offset}: {why}; {batches} of the log had been confirmed and "
        "cannot be trusted; restore the directory from a backup or a replica, or keep a copy of it "
        "before any repair"
    )

    def __init__(self, file: str, offset: int, first: int, last: int, why: str) -> None:
        batches = f"batch {first}" if first == last else f"batches {first} to {last}"
        super().__init__(self.sentence.format(file=file, offset=offset, why=why, batches=batches))
        self.file = file
        self.offset = offset
        self.first = first
        self.last = last


class UnreadableError(CorruptError):
    """The disk did not give the bytes; whether they are intact is not known.

    `__cause__` is the operating system's error. Reading may be tried again.
    """

    sentence: ClassVar[str] = (
        "{file} cannot be read at byte {offset}: {why}; {batches} of the log had been confirmed "
        "and may still be intact; see to the disk's health, then try again, or restore the "
        "directory from a backup or a replica"
    )


class DamagedRecord(CorruptError):  # noqa: N818  # a state of the record, not a mistake
    """One record does not verify, while others of its batch do: it can be set aside.

    `damage` says where its bytes are and which slots are lost with it.
    """

    sentence: ClassVar[str] = (
        "{file} is damaged at byte {offset}: {why}; one record of {batches}, which had been "
        "confirmed, is lost, its neighbours are intact; keep its bytes and set its messages "
        "aside, or restore the directory from a backup or a replica"
    )

    def __init__(self, position: int, damage: Damage) -> None:
        number = damage.position >> 20
        super().__init__(damage.file, damage.offset, number, number, damage.why)
        self.position = position
        self.damage = damage


class TrimmedError(LogError, LookupError):
    """What stood at the position is gone: dropped with its segment, or cleaned out of it."""

    def __init__(self, position: int, why: str) -> None:
        super().__init__(
            f"batch {position >> 20} (position {position}) is gone: {why}; what it held was "
            "released before; ask the archive instead"
        )
        self.position = position


class NoSuchPosition(LogError, LookupError):  # noqa: N818  # a lookup, named as in the wire protocol
    """No record was ever written at this position."""

    def __init__(self, position: int, why: str) -> None:
        super().__init__(
            f"there is no record at position {position} (batch {position >> 20}, slot "
            f"{position & 0xFFFFF}): {why}; whoever asked holds a position from another log, or "
            "one that was never confirmed; ask with a position this log gave out"
        )
        self.position = position


class FormatError(LogError):
    """The directory was written by a version with another format."""

    def __init__(self, file: str, found: int, known: int) -> None:
        wrote, start = (
            ("a newer version", "that version, or a later one")
            if found > known
            else ("a version from before the first release", "that version, to empty its queues")
        )
        super().__init__(
            f"{file} has format {found}, this version reads format {known}; it was written by "
            f"{wrote} and is left untouched; start {start}"
        )
        self.found = found


class StaleError(LogError):
    """A rewritten segment does not stand for what the log has there now. Nothing changed."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(
            f"the rewritten segment of batches {first} to {last} was not taken: what it was made "
            "of is not what is there; the log is as before; rewrite what it has now"
        )


class RepairError(LogError):
    """The log is not cut at this position. Nothing changed."""

    def __init__(self, position: int, why: str) -> None:
        super().__init__(
            f"the log was not cut at position {position} (batch {position >> 20}): {why}; nothing "
            "was changed"
        )
        self.position = position


class LockedError(LogError):
    """Another process has this directory."""

    def __init__(self, directory: str, holder: str) -> None:
        super().__init__(
            f"{directory} is in use by another broker ({holder or 'unknown process'}); two writers "
            "would destroy the log; stop that one first, or give this one its own directory"
        )
        self.holder = holder


class ForeignError(LogError):
    """A file belongs to another log or cluster."""

    def __init__(self, file: str, difference: str) -> None:
        super().__init__(
            f"{file} belongs to {difference}; directories were mixed, or the wrong one is mounted; "
            "give this broker the directory it wrote"
        )


class OwnerError(LogError):
    """The directory belongs to another user."""

    def __init__(self, directory: str, owner: int, user: int) -> None:
        super().__init__(
            f"{directory} belongs to user id {owner}, this process runs as {user}; files in it "
            "could be changed by others while they are trusted; run as the owner, or chown it"
        )


class TooLargeError(LogError, ValueError):
    """One record, or one batch, is beyond a limit. Nothing was added."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"{what} of {size} exceeds the limit of {limit}; it was not added and the batch is as "
            "before; put it into the next batch, or send it in parts"
        )
