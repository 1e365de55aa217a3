"""Messages whose bytes rotted on disk: set aside, seen by people, delivered to nobody.

That a message is damaged shows when it is read to be delivered, so it is leased then. Its
lease ends, its task is a FAILURE, and what is known of it stays until its queue is purged.
"""

from qbroker.core import records as r
from qbroker.core.moment import Now
from qbroker.core.results import Finished
from qbroker.core.state import BrokerState
from qbroker.core.statistics import QuarantinedMessage
from qprotocol.states import State


def decide_quarantine(
    state: BrokerState, now: Now, positions: list[int], why: str, evidence: str
) -> list[r.Record]:
    """The record for those of the messages that are leased; the others are over by now."""
    leased = [position for position in positions if position in state.leases]
    if not leased:
        return []
    until = now.wall_ms + state.settings.result_ttl_ms
    return [r.Quarantined(leased, why, evidence, now.wall_ms, until)]


def apply_quarantined(state: BrokerState, position: int, record: r.Quarantined) -> None:
    """These messages are in no place any more but here."""
    for each in record.positions:
        lane = state.unlease(each).lane
        lane.queue.counts["quarantined"] += 1
        state.catalogue.gone(lane.queue, each)
        state.quarantined[each] = lane.number, record.finished_ms, record.why, record.evidence
        attempts = state.attempts.get(each)
        entry = Finished(
            State.FAILURE,
            0,
            0,
            record.finished_ms,
            0,
            record.keep_until_ms,
            attempts.failures if attempts else 0,
            f"quarantined: {record.why}",
            settled=position,
        )
        state.finish(each, entry, keep=True, synced=lane.queue.synced)
        state.forget(each)


def quarantined_messages(state: BrokerState) -> tuple[QuarantinedMessage, ...]:
    """All that are set aside, oldest first."""
    rows = []
    for position, (number, since_ms, why, evidence) in state.quarantined.items():
        lane = state.lanes[number]
        rows.append(
            QuarantinedMessage(position, lane.queue.name, lane.task, since_ms, why, evidence)
        )
    return tuple(rows)
