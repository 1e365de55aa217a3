"""Who listens, and the hand-out: subscriptions, credit, dispatch.

All of it is volatile but the grants.
"""

from collections.abc import Callable

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.effects import Effect, Hand
from qbroker.core.leases import UNTOUCHED, Consumer, Grant, Member, Session, epoch_and_count
from qbroker.core.moment import Now
from qbroker.core.queues import Queue, Run
from qbroker.core.sessions import drop_consumer
from qbroker.core.settings import DELIVER_MESSAGES_MAX, DISPATCH_MESSAGES_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import RefusedError, Survey, limit
from qprotocol import wire
from qprotocol.frames import Consume, Credit, Ok, Unsubscribe
from qprotocol.names import check_queue_name
from qprotocol.options import QueueOptions

Append = Callable[[r.Record], int]


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
        while budget and queue.ready and not queue.held:
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
    positions = (p for first, count in runs for p in range(first, first + count))
    return Hand(
        consumer.connection,
        consumer.number,
        number,
        runs,
        touched,
        continued=state.parts_of(positions),
        synced=queue.synced,
    )


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
        grant = member.grants[number] = Grant(number, member, consumer)
    leases, attempts, touched, index = state.leases, state.attempts, [], 0
    before, after = UNTOUCHED, UNTOUCHED
    for run, first, count in entries:
        grant.add(run, first, count)
        positions = range(first, first + count)
        leases.update(dict.fromkeys(positions, grant))
        queue = run.lane.queue
        queue.leased += count
        queue.counts["delivered"] += count
        for position in positions if attempts else ():
            known = attempts.get(position)
            if known:
                if known is not before:
                    more = known.deliveries + 1
                    before, after = known, known._replace(deliveries=more, run=None, waits=False)
                attempts[position] = after
                touched.append((index + position - first, *after.counters()))
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
        epoch, count = epoch_and_count(record.grant)
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


def apply_handed_down(state: BrokerState, _position: int, record: r.HandedDown) -> None:
    """The leases are the member's, under the grants they were given by."""
    member = state.sessions[record.session].member(record.member)
    for position in record.positions:
        before = state.leases[position]
        grant = member.grants.get(before.number)
        if grant is None:
            grant = member.grants[before.number] = Grant(before.number, member, None)
        grant.add(before.run_of(position), position, 1)
        for known, own in ((before.started, grant.started), (before.early, grant.early)):
            if position in known:
                own.add(position)
        state.leases[position] = grant
        state.let_go(before, 1)
