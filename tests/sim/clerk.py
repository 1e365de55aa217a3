"""Who looks through dead letters, and replays, edits and drops some; the books: burials.py."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any

from qprotocol import frames as f
from qprotocol import wire as w
from qprotocol.causes import LETTER_CAUSES
from sim.burials import Burials
from sim.client import Client
from sim.maker import TASKS, Maker
from sim.oracle import Known
from sim.world import MS, Mark, S, Violation

Row = dict[str, Any]
LIMITING = {"fsync", "max_length", "oldest_every", "single_active_consumer", "deliveries_max"}
"""Options that say of a message what would have to be said anew once it is somewhere else."""


class Clerk(Client):
    """One look after the other, and what follows from it."""

    def __init__(self, maker: Maker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.maker = maker
        self.calm = False
        self.rows: list[Row] = []
        """Of the look that goes on."""
        self.books: Burials = self.oracle.burials
        self.looking = False
        # A look shows what is durable, an order's answer only where answers wait for the disk.
        self.works = self.swarm.has("dead letters") and self.swarm.config["fsync"] == "always"

    def begin(self) -> None:
        if self.works:
            self.connect()
            self.world.after(self.rng.randint(200 * MS, 2 * S), self.think)

    def on_welcome(self, welcome: f.Welcome, mark: Mark) -> None:
        self.looking = False
        for queue, options in self.swarm.dead.items():
            self.ask(f.Declare(queue=queue, options=options), lambda answer, mark: None)

    def think(self) -> None:
        if self.calm:
            return
        self.world.after(self.rng.randint(50 * MS, 800 * MS), self.think)
        if self.open and not self.looking:
            self.look()

    # Looking.

    def look(self) -> None:
        """Through all of them, a page at a time; or through those of a filter."""
        self.rows, self.looking = [], True
        frame = f.DeadLetters(limit=self.rng.choice((1, 3, 100)))
        if self.rng.random() < 0.4:
            frame.task = self.rng.choice(("", *TASKS))
            frame.cause = self.rng.choice(("", *LETTER_CAUSES))
            frame.queue = self.rng.choice(("", *self.swarm.queues))
        self.turn_page(frame, self.world.mark())

    def turn_page(self, frame: f.DeadLetters, began: Mark) -> None:
        asked = self.world.mark()
        self.ask(frame, lambda answer, mark: self.shown(frame, answer, mark, began, asked))

    def shown(
        self,
        frame: f.DeadLetters,
        answer: f.Frame | None,
        mark: Mark | None,
        began: Mark,
        asked: Mark,
    ) -> None:
        if not isinstance(answer, f.Report) or mark is None:
            self.looking = False
            return
        page = json.loads(answer.raw)
        for row in page["letters"]:
            self.check_filter(frame, row)
            self.books.shown(row["position"], row["number"], mark, asked)
        self.rows += page["letters"]
        if page["next"]:
            self.turn_page(
                f.DeadLetters(
                    queue=frame.queue,
                    task=frame.task,
                    cause=frame.cause,
                    limit=frame.limit,
                    after=page["next"],
                ),
                began,
            )
            return
        self.looking = False
        if not (frame.queue or frame.task or frame.cause):
            self.world.sometimes["all dead letters were looked through"] += 1
            self.books.all_were_shown({row["position"] for row in self.rows}, began)
        if self.rows and not self.calm:
            self.order()

    def check_filter(self, frame: f.DeadLetters, row: Row) -> None:
        wanted = (
            frame.queue in ("", row["queue"], row["dead_queue"])
            and frame.task in ("", row["task"])
            and frame.cause in ("", row["cause"])
        )
        if not wanted:
            raise Violation(f"{row} does not fit {frame}")

    def look_at(self, row: Row) -> None:
        """At one of which nobody knows yet what it is."""
        asked = self.world.mark()
        frame = f.DeadLetters(id=row["id"], position=row["position"], detail=w.WHOLE)
        self.ask(frame, lambda answer, mark: self.unfolded(answer, mark, asked))

    def unfolded(self, answer: f.Frame | None, mark: Mark | None, asked: Mark) -> None:
        if isinstance(answer, f.Report) and mark is not None:
            for row in json.loads(answer.raw)["letters"]:
                if "raw" in row:
                    known = self.oracle.recognise(base64.b64decode(row["raw"]))
                    self.oracle.peeked(known, row["position"], mark, asked)

    # Orders.

    def order(self) -> None:
        """Something about some of those that were found."""
        strangers = [row for row in self.rows if not self.books.at(row["position"])]
        named = [row for row in strangers if row["id"]]
        if named and self.rng.random() < 0.7:
            self.look_at(self.rng.choice(named))
            return
        rows = [row for row in self.rows if row not in strangers and not row["is_leased"]]
        if not rows or self.rng.random() < 0.3:
            return
        chosen = self.rng.sample(rows, min(len(rows), self.rng.choice((1, 1, 2, 20))))
        self.rng.choice((self.replay, self.replay, self.replay, self.drop, self.edit))(chosen)

    def handles(self, rows: list[Row]) -> list[tuple[int, int]]:
        return [(row["position"], row["number"]) for row in rows]

    def replay(self, rows: list[Row]) -> None:
        handles = self.handles(rows)
        frame = f.ReplayDead(author="clerk", raw=packed(handles))
        if self.rng.random() < 0.3:
            frame.due_ms = self.world.wall_ms() + self.rng.choice((50, 2_000))
        plain = [name for name, each in self.swarm.queues.items() if not each.keys() & LIMITING]
        has = self.swarm.has
        if plain and self.rng.random() < 0.2 and not has("limits") and not has("ordering keys"):
            frame.queue = self.rng.choice(plain)
        self.world.note(self.name, "replays %s to %r", handles, frame.queue)
        self.give(frame, handles, "replayed")

    def drop(self, rows: list[Row]) -> None:
        handles = self.handles(rows)
        self.world.note(self.name, "drops %s", handles)
        self.give(f.DropDead(author="clerk", raw=packed(handles)), handles, "dropped")

    def give(
        self, frame: f.ReplayDead | f.DropDead, handles: list[tuple[int, int]], done: str
    ) -> None:
        """The order; some are given again, as one does whose answer was lost."""
        self.books.asked(handles, done, getattr(frame, "queue", ""))
        self.ask(frame, partial(self.given, handles, done))
        if self.rng.random() < 0.4:
            again = type(frame)(raw=frame.raw)
            self.world.after(self.rng.randint(0, 6 * S), self.give_again, again, handles, done)

    def give_again(
        self, frame: f.ReplayDead | f.DropDead, handles: list[tuple[int, int]], done: str
    ) -> None:
        if self.open and not self.calm:
            self.world.note(self.name, "once more: %s %s", done, handles)
            self.ask(frame, partial(self.given, handles, done))

    def given(
        self,
        handles: list[tuple[int, int]],
        done: str,
        answer: f.Frame | None,
        mark: Mark | None,
    ) -> None:
        if isinstance(answer, f.Ok) and mark is not None:
            self.world.sometimes[f"dead letters were {done}"] += answer.count
            self.books.done(handles, done, answer.count, mark)

    def edit(self, rows: list[Row]) -> None:
        """Another body under the same id."""
        ((position, number),) = handles = self.handles(rows[:1])
        before = self.books.at(position)
        assert before is not None
        after = self.maker.make(self.rng, like=before)
        self.world.note(self.name, "edits %s: %d is %d now", handles, before.uid, after.uid)
        self.books.asked_for.update(handles)
        self.books.editing(before, after)
        self.oracle.sent([after])
        frame = f.EditDead(position=position, number=number, author="clerk", raw=after.raw)
        self.ask(frame, partial(self.edited, handles, after))

    def edited(
        self,
        handles: list[tuple[int, int]],
        after: Known,
        answer: f.Frame | None,
        mark: Mark | None,
    ) -> None:
        if not isinstance(answer, f.Ok) or mark is None:
            is_full = isinstance(answer, f.Error) and answer.code == "LIMIT_REACHED"
            if (
                isinstance(answer, f.Error)
                and answer.definite
                and not (answer.retryable or is_full)
            ):
                raise Violation(f"an edit is refused: {answer.code} {answer.message}")
            return
        self.world.sometimes["dead letters were edited"] += answer.count
        self.books.done(handles, "edited", answer.count, mark)
        if answer.count:
            self.oracle.reveal(after)
        else:
            after.refused = True


def packed(handles: list[tuple[int, int]]) -> bytes:
    return b"".join(w.LETTER.pack(*each) for each in handles)
