"""Who is there: sessions and their members, what they claim, how they leave.

A session's leases outlive its connections, and the broker: a worker that comes back says
what it still runs, and keeps it. A plain consumer's end with its connection.

    token listed in a Hello       what the broker knows                        it is
    of a lease of this session    the same grant                               kept
    the same, by a child          its parent has claimed it                    handed down
    of an earlier epoch           a grant the log never saw, message waits     claimed
    the same                      that or a later lease of it was settled      lost
    any other                     settled, given back, or handed out anew      lost
"""

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.effects import Close, Effect, Lookup, Send
from qbroker.core.gates import around
from qbroker.core.leases import Consumer, Member, Session, epoch_and_count
from qbroker.core.leaving import end, give_back, part
from qbroker.core.moment import Now
from qbroker.core.publishing import given_up
from qbroker.core.refusals import RefusedError
from qbroker.core.results import Found
from qbroker.core.runs import Run
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey, place_of
from qprotocol import wire
from qprotocol.frames import Bye, Hello, Ok, Revoke, Welcome

ROLES = ("producer", "worker", "member", "consumer", "admin")


def decide_hello(
    state: BrokerState, now: Now, connection: int, frame: Hello, found: Found | None
) -> Decision:
    """Take the connection in, and settle which of its tokens are still good."""
    check_hello(frame)
    tokens = list(dict.fromkeys(wire.TOKEN.iter_unpack(frame.raw)))
    session = state.sessions.get(frame.session) if frame.session else None
    unsure = [p for p, g in tokens if p not in state.leases and was_never_logged(state, p, g)]
    if unsure and found is None:
        return Decision(effects=[Lookup(connection, frame, positions=tuple(unsure))])
    if found and found.trouble:
        raise RefusedError(
            "DISK_STALLED",
            f"the broker cannot tell which of {len(tokens)} tokens still hold, so none is lost: "
            f"{found.trouble}; go on with that work, and say Hello again",
        )
    if frame.session and session is None:
        session = state.sessions[frame.session] = Session(frame.session)
    member = session.member(frame.member) if session else Member(None, 0)
    decision = Decision()
    if member.connection and member.connection != connection:
        decision.effects.append(Close(member.connection))
        leave(state, member.connection)
    member.connection, member.adrift = connection, None
    state.members[connection], state.roles[connection] = member, frame.role
    if session and (not frame.member or session.over or not session.alive_until_ms):
        session.alive_until_ms = now.mono_ms + state.settings.session_timeout_ms
        session.over = False
    messages = found.messages if found else {}
    lost = reclaim(Survey(state, now), decision, member, tokens, messages)
    decision.reply = Welcome(
        protocol=frame.protocol,
        heartbeat_ms=min(
            frame.heartbeat_ms or state.settings.heartbeat_ms, state.settings.heartbeat_ms
        ),
        session_timeout_ms=state.settings.session_timeout_ms,
        server_ms=now.wall_ms,
        raw=b"".join(wire.TOKEN.pack(*token) for token in lost),
    )
    decision.afterwards += cancelled_meanwhile(connection, member)
    return decision


def cancelled_meanwhile(connection: int, member: Member) -> list[Effect]:
    """What was cancelled while the member was away: it is told as if it had been here."""
    orders: dict[tuple[bool, int], list[bytes]] = {}
    for token, order in member.untold.items():
        orders.setdefault(order, []).append(wire.TOKEN.pack(*token))
    member.untold = {}
    return [
        Send(connection, Revoke(terminate=terminate, grace_ms=grace_ms, raw=b"".join(tokens)))
        for (terminate, grace_ms), tokens in orders.items()
    ]


def check_hello(frame: Hello) -> None:
    """Raise RefusedError for what makes no sense."""
    if frame.protocol != 1:
        raise RefusedError(
            "UNSUPPORTED_VERSION", f"protocol {frame.protocol}: this broker speaks 1"
        )
    if frame.role not in ROLES:
        raise RefusedError("BAD_REQUEST", f"role {frame.role!r}: one of {', '.join(ROLES)}")
    if len(frame.session) not in (0, 16):
        raise RefusedError("BAD_REQUEST", f"a session id has 16 bytes, not {len(frame.session)}")
    if bool(frame.session) != (frame.role in ("worker", "member")):
        raise RefusedError("BAD_REQUEST", "a worker and its members name a session, others none")
    if bool(frame.member) != (frame.role == "member"):
        raise RefusedError("BAD_REQUEST", "a member has a number above 0, others have none")
    if len(frame.raw) % wire.TOKEN.size:
        raise RefusedError("BAD_REQUEST", f"{len(frame.raw)} bytes are no whole tokens")


