"""Uploads under way in a snapshot: their end may be in the log behind it."""

from collections import Counter
from itertools import islice

from qbroker.core.columns import pack_columns, unpack_columns
from qbroker.core.savedgraphs import restore_graph, save_graph
from qbroker.core.state import BrokerState
from qbroker.core.timers import Timers
from qbroker.core.uploads import Upload

Block = bytes | memoryview


def save_uploads(state: BrokerState) -> bytes:
    """A row an upload; a column for each run it has staged, then those of its timers."""
    rows, columns = [], []
    for key, upload in state.uploads.items():
        graph, more = save_graph(upload.graph) if upload.graph else (None, [])
        timers, expiries = upload.timers.saved(), upload.expiries.saved()
        delayed = {group: list(positions) for group, positions in upload.delayed.items()}
        rows.append(
            [
                *(
                    key,
                    list(upload.staged),
                    timers[0],
                    expiries[0],
                    delayed,
                    list(upload.named.items()),
                ),
                *(upload.continued, upload.weighed, upload.revoked),
                *(upload.last, upload.count, upload.parts),
                *((graph, dict(upload.held)) if graph else ()),
            ]
        )
        columns += more
        columns += [*upload.staged.values(), *timers[1], *expiries[1]]
    return pack_columns(rows, columns)


def restore_uploads(state: BrokerState, block: Block) -> None:
    rows, columns = unpack_columns(block)
    waiting = iter(columns)
    for key, staged, timers, expiries, delayed, named, continued, *rest in rows:
        weighed = rest.pop(0) if len(rest) > 3 else []  # version 4
        revoked = rest.pop(0) if len(rest) > 3 else []
        graph, held = rest[3:] or (None, {})  # version 6, if its messages are nodes
        woven = restore_graph(graph, waiting) if graph else None
        upload = state.uploads[tuple(key)] = Upload(
            {tuple(run): next(waiting) for run in staged},
            Timers.restored(timers, list(islice(waiting, 3 * len(timers)))),
            Timers.restored(expiries, list(islice(waiting, 3 * len(expiries)))),
            {group: set(positions) for group, positions in delayed.items()},
            dict(named),
            continued,
            [tuple(each) for each in weighed],
            [tuple(each) for each in revoked],
        )
        upload.last, upload.count, upload.parts = rest[:3]
        upload.graph = woven
        upload.held.update(held)
        upload.scheduled.update(Counter(number >> 8 for _, _, number in upload.timers.entries()))
