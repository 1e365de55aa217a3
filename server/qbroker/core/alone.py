"""One consumer at a time: who of those that listen to such a queue is served.

The first that came, for as long as it is there; then the next. It waits until nothing of the
queue is handed out to anybody else, for else the order would not be kept: what a lost worker
held comes back first.
"""

from qbroker.core.leases import Consumer
from qbroker.core.queues import Queue
from qbroker.core.state import BrokerState


def active(state: BrokerState, queue: Queue) -> list[Consumer]:
    """The consumer of a queue that somebody listens to, who may be handed something now; none while
    it must wait.

    Who is waiting is looked at again with every turn in which time passes.
    """
    listeners = state.listening[queue.number]
    first, catalogue = listeners[0], state.catalogue
    if queue.leased and not holds_all(state, queue, first):
        catalogue.waiting.add(queue.number)
        return []
    catalogue.holders[queue.number] = first.member
    return listeners[:1]


def holds_all(state: BrokerState, queue: Queue, consumer: Consumer) -> bool:
    """Whether all that is handed out of the queue is the consumer's.

    Costs a look at every lease only where nobody knows who had it last: after a start, and when
    the option is new.
    """
    holder = state.catalogue.holders.get(queue.number)
    if holder is not None:
        return holder is consumer.member
    members = {
        grant.member
        for position, grant in state.leases.items()
        if grant.run_of(position).lane.queue is queue
    }
    return members == {consumer.member}


def look_again(state: BrokerState) -> None:
    """Queues whose next consumer waited may have something for it now."""
    catalogue = state.catalogue
    for number in catalogue.waiting:
        queue = state.numbered[number]
        if not queue.leased:
            catalogue.holders.pop(number, None)
        state.dirty[number] = queue
    catalogue.waiting.clear()
