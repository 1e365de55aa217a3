"""Large graphs are worked out so much a turn; what is no graph is refused, whatever its bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from digest import check_places
from harness import Harness
from machine import Machine, Peer
from qbroker.core import advancing, closing
from qbroker.core import records as r
from qbroker.core.cleaning import Live
from qbroker.core.settings import ADVANCE_STEPS_MAX, Settings
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.graphs import AFTER, ERROR, SUCCESS, Link, Node
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message, Outcome, pack_fields
from qprotocol.states import State

PIECE = 400


def node(*links: Link, queue: str = "q", name: str = "", ordering: str = "") -> bytes:
    fields = pack_fields({wire.NODE: Node(links).pack()})
    keys = LaneKeys(ordering=ordering).pack()
    return Message(queue, b"x", name, "t", keys=keys, fields=fields).pack()


class Client:
    """One connection, which publishes in parts and takes all that it gets."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.number = machine, 0
        self.peer: Peer = machine.connect()
        self.ask(f.Hello(protocol=1, role="consumer", client_id="t"))

    def ask(self, frame: f.Frame) -> f.Frame:
        self.number += 1
        frame.correlation = self.number
        self.machine.submit(self.peer, frame)
        self.machine.settle()
        (answer,) = [each for each in self.peer.received if each.correlation == self.number]
        return answer

    def publish(self, raws: Sequence[bytes], *, sequence: int = 1) -> f.Frame:
        pieces = [raws[at : at + PIECE] for at in range(0, len(raws), PIECE)]
        for index, piece in enumerate(pieces[:-1]):
            part = f.Part(index=index, of=f.Publish.TYPE, raw=b"".join(piece))
            part.correlation = self.number + 1
            self.machine.submit(self.peer, part)
            self.machine.settle()
        frame = f.Publish(producer=1, sequence=sequence, count=len(raws), raw=b"".join(pieces[-1]))
        return self.ask(frame)

    def taken(self) -> dict[int, int]:
        """The messages that were handed out, and their grants."""
        found: dict[int, int] = {}
        for frame in self.peer.received:
            if isinstance(frame, f.Deliver):
                raw = frame.raw[: frame.runs * wire.RUN.size]
                for first, count in wire.RUN.iter_unpack(raw):
                    found |= dict.fromkeys(range(first, first + count), frame.grant)
        return found

    def ack(self, taken: dict[int, int]) -> None:
        raw = b"".join(wire.ACK_RUN.pack(grant, at, 1) for at, grant in taken.items())
        assert isinstance(self.ask(f.Ack(raw=raw)), f.Settled)


@pytest.fixture
def machine() -> Machine:
    return Machine(settings=Settings())


def fan(count: int, kind: int = SUCCESS) -> list[bytes]:
    """One, and so many behind it."""
    return [node(Link(kind, 1, 1, count)), *[node() for _ in range(count)]]


def test_what_follows_from_an_end_is_done_so_much_a_turn_also_after_a_crash(
    machine: Machine,
) -> None:
    client, count = Client(machine), 3 * ADVANCE_STEPS_MAX
    assert isinstance(client.publish(fan(count)), f.Published)
    client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    taken = client.taken()
    assert len(taken) == 1
    machine.noted.clear()
    raw = b"".join(wire.ACK_RUN.pack(grant, at, 1) for at, grant in taken.items())
    client.peer.received.clear()
    machine.submit(client.peer, f.Ack(raw=raw, correlation=99))
    machine.turn()
    steps = [each.steps for _, each in machine.noted if isinstance(each, r.Advanced)]
    assert steps == [ADVANCE_STEPS_MAX, ADVANCE_STEPS_MAX]  # with the frame, and in the turn
    assert machine.core.state.graphs.held == count - 2 * (ADVANCE_STEPS_MAX - 1)
    machine.write_all()
    machine.kill()
    assert machine.core.next_due_ms(machine.now) == 0
    machine.settle()
    state = machine.core.state
    assert (state.graphs.held, state.graphs.has_news) == (0, False)
    assert state.numbered[0].ready + state.numbered[0].leased == count


