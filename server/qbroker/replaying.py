"""Start-up: the log's records through the same ``apply`` that live traffic uses."""

from collections.abc import Callable

from qbroker.ages import Ages
from qbroker.core import records
from qbroker.core.broker import Broker
from qbroker.log.log import Log


def replay(log: Log, core: Broker, ages: Ages, progress: Callable[[int, int], None]) -> None:
    """The core knows what the log says. ``progress`` gets batch and last batch now and then.

    Raises CorruptError where the log disagrees with itself. Costs some microseconds a
    record, not a message: a chunk of a thousand messages is one record.
    """
    unpack, apply = records.unpack, core.replay
    last = log.written
    for count, (info, stored) in enumerate(log.replay()):
        ages.note(info.number, info.wall_ms)
        for each in stored:
            apply(each.position, unpack(each.type, each.body))
        if not count & 0x3FF:
            progress(info.number, last)
