"""What the broker may tell a worker, and what happens to the connection: with a scripted peer."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from qclient import App
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.message import Message, Outcome
from scriptedpeer import Line, Peer
from worker.workshop import Workshop, alive, until


class Script:
    """Answers what a worker asks, hands out what the test says, and notes what became of it."""

    def __init__(self) -> None:
        self.peer = Peer(self.act)
        self.parent: Line | None = None
        self.members: list[Line] = []
        self.credit: dict[Line, int] = {}
        self.settled: dict[int, int] = {}
        """Outcomes by position."""
        self.said_bye = 0
        self.grants = itertools.count(1)
        self.app = App("script", broker=self.peer.url, set_as_current=False)
        self._settling = threading.Lock()

    def act(self, line: Line, frame: f.Frame) -> None:
        if isinstance(frame, f.Heartbeat) and line not in self.members:
            self.parent = line
        elif isinstance(frame, f.Consume):
            self.members.append(line)
            self.credit[line] = frame.credit
            line.say(f.Ok(correlation=frame.correlation))
        elif isinstance(frame, f.Credit):
            self.credit[line] = frame.credit
        elif isinstance(frame, (f.Ack, f.Settle)):
            self.note(frame)
            line.say(f.Settled(durability="always", correlation=frame.correlation))
        elif isinstance(frame, (f.Unsubscribe, f.Bye)):
            self.said_bye += isinstance(frame, f.Bye)
            line.say(f.Ok(correlation=frame.correlation))

    def note(self, frame: f.Ack | f.Settle) -> None:
        with self._settling:
            if isinstance(frame, f.Ack):
                for _grant, first, count in wire.ACK_RUN.iter_unpack(frame.raw):
                    self.settled |= dict.fromkeys(range(first, first + count), wire.ACK)
                return
            at = 0
            while at < len(frame.raw):
                outcome, at = Outcome.unpack(frame.raw, at)
                self.settled[outcome.position] = outcome.outcome

    def deliver(self, line: Line, first: int, *calls: tuple[str, object]) -> list[tuple[int, int]]:
        """Calls of the shop's tasks go to that member; their tokens."""
        packed = [
            self.app.signature(f"shop.{name}", (argument,), queue="q") for name, argument in calls
        ]
        raw = b"".join(
            Message(
                "q",
                call.callee.prepare(call)[1],
                id=f"id-{first + i}",
                task=call.callee.name,
                content=1,
            ).pack()
            for i, call in enumerate(packed)
        )
        grant = next(self.grants)
        line.say(
            f.Deliver(
                subscription=1,
                grant=grant,
                count=len(calls),
                runs=1,
                touched=0,
                raw=wire.RUN.pack(first, len(calls)) + raw,
            )
        )
        return [(first + i, grant) for i in range(len(calls))]


@pytest.fixture
def script():
    made = Script()
    yield made
    made.peer.close()


@pytest.fixture
def shop(script, tmp_path):
    """A workshop whose broker is the script."""

    class There:
        url = script.peer.url

    made = Workshop(tmp_path, There(), "prefork", "q")
    yield made
    made.close()


def tokens(*pairs: tuple[int, int]) -> bytes:
    return b"".join(wire.TOKEN.pack(*pair) for pair in pairs)


def started(script: Script, shop: Workshop, *flags: str):
    """A worker of one child whose parent and member the script knows."""
    worker = shop.worker("-c", "1", *flags)
    until(lambda: script.parent and script.members, "parent and member have spoken")
    return worker


def test_what_has_not_begun_can_be_recalled(script, shop):
    """The broker's Recall: the parent gives back what its busy child has in hand."""
    started(script, shop)
    script.deliver(script.members[0], 1, ("held", "gate"))
    shop.wait_for_mark("began", "gate")
    in_hand = script.deliver(script.members[0], 2, ("add", 1), ("add", 2), ("add", 3))

    def recalled() -> bool:
        script.parent.say(f.Recall(raw=tokens(*in_hand[1:])))
        return wire.RELEASE in script.settled.values()

    until(recalled, "something is given back")
    assert {p for p, outcome in script.settled.items() if outcome == wire.RELEASE} == {3, 4}
    shop.open_gate("gate")
    until(lambda: script.settled.get(2), "what was not recalled runs")
    assert script.settled[1] == wire.ACK