def test_a_join_of_many_that_end_at_once(machine: Machine) -> None:
    client, count = Client(machine), 2 * ADVANCE_STEPS_MAX + 7
    first = node(Link(AFTER, count, count, 1))
    client.publish([first, *[node() for _ in range(count)]])
    client.ask(f.Consume(subscription=1, queues=["q"], credit=2 * count))
    taken = client.taken()
    assert len(taken) == count
    machine.noted.clear()
    client.peer.received.clear()
    client.ack(taken)
    steps = [each.steps for _, each in machine.noted if isinstance(each, r.Advanced)]
    assert max(steps) <= ADVANCE_STEPS_MAX
    assert sum(steps) == 2 * count
    (join,) = client.taken()
    client.ack({join: client.taken()[join]})
    assert not machine.core.state.graphs


def test_large_graphs_are_swept_so_much_a_turn_after_a_purge(machine: Machine) -> None:
    client, count = Client(machine), ADVANCE_STEPS_MAX + 3
    for sequence in range(1, 4):
        client.publish([node() for _ in range(count)], sequence=sequence)
    machine.submit(client.peer, f.Purge(queue="q", correlation=99))
    machine.turn()
    assert machine.core.state.graphs.nodes > count
    machine.write_all()
    machine.kill()
    machine.settle()
    assert not machine.core.state.graphs


def test_a_purge_passes_by_who_was_let_go_or_waits_for_its_time(machine: Machine) -> None:
    client = Client(machine)
    due_ms = machine.wall_ms + 60_000
    fields = pack_fields({wire.NODE: Node().pack()})
    other = Message("other", b"x", "o", "t", fields=fields, due_ms=due_ms).pack()
    again = Message("other", b"x", "p", "t", fields=fields).pack()
    client.publish([node(name="a"), other, again])
    client.ask(f.Consume(subscription=1, queues=["other"], credit=1))
    (position,) = client.taken()
    policy = Outcome(wire.RELEASE, position, client.taken()[position], delay_ms=5_000)
    client.ask(f.Settle(count=1, raw=policy.pack()))
    client.ask(f.Purge(queue="q"))
    assert [client.ask(f.Watch(id=each)).state for each in ("o", "p")] == [
        State.SCHEDULED,
        State.SCHEDULED,
    ]


def test_results_are_kept_as_long_as_somebody_is_given_them(machine: Machine) -> None:
    client = Client(machine)
    client.publish([node(Link(SUCCESS, 1)), node(Link(SUCCESS, 2)), node()])
    client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    ((position, grant),) = client.taken().items()
    outcome = Outcome(wire.ACK, position, grant, flags=wire.HAS_RESULT, result=b"kept")
    client.peer.received.clear()
    client.ask(f.Settle(count=1, raw=outcome.pack()))
    state = machine.core.state
    ((_, entry),) = state.results.entries()
    machine.wait(state.settings.result_ttl_ms + 1)
    assert not list(state.results.entries())
    wanted = Live(state).between(0, 1 << 62).whole
    assert entry.record in wanted
    assert position + 2 in wanted  # held
    part = f.Part(index=0, of=f.Publish.TYPE, correlation=99, raw=node(Link(SUCCESS, 1)) + node())
    machine.submit(client.peer, part)
    machine.settle()
    (upload,) = machine.core.state.uploads.values()
    assert upload.graph
    assert upload.graph.position(1) in Live(machine.core.state).between(0, 1 << 62).whole


def test_lanes_that_nodes_will_wait_in_stay_open(machine: Machine) -> None:
    client = Client(machine)
    client.ask(f.Declare(queue="to", options={}))
    client.publish([node(Link(SUCCESS, 1)), node(name="held", ordering="k")])
    moved = client.ask(f.Move(queue="q", to="to", id="held"))
    assert isinstance(moved, f.Ok)
    assert moved.count == 1
    state = machine.core.state
    keyed = {lane.number for lane in state.lanes if lane.keys}
    assert closing.held_numbers(state) == keyed
    assert {state.lanes[number].queue.name for number in keyed} == {"q", "to"}
    machine.wait(60_000)
    assert closing.held_numbers(machine.core.state) == keyed
    client.ask(f.CancelMany(task="t"))
    assert not machine.core.state.graphs
    assert not closing.held_numbers(machine.core.state)


