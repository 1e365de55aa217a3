"""What graphs promise, held against what is handed out, told and kept.

    order    a node goes once all that it waits for may have ended as its links say
    inputs   it is given what became of each, in their order: a result that a worker sent
    ends     who waits for what may have failed may end with it, and nobody else does

Only what is certain is held against the broker, as everywhere.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.graphs import AFTER, BRINGS, DONE, ERROR, SUCCESS, Link, Node
from qprotocol.states import State
from sim.world import Violation

if TYPE_CHECKING:
    from sim.oracle import Known, Lease, Oracle

KINDS = SUCCESS, SUCCESS, SUCCESS, AFTER, DONE, ERROR


def links_by_chance(rng: Random, count: int) -> list[list[Link]]:
    """Of each of so many nodes the links that begin with it."""
    found: list[list[Link]] = [[] for _ in range(count)]
    for index in range(count - 1):
        while rng.random() < 0.6 and len(found[index]) < 3:
            sources = rng.randint(1, min(3, count - 1 - index))
            first = rng.randint(index + sources, count - 1)
            targets = rng.randint(1, min(3, count - first))
            found[index].append(Link(rng.choice(KINDS), first, sources, targets))
    return found


def packed(links: list[list[Link]]) -> list[bytes]:
    """The fields NODE of the messages."""
    return [Node(tuple(each)).pack() for each in links]


class Flows:
    """The books of graphs."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.inputs: dict[tuple[int, int], f.Inputs] = {}
        """What came for deliveries that have not come, by position and grant."""

    def weave(self, nodes: list[Known], links: list[list[Link]]) -> None:
        """The messages are nodes of a graph."""
        for index, row in enumerate(links):
            for kind, first, sources, targets in row:
                for target in nodes[first : first + targets]:
                    target.needs += [(kind, each) for each in nodes[index : index + sources]]

    def replaced(self, old: Known, new: Known) -> None:
        """``new`` is to go on as ``old``: it is given the same, and others wait for it."""
        old.successors.append(new)
        new.needs = old.needs

    # What may have become of a message.

    def may_fail(self, known: Known) -> bool:
        """Whether it may end otherwise than by an ack."""
        return (
            known.may_be_dead
            or known.cancel_asked
            or known.purge_asked
            or bool(known.message.expires_ms)
            or known.may_rot
            or known.relaxed
            or self.is_let_down(known)
            or any(map(self.may_fail, known.successors))
        )

    def is_let_down(self, known: Known) -> bool:
        """Whether it may end because of another that it waits for."""
        return any(kind == ERROR or self.may_fail(each) for kind, each in known.needs)

    def may_be_skipped(self, known: Known) -> bool:
        """Whether it may end because nobody needs it: of that no row tells."""
        return any(kind == ERROR or self.may_be_skipped(each) for kind, each in known.needs)

    def may_be_acked(self, known: Known) -> bool:
        """Whether somebody acked it, or what replaced it."""
        acked = any("acked" in lease.whys for lease in known.leases)
        return acked or any(map(self.may_be_acked, known.successors))

    # What is seen.

    def delivered(self, known: Known) -> None:
        """It goes: all that it waits for may have ended."""
        for kind, each in known.needs:
            may_be_met = self.may_fail(each) or (kind != ERROR and self.may_be_acked(each))
            if not may_be_met:
                raise Violation(f"{known} goes before {each}, which has not ended")
        self.oracle.world.sometimes["a node went behind another"] += bool(known.needs)

    def came(self, inputs: f.Inputs) -> None:
        """What a delivery is given comes before it."""
        self.inputs[inputs.position, inputs.grant] = inputs

    def given(self, lease: Lease) -> None:
        """The delivery has what it is to have."""
        if lease.known.replays:
            return  # what it was given may be gone
        brought = [(kind, each) for kind, each in lease.known.needs if kind in BRINGS]
        inputs = self.inputs.pop((lease.position, lease.grant), None)
        if (inputs.total if inputs else 0) != len(brought):
            raise Violation(f"{lease.known} is given {inputs}, and waits for {len(brought)}")
        if inputs is None:
            return
        rows, at = [], 0
        for _ in range(inputs.count):
            state, _content, size = w.INPUT.unpack_from(inputs.raw, at)
            at += w.INPUT.size + size
            rows.append((state, bytes(inputs.raw[at - size : at])))
        # Links are in the order of their first sources, as the broker numbers them.
        for (kind, each), (state, raw) in zip(brought, rows, strict=False):
            self._check_input(lease.known, kind, each, state, raw)
        self.oracle.world.sometimes["a node was given inputs"] += 1

    def _check_input(self, known: Known, kind: int, each: Known, state: int, raw: bytes) -> None:
        if state == w.LOST:
            if not self.oracle.rotted:
                raise Violation(f"{known}: what became of {each} is lost")
        elif state == State.SUCCESS:
            sent = [*each.results, *(r for one in self.line(each) for r in one.results)]
            if not self.may_be_acked(each) or (raw and raw not in sent):
                raise Violation(f"{known} is given {raw!r:.60}, which nobody sent of {each}")
            if kind == ERROR:
                raise Violation(f"{known} waits for a failure, and is given a success of {each}")
        elif kind == SUCCESS or not self.may_fail(each):
            raise Violation(f"{known} is given a failure of {each}, {State(state).name}")

    def line(self, known: Known) -> list[Known]:
        """What replaced it, and what replaced that."""
        found = list(known.successors)
        for each in known.successors:
            found += self.line(each)
        return found
