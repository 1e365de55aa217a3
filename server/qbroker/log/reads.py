"""The verbs that read: the same for the log's writer and for another process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from qbroker.log.disk import File
from qbroker.log.format import SLOT_BITS, Held, StoredRecord
from qbroker.log.lookup import find_block, find_holding, find_record
from qbroker.log.salvage import Damage
from qbroker.log.segment import Segment

READ_BLOCK_BYTES = 256 << 10


class Reads:
    """What Log and LogReader have in common. They know which file holds a batch.

    All of it raises TrimmedError and NoSuchPosition for what is not there, CorruptError for
    what does not verify, and of these UnreadableError if the disk refused.
    """

    __slots__ = ()

    @abstractmethod
    def _found(self, position: int) -> tuple[Segment, File]:
        """The segment that holds the batch of this position, and its file."""

    def read(self, position: int) -> StoredRecord:
        """The record that covers this position, which may be any of its slots; checked.

        DamagedRecord if it alone is bad. Two or three small reads, and the record's own bytes.
        """
        segment, file = self._found(position)
        return find_record(segment, file, position)

    def read_block(
        self,
        batch: int,
        min_bytes: int = READ_BLOCK_BYTES,
        damaged: list[Damage] | None = None,
    ) -> list[StoredRecord]:
        """All records of consecutive batches from `batch` on, in order, checked.

        Whole batches, at least one; ends with the batch that reaches `min_bytes`, or
        with the segment. Go on with the last record's batch plus one, or `batch` + 1 if
        the list is empty, as it is when these batches were. In a cleaned segment it
        begins with the next batch kept. With a list for `damaged`, bad records are left out
        and described there (rule 4 in log.py).
        """
        segment, file = self._found(batch << SLOT_BITS)
        return find_block(segment, file, batch, min_bytes, damaged)

    def holding(self, batches: range, needle: bytes, key: int) -> Iterator[Held]:
        """The records of these batches, all of one segment, whose bodies hold `needle`; checked.

        Those alone are checked: what does not verify is left out, and if there is no record it
        need not be so. Of large batches with marks only the records are looked at whose keys
        may include `key`, in one read if they are neighbours; others are read whole. Makes no
        object of other records.
        """
        segment, file = self._found(batches.start << SLOT_BITS)
        return find_holding(segment, file, batches, needle, key)