def test_a_dead_letter_takes_no_graph_along_and_garbage_is_refused(machine: Machine) -> None:
    client = Client(machine)
    client.publish([Message("q", b"x", task="t").pack()])
    client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    ((position, grant),) = client.taken().items()
    flags = wire.HAS_REPLACEMENT | wire.NO_RETRY
    packed = Message("q", b"x", task="t", fields=pack_fields({9: b"unheard-of"})).pack()
    garbage = packed.replace(b"\x09\x0a\0", b"\x09\xff\0")
    outcome = Outcome(wire.FAIL, position, grant, flags=flags, follow_on=(garbage,))
    answer = client.ask(f.Settle(count=1, raw=outcome.pack()))
    assert isinstance(answer, f.Error)
    assert "a message that follows" in answer.message


@pytest.mark.parametrize("dies", [False, True])
def test_what_is_behind_a_dead_letter_is_held_again_so_much_a_turn(
    machine: Machine, *, dies: bool
) -> None:
    """Many behind it, many in a row behind one of those, and one behind all of them."""
    client, wide, long = Client(machine), 700, 700
    last = wide + long + 1
    raws = [node(Link(SUCCESS, 1, 1, wide), name="first")]
    raws += [node(Link(SUCCESS, last, wide, 1)), *[node()] * (wide - 2)]
    raws += [node(Link(SUCCESS, wide + 1))]
    raws += [node(Link(SUCCESS, at + 1)) for at in range(wide + 1, last - 1)] + [node(), node()]
    assert isinstance(client.publish(raws), f.Published)
    client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    ((position, grant),) = client.taken().items()
    client.peer.received.clear()
    fail = Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY)
    client.ask(f.Settle(count=1, raw=fail.pack()))
    graphs = machine.core.state.graphs
    assert (graphs.held, graphs.nodes, len(graphs.resting)) == (0, last + 1, 1)
    letter = machine.core.state.letters.get(position)
    assert letter
    replay = f.ReplayDead(correlation=99, raw=wire.LETTER.pack(position, letter.number))
    machine.noted.clear()
    machine.submit(client.peer, replay)
    machine.turn()
    machine.turn()
    if dies:
        machine.write_all()
        machine.kill()
        client = Client(machine)
        machine.settle()
        client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    machine.submit(client.peer, f.Credit(subscription=1, credit=1_000))
    machine.settle()
    steps = [each.steps for _, each in machine.noted if isinstance(each, r.Advanced)]
    assert max(steps) <= ADVANCE_STEPS_MAX
    graphs = machine.core.state.graphs
    assert (graphs.held, len(graphs.resting)) == (last, 0)
    for _ in range(2 * last):
        taken = client.taken()
        client.peer.received.clear()
        if not taken:
            break
        client.ack(taken)
    assert not machine.core.state.graphs


@pytest.mark.parametrize("does_well", [True, False])
def test_a_retry_ends_before_those_behind_it_have_been_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, does_well: bool
) -> None:
    monkeypatch.setattr(advancing, "ADVANCE_STEPS_MAX", 2)
    client, peers = Client(machine), 6
    client.publish(fan(peers))
    client.ask(f.Consume(subscription=1, queues=["q"], credit=1))
    fail_first(client)
    (position,) = (letter for letter in machine.core.state.letters.by_position)
    letter = machine.core.state.letters.get(position)
    assert letter
    client.peer.received.clear()
    replay = f.ReplayDead(correlation=99, raw=wire.LETTER.pack(position, letter.number))
    machine.submit(client.peer, replay)
    while not client.taken():
        machine.turn()
        machine.write_all()
    ((_, grant),) = client.taken().items()
    assert machine.core.state.graphs.todo, "not all have been looked at"
    if does_well:
        end: f.Frame = f.Ack(correlation=100, raw=wire.ACK_RUN.pack(grant, position, 1))
    else:
        outcome = Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY)
        end = f.Settle(correlation=100, count=1, raw=outcome.pack())
    machine.submit(client.peer, end)
    machine.submit(client.peer, f.Credit(subscription=1, credit=1_000))
    machine.settle()
    assert machine.core.state.graphs.held == 0
    assert len(client.taken()) == 1 + peers * does_well
    check_places(machine.core.state)


