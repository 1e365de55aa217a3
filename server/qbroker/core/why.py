"""Why: what a message waits for, and how much of a queue waits for what.

Each reason is a word and what else there is to say of it. All that hold are told, the ones that
somebody set first; a message for which none holds goes in a coming turn.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from qbroker.core.alone import holds_all
from qbroker.core.asking import known, lookup, run_known
from qbroker.core.decision import Decision
from qbroker.core.effects import Send
from qbroker.core.gates import around
from qbroker.core.graphs import Graph
from qbroker.core.keys import unpack_held
from qbroker.core.leases import UNTOUCHED, Consumer
from qbroker.core.moment import Now
from qbroker.core.queues import Queue
from qbroker.core.results import Finished, Found
from qbroker.core.runs import Run
from qbroker.core.settings import WHY_INPUTS_MAX, WHY_LEAVES_MAX
from qbroker.core.shelves import Shelf
from qbroker.core.state import BrokerState
from qprotocol.frames import Report, Why

Row = dict[str, Any]


def decide_why(
    state: BrokerState, now: Now, connection: int, frame: Why, found: Found | None
) -> Decision:
    """What the message waits for, or what became of it. Costs a step a chunk of its run."""
    position, entry = known(state, now, frame, found)
    if entry is None:
        return lookup(state, connection, frame, found)
    run = run_known(state, position, found) if entry.unfinished else None
    told: Row = {"id": frame.id, "position": position, "state": entry.state.name}
    if run is None:
        told["reasons"] = [over(entry) if entry.state.finished else unknown(state, now, frame)]
    else:
        told |= {"queue": run.lane.queue.name, "task": run.lane.task, "priority": run.priority}
        told["reasons"] = list(reasons(state, now, run, position))
    report = Report(raw=json.dumps(told).encode(), correlation=frame.correlation)
    return Decision(effects=[Send(connection, report)])


def over(entry: Finished) -> Row:
    """A message that waits for nothing any more."""
    return {"reason": "settled", "finished_ms": entry.finished_ms, "why": entry.reason}


def unknown(state: BrokerState, now: Now, frame: Why) -> Row:
    """An id of which nothing is known, but that it may have been cancelled before its message."""
    until_ms = state.notices.of(frame.id, now)
    return {"reason": "unknown"} | ({"noticed_until_ms": until_ms} if until_ms else {})


def reasons(state: BrokerState, now: Now, run: Run, position: int) -> Iterator[Row]:
    """All that keeps an unfinished message."""
    grant, attempts = state.leases.get(position), state.attempts.get(position, UNTOUCHED)
    if grant:
        session = grant.member.session
        yield {
            "reason": "started",
            "worker": session.id.hex() if session else "",
            "member": grant.member.number,
            "is_connected": bool(grant.member.connection),
        }
        return
    queue = run.lane.queue
    node = state.graphs.find(position)
    if node and state.graphs.is_held(position):
        yield inputs(*node)
    elif position not in run:
        due_ms = state.timers.due_of(queue.number, position, WHY_LEAVES_MAX)
        in_ms = max(0, due_ms - now.wall_ms) if due_ms else None
        yield {"reason": "due", "due_ms": due_ms, "in_ms": in_ms, "failures": attempts.failures}
        yield from redelayed(state, position)
    pause = state.pauses.dispatch.get(queue.number)
    if pause:
        yield {
            "reason": "paused",
            "why": pause.reason,
            "author": pause.author,
            "since_ms": pause.since_ms,
            "until_ms": pause.until_ms,
        }
    if queue.held > bool(pause):
        yield {"reason": "large_order", "orders": queue.held - bool(pause)}
    for gate in around(run.lane):
        if gate.room(run.lane, now) <= 0:
            yield gate.why(run.lane, now)
    listeners, others_hold = serving(state, queue)
    yield from nobody(listeners, run.lane.task, others_hold=others_hold)
    shares = queue.shares
    others = shares.before(run.lane.fair) if shares and position in run else 0
    if others:
        yield {"reason": "fair", "key": run.lane.fair, "tenants_before": others}
    before = ahead(run, position) if position in run else 0
    if before:
        yield {"reason": "behind", "of_its_lane": before}


def inputs(graph: Graph, index: int) -> Row:
    """The node waits for others: how many, and the positions of the first of them."""
    sources = (graph.link(number) for number in graph.into.of(index))
    total = sum(link.sources for link in sources)
    unmet = [graph.position(each) for each in islice(graph.unmet_of(index), WHY_INPUTS_MAX)]
    return {"reason": "inputs", "met": total - graph.unmet[index], "of": total, "positions": unmet}


def redelayed(state: BrokerState, position: int) -> Iterator[Row]:
    """That others with the message's unique key have moved its time, if they did."""
    key = state.keys.redelayed.get(position)
    if key is not None:
        _, name, text = unpack_held(key)
        times = state.keys.held[key].redelayed
        yield {"reason": "unique", "key": text, "name": name, "redelayed": times}


