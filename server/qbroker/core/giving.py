"""What a node of a graph is given: results and failures of those before it, a page at a time."""

from collections.abc import Iterator
from itertools import islice

from qbroker.core.decision import Decision
from qbroker.core.effects import GiveInputs, Input
from qbroker.core.graphs import OPEN, how
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import INPUT_BYTES_MAX, INPUTS_MAX
from qbroker.core.state import BrokerState
from qprotocol.frames import FetchInputs
from qprotocol.states import State


def inputs_of(
    state: BrokerState, connection: int, position: int, grant: int, first: int = 0
) -> GiveInputs | None:
    """The inputs of the message from number ``first`` on, a page of them; None if it has none."""
    nodes = (state.graphs.find(place) for place in state.places_of(position))
    found = next((node for node in nodes if node and node[0].inputs_count(node[1])), None)
    if found is None:
        return None
    graph, index = found
    total = graph.inputs_count(index)
    rows, room = list[Input](), INPUT_BYTES_MAX
    for source in islice(graph.inputs(index), first, first + INPUTS_MAX):
        room -= graph.sizes[source] if graph.records[source] else 0
        if rows and room < 0:
            break
        status = how(graph.status[source])
        if status <= OPEN:  # a failure that this node was let go for, and that is retried
            status = int(State.FAILURE)
        rows.append(Input(status, graph.contents[source], graph.records[source]))
    return GiveInputs(connection, position, grant, total, first, rows)


def inputs_given(
    state: BrokerState, connection: int, grant: int, runs: list[tuple[int, int]], *, synced: bool
) -> Iterator[GiveInputs]:
    """What the nodes among these messages are given: it comes before them."""
    for first, count in runs:
        if state.origin or state.graphs.are_any(first, count):
            for position in range(first, first + count):
                effect = inputs_of(state, connection, position, grant)
                if effect:
                    effect.synced = synced
                    yield effect


def decide_fetch(state: BrokerState, _now: Now, connection: int, frame: FetchInputs) -> Decision:
    """The next page. Raises RefusedError if the message is not the asker's any more."""
    held = state.leases.get(frame.position)
    if held is None or held.number != frame.grant:
        raise RefusedError("LEASE_LOST", f"{frame.position} is not handed out under that grant")
    found = inputs_of(state, connection, frame.position, frame.grant, frame.first)
    if found is None or frame.first >= found.total:
        has = f"has {found.total}" if found else "has none"
        raise RefusedError("BAD_REQUEST", f"input {frame.first} of a message that {has}")
    found.correlation = frame.correlation
    return Decision(effects=[found])
