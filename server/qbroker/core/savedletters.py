"""Dead letters in a snapshot: a column a number, their texts beside."""

from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.letters import Letter
from qbroker.core.state import BrokerState
from qprotocol.options import DEAD_SUFFIX

Block = bytes | memoryview
NUMBERS = ("number", "died_ms", "expires_ms", "due_ms")


def save_letters(state: BrokerState) -> bytes:
    """In the order in which they died."""
    found = state.letters.ordered()
    letters = [letter for _, letter in found]
    homes = {name: index for index, name in enumerate(dict.fromkeys(x.home for x in letters))}
    workers = {name: index for index, name in enumerate(dict.fromkeys(x.worker for x in letters))}
    columns = [
        column(position for position, _ in found),
        column(homes[each.home] for each in letters),
        column(workers[each.worker] for each in letters),
        *(column(getattr(each, name) for each in letters) for name in NUMBERS),
    ]
    return pack_columns([state.letters.count, list(homes), list(workers)], columns)


def restore_letters(state: BrokerState, block: Block) -> None:
    """In their order again."""
    (state.letters.count, homes, workers), columns = unpack_columns(block)
    for position, home, worker, number, died_ms, expires_ms, due_ms in zip(*columns, strict=True):
        letter = Letter(number, died_ms, homes[home], workers[worker], expires_ms, due_ms)
        state.letters.restore(position, letter)


def find_letters(state: BrokerState) -> None:
    """Those of a state that knew of none: when they died, and who had them, nobody can tell."""
    for position, each in state.attempts.items():
        queue = each.run.lane.queue if each.run else None
        if each.reason and queue and queue.holds_letters:
            home = queue.name.removesuffix(DEAD_SUFFIX)
            state.letters.add(position, Letter(0, 0, home, b""))
