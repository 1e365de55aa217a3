"""Dead letters as people and programs see them: what the core knows, and what is in the log."""

import base64
from typing import Any

from qbroker.bodies import Bodies
from qbroker.core.effects import LetterRow, LettersShown
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.ids import unpack_id
from qprotocol.wire import NUMBERS, WHOLE


def letters_report(bodies: Bodies, shown: LettersShown) -> dict[str, Any]:
    """What DeadLetters is answered with. Raises Cold or Damaged."""
    frame = shown.frame
    rows = []
    for each in shown.rows:
        failure = failure_of(bodies.head(each.error) if each.error and reads(shown) else b"")
        said = f"{failure.kind}: {failure.message}", each.reason
        if frame.error and not any(frame.error in text for text in said):
            continue
        if frame.detail == NUMBERS:
            rows.append({"position": each.position, "number": each.number})
            continue
        row = shown_row(each) | {"error": failure.kind, "message": failure.message}
        if each.position not in shown.unread:
            row |= head_of(bodies.message(each.position))
        if frame.detail == WHOLE:
            row["traceback"] = failure.traceback
            if each.position not in shown.unread:
                raw = bodies.message(each.position, shown.continued.get(each.position))
                row["raw"] = base64.b64encode(raw).decode()
        rows.append(row)
    return {"letters": rows, "next": shown.next, "last": shown.last, "looked": shown.looked}


def reads(shown: LettersShown) -> bool:
    """Whether errors are shown, or looked into."""
    return shown.frame.detail != NUMBERS or bool(shown.frame.error)


def letters_need(shown: LettersShown) -> list[int]:
    """A position of every record whose bytes are shown."""
    needed = [row.error for row in shown.rows if row.error] if reads(shown) else []
    if shown.frame.detail != NUMBERS:
        needed += [row.position for row in shown.rows if row.position not in shown.unread]
    return needed


def leave_out(shown: LettersShown, at: int) -> None:
    """Without what is damaged there: an error, or what the message says of itself."""
    for index, row in enumerate(shown.rows):
        if row.error == at:
            shown.rows[index] = row._replace(error=0)
        if row.position == at or at in shown.continued.get(row.position, ()):
            shown.unread.add(row.position)


def shown_row(row: LetterRow) -> dict[str, Any]:
    """What the core knows, by name; its id and size are read."""
    shown = row._asdict()
    del shown["error"]
    return shown | {"id": None, "body_bytes": None}


def head_of(raw: bytes) -> dict[str, Any]:
    """Id and size of a packed message, whose body may be missing."""
    size, _, _, _, flags, _, _, n_route, n_id, _, n_meta, n_head = wire.MESSAGE.unpack_from(raw)
    start = wire.MESSAGE.size + n_route
    name = raw[start : start + n_id]
    found = unpack_id(name, minted=bool(flags & wire.ID_MINTED))
    head_bytes = wire.MESSAGE.size - 4 + n_route + n_id + n_meta + n_head
    return {"id": found or None, "body_bytes": size - head_bytes}


def failure_of(raw: bytes) -> Failure:
    """The packed failure; text that is none is its message."""
    try:
        return Failure.unpack(raw) if raw else Failure("", "")
    except ValueError:
        return Failure("", raw.decode("utf-8", "replace"))
