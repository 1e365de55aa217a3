"""What can be wrong with checkpoints: what happened, what it means, what to do."""


class CheckpointError(Exception):
    """A checkpoint forbids the start: what it says and what the log says cannot both be true."""


class DamagedError(Exception):
    """This file cannot be used. Another one, or the whole log, may do instead."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"checkpoint {name} cannot be used: {why}")
        self.name = name


class ForeignCheckpoint(CheckpointError):  # noqa: N818  # a state, not a mistake
    """The checkpoint is of another log, or of another history of this one."""

    def __init__(self, name: str, difference: str) -> None:
        super().__init__(
            f"checkpoint {name} belongs to {difference}; folders were mixed, or one of them was "
            "restored without the other; put back the log and the checkpoints that belong together"
        )


class AheadCheckpoint(CheckpointError):  # noqa: N818  # a state, not a mistake
    """The checkpoint knows batches that the log does not have."""

    def __init__(self, name: str, batch: int, last: int) -> None:
        super().__init__(
            f"checkpoint {name} covers the log up to batch {batch}, but the log ends at batch "
            f"{last}; confirmed batches are missing; put back the log files that are gone, or "
            "restore the whole folder from a backup"
        )


class NoCheckpoint(CheckpointError):  # noqa: N818  # a state, not a mistake
    """The log's beginning is gone, and no checkpoint stands in for it."""

    def __init__(self, oldest: int, tried: list[DamagedError]) -> None:
        state = "; ".join(map(str, tried)) if tried else "there is no checkpoint"
        super().__init__(
            f"{state}; the log was cleaned and holds everything only from batch {oldest} on, so "
            "what was confirmed before cannot be known; restore the whole folder from a backup, "
            "or put back the checkpoint files"
        )