def serving(state: BrokerState, queue: Queue) -> tuple[list[Consumer], bool]:
    """Who may be handed something of the queue, and whether they wait until others hold nothing.

    Costs what alone.holds_all does, of a queue that has one consumer at a time.
    """
    listeners = state.listening[queue.number]
    if not listeners or not queue.options.single_active_consumer:
        return listeners, False
    return listeners[:1], bool(queue.leased) and not holds_all(state, queue, listeners[0])


def nobody(listeners: list[Consumer], task: str, *, others_hold: bool) -> Iterator[Row]:
    """Why none of those that a queue serves would be handed a message of the task, if so."""
    if not listeners:
        yield {"reason": "no_consumer"}
        return
    knowing = [each for each in listeners if each.known is None or task in each.known]
    if not knowing:
        yield {"reason": "no_worker_knows", "task": task, "consumers": len(listeners)}
    elif others_hold:
        yield {"reason": "single_active_consumer"}
    elif all(each.room <= 0 for each in knowing):
        yield {
            "reason": "consumers_full",
            "consumers": len(knowing),
            "credit": sum(each.credit for each in knowing),
            "unsettled": sum(each.unsettled for each in knowing),
        }


def ahead(run: Run, position: int) -> int:
    """How many of the lane leave before the message, which waits in the run."""
    count = sum(each.size for each in run.lane.runs if each.priority > run.priority)
    if position in run.given:
        return count + sum(min(end, position) - at for at, end in run.given if at < position)
    count += sum(end - at for at, end in run.given)
    chunks = run.saved()[2]
    holding = [at for at, c in enumerate(chunks) if c[0] <= position <= c[-1] and position in c]
    last = chunks[holding[0]]
    passed = [*chunks[: holding[0]], last[: last.index(position)]]
    skipped = sum(len(run.skipped.intersection(each)) for each in passed) if run.skipped else 0
    return count + sum(map(len, passed)) - skipped


def by_reason(state: BrokerState, queue: Queue, shelves: Iterable[Shelf]) -> Counter[str]:
    """How many messages on these shelves of the queue wait for what. Costs a step a shelf."""
    found = Counter[str]()
    listeners, others_hold = serving(state, queue)
    for shelf in shelves:
        shelf.renew()
        if shelf.open:
            reason = queue.reason(shelf)
            if reason == "paused" and queue.number not in state.pauses.dispatch:
                reason = "large_order"
            if not reason:
                rows = nobody(listeners, shelf.task, others_hold=others_hold)
                reason = next((row["reason"] for row in rows), "")
            if reason:
                found[reason] += shelf.open
    return found


def outside(queue: Queue) -> Counter[str]:
    """How many of its messages wait for what elsewhere: in parked lanes, for their time."""
    found = +queue.behind
    if queue.nodes:
        found["inputs"] = queue.nodes
    if queue.scheduled:
        found["due"] = queue.scheduled
    return found
