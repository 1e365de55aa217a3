"""Who listens, and the hand-out: sessions, subscriptions, credit, dispatch.

All of it is volatile but the grants. A session's leases outlive its connections; a
plain consumer's do not.
"""

from collections.abc import Callable

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.effects import Close, Effect, Hand, Lookup
from qbroker.core.leases import Consumer, Grant, Member, Session
from qbroker.core.moment import Now
from qbroker.core.queues import Queue, Run
from qbroker.core.settings import DELIVER_MESSAGES_MAX, DISPATCH_MESSAGES_MAX
from qbroker.core.settling import losses
from qbroker.core.state import BrokerState
from qbroker.core.survey import RefusedError, Survey, limit, place_of
from qprotocol import wire
from qprotocol.frames import Consume, Credit, Hello, Ok, Unsubscribe, Welcome
from qprotocol.names import check_queue_name
from qprotocol.options import QueueOptions

ROLES = ("producer", "worker", "member", "consumer", "admin")
Found = dict[int, bytes]
"""Positions to packed messages: what the engine read for a Lookup; empty bytes if gone."""
Append = Callable[[r.Record], int]


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
    if frame.session and session is None:
        session = state.sessions[frame.session] = Session(frame.session)
    member = session.member(frame.member) if session else Member(None, 0)
    decision = Decision()
    if member.connection and member.connection != connection:
        decision.effects.append(Close(member.connection))
        leave(state, member.connection)
    member.connection = connection
    state.members[connection], state.roles[connection] = member, frame.role
    if session and (not frame.member or not session.alive_until_ms):
        session.alive_until_ms = now.mono_ms + state.settings.session_timeout_ms
    lost = reclaim(state, decision, member, tokens, found or {})
    decision.reply = Welcome(
        protocol=frame.protocol,
        heartbeat_ms=min(
            frame.heartbeat_ms or state.settings.heartbeat_ms, state.settings.heartbeat_ms
        ),
        session_timeout_ms=state.settings.session_timeout_ms,
        server_ms=now.wall_ms,
        raw=b"".join(wire.TOKEN.pack(*token) for token in lost),
    )
    return decision


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
    state: BrokerState,
    decision: Decision,
    member: Member,
    tokens: list[tuple[int, int]],
    found: Found,
) -> list[tuple[int, int]]:
    """Records that keep the member's tokens and give back its others; the lost tokens."""
    lost: list[tuple[int, int]] = []
    kept: set[int] = set()
    adopted: dict[int, list[list[int]]] = {}
    session = member.session
    for position, number in tokens:
        grant = state.leases.get(position)
        if session and grant and grant.number == number and grant.member.session is session:
            kept.add(position)
            continue
        raw = found.get(position, b"")
        run = claimable(state, position, number, raw) if session and position not in kept else None
        if run is None:
            lost.append((position, number))
        else:
            kept.add(position)
            entry = [run.lane.number, run.priority, position, 1]
            adopted.setdefault(number, []).append(entry)
    for number, entries in adopted.items():
        session_id = session.id if session else b""
        decision.records.append(r.Granted(number, session_id, member.number, entries, adopted=True))
    dropped = [
        position
        for grant in member.grants.values()
        for position in grant.positions()
        if state.leases.get(position) is grant and position not in kept
    ]
    if dropped:
        decision.records.append(r.Returned(dropped))
    return lost


def was_never_logged(state: BrokerState, position: int, number: int) -> bool:
    """Whether a grant of an earlier epoch was lost with the end of the log, but not its message.

    Grants are counted in the log's order, so one above those that the log knows was lost;
    and a message from before the next epoch's first record is the one that was meant.
    """
    epoch, count = number >> wire.EPOCH_SHIFT, number & _COUNT_MASK
    if count <= state.granted.get(epoch, 0):
        return False
    return epoch < state.epoch and position < state.boots.get(epoch + 1, 0)


_COUNT_MASK = (1 << wire.EPOCH_SHIFT) - 1


def claimable(state: BrokerState, position: int, number: int, raw: bytes) -> Run | None:
    """The run of a message that such a grant may be revived for; None if there is none.

    It waits in its run; or it is leased under an older grant, whose end was lost, too.
    """
    if not was_never_logged(state, position, number):
        return None
    grant = state.leases.get(position)
    if grant:
        return grant.run_of(position) if grant.number < number else None
    return run_holding(state, position, raw)


def run_holding(state: BrokerState, position: int, raw: bytes) -> Run | None:
    """The run in which a message waits, by its bytes; None if it does not."""
    attempts = state.attempts.get(position)
    if attempts:
        return None if attempts.waits else attempts.run
    run = run_of(state, raw)
    return run if run and position in run else None


