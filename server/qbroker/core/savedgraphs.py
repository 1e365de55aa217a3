"""Graphs in a snapshot."""

from array import array
from collections.abc import Iterator
from typing import Any

from qbroker.core.columns import column, pack_columns, unpack_columns
from qbroker.core.graphs import HELD, Graph
from qbroker.core.graphtable import Cursor
from qbroker.core.state import BrokerState

Block = bytes | memoryview


def save_graph(graph: Graph) -> "tuple[list[Any], list[array[int]]]":
    """What there is of a graph but its columns, and those."""
    counts = graph.open, graph.held, graph.untold, graph.letters
    states = map(bytes, (graph.status, graph.told, graph.contents))
    row = [*states, graph.delays, graph.void, sorted(graph.lanes), *counts]
    numbers = graph.unmet, graph.runs, graph.records, graph.sizes
    columns = [
        graph.links,
        graph.indexes,
        graph.places,
        *numbers,
        *graph.out.saved(),
        *graph.into.saved(),
    ]
    return row, list(map(column, columns))


def restore_graph(row: list[Any], columns: "Iterator[array[int]]") -> Graph:
    """What ``save_graph`` was given."""
    graph = Graph()
    *states, delays, graph.void, lanes, graph.open, graph.held, graph.untold, graph.letters = row
    graph.lanes = set(lanes)
    graph.status, graph.told, graph.contents = map(bytearray, states)
    graph.delays = {index: (ms, due_ms) for index, (ms, due_ms) in delays.items()}
    graph.links = array("I", next(columns))
    narrow = (array("I", next(columns)), next(columns), *(array("I", next(columns)) for _ in "ab"))
    graph.indexes, graph.places, graph.unmet, graph.runs = narrow
    graph.records, graph.sizes = next(columns), array("I", next(columns))
    for ends in (graph.out, graph.into):
        ends.restore(array("I", next(columns)), array("I", next(columns)))
    return graph


def save_graphs(state: BrokerState) -> bytes:
    """A row a graph; the nodes whose end is news; how far sweeps are."""
    rows, columns = [], []
    for graph in state.graphs.all():
        row, more = save_graph(graph)
        rows.append(row)
        columns += more
    return pack_columns([rows, list(state.graphs.todo), list(state.graphs.sweeps)], columns)


def restore_graphs(state: BrokerState, block: Block) -> None:
    (rows, todo, sweeps), columns = unpack_columns(block)
    waiting = iter(columns)
    for row in rows:
        graph = restore_graph(row, waiting)
        state.graphs.add(graph)
        state.graphs.let_rest(graph)
        for number, status in zip(graph.runs, graph.status, strict=True):
            if status == HELD:
                state.lanes[number >> 8].queue.nodes += 1
    state.graphs.todo.extend(Cursor(*each) for each in todo)
    state.graphs.sweeps.extend((number, index) for number, index in sweeps)