def reclaim(
    survey: Survey,
    decision: Decision,
    member: Member,
    tokens: list[tuple[int, int]],
    found: dict[int, bytes],
) -> list[tuple[int, int]]:
    """Records that keep the member's tokens and give back its others; the lost tokens."""
    state = survey.state
    state.leaving.pop(member, None)
    lost: list[tuple[int, int]] = []
    kept: set[int] = set()
    handed: list[int] = []
    adopted: dict[int, list[list[int]]] = {}
    session = member.session
    for position, number in tokens:
        grant = state.leases.get(position)
        if session and grant and grant.number == number and grant.member.session is session:
            if grant.member in state.leaving:
                lost.append((position, number))
                continue
            kept.add(position)
            if member.number and not grant.member.number:
                handed.append(position)
            continue
        raw = found.get(position, b"")
        run = claimable(state, position, number, raw) if session and position not in kept else None
        if run is None:
            lost.append((position, number))
        else:
            kept.add(position)
            entry = [run.lane.number, run.priority, position, 1]
            adopted.setdefault(number, []).append(entry)
    session_id = session.id if session else b""
    if handed:
        decision.records.append(r.HandedDown(session_id, member.number, handed))
    for number, entries in adopted.items():
        holder = session_id, member.number
        if any(around(state.lanes[row[0]]) for row in entries):
            now_ms = survey.now.wall_ms
            record: r.Record = r.GrantedExactly(number, *holder, entries, now_ms, adopted=True)
        else:
            record = r.Granted(number, *holder, entries, adopted=True)
        decision.records.append(record)
    part(state, member, lost=False, kept=kept)
    decision.records += give_back(survey)
    return lost


def was_never_logged(state: BrokerState, position: int, number: int) -> bool:
    """Whether a grant of an earlier epoch was lost with the end of the log, but not its message.

    Grants are counted in the log's order, so one above those that the log knows was lost;
    and a message from before the next epoch's first record is the one that was meant.
    """
    epoch, count = epoch_and_count(number)
    if count <= state.granted.get(epoch, 0):
        return False
    return epoch < state.epoch and position < state.boots.get(epoch + 1, 0)


def claimable(state: BrokerState, position: int, number: int, raw: bytes) -> Run | None:
    """The run of a message that such a grant may be revived for; None if there is none.

    It waits, and no lease by this grant was settled, nor was a later one given; or it is leased
    under an older grant, whose end was lost, too. That it came due may be lost with the grant.
    """
    if not was_never_logged(state, position, number):
        return None
    grant = state.leases.get(position)
    if grant:
        return grant.run_of(position) if grant.number < number else None
    attempts = state.touched(position)
    if attempts:
        return None if number < attempts.claims_from else attempts.run
    run = run_of(state, raw)
    return run if run and state.is_waiting(run, position, place_of(raw)[-1]) else None


def run_here(state: BrokerState, position: int) -> Run | None:
    """The run that an unfinished message belongs to, as far as it is known by position alone."""
    grant = state.leases.get(position)
    if grant:
        return grant.run_of(position)
    number = state.graphs.held_in(position)
    if number >= 0:
        return state.run_numbered(number)
    attempts = state.touched(position)
    return attempts.run if attempts else None


def run_of(state: BrokerState, raw: bytes) -> Run | None:
    """The run that a packed message belongs to; None if there is no such lane."""
    if not raw:
        return None
    name, task, keys, priority, _ = place_of(raw)
    queue = state.queues.get(name)
    lane = queue.lane(task, keys) if queue else None
    return lane.run(priority) if lane else None


def leave(state: BrokerState, connection: int) -> Member | None:
    """The connection is gone: forget its subscriptions, waiters and parts.

    What is staged of its uploads goes with the record that its end is answered with.
    """
    for key in [key for key in state.consumers if key[0] == connection]:
        drop_consumer(state, state.consumers.pop(key))
    for key in [key for key in state.arrivals if key[0] == connection]:
        del state.arrivals[key]
    if state.results.waiters:
        state.results.leave(connection)
    state.roles.pop(connection, None)
    member = state.members.pop(connection, None)
    if member and member.connection == connection:
        member.connection = 0
    return member


def drop_consumer(state: BrokerState, consumer: Consumer) -> None:
    """The subscription ends; what it holds stays leased."""
    for number in consumer.queues:
        state.listening[number].remove(consumer)
        state.numbered[number].deselect(consumer.known)
        if number in state.catalogue.single:
            state.dirty[number] = state.numbered[number]
        if not state.listening[number] and state.numbered[number].options.auto_delete:
            state.catalogue.left[number] = consumer.member.session
    consumer.member.adrift = None
    for grant in consumer.member.grants.values():
        if grant.consumer is consumer:
            grant.consumer = None


def decide_disconnected(state: BrokerState, now: Now, connection: int) -> Decision:
    """A plain consumer's leases end with its connection; a session's do not."""
    member, records = leave(state, connection), given_up(state, connection)
    if member is not None and member.session is None:
        part(state, member, lost=True)
        records += give_back(Survey(state, now))
    return Decision(records)


def decide_bye(state: BrokerState, now: Now, connection: int, _frame: Bye) -> Decision:
    """A goodbye gives all leases back at once: a parent's for its whole session.

    Its members are hung up on: what they would be handed now, nobody would be asked about.
    The answer waits for the disk: nobody comes again who could give back what a crash undid.
    """
    member = state.members.get(connection)
    if member is None:
        return Decision(reply=Ok())
    session, members = member.session, [member]
    ends = session if session and not member.number else None
    if ends:
        members = list(ends.members.values())
    closed: list[Effect] = []
    for each in members:
        part(state, each, lost=False)
        if each.connection != connection:
            closed += [Close(each.connection)] if each.connection else []
        leave(state, each.connection)
    records = give_back(Survey(state, now))
    for record in records:
        if isinstance(record, r.Returned):
            record.awaited = True
    if ends:
        end(state, ends)
    return Decision(records, Ok(), closed)
