"""Whoever asks and orders: watch, cancel, forget, purge, peek, declare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.limitrules import LimitRule
from qprotocol.states import State
from sim import limits
from sim.client import Client, Then
from sim.maker import EXCHANGE, TASKS, Maker
from sim.oracle import MAYBE, NO, YES, Known, Snapshot
from sim.world import MS, Mark, Violation

CERTAIN_MS = 2_000


class Asker(Client):
    """One request after the other."""

    def __init__(self, maker: Maker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maker = maker
        self.unbound: set[tuple[str, str]] = set()
        self.calm = False
        self.purges = self.cancels = 2
        self.declared = False
        self.rules = limits.rules(self.rng) if self.swarm.has("limits") else {}
        """Limits that were not said to the broker yet; in the end, that were not dropped."""
        has = self.swarm.has
        self.ways = [self.watch] * 3 * has("watch") + [self.cancel] * has("cancel")
        self.ways += [self.forget] * has("forget") + [self.peek] * has("peek")
        self.ways += [self.purge] * has("purge")
        # A pause is durable, and its end is as the wall clock says, where both can be relied on.
        certain = self.swarm.config["fsync"] == "always" and not self.swarm.fails("wall jump")
        self.ways += [self.pause] * (has("pause") and certain)
        self.ways += [self.close_queue] * (has("intake pauses") and certain)
        self.ways += [self.cancel_many] * has("cancels of many")
        self.ways += [self.move] * (has("moves") and self.default_is_safe)
        # With a queue its bindings go: nobody could say how many copies there are to be.
        self.ways += [self.delete] * (has("delete") and not has("routing"))

    def begin(self) -> None:
        self.connect()
        self.world.after(self.rng.randint(10 * MS, 200 * MS), self.think)

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        if not self.declared:
            for name, options in self.swarm.queues.items():
                frame = f.Declare(queue=name, options=options)
                self.ask(frame, partial(self.was_declared, name))
                alone = {"single_active_consumer": True}
                if alone.items() <= options.items():
                    # It may have been made on first use, without its options.
                    order = f.ChangeQueue(queue=name, options=alone)
                    self.ask(order, partial(self.was_changed, name))

        if self.swarm.has("routing") and not self.maker.routes:
            self.bind()
        self.say_rules()

    def settle_down(self) -> None:
        """Nothing more is asked for, and nothing is limited: all can be worked off."""
        self.calm = True
        self.rules = limits.rules(self.rng) if self.swarm.has("limits") else {}
        self.say_rules()

    def say_rules(self) -> None:
        for name, rule in self.rules.items() if self.open else ():
            if self.calm:
                assert self.oracle.limits
                self.oracle.limits.said(name, None, self.world.mark())
                self.ask(f.DropLimit(name=name), partial(self.was_dropped, name))
            else:
                frame = f.SetLimit(name=name, rule=rule.as_dict())
                self.ask(frame, partial(self.was_set, name, rule))

    def was_set(
        self, name: str, rule: LimitRule, answer: f.Frame | None, mark: Mark | None
    ) -> None:
        if isinstance(answer, f.Ok) and mark is not None and not self.calm:
            self.rules.pop(name, None)
            assert self.oracle.limits
            self.oracle.limits.said(name, rule, mark)
            self.world.sometimes["a limit was set"] += 1

    def was_dropped(self, name: str, answer: f.Frame | None, mark: Mark | None) -> None:
        unknown = isinstance(answer, f.Error) and answer.code == "NO_LIMIT"
        if self.calm and (unknown or isinstance(answer, f.Ok)):
            self.rules.pop(name, None)

    def bind(self) -> None:
        """An exchange whose bindings are made once: they must outlive whatever happens."""
        names = list(self.swarm.queues)
        patterns = {"a.b": names[:1], "a.*": names[:2], "#.c": names[:2], "d.#": names}
        routes = {"a.b": names[:2], "a.c": names[:2], "d": names, "d.e": names}
        bindings = [(pattern, queue) for pattern in patterns for queue in patterns[pattern]]
        self.unbound = set(bindings)
        self.ask(f.DeclareExchange(exchange=EXCHANGE, kind="topic"), lambda answer, mark: None)
        for pattern, queue in bindings:
            frame = f.Bind(exchange=EXCHANGE, key=pattern, destination=queue)
            self.ask(frame, partial(self.was_bound, (pattern, queue), routes))

    def was_bound(
        self,
        binding: tuple[str, str],
        routes: dict[str, list[str]],
        answer: f.Frame | None,
        mark: Mark | None,
    ) -> None:
        if isinstance(answer, f.Ok):
            self.unbound.discard(binding)
            if not self.unbound:
                self.maker.routes = routes

    def was_declared(self, queue: str, answer: f.Frame | None, mark: Mark | None) -> None:
        if isinstance(answer, f.Ok):
            self.declared = True
            if self.oracle.turns:
                self.oracle.turns.declared.add(queue)

    def was_changed(self, queue: str, answer: f.Frame | None, mark: Mark | None) -> None:
        if isinstance(answer, f.Ok):
            assert mark is not None
            self.oracle.single.setdefault(queue, mark)

    def think(self) -> None:
        if self.calm:
            return
        self.world.after(self.rng.randint(10 * MS, 400 * MS), self.think)
        if self.ways and self.open:
            self.rng.choice(self.ways)()

    def pick(self) -> Known | None:
        """A task that was sent, and that nothing has replaced."""
        ids = list(self.oracle.by_id)
        if not ids:
            return None
        known = self.oracle.by_id[self.rng.choice(ids[-40:] if self.rng.random() < 0.7 else ids)]
        return known[0] if len(known) == 1 and known[0].born != NO else None

    # One task.

    def watch(self) -> None:
        known = self.pick()
        if known is None:
            return
        wait = self.rng.choice((0, 0, 500, 3_000))
        hint = known.position if self.rng.random() < 0.5 else 0
        snapshot = Snapshot.of(known, self.world.mark())
        self.ask(
            f.Watch(id=known.id, position=hint, wait_ms=wait),
            lambda answer, mark: self.told(known, answer, mark, snapshot),
        )

    def told(
        self, known: Known, answer: f.Frame | None, mark: Mark | None, snapshot: Snapshot
    ) -> None:
        if mark is None or len(self.oracle.by_id[known.id]) > 1:
            return
        if isinstance(answer, f.Result):
            self.world.note(
                self.name, "%d (%s) is %s", known.uid, known.id, State(answer.state).name
            )
            self.oracle.told(known, answer, mark, snapshot)

    def cancel(self) -> None:
        known = self.pick()
        if known is None or self.rng.random() < 0.5:
            return
        snapshot = Snapshot.of(known, self.world.mark())
        known.cancel_asked = True
        known.over = max(known.over, MAYBE)
        self.world.note(self.name, "cancels %d", known.uid)
        frame = f.Cancel(id=known.id, position=known.position, terminate=self.rng.random() < 0.5)
        self.ask(frame, lambda answer, mark: self.told(known, answer, mark, snapshot))

    def forget(self) -> None:
        known = self.pick()
        if known is not None:
            known.forgotten = True
            self.ask(f.Forget(id=known.id, position=known.position), lambda answer, mark: None)

    # Queues.

    def peek(self) -> None:
        queue = self.rng.choice(list(self.swarm.queues))
        asked = self.world.mark()
        self.ask(
            f.Peek(queue=queue, count=5), lambda answer, mark: self.peeked(answer, mark, asked)
        )

    def peeked(self, answer: f.Frame | None, mark: Mark | None, asked: Mark) -> None:
        if not isinstance(answer, f.Peeked) or mark is None:
            return
        at, raw = 0, answer.raw
        while at < len(raw):
            position, *_, n_reason, n_error = w.PEEKED.unpack_from(raw, at)
            at += w.PEEKED.size + n_reason + n_error
            end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
            self.oracle.peeked(self.oracle.recognise(raw[at:end]), position, mark, asked)
            at = end

    def pause(self) -> None:
        """Nothing of a queue is handed out for some seconds."""
        self.shut("dispatch", (3_000, 8_000, 20_000), self.paused)

    def paused(self, queue: str, until_ms: int, answer: f.Frame | None, mark: Mark | None) -> None:
        if isinstance(answer, f.Ok) and mark is not None:
            self.world.sometimes["a queue was paused"] += 1
            self.oracle.paused(queue, until_ms, mark)

    def close_queue(self) -> None:
        """Nothing is published into a queue for some seconds."""
        self.shut("intake", (500, 2_000, 6_000), self.was_closed)

    def shut(self, half: str, spans_ms: tuple[int, ...], then: Callable[..., None]) -> None:
        """That half of a queue is paused; ``then`` hears of it."""
        if self.rng.random() < 0.8:
            return
        queue = self.rng.choice(list(self.swarm.queues))
        for_ms = self.rng.choice(spans_ms)
        until_ms = self.world.wall_ms() + for_ms
        self.oracle.pausing(queue)
        frame = f.PauseQueue(queue=queue, reason="sim", for_ms=for_ms, **{half: True})
        self.ask(frame, partial(then, queue, until_ms))

    def was_closed(
        self, queue: str, until_ms: int, answer: f.Frame | None, mark: Mark | None
    ) -> None:
        if isinstance(answer, f.Ok) and mark is not None:
            self.world.sometimes["a queue was closed to publishes"] += 1
            self.oracle.closed_to(queue, until_ms, mark)

    def purge(self) -> None:
        """What waits in a queue is over."""
        queue = self.rng.choice(list(self.swarm.queues))
        self.empty(queue, f.Purge(queue=queue))

    def delete(self) -> None:
        """A queue is no more, until somebody makes it anew: one that needs no options then."""
        plain = [name for name, options in self.swarm.queues.items() if not options]
        if plain:
            queue = self.rng.choice(plain)
            self.oracle.pausing(queue)  # a pause goes with its queue
            self.empty(queue, f.DeleteQueue(queue=queue))

    @property
    def default_is_safe(self) -> bool:
        return bool(self.swarm.config["fsync"] == "always")

    def move(self) -> None:
        """What waits in a queue, or some of it, waits in another one."""
        # Between queues whose confirms mean the same.
        safe = [name for name, each in self.swarm.queues.items() if "fsync" not in each]
        if len(safe) < 2 or self.rng.random() < 0.4:
            return
        source, target = self.rng.sample(safe, 2)
        task = self.rng.choice(("", *TASKS))
        states = self.rng.choice(("", "ready", "scheduled"))
        is_dry = self.rng.random() < 0.2
        frame = f.Move(queue=source, to=target, task=task, states=states, dry_run=is_dry)
        self.world.note(self.name, "moves %s of %s to %s", task or "all", source, target)
        if is_dry:
            self.ask(frame, lambda answer, mark: None)
        else:
            self.order(frame, partial(self.moving, source, target, task), self.moved)

    def moving(self, source: str, target: str, task: str) -> None:
        meant = self.oracle.may_be_in(source)
        self.oracle.moving(
            [each for each in meant if not task or each.message.task == task], target
        )

    def moved(self, answer: f.Frame | None, _mark: Mark | None) -> None:
        if isinstance(answer, f.Ok):
            self.world.sometimes["messages were moved"] += answer.count

    def cancel_many(self) -> None:
        """All of a task, or of a queue, is cancelled; or it is counted alone."""
        if not self.cancels or self.rng.random() < 0.7:
            return
        queue = self.rng.choice(("", *self.swarm.queues))
        task = self.rng.choice(("", *TASKS) if queue else TASKS)
        is_dry = self.rng.random() < 0.5
        frame = f.CancelMany(
            queue=queue,
            task=task,
            states=self.rng.choice(("", "ready", "scheduled", "started")),
            dry_run=is_dry,
            terminate=self.rng.random() < 0.5,
        )
        if is_dry:
            self.ask(frame, lambda answer, mark: None)
            return
        self.cancels -= 1
        self.world.note(self.name, "cancels all of %r in %r", task, queue)
        self.order(frame, partial(self.cancelling, queue, task), self.cancelled)

    def cancelling(self, queue: str, task: str) -> None:
        there = self.oracle.may_be_in(queue) if queue else self.oracle.known.values()
        for known in there:
            if not task or known.message.task == task:
                known.cancel_asked = True
                known.over = max(known.over, MAYBE)

    def cancelled(self, answer: f.Frame | None, _mark: Mark | None) -> None:
        if isinstance(answer, f.Ok):
            self.world.sometimes["many were cancelled"] += answer.count

    def order(self, frame: f.Frame, mean: Callable[[], object], then: Then) -> None:
        """Ask for what takes several turns; what comes before it is answered may be meant, too."""
        mean()

        def answered(answer: f.Frame | None, mark: Mark | None) -> None:
            self.oracle.underway.remove(mean)
            mean()
            then(answer, mark)

        if self.ask(frame, answered):
            self.oracle.underway.append(mean)

    def empty(self, queue: str, order: f.Frame) -> None:
        if not self.purges or self.rng.random() < 0.7:
            return
        self.purges -= 1
        sure = [
            known
            for known in self.oracle.known.values()
            if known.message.queue == queue
            and known.born == YES
            and known.over == NO
            and not known.leases
        ]
        self.world.note(self.name, "%s %s", type(order).__name__, queue)
        self.order(order, partial(self.oracle.purging, queue), partial(self.purged, queue, sure))

    def purged(
        self, queue: str, sure: list[Known], answer: f.Frame | None, mark: Mark | None
    ) -> None:
        if not isinstance(answer, f.Ok) or mark is None:
            return
        far = [
            known
            for known in sure
            if known.message.due_ms > mark.wall_high + CERTAIN_MS
            and not known.leases
            and not known.cancel_asked
            and not known.message.expires_ms
            and not known.may_overflow
            and not known.elsewhere
            and not self.oracle.keys.may_move(known)
            and not known.needs
        ]
        if answer.count < len(far):
            raise Violation(f"{answer.count} purged of {queue}, where {len(far)} must have waited")
        for known in far:
            self.world.sometimes["a delayed message was purged"] += 1
            self.oracle.end(known, "purged", mark)