def run_of(state: BrokerState, raw: bytes) -> Run | None:
    """The run that a packed message belongs to; None if there is no such lane."""
    if not raw:
        return None
    name, task, keys, priority, _ = place_of(raw)
    queue = state.queues.get(name)
    lane = state.lane_of.get((queue.number, task, keys)) if queue else None
    return lane.run(priority) if lane else None


def leave(state: BrokerState, connection: int) -> Member | None:
    """The connection is gone: forget its subscriptions, waiters and parts."""
    for key in [key for key in state.consumers if key[0] == connection]:
        drop_consumer(state, state.consumers.pop(key))
    for key in [key for key in state.uploads if key[0] == connection]:
        del state.uploads[key]
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
    for grant in consumer.member.grants.values():
        if grant.consumer is consumer:
            grant.consumer = None


def decide_disconnected(state: BrokerState, now: Now, connection: int) -> Decision:
    """A plain consumer's leases end with its connection; a session's do not."""
    member = leave(state, connection)
    if member is None or member.session is not None:
        return Decision()
    survey = Survey(state, now)
    records = losses(survey, member, lost=True)
    return Decision([*survey.opened, *records])


def decide_bye(state: BrokerState, now: Now, connection: int) -> Decision:
    """A goodbye gives all leases back at once: a parent's for its whole session.

    Its members are hung up on: what they would be handed now, nobody would be asked about.
    """
    member = state.members.get(connection)
    if member is None:
        return Decision(reply=Ok())
    survey, records = Survey(state, now), []
    session = member.session
    members = [member]
    if session and not member.number:
        members = list(session.members.values())
        del state.sessions[session.id]
    closed: list[Effect] = []
    for each in members:
        records += losses(survey, each, lost=False)
        if each.connection != connection:
            closed += [Close(each.connection)] if each.connection else []
        leave(state, each.connection)
    return Decision([*survey.opened, *records], Ok(), closed)


def decide_consume(state: BrokerState, now: Now, connection: int, frame: Consume) -> Decision:
    """Listen to queues, which are made if they do not exist."""
    member, key = state.members.get(connection), (connection, frame.subscription)
    if member is None:
        raise RefusedError("NO_SESSION", "the connection has not said Hello")
    if key in state.consumers:
        raise RefusedError("BAD_REQUEST", f"subscription {frame.subscription} exists already")
    check_credit(state, frame.credit)
    own = sum(each[0] == connection for each in state.consumers)
    if own >= state.settings.subscriptions_max:
        raise limit("subscriptions_max", state.settings.subscriptions_max)
    survey = Survey(state, now)
    numbers = []
    for name in dict.fromkeys(frame.queues):
        try:
            check_queue_name(name)
        except ValueError as error:
            raise RefusedError("BAD_REQUEST", str(error)) from error
        queue = state.queues.get(name)
        numbers.append(queue.number if queue else survey.queue(name))
    if not numbers:
        raise RefusedError("BAD_REQUEST", "a subscription needs at least one queue")
    consumer = Consumer(connection, frame.subscription, member, numbers, frame.credit)
    return Decision(survey.opened, Ok(), listen=consumer)


def listen(state: BrokerState, consumer: Consumer) -> None:
    """The subscription begins: its queues exist now."""
    state.consumers[consumer.connection, consumer.number] = consumer
    for number in consumer.queues:
        state.listening[number].append(consumer)
    for grant in consumer.member.grants.values():
        if grant.consumer is None:
            grant.consumer = consumer
            consumer.unsettled += grant.remaining
    state.listen_again(consumer)


def check_credit(state: BrokerState, credit: int) -> None:
    """Raise RefusedError above the limit."""
    if credit > state.settings.credit_max:
        raise RefusedError(
            "BAD_REQUEST", f"credit {credit}: credit_max is {state.settings.credit_max}"
        )


def decide_credit(state: BrokerState, _now: Now, connection: int, frame: Credit) -> Decision:
    """The subscription may hold that much from now on. A late one is not an error."""
    check_credit(state, frame.credit)
    consumer = state.consumers.get((connection, frame.subscription))
    if consumer:
        consumer.credit = frame.credit
        state.listen_again(consumer)
    return Decision()


def decide_unsubscribe(
    state: BrokerState, _now: Now, connection: int, frame: Unsubscribe
) -> Decision:
    """No more deliveries. What was decided before still arrives, before the answer."""
    consumer = state.consumers.pop((connection, frame.subscription), None)
    if consumer is None:
        raise RefusedError("NO_SUBSCRIPTION", f"there is no subscription {frame.subscription}")
    drop_consumer(state, consumer)
    return Decision(reply=Ok())


