"""Damaged bytes, kept for people: one file a stretch, in the folder ``evidence`` beside the log.

evidence/<segment>-<offset>.bin     the bytes as the disk gave them
"""

import logging
from pathlib import Path

from qbroker.log.errors import CorruptError
from qbroker.log.log import Log
from qbroker.log.salvage import Damage

logger = logging.getLogger("qbroker.evidence")

EVIDENCE_FOLDER = "evidence"
FILES_MAX = 1_000
"""More than that is not kept: the disk is beyond evidence."""


class Evidence:
    """The folder. Made when it is first needed; for any thread."""

    def __init__(self, data: Path, log: Log) -> None:
        self._folder = data / EVIDENCE_FOLDER
        self._log = log

    def keep(self, damage: Damage) -> str:
        """The name of the file that holds the damaged bytes; empty if they cannot be had or kept.

        The journal says it, once a stretch.
        """
        name = f"{damage.file.removesuffix('.qlog')}-{damage.offset}.bin"
        path = self._folder / name
        try:
            if path.exists():
                return name
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if len(list(self._folder.iterdir())) >= FILES_MAX:
                return ""
            fresh = path.with_suffix(".tmp")
            fresh.write_bytes(self._log.evidence(damage))
            fresh.chmod(0o600)
            fresh.rename(path)
        except OSError as error:
            logger.warning("%s; its bytes could not be kept: %s", sentence(damage), error)
            return ""
        logger.warning("%s; its bytes are kept in %s", sentence(damage), path)
        return name


def no_evidence(_: Damage) -> str:
    """Nothing is kept."""
    return ""


def sentence(damage: Damage) -> str:
    """Where the damage is, and what it is."""
    return f"{damage.file} is damaged at byte {damage.offset}, {damage.length} bytes: {damage.why}"


def whole_batch(error: CorruptError, number: int, slots_max: int) -> Damage:
    """The damage when nothing of a batch can be read: all of its slots are lost."""
    return Damage(error.file, error.offset, 0, number * slots_max, slots_max, str(error))
