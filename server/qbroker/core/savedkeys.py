"""What producers sent, and keys that are held, in a snapshot."""

from qbroker.core.chunks import Producer
from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.state import BrokerState
from qprotocol.limits import PRODUCER_WINDOW

Block = bytes | memoryview
_WINDOW_BYTES = PRODUCER_WINDOW // 8


def save_producers(state: BrokerState) -> bytes:
    """Columns: number, highest chunk, last seen. Windows one behind the other."""
    known = state.producers.values()
    windows = b"".join(each.window.to_bytes(_WINDOW_BYTES, "little") for each in known)
    columns = [
        column(state.producers),
        column(each.highest for each in known),
        column(each.seen_ms for each in known),
    ]
    return pack_columns(windows, columns)


def restore_producers(state: BrokerState, block: Block) -> None:
    windows, columns = unpack_columns(block)
    for row, (number, highest, seen_ms) in enumerate(zip(*columns, strict=True)):
        window = windows[row * _WINDOW_BYTES : (row + 1) * _WINDOW_BYTES]
        state.producers[number] = Producer(highest, int.from_bytes(window, "little"), seen_ms)


def save_keys(state: BrokerState) -> bytes:
    """Keys and their holders; of each producer, what stands for messages that were not stored."""
    answers = {number: each.answers for number, each in state.producers.items() if each.answers}
    return pack_columns([state.keys.saved(), answers])


def restore_keys(state: BrokerState, block: Block) -> None:
    """After the producers."""
    saved, answers = unpack_columns(block)[0]
    state.keys.restore(saved)
    for number, each in answers.items():
        state.producers[number].answers = each