def fail_first(client: Client) -> None:
    """What was handed out fails for good."""
    ((position, grant),) = client.taken().items()
    fail = Outcome(wire.FAIL, position, grant, flags=wire.NO_RETRY)
    client.ask(f.Settle(count=1, raw=fail.pack()))


def test_only_links_that_bring_something_give_inputs() -> None:
    harness = Harness()
    harness.run("publish task=t links=a>c,b>c:after a b c")
    harness.run("consume")
    harness.run("done a result=one")
    given = harness.run("done b result=two")
    assert "A     Inputs 2:4 0+1 of 1: SUCCESS one" in given


def test_a_lane_stays_open_while_one_of_two_graphs_needs_it() -> None:
    harness = Harness()
    for name in "ab":
        harness.run(f"publish task=t limit_key=k links={name}1>{name}2 {name}1 {name}2")
    harness.run("consume")
    (lane,) = harness.machine.core.state.graphs.lanes
    assert harness.machine.core.state.graphs.lanes[lane] == 2
    for body in ("a1", "a2"):
        harness.run(f"ack {body}")
    assert harness.machine.core.state.graphs.lanes == {lane: 1}


def test_a_cancel_of_a_graph_passes_by_what_was_purged_just_now(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advancing, "ADVANCE_STEPS_MAX", 1)
    client = Client(machine)
    client.publish([*[node() for _ in range(20)], node(queue="other", name="b")])
    machine.submit(client.peer, f.Purge(correlation=98, queue="q"))
    machine.submit(client.peer, f.CancelGraph(correlation=99, id="b"))
    machine.settle()
    (answer,) = [each for each in client.peer.received if each.correlation == 99]
    assert isinstance(answer, f.Ok), answer
    assert not machine.core.state.graphs
    check_places(machine.core.state)


def test_more_links_than_a_field_holds_begin_with_no_node() -> None:
    with pytest.raises(ValueError, match="5041 links begin with one node: at most 5040"):
        Node((Link(SUCCESS, 1),) * 5_041).pack()


PLAIN = Message("q", b"x").pack()


@pytest.mark.parametrize(
    ("raws", "why"),
    [
        ([node(), PLAIN], "1 of 2 messages are nodes"),
        ([PLAIN, node()], "1 of 2 messages are nodes"),
        ([*[PLAIN] * PIECE, node()], "nodes of a graph behind messages that are none"),
        ([*[node()] * PIECE, PLAIN], "0 of 1 messages are nodes"),
        ([node(Link(SUCCESS, 5))], "a link to message 5: there are 1"),
        ([*[node()] * PIECE, node(Link(ERROR, PIECE + 2))], "a link to message 402"),
        ([node(*[Link(SUCCESS, 1)] * 1_001), node()], "1001 links of one node: at most 1000"),
        (
            [*[node(*[Link(AFTER, 399)] * 300)] * 170, *[node()] * 230],
            "links of its nodes in one frame: at most 50000",
        ),
        ([node(Link(AFTER, 1_100, 1_100, 1_000))], "1100000 pairs of one link"),
        (
            [node(*[Link(AFTER, 1_001, 1_000, 1_000)] * 11)],
            "11000000 pairs of all links: at most 10000000",
        ),
    ],
)
def test_what_is_no_graph_or_too_large_a_one(machine: Machine, raws: list[bytes], why: str) -> None:
    answer = Client(machine).publish(raws)
    assert isinstance(answer, f.Error), answer
    assert why in answer.message
    assert not machine.core.state.graphs


def test_who_runs_a_node_that_is_held_again_does_not_keep_it() -> None:
    """fsync=never: a power cut takes the end that had let it go, and the worker comes back."""
    harness = Harness()
    harness.run("broker fsync=never")
    harness.run("publish task=t links=a>b a b")
    harness.machine.log.sync()
    harness.run("hello session=w role=worker")
    harness.run("consume")
    harness.run("ack a")
    harness.run("crash")
    assert harness.run("hello session=w role=worker of=A b") == ["A     Welcome lost=2:3#1.2"]
    assert not harness.machine.core.state.leases
    check_places(harness.machine.core.state)
