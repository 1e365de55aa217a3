"""Who listens, and the hand-out: subscriptions, credit, dispatch.

All of it is volatile but the grants.
"""

from collections.abc import Callable
from functools import partial

from qbroker.core import records as r
from qbroker.core.alone import active
from qbroker.core.decision import Decision
from qbroker.core.effects import Effect, Hand
from qbroker.core.gates import around, charge
from qbroker.core.giving import inputs_given
from qbroker.core.leases import UNTOUCHED, Consumer, Grant, Member, Session, epoch_and_count, lend
from qbroker.core.moment import Now
from qbroker.core.owners import check_owner
from qbroker.core.queueorder import contest_of
from qbroker.core.queues import Queue
from qbroker.core.refusals import RefusedError, checked
from qbroker.core.rounds import Entry
from qbroker.core.sessions import drop_consumer
from qbroker.core.settings import DELIVER_MESSAGES_MAX, DISPATCH_MESSAGES_MAX, SELECTIONS_MAX
from qbroker.core.state import BrokerState
from qbroker.core.survey import Survey, limit
from qprotocol import wire
from qprotocol.frames import Consume, Credit, Ok, Unsubscribe
from qprotocol.names import check_queue_name, unpack_task_names

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
    known = tasks_known(frame)
    survey = Survey(state, now)
    numbers = []
    for name in dict.fromkeys(frame.queues):
        checked(check_queue_name, name)
        queue = state.queues.get(name)
        if queue:
            check_owner(state, connection, queue)
        numbers.append(queue.number if queue else survey.queue(name))
        if queue and known not in queue.selections and len(queue.selections) >= SELECTIONS_MAX:
            raise RefusedError(
                "LIMIT_REACHED",
                f"consumers of {name!r} know {SELECTIONS_MAX} different sets of tasks: a queue "
                "has no more; let some of them name the same tasks, or use another queue",
            )
    if not numbers:
        raise RefusedError("BAD_REQUEST", "a subscription needs at least one queue")
    names = list(dict.fromkeys(frame.queues))
    consumer = Consumer(
        connection,
        frame.subscription,
        member,
        numbers,
        frame.credit,
        known=known,
        contest=contest_of(frame, names, numbers),
    )
    return Decision(survey.opened, Ok(), listen=consumer)


def tasks_known(frame: Consume) -> frozenset[str] | None:
    """The tasks that the consumer names; None if it knows all. Raises RefusedError."""
    if not frame.raw:
        return None
    return frozenset(checked(unpack_task_names, frame.raw))


def listen(state: BrokerState, consumer: Consumer) -> None:
    """The subscription begins: its queues exist now.

    What its member came back with counts where the queue is listened to, else for its first.
    """
    state.consumers[consumer.connection, consumer.number] = consumer
    for number in consumer.queues:
        queue = state.numbered[number]
        state.listening[number].append(consumer)
        consumer.known = queue.select(consumer.known)
        if consumer.contest and is_able(queue, consumer):
            consumer.contest.add(number)
    for grant in found_adrift(consumer):
        if grant.consumer:
            grant.consumer.unsettled -= grant.remaining
            state.listen_again(grant.consumer)
        grant.consumer = consumer
        consumer.unsettled += grant.remaining
    state.listen_again(consumer)


def found_adrift(consumer: Consumer) -> list[Grant]:
    """Grants of its member that use the new subscription's credit from now on, and no other's.

    A step a queue; a step a grant, too, for the first subscription after one that ended.
    """
    member = consumer.member
    found: list[Grant] = []
    is_first = member.adrift is None
    adrift = member.adrift = member.adrift or {}
    for grant in member.grants.values() if is_first else ():
        if grant.consumer is None or grant.queue_number not in grant.consumer.queues:
            adrift.setdefault(grant.queue_number, []).append(grant)
    for number in consumer.queues if adrift else ():
        found += adrift.pop(number, ())
    for grants in adrift.values() if is_first else ():
        found += (grant for grant in grants if grant.consumer is None)
    return found


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


