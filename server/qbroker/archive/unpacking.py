"""A record of the log, as the kind that its rule is for."""

from typing import TypeVar, cast

from qbroker.core import records as r
from qbroker.log.format import StoredRecord

R = TypeVar("R", bound=r.Record)


def unpacked(stored: StoredRecord, _kind: type[R]) -> R:
    """The record, which is of that kind."""
    return cast("R", r.unpack(stored.type, stored.body))
