"""Messages found in the log by the id that their client minted. For a reader's thread.

The log's index says which batches may hold an id: it knows the range of mint times of each 16 KiB.
"""

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from qbroker.bodies import Bodies, Body, stored_body
from qbroker.core.survey import id_of
from qbroker.evidence import sentence
from qbroker.log.errors import CorruptError, TrimmedError, UnreadableError
from qbroker.log.salvage import Damage
from qprotocol.ids import minted_ms
from qprotocol.wire import batch_of


@dataclass(slots=True)
class Minted:
    """What the log has under an id."""

    messages: dict[int, bytes] = field(default_factory=dict)
    """Positions and bytes, oldest first."""
    unread: str = ""
    """Where else it may be, in batches that the disk refuses for now; a sentence."""


def find_minted(bodies: Bodies, name: bytes, unwritten: list[Body]) -> Minted:
    """The messages whose id is ``name``. What is damaged on disk is passed over.

    The bytes of some batches are read and searched: some tenths of a millisecond a megabyte.
    """
    found = Minted()
    try:
        for batches in bodies.log.candidates(minted_ms(name)):
            look(found, bodies, name, batches)
    except CorruptError as error:
        found.unread = said(bodies, error)
    for body in unwritten:
        found.messages |= search(body, name)
    found.messages = dict(sorted(found.messages.items()))
    return found


def look(found: Minted, bodies: Bodies, name: bytes, batches: range) -> None:
    """Put in what these batches have."""
    number = batches.start
    while number < batches.stop:
        try:
            for stored in bodies.log.holding(range(number, batches.stop), name, minted_ms(name)):
                body = stored_body(stored)
                found.messages |= search(body, name) if body else {}
        except TrimmedError:
            return
        except CorruptError as error:
            found.unread = said(bodies, error) or found.unread
            number = max(number, error.first) + 1
        else:
            return


def said(bodies: Bodies, error: CorruptError) -> str:
    """The error, if the disk may give the bytes yet; empty if they count as damaged."""
    hopeful = isinstance(error, UnreadableError) and not bodies.is_hopeless(error.first)
    return str(error) if hopeful else ""


def damage_beside(bodies: Bodies, name: bytes) -> str:
    """What is damaged where ``name`` would be, in a sentence; empty if nothing is.

    Reads and checks every record there: for an id that was not found.
    """
    log = bodies.log
    try:
        candidates = log.candidates(minted_ms(name))
    except CorruptError as error:
        return str(error)
    for batches in candidates:
        batch = batches.start
        while batch < batches.stop:
            damaged: list[Damage] = []
            try:
                stored = log.read_block(batch, 1, damaged)
            except TrimmedError:
                break
            except CorruptError as error:
                return str(error)
            for damage in damaged:
                if damage.count:
                    return sentence(damage)
            last = batch_of(stored[-1].position) if stored else batch
            batch = max(last, batch) + 1
    return ""


def search(body: Body, name: bytes) -> dict[int, bytes]:
    """The messages of ``body`` whose packed id is ``name``."""
    raw, hits = body.raw, {}
    hit = raw.rfind(name)
    starts = body.starts() if hit >= 0 else array("I")
    while hit >= 0 and (index := bisect_right(starts, hit) - 1) >= 0:
        start = starts[index]
        end = starts[index + 1] if index + 1 < body.count else len(raw)
        if id_of(raw, start) == name:
            hits[body.first + index] = raw[start:end]
        hit = raw.rfind(name, 0, start)
    return hits