# The hand-out.


def dispatch(state: BrokerState, now: Now, append: Append) -> list[Effect]:
    """Pair ready messages with free credit. The only place where a delivery is born.

    At most DISPATCH_MESSAGES_MAX a call; queues with more stay dirty.
    """
    turn = Handout(state, state.limits.now(now), append)
    state.keeper.begin()
    queues = turn.queues = list(state.dirty.values())
    for queue in queues:  # which grows
        turn.serve(queue)
        if turn.is_over:
            break
        state.dirty.pop(queue.number, None)
    return turn.out


class Handout:
    """The hand-out of one turn.

    While it is under way, and after it, a consumer of several queues that has room and any of
    them in its contest has the first of these among the dirty ones.
    """

    __slots__ = ("append", "budget", "keeper", "now", "out", "queues", "state")

    def __init__(self, state: BrokerState, now: Now, append: Append) -> None:
        self.state = state
        self.keeper = state.keeper
        self.now = now
        self.append = append
        self.out: list[Effect] = []
        self.budget = DISPATCH_MESSAGES_MAX
        self.queues: list[Queue] = []
        """To be served, one behind the other."""

    @property
    def is_over(self) -> bool:
        """Whether the rest is for the next turn."""
        return not self.budget or self.keeper.is_tired

    def serve(self, queue: Queue) -> None:
        """Hand out what a queue has for those who listen."""
        listeners, keeper = self.state.listening[queue.number], self.keeper
        if not listeners:
            return
        if queue.shares and queue.shares.changed:
            queue.settle_shares()
        if queue.number in self.state.catalogue.single:
            listeners = active(self.state, queue)
        self.take_part(queue)
        goes_on = not queue.held
        while goes_on and queue.ready and queue.parked is None and not self.is_over:
            goes_on = False
            hungry = [
                each
                for each in listeners
                if each.room > 0 and (each.contest is None or each.contest.first == queue.number)
            ]
            for served, consumer in enumerate(hungry):
                selection, steps = queue.selections[consumer.known], keeper.steps
                if queue.opened:
                    keeper.admit(selection, self.now)
                share = -(-selection.open // (len(hungry) - served))
                wanted = min(consumer.room, share, self.budget, DELIVER_MESSAGES_MAX)
                if consumer.contest and wanted:
                    able = partial(self.is_able, consumer)
                    wanted = consumer.contest.most(wanted, consumer.room, able)
                entries = selection.take(wanted, keeper, self.now) if wanted else ()
                if entries:
                    # Who was served is the last to be served again.
                    listeners.remove(consumer)
                    listeners.append(consumer)
                    self.hand(queue, consumer, entries)
                goes_on = goes_on or bool(entries) or keeper.steps > steps
        if not self.is_over:
            self.pass_on(queue)

    # Consumers of several queues.

    def take_part(self, queue: Queue) -> None:
        """The queue, to which something happened, may have something for these consumers."""
        for consumer in self.state.listening[queue.number]:
            if consumer.contest:
                if is_able(queue, consumer):
                    consumer.contest.add(queue.number)
                self.serve_later(consumer)

    def is_able(self, consumer: Consumer, number: int) -> bool:
        """Whether the queue with that number may have something for the consumer."""
        return is_able(self.state.numbered[number], consumer)

    def serve_later(self, consumer: Consumer) -> None:
        """See that the queue whose turn it is for the consumer is served in this turn."""
        number = consumer.next_queue
        if number >= 0 and consumer.room > 0 and number not in self.state.dirty:
            queue = self.state.dirty[number] = self.state.numbered[number]
            self.queues.append(queue)

    def pass_on(self, queue: Queue) -> None:
        """The queue has nothing more for those who have room: others have their turn with them."""
        for consumer in self.state.listening[queue.number]:
            contest = consumer.contest
            if contest and consumer.room > 0 and contest.first == queue.number:
                contest.drop()
                self.serve_later(consumer)

    def hand(self, queue: Queue, consumer: Consumer, entries: list[Entry]) -> None:
        """Lease the messages that were taken to the consumer; the delivery."""
        state = self.state
        count = state.granted[state.epoch] = state.granted.get(state.epoch, 0) + 1
        number = state.epoch << wire.EPOCH_SHIFT | count
        session = consumer.member.session
        holder = session.id if session else b"", consumer.member.number
        rows = [[run.lane.number, run.priority, first, count] for run, first, count in entries]
        starting = state.keys.starting
        is_keyed = starting and any(
            not starting.isdisjoint(range(first, first + count)) for _, first, count in entries
        )
        if is_keyed or (queue.gated and any(around(run.lane) for run, _, _ in entries)):
            self.append(r.GrantedExactly(number, *holder, rows, self.now.wall_ms))
        else:
            self.append(r.Granted(number, *holder, rows))
        touched = lease(state, number, consumer.member, entries, consumer)
        runs = merged(entries)
        if state.graphs.owners:
            inputs = inputs_given(state, consumer.connection, number, runs, synced=queue.synced)
            self.out += inputs
        positions = (p for first, count in runs for p in range(first, first + count))
        effect = Hand(
            consumer.connection,
            consumer.number,
            number,
            runs,
            touched,
            continued=state.parts_of(positions),
            synced=queue.synced,
        )
        self.out.append(effect)
        given = sum(count for _, count in runs)
        self.budget -= given
        if consumer.contest:
            consumer.contest.took(given)
            self.serve_later(consumer)


def is_able(queue: Queue, consumer: Consumer) -> bool:
    """Whether the queue may have something for the consumer."""
    if not queue.ready or queue.held or queue.parked:
        return False
    selection = queue.selections[consumer.known]
    return bool(selection.open or queue.opened)


def merged(entries: list[Entry]) -> list[tuple[int, int]]:
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
    entries: list[Entry],
    consumer: Consumer | None,
) -> list[tuple[int, int, int, int]]:
    """The messages, which are in no place now, are leased. Rows of those handed out before."""
    grant = member.grants.get(number)
    if grant is None:
        grant = member.grants[number] = Grant(number, member, consumer)
    leases, attempts, touched, index = state.leases, state.attempts, [], 0
    before, after = UNTOUCHED, UNTOUCHED
    lend(entries)
    for run, first, count in entries:
        grant.add(run, first, count)
        if run.lane.ordering:
            run.lane.ordering.goes_out(first)
        positions = range(first, first + count)
        leases.update(dict.fromkeys(positions, grant))
        if state.keys.starting:
            state.keys.go_out(positions)
        for position in positions if attempts else ():
            known = attempts.get(position)
            if known:
                if known is not before:
                    more = known.deliveries + 1
                    before, after = known, known._replace(deliveries=more, run=None, waits=False)
                attempts[position] = after
                if more > 1:
                    touched.append((index + position - first, *after.counters()))
        index += count
    if consumer:
        consumer.unsettled += index
    return touched


def apply_granted(state: BrokerState, _position: int, record: r.Granted | r.GrantedExactly) -> None:
    """Replay of a grant, or a claim: take the messages out of their runs, and lease them."""
    session = state.sessions.get(record.session)
    if session is None:
        session = state.sessions[record.session] = Session(record.session)
    member = session.member(record.member)
    if not record.adopted:
        epoch, count = epoch_and_count(record.grant)
        state.granted[epoch] = max(count, state.granted.get(epoch, 0))
    entries: list[Entry] = []
    for number, priority, first, count in record.entries:
        run = state.lanes[number].run(priority)
        lane = run.lane
        if record.adopted and first in state.leases:
            state.unlease(first)
        elif record.adopted:  # claims come one by one
            state.withdraw(run, first)
        else:
            run.remove(first, count)
            lane.queue.less(lane, count)
        if lane.queue.gated:
            charge(lane, count, record.wall_ms)
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
