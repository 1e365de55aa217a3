"""Holders that are gone: what they held is given back, so much a turn.

A member leaves with a goodbye, or is lost: the connection of a plain consumer ends, a session
is silent for too long. It hears of nothing any more at once. Its messages stay leased until a
record says otherwise: the first are given back in the same turn, the rest is in
``state.leaving`` for the next ones.

That is volatile. After a crash the log has the leases that were not given back yet, and a
session that may come for them. So it may before: a Hello ends its leaving, and what it names
and still has it keeps.
"""

from collections.abc import Collection

from qbroker.core import records as r
from qbroker.core.leases import Grant, Leaving, Member, Session
from qbroker.core.settings import LOST_MESSAGES_MAX, STARTED_WEIGHT
from qbroker.core.settling import settle_crash
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.message import Outcome

_LOST = Failure("WorkerLost", "the worker that ran this was lost").pack()


def part(
    state: BrokerState, member: Member, *, lost: bool, kept: Collection[int] = frozenset()
) -> None:
    """The member gives back what it holds, but for ``kept``; ``lost``: it did not say goodbye."""
    grants = list(member.grants.values())
    if grants:
        tokens = ((grant, position) for grant in grants for position in grant.positions())
        state.leaving[member] = Leaving(lost, kept, tokens)


def end(state: BrokerState, session: Session) -> None:
    """The session is over. It is forgotten once its members have given all back."""
    session.over = True
    if state.leaving.keys().isdisjoint(session.members.values()):
        del state.sessions[session.id]


def give_back(survey: Survey) -> list[r.Record]:
    """Records for the next piece of what those hold who are leaving.

    Looks at LOST_MESSAGES_MAX messages at most; one that had begun counts for STARTED_WEIGHT.
    """
    records: list[r.Record] = []
    leaving, room = survey.state.leaving, LOST_MESSAGES_MAX
    while leaving and room > 0:
        member, rest = next(iter(leaving.items()))
        room = give_back_some(survey, rest, records, room)
        if room > 0:
            del leaving[member]
    return [*survey.opened, *records]


def give_back_some(survey: Survey, rest: Leaving, records: list[r.Record], room: int) -> int:
    """Add records for one member; the room that is left, which is none if it holds more."""
    leases, returned = survey.state.leases, []
    for grant, position in rest.tokens:
        room -= 1
        if leases.get(position) is grant and position not in rest.kept:
            early = position in grant.early
            if early or (rest.lost and position in grant.started):
                room -= STARTED_WEIGHT
                records.append(crashed(survey, grant, position))
            else:
                returned.append(position)
        if room <= 0:
            break
    if returned:
        records.append(r.Returned(returned))
    return max(0, room)


def crashed(survey: Survey, grant: Grant, position: int) -> r.Record:
    """The record for a message whose worker was lost while it ran."""
    outcome = Outcome(wire.CRASH, position, grant.number, result=_LOST)
    return settle_crash(survey, outcome, grant)
