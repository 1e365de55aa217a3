"""Whoever takes messages and settles them: a worker's child, or a plain consumer.

Runs one message at a time and prefetches what its credit allows. What it was not answered
it settles again after it has reconnected; what it lost it may settle late, out of spite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.failure import Failure
from qprotocol.message import Outcome
from qprotocol.options import RetryPolicy
from sim.client import Client
from sim.maker import TASKS, Maker
from sim.oracle import Known, Lease
from sim.world import MS, Mark, Violation

NORMAL, DEAD, ALL = 1, 2, 3
"""Subscriptions: the queues, and in the end the queues of dead letters, and all tasks."""
GRAVES_MAX = 50
FOREVER = RetryPolicy(retries_max=65_535, backoff_ms=20, backoff_max_ms=200, jitter=False)


@dataclass(eq=False)
class Ending:
    """One settlement, as it is sent and perhaps sent again."""

    lease: Lease
    why: str
    outcome: Outcome
    children: list[Known] = field(default_factory=list)
    """Follow-on messages."""
    replaces: Known | None = None


class Taker(Client):
    """Consumes, runs, settles."""

    def __init__(self, maker: Maker, queues: list[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maker = maker
        self.queues = queues
        self.held: dict[tuple[int, int], Lease] = {}
        self.todo: deque[Lease] = deque()
        self.busy: Lease | None = None
        self.endings: list[Ending] = []
        """To be sent together."""
        self.unsure: list[Ending] = []
        """Sent, and not answered."""
        self.graves: deque[Lease] = deque(maxlen=GRAVES_MAX)
        self.credit = self.credit_most = self.swarm.credit
        self.calm = False
        self.tasks: tuple[str, ...] = ()
        """Those it knows; none: all."""
        # One that is alone and knows some tasks only would keep the others waiting for ever.
        is_one_of_some = self.swarm.has("known tasks") and not self.swarm.has("single consumer")
        if is_one_of_some and self.rng.random() < 0.6:
            self.tasks = self.rng.choice((("",), TASKS[:1], TASKS[1:], TASKS, ("", TASKS[0])))
        self.subscribed: set[int] = set()
        self.began = 0
        """Counts what was begun: a timer of an earlier run means nothing."""

    @property
    def owner(self) -> Any:
        """Who the oracle holds to account."""
        return self

    # Subscribing.

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        self.subscribed.clear()
        for token in w.TOKEN.iter_unpack(welcome.raw):
            self.claim_refused(token, mark)
        self.subscribe()
        again, self.unsure = self.unsure, []
        self.endings += [each for each in again if self.token(each.lease) in self.held]
        self.flush()
        self.proceed()

    def subscribe(self) -> None:
        wanted = {NORMAL: self.queues}
        if self.calm:
            wanted[DEAD] = [f"{name}.dead" for name in self.swarm.queues]
        if self.calm and self.tasks:
            wanted[ALL] = self.queues
        for number, queues in wanted.items():
            if self.open and number not in self.subscribed:
                self.subscribed.add(number)
                order = self.order() if number == NORMAL else {}
                frame = f.Consume(subscription=number, queues=queues, credit=self.credit, **order)
                if number == NORMAL:
                    frame.raw = b"".join(bytes([len(name)]) + name.encode() for name in self.tasks)
                self.ask(frame, self.consumed)

    def order(self) -> dict[str, Any]:
        """How its queues take turns: fields of Consume."""
        chosen = self.swarm.consume
        weights = chosen.get("weights", {})
        weighed = {name: weights[name] for name in self.queues if name in weights}
        return chosen | {"weights": weighed}

    def consumed(self, answer: f.Frame | None, mark: Mark | None) -> None:
        if isinstance(answer, f.Error) and answer.code != "SHUTTING_DOWN":
            raise Violation(f"{self.name} may not consume: {answer.message}")

    def claim_refused(self, token: tuple[int, int], mark: Mark) -> None:
        """The broker says that this is not ours any more."""
        lease = self.held.get(token)
        if lease is not None:
            self.world.sometimes["a token was lost"] += 1
            self.world.note(self.name, "does not have %d any more", lease.known.uid)
            self.oracle.claim_refused(lease, mark, in_time=self.in_time(mark))
            self.bury(lease)

    def in_time(self, mark: Mark) -> bool:
        return False

    def tokens(self) -> bytes:
        return b""

    # Deliveries.

    def on_push(self, frame: f.Frame, mark: Mark) -> None:
        if isinstance(frame, f.Deliver):
            self.deliver(frame, mark)
        elif isinstance(frame, f.Inputs):
            self.oracle.flows.came(frame)
        elif isinstance(frame, f.Revoke):
            for token in w.TOKEN.iter_unpack(frame.raw):
                lease = self.held.get(token)
                if lease:
                    self.world.sometimes["a running message was revoked"] += 1
                    self.bury(lease)
            if not self.todo:
                self.flush()
            self.proceed()
        elif isinstance(frame, f.QueueGone):
            self.world.sometimes["a consumer was told that its queue is gone"] += 1
            self.subscribed.discard(frame.subscription)
            frame = f.Unsubscribe(subscription=frame.subscription)
            self.ask(frame, lambda answer, mark: self.subscribe())
        else:
            super().on_push(frame, mark)

    def deliver(self, frame: f.Deliver, mark: Mark) -> None:
        dead = frame.subscription == DEAD
        leases = self.oracle.delivered(self.owner, frame, mark, dead=dead, queues=self.queues)
        if frame.subscription == NORMAL and self.oracle.turns:
            self.oracle.turns.handed(self, leases)
        self.world.note(
            self.name, "gets %s by %#x", [each.known.uid for each in leases], frame.grant
        )
        for lease in leases:
            task = lease.known.message.task
            if self.tasks and frame.subscription == NORMAL and task not in self.tasks:
                raise Violation(f"{self.name} knows {self.tasks}, and is given {lease.known}")
            if lease.counters:
                text = "%d was handed out before: deliveries, failures, crashes %s"
                self.world.note(self.name, text, lease.known.uid, lease.counters)
            if not dead:
                self.oracle.flows.given(lease)
            self.held[self.token(lease)] = lease
            self.todo.append(lease)
        since = self.owner.excused_since
        unasked = sum(
            not (e.asked or e.known.cancel_asked or since(e.mark.tick)) for e in self.held.values()
        )
        if NORMAL in self.subscribed and unasked > self.credit_most * len(self.subscribed):
            raise Violation(f"{self.name} holds {unasked}, and gave credit for {self.credit_most}")
        self.proceed()

    def token(self, lease: Lease) -> tuple[int, int]:
        return lease.position, lease.grant

    def bury(self, lease: Lease) -> None:
        """It is not ours any more."""
        self.held.pop(self.token(lease), None)
        if lease in self.todo:
            self.todo.remove(lease)
        if self.busy is lease:
            self.busy = None
        self.graves.append(lease)

    # Running.

    def proceed(self) -> None:
        """Begin the next one, if nothing runs."""
        if self.busy is not None or not self.todo or self.silent or not self.open:
            return
        lease = self.busy = self.todo.popleft()
        if lease.known.message.flags & w.ACK_EARLY and not self.calm and self.session:
            start = Outcome(w.START, lease.position, lease.grant)
            asked = self.world.mark()
            frame = f.Settle(count=1, raw=start.pack())
            self.ask(frame, lambda answer, mark: self.started(lease, answer, mark, asked))
            self.oracle.runs(lease)
        else:
            self.run(lease)

    def started(self, lease: Lease, answer: f.Frame | None, mark: Mark | None, asked: Mark) -> None:
        if self.busy is not lease:
            return
        if answer is None or mark is None:
            self.busy = None
            self.todo.appendleft(lease)  # it may begin once this is confirmed, so: ask again
            return
        assert isinstance(answer, f.Settled), answer
        if answer.lost:
            self.oracle.lost(lease, mark, asked)
            self.bury(lease)
            self.proceed()
            return
        self.world.note(self.name, "may begin %d", lease.known.uid)
        self.world.sometimes["a start was confirmed"] += 1
        if not self.oracle.gone(lease.known, mark):
            lease.known.begun, lease.known.again = mark.tick, False
        self.run(lease)

    def run(self, lease: Lease) -> None:
        if self.swarm.has("running") and self.rng.random() < 0.7:
            self.oracle.runs(lease)
            self.say(f.Running(raw=w.TOKEN.pack(*self.token(lease))))
        took = self.rng.randint(*self.swarm.run_us)
        if self.rng.random() < 0.03 and not self.calm:
            took *= 50
        self.began += 1
        self.world.after(min(took, 50 * MS) if self.calm else took, self.ran, lease, self.began)

    def ran(self, lease: Lease, began: int) -> None:
        if self.busy is not lease or began != self.began:
            return
        if self.silent:
            self.world.after(100 * MS, self.ran, lease, began)
            return
        self.busy = None
        if self.token(lease) in self.held:
            self.endings.append(self.ending(lease))
        if len(self.endings) >= 3 or not self.todo or self.rng.random() < 0.5:
            self.flush()
        self.proceed()

    # Settling.

    def ending(self, lease: Lease) -> Ending:
        """How it ends, as far as the seed's features go."""
        swarm, rng = self.swarm, self.rng
        ways: list[Callable[[Lease], Ending]] = [self.ack, self.ack]
        if not self.calm and self.session:
            has = swarm.has
            ways += [self.ack_with_result] * 3 * has("results")
            ways += [self.fail] * 2 * has("retries") + [self.release] * has("release")
            ways += [self.reject] * has("reject") + [self.crash] * has("crash outcome")
            ways += [self.replace] * has("replacement") + [self.follow] * has("follow-on")
        return rng.choice(ways)(lease)

    def plain(self, lease: Lease, kind: int, why: str, **more: Any) -> Ending:
        return Ending(lease, why, Outcome(kind, lease.position, lease.grant, **more))

    def ack(self, lease: Lease) -> Ending:
        return self.plain(lease, w.ACK, "acked")

    def ack_with_result(self, lease: Lease) -> Ending:
        result = b"%d by %#x" % (lease.known.uid, lease.grant) + bytes(self.rng.choice((0, 200)))
        return self.plain(lease, w.ACK, "acked", result=result, flags=w.HAS_RESULT)

    def fail(self, lease: Lease) -> Ending:
        error = Failure("Boom", "it did").pack()
        kind = self.rng.random()
        if kind < 0.2:
            return self.plain(lease, w.FAIL, "failed for good", result=error, flags=w.NO_RETRY)
        if kind < 0.5:
            delay = self.rng.choice((0, 30, 2_000))
            return self.plain(
                lease,
                w.FAIL,
                "failed, and runs again",
                result=error,
                policy=FOREVER.pack(),
                delay_ms=delay,
            )
        return self.plain(lease, w.FAIL, "failed", result=error)

    def release(self, lease: Lease) -> Ending:
        return self.plain(lease, w.RELEASE, "released", delay_ms=self.rng.choice((0, 0, 50, 2_000)))

    def reject(self, lease: Lease) -> Ending:
        return self.plain(lease, w.REJECT, "rejected", result=b"not like this")

    def crash(self, lease: Lease) -> Ending:
        error = Failure("WorkerLost", "signal 9").pack()
        return self.plain(lease, w.CRASH, "crashed", result=error)

    def follow(self, lease: Lease) -> Ending:
        ending = self.rng.choice((self.ack, self.ack_with_result, self.reject))(lease)
        ending.children = [self.maker.make(self.rng) for _ in range(self.rng.randint(1, 3))]
        ending.outcome.follow_on = tuple(known.raw for known in ending.children)
        return ending

    def replace(self, lease: Lease) -> Ending:
        """Another body under the same id: what ``self.retry(args=...)`` does."""
        # One that dies instead, for it was handed out so often, is what it was before.
        if not lease.known.message.task or self.oracle.burials.few:
            return self.release(lease)
        new = self.maker.make(self.rng, like=lease.known)
        more: dict[str, Any] = {"flags": w.HAS_REPLACEMENT, "follow_on": (new.raw,)}
        more["delay_ms"] = self.rng.choice((0, 50, 400))
        if self.rng.random() < 0.5:
            ending = self.plain(lease, w.RELEASE, "replaced", **more)
            new.failures = list(lease.known.failures)
        else:
            error = Failure("Retry", "with other arguments").pack()
            more |= {"policy": FOREVER.pack(), "result": error}
            ending = self.plain(lease, w.FAIL, "replaced", **more)
            new.failures = [each + 1 for each in lease.known.failures]
        new.crashes = list(lease.known.crashes)
        # A cancel that is on its way may find the new one in the old one's place.
        new.cancel_asked = lease.known.cancel_asked
        new.elsewhere = set(lease.known.elsewhere)
        new.plain_order = new.plain_order and not new.elsewhere
        ending.replaces = new
        self.oracle.keys.inherit(new, lease.known)
        self.oracle.flows.replaced(lease.known, new)
        return ending

    def flush(self) -> None:
        """Send the settlements that are due."""
        if not self.endings or not self.open or self.silent:
            return
        endings, self.endings = self.endings, []
        asked = self.world.mark()
        frame: f.Frame
        if all(
            each.outcome.outcome == w.ACK and not each.outcome.flags for each in endings
        ) and not any(each.children for each in endings):
            frame = f.Ack(raw=ack_runs(endings))
        else:
            frame = f.Settle(count=len(endings), raw=b"".join(e.outcome.pack() for e in endings))
        for each in endings:
            self.begin_end(each)
        self.unsure += endings
        self.world.note(
            self.name, "settles %s", [(each.lease.known.uid, each.why) for each in endings]
        )
        self.ask(frame, lambda answer, mark: self.answered(endings, answer, mark, asked))

    def begin_end(self, ending: Ending) -> None:
        oracle = self.oracle
        oracle.ask_end(ending.lease, ending.why)
        new = [*ending.children, *([ending.replaces] if ending.replaces else [])]
        oracle.sent(new)
        for known in new:
            known.cause = ending.lease if ending.why in ("acked", "replaced") else None
        if ending.outcome.flags & w.HAS_RESULT:
            ending.lease.known.results.append(ending.outcome.result)

    def answered(
        self, endings: list[Ending], answer: f.Frame | None, mark: Mark | None, asked: Mark
    ) -> None:
        if answer is None or mark is None:
            return  # unknown: they are in ``unsure``
        self.unsure = [each for each in self.unsure if each not in endings]
        if isinstance(answer, f.Error):
            self.refused(endings, answer)
            return
        assert isinstance(answer, f.Settled), answer
        lost = {position for (position,) in w.POSITION.iter_unpack(answer.raw)}
        if lost - {each.lease.position for each in endings}:
            raise Violation(f"lost are {lost}, which nobody settled")
        for each in endings:
            lease = each.lease
            if lease.position in lost:
                self.world.sometimes["a settlement came too late"] += 1
                self.oracle.lost(lease, mark, asked)
            else:
                self.accepted(each, answer, mark, asked)
            self.bury(lease)
            if self.swarm.has("double settle") and self.rng.random() < 0.1:
                self.world.after(self.rng.randint(0, 500 * MS), self.settle_again, each)
        self.proceed()

    def accepted(self, each: Ending, answer: f.Settled, mark: Mark, asked: Mark) -> None:
        known = each.lease.known
        if not known.relaxed and answer.durability != "synced":
            raise Violation(f"{known} was settled, and that is only {answer.durability}")
        self.oracle.settled(each.lease, each.why, mark, asked)
        for child in (*each.children, *([each.replaces] if each.replaces else [])):
            child.synced = answer.durability == "synced"
            if child.synced or not self.oracle.gone(child, mark):
                self.oracle.reveal(child)
        if each.replaces:
            self.oracle.keys.replaced(each.replaces, mark)
        if each.outcome.flags & w.HAS_RESULT:
            self.oracle.keeps(known, each.outcome.result, mark)

    def refused(self, endings: list[Ending], error: f.Error) -> None:
        """Nothing of it was done: end it in the simplest way."""
        self.world.note(self.name, "settlement refused: %s %s", error.code, error.message)
        self.world.sometimes[f"a settlement was refused: {error.code}"] += 1
        for each in endings:
            for child in (*each.children, *([each.replaces] if each.replaces else [])):
                if error.definite and child.born == 2:
                    raise Violation(f"{error.code} says not done, but {child} was seen")
                child.refused = error.definite
            each.lease.asked = False
            if self.token(each.lease) in self.held:
                self.endings.append(self.ack(each.lease))
        self.world.after(100 * MS, self.flush)

    def settle_again(self, ending: Ending) -> None:
        """What was settled is settled once more: the token is of no use any more."""
        self.world.sometimes["settled twice"] += 1
        self.late([ending.lease])

    def late(self, leases: list[Lease]) -> None:
        """Ack what is not ours any more, if it ever was: it may be refused, or be in time."""
        if not self.open or self.silent or not leases:
            return
        endings = [self.ack(lease) for lease in leases]
        asked = self.world.mark()
        for each in endings:
            self.begin_end(each)
        frame: f.Frame = f.Ack(raw=ack_runs(endings))
        if self.rng.random() < 0.5:
            frame = f.Settle(count=len(endings), raw=b"".join(e.outcome.pack() for e in endings))
        self.ask(frame, lambda answer, mark: self.answered(endings, answer, mark, asked))


def ack_runs(endings: list[Ending]) -> bytes:
    return b"".join(w.ACK_RUN.pack(e.lease.grant, e.lease.position, 1) for e in endings)
