"""The log's records through the same ``apply`` as live traffic: at a start, and beside it."""

from collections.abc import Callable, Iterable

from qbroker.ages import Ages
from qbroker.core import records
from qbroker.core.broker import Broker
from qbroker.log.format import BatchInfo, StoredRecord
from qbroker.log.log import Log

Batches = Iterable[tuple[BatchInfo, list[StoredRecord]]]


def replay(
    log: Log, core: Broker, ages: Ages, progress: Callable[[int, int], None], first: int = 0
) -> int:
    """The core knows what the log says from batch ``first`` on; 0 is its beginning.

    Returns the bytes that were read. ``progress`` gets batch and last batch now and then.
    Raises CorruptError where the log disagrees with itself.
    """
    last = log.written
    return follow(log.replay(first), core, ages, lambda batch: progress(batch, last))


def follow(batches: Batches, core: Broker, ages: Ages, progress: Callable[[int], None]) -> int:
    """The core knows what these batches say; their bytes. ``progress`` gets every thousandth.

    Costs some microseconds a record, not a message: a chunk of a thousand is one record.
    """
    unpack, apply, size = records.unpack, core.replay, 0
    for count, (info, stored) in enumerate(batches):
        ages.note(info.number, info.wall_ms)
        for each in stored:
            apply(each.position, unpack(each.type, each.body))
        size += info.length
        if not count & 0x3FF:
            progress(info.number)
    return size