def test_a_long_task_has_nothing_behind_it(script, shop):
    """While a task runs long the credit is 1: what is not delivered need not be recalled."""
    started(script, shop)
    member = script.members[0]
    script.deliver(member, 1, *[("pid_of", n) for n in range(200)])
    until(lambda: len(script.settled) == 200, "short tasks run")
    assert script.credit[member] > 4
    script.deliver(member, 1001, ("held", "gate"), ("add", 1))
    until(lambda: script.credit[member] == 1, "the credit falls")
    shop.open_gate("gate")


def test_quiet_and_resume(script, shop):
    """Quiet ends the children once they are idle; resume brings them back. The parent stays."""
    worker = started(script, shop)
    script.parent.say(f.Control(verb="quiet"))
    worker.wait_for("quiet")
    until(lambda: script.said_bye == 1, "the child says goodbye")
    script.parent.say(f.Control(verb="resume"))
    until(lambda: len(script.members) == 2, "a child is back")
    assert worker.process.poll() is None


def test_drain_by_order(script, shop):
    """The broker's order ends a worker as SIGTERM does."""
    worker = started(script, shop)
    script.parent.say(f.Control(verb="drain"))
    assert worker.exit_code() == 0
    assert script.said_bye == 2


def test_connections_that_are_cut_come_back(script, shop):
    """Ten times: parent and member return with their session, and what was unanswered is sent."""
    worker = started(script, shop, "-l", "INFO")
    for turn in range(10):
        parent, member = script.parent, script.members[-1]
        count = len(script.members)
        member.hang_up()
        parent.hang_up()
        until(
            lambda parent=parent, count=count: (
                script.parent is not parent and len(script.members) > count
            ),
            "both are back",
        )
        script.deliver(script.members[-1], 10 * turn + 1, ("add", 1))
        until(lambda turn=turn: 10 * turn + 1 in script.settled, "it works")
    assert worker.process.poll() is None


def test_a_broker_that_falls_silent_is_left(script, shop):
    """A connection that is open and dead (a host gone, a cable cut) is given up and made anew."""
    script.peer.welcome = False
    silent = script.peer.act

    def quick_welcome(line: Line, frame: f.Frame) -> None:
        silent(line, frame)

    script.peer.act = quick_welcome
    script.peer._hear = impatient(script.peer)
    started(script, shop)
    parent, members = script.parent, len(script.members)
    until(lambda: script.parent is not parent, "the parent connects again", 30)
    until(lambda: len(script.members) > members, "the member connects again", 30)


def impatient(peer: Peer):
    """As the peer hears, but it promises to speak within a second, and never does."""
    hear = peer._hear

    def heard(line: Line, frame: f.Frame) -> None:
        if isinstance(frame, f.Hello):
            line.say(
                f.Welcome(
                    protocol=1,
                    heartbeat_ms=300,
                    session_timeout_ms=1000,
                    server_ms=time.time_ns() // 1_000_000,
                    correlation=frame.correlation,
                )
            )
        else:
            hear(line, frame)

    return heard


def test_a_child_that_finished_what_it_could_not_tell(script, shop):
    """Settlements nobody answered are sent again on the next connection, once."""
    started(script, shop)
    member = script.members[0]
    act = script.peer.act

    def deaf(line: Line, frame: f.Frame) -> None:
        if not isinstance(frame, (f.Ack, f.Settle)):
            act(line, frame)

    script.peer.act = deaf
    script.deliver(member, 1, ("add", 1))
    until(lambda: any(isinstance(h, f.Settle) for h in script.peer.heard), "it settles")
    script.peer.act = act
    member.hang_up()
    until(lambda: 1 in script.settled, "it settles again")
    assert script.settled == {1: wire.FAIL}


def test_the_hello_of_a_member_lists_what_it_holds(script, shop):
    """After a cut the broker hears of the running token and of those in hand."""
    hellos: list[f.Hello] = []
    hear = script.peer._hear

    def heard(line: Line, frame: f.Frame) -> None:
        if isinstance(frame, f.Hello) and frame.role == "member":
            hellos.append(frame)
        hear(line, frame)

    script.peer._hear = heard
    worker = started(script, shop)
    held = script.deliver(script.members[0], 1, ("held", "gate"), ("add", 2))
    mark = shop.wait_for_mark("began", "gate")
    script.members[0].hang_up()
    until(lambda: len(hellos) == 2, "the member is back, while its task runs")
    assert hellos[1].raw == tokens(*held)
    assert hellos[0].session == hellos[1].session
    assert alive(int(mark[2]))
    shop.open_gate("gate")
    until(lambda: {1, 2} <= set(script.settled), "both are settled")
    assert worker.stop() == 0
