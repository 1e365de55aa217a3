"""Graphs: no node runs before its inputs, each ends once, whatever fails, is cancelled or crashes.

A stateful story over the real core and log. What must be true is worked out here from the edges
and from what was settled; never from the broker's graphs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.test_model import STORIES
from digest import check_places, exact
from machine import Machine
from qbroker.core.settings import Settings
from qbroker.log.log import Log, LogSettings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.graphs import AFTER, BRINGS, DONE, ERROR, SUCCESS, Link, Node
from qprotocol.message import Message, Outcome, pack_fields
from qprotocol.states import State

LOG = LogSettings(segment_bytes=64 << 10)
SETTINGS = Settings(session_timeout_ms=600_000)
ERR = Failure("Boom", "it failed").pack()
GOOD, BAD = {"SUCCESS"}, {"FAILURE", "REVOKED"}
MET_BY = {SUCCESS: GOOD, AFTER: GOOD, ERROR: BAD, DONE: GOOD | BAD}


@dataclass
class Told:
    """A node, and what must have become of it."""

    edges: list[tuple[int, Told]] = field(default_factory=list)
    unmet: int = 0
    status: str = "OPEN"
    id: str = ""
    queue: str = ""
    stands_for: Told | None = None
    """What it replaced."""
    graph: list[Told] = field(default_factory=list)
    """All that was published with it."""
    goes_on: Told | None = None
    """What replaced it."""
    is_void: bool = False
    """It ended because of another one."""
    kept: bytes = b""
    """Its result or failure."""
    sources: list[tuple[int, Told]] = field(default_factory=list)

    @property
    def inputs(self) -> list[tuple[str, bytes]]:
        """What became of those before it, as far as it is to know."""
        return [(each.status, each.kept) for kind, each in self.sources if kind in BRINGS]

    def end(self, status: str) -> None:
        """It has ended, and those behind it are what that makes of them."""
        self.status = status
        if self.stands_for:
            self.stands_for.kept = self.kept
            self.stands_for.end("REVOKED" if status == "SKIPPED" else status)
        for kind, target in self.edges:
            if target.status != "HELD":
                continue
            if status in MET_BY[kind]:
                target.unmet -= 1
                if not target.unmet:
                    target.status = "OPEN"
            else:
                target.is_void = True
                target.kept = self.kept if status in BAD else b""
                target.end(status if status in BAD else "SKIPPED")

    def run_again(self) -> None:
        """It failed, and has not after all."""
        self.status = "OPEN"
        if self.stands_for:
            self.stands_for.run_again()
        self.take_back()

    def take_back(self) -> None:
        """Those that ended because of it are held again, unless something else keeps them."""
        for kind, target in self.edges:
            if target.status == "HELD":
                target.unmet += "FAILURE" in MET_BY[kind]
            elif target.is_void and target.status == "FAILURE" and not target.keeping:
                target.status, target.is_void, target.kept = "HELD", False, b""
                target.unmet = sum(each.status not in MET_BY[kind] for kind, each in target.sources)
                if target.stands_for:
                    target.stands_for.run_again()
                target.take_back()

    @property
    def keeping(self) -> bool:
        """Whether something that it needed cannot be."""
        return any(
            each.status not in ("HELD", "OPEN", *MET_BY[kind]) for kind, each in self.sources
        )


@st.composite
def graphs(draw: Any) -> list[list[Link]]:
    """The links that begin with each node, to later ones."""
    size = draw(st.integers(1, 7))
    out: list[list[Link]] = []
    for index in range(size):
        links: list[Link] = []
        while index + 1 < size and len(links) < 3 and draw(st.booleans()):
            sources = draw(st.integers(1, size - index - 1))
            first = draw(st.integers(index + sources, size - 1))
            targets = draw(st.integers(1, size - first))
            kind = draw(st.sampled_from([SUCCESS, SUCCESS, AFTER, ERROR, DONE]))
            links.append(Link(kind, first, sources, targets))
        out.append(links)
    return out


def held_of(peeked: f.Peeked) -> set[int]:
    """The positions of those that are held."""
    found, at = set(), 0
    for _ in range(peeked.count):
        position, *_, state, n_reason, n_error = wire.PEEKED.unpack_from(peeked.raw, at)
        at += wire.PEEKED.size + n_reason + n_error
        at += 4 + wire.SIZE.unpack_from(peeked.raw, at)[0]
        if state == State.HELD:
            found.add(position)
    return found


class Story(RuleBasedStateMachine):
    """What may happen, and what must then be true."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(settings=SETTINGS, log_settings=LOG)
        self.told: dict[int, Told] = {}
        self.given: dict[int, list[tuple[str, bytes]]] = {}
        self.sequence = self.correlation = 0
        self.meet()

    def meet(self) -> None:
        """Connections anew, and one who takes messages."""
        self.peer, self.taker = self.machine.connect(), self.machine.connect()
        self.held: dict[int, int] = {}
        self.ask(f.Hello(protocol=1, role="consumer", client_id="t"), self.taker)
        self.ask(f.Consume(subscription=1, queues=["a", "b"], credit=3), self.taker)

    def ask(self, frame: f.Frame, peer: Any = None) -> f.Frame:
        """The answer, when all that follows has happened."""
        self.correlation += 1
        frame.correlation = self.correlation
        self.machine.submit(peer or self.peer, frame)
        heard = self.step()
        (found,) = [x for x in heard if x.correlation == frame.correlation]
        return found

    def step(self) -> list[f.Frame]:
        self.machine.settle()
        heard: list[f.Frame] = []
        for peer in (self.peer, self.taker):
            for frame in peer.received:
                if isinstance(frame, f.Inputs):
                    self.note_inputs(frame)
                elif isinstance(frame, f.Deliver):
                    at = frame.runs * wire.RUN.size
                    for first, count in wire.RUN.iter_unpack(frame.raw[:at]):
                        self.held.update(dict.fromkeys(range(first, first + count), frame.grant))
                elif isinstance(frame, f.Revoke):
                    for position, _ in wire.TOKEN.iter_unpack(frame.raw):
                        self.held.pop(position, None)
                else:
                    heard.append(frame)
            peer.received.clear()
        return heard

    def note_inputs(self, frame: f.Inputs) -> None:
        """What a node is given, until it is looked at."""
        rows, at = [], 0
        for _ in range(frame.count):
            state, _, size = wire.INPUT.unpack_from(frame.raw, at)
            at += wire.INPUT.size + size
            rows.append((State(state).name, frame.raw[at - size : at]))
        assert frame.total == len(rows)
        self.given[frame.position] = rows

    def packed(self, links: list[list[Link]], last: str = "") -> list[bytes]:
        """The messages of a graph; the last one with that id."""
        names = [f"m{self.sequence}.{index}" for index in range(len(links))]
        names[-1] = last or names[-1]
        return [
            Message(
                "ab"[index % 2],
                b"x",
                names[index],
                "t",
                fields=pack_fields({wire.NODE: Node(tuple(each)).pack()}),
            ).pack()
            for index, each in enumerate(links)
        ]

    @rule(links=graphs(), cuts=st.lists(st.floats(0, 1), max_size=3))
    def publish(self, links: list[list[Link]], cuts: list[float]) -> None:
        """At once, or in parts that end anywhere: one may bring no whole message, the last none."""
        self.sequence += 1
        raws = self.packed(links)
        raw = b"".join(raws)
        self.correlation += 1
        ends = sorted({max(1, round(cut * len(raw))) for cut in cuts})
        for index, (start, end) in enumerate(pairwise([0, *ends])):
            part = f.Part(
                correlation=self.correlation, index=index, of=f.Publish.TYPE, raw=raw[start:end]
            )
            self.machine.submit(self.peer, part)
        frame = f.Publish(
            producer=7,
            sequence=self.sequence,
            count=len(raws),
            correlation=self.correlation,
            raw=raw[ends[-1] if ends else 0 :],
        )
        self.machine.submit(self.peer, frame)
        (answer,) = self.step()
        assert isinstance(answer, f.Published), answer
        self.note(links)

    def note(self, links: list[list[Link]], replaced: Told | None = None) -> None:
        names = self.machine.core.state.named
        nodes = [Told() for _ in links]
        for index, each in enumerate(links):
            for kind, first, sources, targets in each:
                for source in nodes[index : index + sources]:
                    for target in nodes[first : first + targets]:
                        source.edges.append((kind, target))
                        target.sources.append((kind, source))
                        target.unmet += 1
                        target.status = "HELD"
            nodes[index].id = f"m{self.sequence}.{index}"
            if replaced and index == len(links) - 1:
                nodes[index].id, nodes[index].stands_for = replaced.id, replaced
                if replaced.stands_for:  # it was the last node of a graph, and that goes on
                    nodes[index].stands_for, replaced.status = replaced.stands_for, "SUCCESS"
                nodes[index].stands_for.goes_on = nodes[index]
            nodes[index].queue, nodes[index].graph = "ab"[index % 2], nodes
            position = names[nodes[index].id.encode()]
            self.told[position] = nodes[index]

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["ack", "done", "done", "fail", "release"]))
    def settle(self, how: str) -> None:
        position, grant = self.held.popitem()
        told = self.told[position]
        assert self.given.get(position, []) == told.inputs
        assert told.status == "OPEN", f"{position} was handed out and is {told.status}"
        if how == "ack":
            self.ask(f.Ack(raw=wire.ACK_RUN.pack(grant, position, 1)), self.taker)
        else:
            outcome = {
                "done": Outcome(
                    wire.ACK, position, grant, flags=wire.HAS_RESULT, result=b"r%d" % position
                ),
                "fail": Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY, result=ERR),
                "release": Outcome(wire.RELEASE, position, grant, delay_ms=0),
            }[how]
            self.ask(f.Settle(count=1, raw=outcome.pack()), self.taker)
        told.kept = {"done": b"r%d" % position, "fail": ERR}.get(how, b"")
        if how != "release":
            told.end("FAILURE" if how == "fail" else "SUCCESS")

    @precondition(lambda self: self.held)
    @rule(links=graphs(), replaces=st.booleans())
    def follow(self, links: list[list[Link]], replaces: bool) -> None:
        """A task ends with a graph that follows on it; or the graph's last node goes on as it."""
        position, grant = self.held.popitem()
        told = self.told[position]
        self.sequence += 1
        name = told.id if replaces else ""
        raws = tuple(self.packed(links, name))
        flags = wire.HAS_REPLACEMENT if replaces else 0
        kind = wire.RELEASE if replaces else wire.ACK
        outcome = Outcome(kind, position, grant, flags=flags, delay_ms=0, follow_on=raws)
        answer = self.ask(f.Settle(count=1, raw=outcome.pack()), self.taker)
        assert isinstance(answer, f.Settled), answer
        if replaces:
            self.note(links, told)
            del self.told[position]
        else:
            told.end("SUCCESS")
            self.note(links)

    @precondition(lambda self: self.told)
    @rule(nth=st.integers(0, 5))
    def cancel(self, nth: int) -> None:
        position, told = list(self.told.items())[-1 - nth % len(self.told)]
        self.ask(f.Cancel(id=told.id, position=position))
        if told.status in ("HELD", "OPEN"):
            told.end("REVOKED")

    @precondition(lambda self: self.told)
    @rule(nth=st.integers(0, 5))
    def cancel_graph(self, nth: int) -> None:
        """All that was published with a node is over, and all that nodes of that went on as."""
        position, told = list(self.told.items())[-1 - nth % len(self.told)]
        answer = self.ask(f.CancelGraph(id=told.id, position=position))
        graphs, over = [told.graph], list[Told]()
        graphs += [told.stands_for.graph] if told.stands_for else []
        for graph in graphs:
            for each in graph:
                if each.status in ("HELD", "OPEN"):
                    over += [] if each.goes_on else [each]
                    further = each.goes_on.graph if each.goes_on else graph
                    graphs += [] if any(further is one for one in graphs) else [further]
        assert isinstance(answer, f.Ok)
        if answer.count or self.is_known(told):
            assert answer.count == len(over)
            for each in over:
                if each.status in ("HELD", "OPEN"):
                    each.end("REVOKED")

    def is_known(self, told: Told) -> bool:
        """Whether its id can be looked up: not if it did well and left nothing."""
        return told.status in ("HELD", "OPEN", "FAILURE")

    @precondition(lambda self: len(self.told) % 3 == 1)
    @rule(queue=st.sampled_from(["a", "b"]))
    def purge(self, queue: str) -> None:
        """What waits in the queue is over; what is handed out or held is not."""
        self.ask(f.Purge(queue=queue))
        over = [
            each
            for position, each in self.told.items()
            if each.status == "OPEN" and each.queue == queue and position not in self.held
        ]
        for told in over:
            told.end("REVOKED")

    @precondition(lambda self: len(self.told) % 3 == 2)
    @rule(queue=st.sampled_from(["a", "b"]), states=st.sampled_from(["", "held", "scheduled"]))
    def cancel_many(self, queue: str, states: str) -> None:
        """All tasks of a queue are over, or those of them that are held."""
        self.ask(f.CancelMany(queue=queue, states=states))
        meant = {"": ("HELD", "OPEN"), "held": ("HELD",), "scheduled": ()}[states]
        told = [each for each in self.told.values() if each.queue == queue and each.status in meant]
        for each in told:
            if each.status in ("HELD", "OPEN"):
                each.end("REVOKED")

    @precondition(lambda self: self.told)
    @rule(queue=st.sampled_from(["a", "b"]), nth=st.integers(0, 9))
    def move(self, queue: str, nth: int) -> None:
        """What is held of a queue, or one of it, will wait in the other one."""
        to = "ab"[queue == "a"]
        held = [each for each in self.told.values() if (each.status, each.queue) == ("HELD", queue)]
        if nth < len(held):
            held = [held[nth]]
            answer = self.ask(f.Move(queue=queue, to=to, id=held[0].id))
        else:
            answer = self.ask(f.Move(queue=queue, to=to, states="held"))
        assert isinstance(answer, f.Ok) or not {"a", "b"} <= set(self.machine.core.state.queues)
        if isinstance(answer, f.Ok):
            assert answer.count == len(held)
            for each in held:
                each.queue = to

    def letters(self) -> dict[int, Told]:
        """Nodes that are dead letters, by position."""
        state = self.machine.core.state
        return {at: each for at, each in self.told.items() if state.letters.get(at)}

    @precondition(lambda self: self.letters())
    @rule(nth=st.integers(0, 5), drop=st.sampled_from([False, False, True]))
    def replay(self, nth: int, drop: bool) -> None:
        """A dead letter runs again, and what ended with it is held; or it is dropped."""
        position, told = list(self.letters().items())[-1 - nth % len(self.letters())]
        letter = self.machine.core.state.letters.get(position)
        assert letter
        raw = wire.LETTER.pack(position, letter.number)
        answer = self.ask(f.DropDead(raw=raw) if drop else f.ReplayDead(raw=raw))
        assert isinstance(answer, f.Ok), answer
        assert answer.count == 1
        if not drop:
            told.run_again()

    @rule(how=st.sampled_from(["kill", "crash", "save"]))
    def die(self, how: str) -> None:
        self.machine.write_all()
        if how == "save":
            self.machine.save()
            return
        getattr(self.machine, how)()
        self.meet()

    @invariant()
    def are_as_told(self) -> None:
        """Each node is what those before it make of it."""
        for position, told in self.told.items():
            answer = self.ask(f.Watch(id=told.id, position=position))
            assert isinstance(answer, f.Result), answer
            state = State(answer.state).name
            if told.status == "OPEN":
                assert state in ("QUEUED", "STARTED", "RETRY"), (position, state)
            elif told.status != "SKIPPED" and state != "UNKNOWN":
                assert state == told.status, (position, state, told.status)
        check_places(self.machine.core.state)
        graphs = self.machine.core.state.graphs
        held = [told for told in self.told.values() if told.status == "HELD"]
        assert graphs.held == len(held)
        if all(told.status not in ("HELD", "OPEN") for told in self.told.values()):
            assert len(graphs.resting) == len(graphs.all())
            assert graphs.resting if self.letters() else not graphs

    @invariant()
    def are_shown(self) -> None:
        """Peek, Why and the counts of a queue tell of the nodes that are held."""
        state = self.machine.core.state
        for name, queue in state.queues.items():
            held = {
                position: told
                for position, told in self.told.items()
                if (told.status, told.queue) == ("HELD", name)
            }
            assert queue.nodes == len(held)
            peeked = self.ask(f.Peek(queue=name, count=1_000))
            assert isinstance(peeked, f.Peeked)
            assert held_of(peeked) == set(held)
            for position, told in list(held.items())[:1]:
                why = self.ask(f.Why(id=told.id, position=position))
                (row, *_) = json.loads(why.raw)["reasons"]
                assert row["reason"] == "inputs"
                assert row["of"] - row["met"] == told.unmet
                assert row["of"] == len(told.sources)
                waits_for = [self.told[each] for each in row["positions"] if each in self.told]
                assert all(any(each is one for _, one in told.sources) for each in waits_for)

    @invariant()
    def replays_alike(self) -> None:
        """State by the log alone is the state by snapshot and log."""
        self.machine.write_all()
        twin = self.machine.disk.copy()
        twin.kill()
        log = Log.open(twin, LOG)
        told, self.machine.snapshot = self.machine.snapshot, None
        whole = exact(self.machine.rebuilt(log).state)
        self.machine.snapshot = told
        assert exact(self.machine.rebuilt(log).state) == whole


def test_nodes_wait_for_those_before_them() -> None:
    run_state_machine_as_test(Story, settings=settings(STORIES, stateful_step_count=30))