def apply_queue_opened(state: BrokerState, _position: int, record: r.QueueOpened) -> None:
    """The queue exists."""
    state.open_queue(record.number, record.name, QueueOptions.parse(record.options))


def apply_lane_opened(state: BrokerState, _position: int, record: r.LaneOpened) -> None:
    """The lane exists."""
    state.open_lane(record.number, state.numbered[record.queue], record.task, record.keys)


# The hand-out.


def dispatch(state: BrokerState, append: Append) -> list[Effect]:
    """Pair ready messages with free credit. The only place where a delivery is born.

    At most DISPATCH_MESSAGES_MAX a call; queues with more stay dirty.
    """
    out: list[Effect] = []
    budget = DISPATCH_MESSAGES_MAX
    for queue in list(state.dirty.values()):
        listeners = state.listening[queue.number]
        while budget and queue.ready:
            hungry = [each for each in listeners if each.room > 0]
            for served, consumer in enumerate(hungry):
                share = -(-queue.ready // (len(hungry) - served))
                wanted = min(consumer.room, share, budget, DELIVER_MESSAGES_MAX)
                if not wanted:
                    break
                # Who was served is the last to be served again.
                listeners.remove(consumer)
                listeners.append(consumer)
                entries = queue.take(wanted)
                assert entries, f"{queue.ready} messages are ready in {queue.name} and not found"
                out.append(hand(state, queue, consumer, entries, append))
                budget -= sum(count for _, _, count in entries)
            if not hungry:
                break
        if not budget:
            break
        del state.dirty[queue.number]
    return out


def hand(
    state: BrokerState,
    queue: Queue,
    consumer: Consumer,
    entries: list[tuple[Run, int, int]],
    append: Append,
) -> Hand:
    """Lease the messages that were taken to the consumer; the delivery."""
    count = state.granted[state.epoch] = state.granted.get(state.epoch, 0) + 1
    number = state.epoch << wire.EPOCH_SHIFT | count
    session = consumer.member.session
    record = r.Granted(
        number,
        session.id if session else b"",
        consumer.member.number,
        [[run.lane.number, run.priority, first, count] for run, first, count in entries],
    )
    append(record)
    touched = lease(state, number, consumer.member, entries, consumer)
    runs = merged(entries)
    return Hand(consumer.connection, consumer.number, number, runs, touched, synced=queue.synced)


def merged(entries: list[tuple[Run, int, int]]) -> list[tuple[int, int]]:
    """Position runs, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for _, first, count in entries:
        if runs and runs[-1][0] + runs[-1][1] == first:
            runs[-1] = runs[-1][0], runs[-1][1] + count
        else:
            runs.append((first, count))
    return runs


def lease(
    state: BrokerState,
    number: int,
    member: Member,
    entries: list[tuple[Run, int, int]],
    consumer: Consumer | None,
) -> list[tuple[int, int, int, int]]:
    """The messages, which are in no place now, are leased. Rows of those handed out before."""
    grant = member.grants.get(number)
    if grant is None:
        grant = member.grants[number] = Grant(number, member, [], consumer)
    before = list(grant.positions())
    leases, attempts, touched, index = state.leases, state.attempts, [], 0
    for run, first, count in entries:
        if first not in before:
            grant.entries.append((run, first, count))
        grant.remaining += count
        positions = range(first, first + count)
        leases.update(dict.fromkeys(positions, grant))
        queue = run.lane.queue
        queue.leased += count
        queue.counts["delivered"] += count
        for position in positions if attempts else ():
            known = attempts.get(position)
            if known:
                known.deliveries += 1
                known.run, known.waits = None, False
                touched.append((index + position - first, *known.counters()))
        index += count
    if consumer:
        consumer.unsettled += index
    return touched


def apply_granted(state: BrokerState, _position: int, record: r.Granted) -> None:
    """Replay of a grant, or a claim: take the messages out of their runs, and lease them."""
    session = state.sessions.get(record.session)
    if session is None:
        session = state.sessions[record.session] = Session(record.session)
    member = session.member(record.member)
    if not record.adopted:
        epoch, count = record.grant >> wire.EPOCH_SHIFT, record.grant & _COUNT_MASK
        state.granted[epoch] = max(count, state.granted.get(epoch, 0))
    entries = []
    for number, priority, first, count in record.entries:
        run = state.lanes[number].run(priority)
        if record.adopted and first in state.leases:
            state.unlease(first)
        else:
            run.remove(first, count)
            run.lane.queue.ready -= count
        entries.append((run, first, count))
    lease(state, record.grant, member, entries, None)
