"""The broker as a pure state machine: no clock, no socket, no disk, no await.

Rule 1. All that decides what happens to a message is in core/.
Rule 2. ``decide`` changes nothing durable; ``apply`` never refuses and uses the record
        alone. Start-up runs only ``apply``: there is no recovery path to rot.
Rule 3. Time comes in as ``Now``; what is to be sent comes out as effects.
Rule 4. What a turn sends waits for the log head as it stood when it was decided.

    frame --> decide --> records --> append --> apply --> dispatch --> effects
                 |                                                       |
                 '--> Refused                                held until durable

A message's life:

    publish            deliver            ack
    -------> QUEUED ----------> STARTED ---------> SUCCESS
      |        ^  ^                |  |
      v  due   |  '----------------'  '-----------> FAILURE (dead letter)
    SCHEDULED -' <-- RETRY <-- fail      expired, cancelled: REVOKED
"""

from collections.abc import Callable
from typing import Any

from qbroker.core import (
    advancing,
    asking,
    binding,
    cleaning,
    closing,
    consuming,
    deadletters,
    declaring,
    definitions,
    deleting,
    endings,
    freeing,
    giving,
    limiting,
    moving,
    orders,
    overflow,
    passing,
    pausing,
    peeking,
    publishing,
    purging,
    quarantine,
    sessions,
    settling,
    staging,
    why,
)
from qbroker.core import records as r
from qbroker.core.alarms import Alarm, News
from qbroker.core.census import Census
from qbroker.core.decision import Decision
from qbroker.core.effects import Close, Effect, Send
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError, refusal
from qbroker.core.results import Found
from qbroker.core.settings import Settings
from qbroker.core.state import BrokerState
from qbroker.core.statistics import Statistics
from qprotocol import frames as f

AppendRaw = Callable[[r.Record], int]


class Broker:
    """The core. ``append`` puts a record into the engine's batch and gives its position."""

    def __init__(self, settings: Settings, state: BrokerState | None = None) -> None:
        self.state = state or BrokerState(settings)

    # Start-up.

    def replay(self, position: int, record: r.Record) -> None:
        """Make a record of the log true again."""
        APPLY[type(record)](self.state, position, record)
        purging.finish(self.state)
        self.state.effects.clear()
        self.state.catalogue.arrived.clear()

    def boot(self, now: Now, version: str, append: AppendRaw, skipped: int = 0) -> None:
        """Begin a new epoch: tokens given from now on differ from all before.

        ``skipped`` epochs are left out, which a life that the log does not know may have had.
        """
        for each in self.state.catalogue.elders.values():
            each.list_all()
        epoch = self.state.epoch + 1 + skipped
        self._make_true(r.Booted(epoch, now.wall_ms, version), append)
        if self.state.keys.doomed:
            freeing.remove_doomed(self.state, now, lambda record: self._make_true(record, append))

    # Turns.

    def execute(
        self,
        connection: int,
        frame: f.Frame,
        now: Now,
        append: AppendRaw,
        found: Found | None = None,
    ) -> list[Effect]:
        """Decide one frame and make its records true; the effects, in order.

        With ``found``, the frame is one that asked for a Lookup before.
        """
        rule = DECIDE.get(type(frame))
        try:
            if self.state.arrivals and type(frame) not in (f.Part, f.Publish):
                frame = publishing.completed(self.state, connection, frame)
            if rule is not None:
                decision = rule(self.state, now, connection, frame)
            else:
                decision = ASK[type(frame)](self.state, now, connection, frame, found)
        except RefusedError as error:
            if type(frame) is f.Publish:
                for record in publishing.given_up(self.state, connection, frame.correlation):
                    self._make_true(record, append)
            answer = refusal(connection, frame, error.refused)
            answer.synced = self.state.synced
            if type(frame) is f.Hello:  # a conversation that never began
                return [answer, Close(connection, synced=self.state.synced)]
            return [answer]
        return self._carry_out(connection, frame, decision, now, append)

    def disconnected(self, connection: int, now: Now, append: AppendRaw) -> list[Effect]:
        """The connection is gone."""
        decision = sessions.decide_disconnected(self.state, now, connection)
        return self._carry_out(connection, None, decision, now, append)

    def quarantine(
        self, now: Now, append: AppendRaw, positions: list[int], why: str, evidence: str
    ) -> list[Effect]:
        """The bytes of these messages, which were to be delivered, are damaged: set them aside."""
        for record in quarantine.decide_quarantine(self.state, now, positions, why, evidence):
            self._make_true(record, append)
        return self._take_effects()

    def dispatch(self, now: Now, append: AppendRaw) -> list[Effect]:
        """Hand out what can be handed out, up to a turn's worth."""
        return consuming.dispatch(self.state, now, append) if self.state.dirty else []

    @property
    def has_more(self) -> bool:
        """Whether another turn has something to do at once, though nothing arrives."""
        state = self.state
        begun = state.leaving or state.remains or state.orders or state.peeks
        return bool(state.dirty or begun or state.graphs.has_news)

    def due(self, now: Now, append: AppendRaw) -> list[Effect]:
        """Do what time has made due."""
        passing.due(self.state, now, lambda record: self._make_true(record, append))
        return self._take_effects()

    def next_due_ms(self, now: Now) -> int:
        """Milliseconds until ``due`` is wanted again."""
        return passing.next_due(self.state, now)

    # Volatile news.

    def heard(self, connection: int, mono_ms: int) -> None:
        """The connection sent something: its session lives if it is the parent's."""
        member = self.state.members.get(connection)
        if member and member.session and not member.number:
            session = member.session
            session.alive_until_ms = mono_ms + self.state.settings.session_timeout_ms

    def stalled(self, missed_ms: int) -> None:
        """The broker itself stood still: no worker is to blame for that time."""
        for session in self.state.sessions.values() if missed_ms else ():
            if session.alive_until_ms:
                session.alive_until_ms += missed_ms

    def archived(self, upto: int) -> None:
        """The archive holds what was settled up to that position: ``due`` says so in records."""
        self.state.results.archived = upto

    def is_forgotten(self, position: int) -> bool:
        """Whether the archive may still have a row that somebody asked to be forgotten."""
        return position in self.state.results.forgotten

    def writable(self, connection: int, *, is_writable: bool) -> None:
        """The connection can take more, or no more for the moment."""
        for (number, _), consumer in self.state.consumers.items():
            if number == connection:
                consumer.writable = is_writable
                self.state.listen_again(consumer)

    def close_to_publishes(self, why: str) -> None:
        """Nothing new is taken in, for this reason; empty: it is again."""
        self.state.closed_to_publishes = why

    def census(self) -> Census:
        """A look at all queues, which goes on with each ``step``."""
        return Census(self.state)

    def statistics(self) -> Statistics:
        """What may be looked at, all at once: costs a step a queue."""
        census = self.census()
        while not census.is_over:
            census.step()
        return census.statistics()

    def bindings(self) -> list[dict[str, Any]]:
        """A row a binding, as JSON has it; BINDING_ROWS_MAX at most."""
        return binding.binding_rows(self.state)

    def limits(self, now: Now) -> list[dict[str, Any]]:
        """A row a limit rule, by name, as JSON has it. Costs a step for each key."""
        return limiting.limit_rows(self.state, now)

    def keys(self, now: Now, wanted: str) -> list[dict[str, Any]]:
        """A row a unique or idempotency key that is held, as JSON has it; of all, or of one."""
        return freeing.key_rows(self.state, now, wanted)

    def alarms(self) -> list[Alarm]:
        """Those that have begun and are not over, the first that began first."""
        return sorted(self.state.catalogue.alarms.begun.values(), key=lambda each: each.since_ms)

    def take_news(self) -> list[News]:
        """Alarms that began or ended since the last call, in order."""
        news = self.state.catalogue.alarms.news
        return [news.popleft() for _ in range(len(news))]

    def had_parts(self, connection: int, correlation: int) -> bool:
        """Whether parts of that frame came, which belong to no frame from now on."""
        return self.state.arrivals.pop((connection, correlation), None) is not None

    def policies(self) -> list[dict[str, Any]]:
        """A row a policy, as JSON has it."""
        return list(definitions.policy_rows(self.state))

    def definitions(self) -> dict[str, list[dict[str, Any]]]:
        """All that people have defined, by table. Costs a step a queue and binding."""
        return definitions.definitions(self.state)

    def queue_described(self, name: str) -> dict[str, Any] | None:
        """One queue with its options and where they came from; None if there is none."""
        return definitions.queue_described(self.state, name)

    def _carry_out(
        self,
        connection: int,
        frame: f.Frame | None,
        decision: Decision,
        now: Now,
        append: AppendRaw,
    ) -> list[Effect]:
        position = 0
        for record in decision.records:
            position = self._make_true(record, append)
        if self.state.keys.doomed:
            freeing.remove_doomed(self.state, now, lambda record: self._make_true(record, append))
        if self.state.graphs.todo:
            advancing.advance(self.state, now, lambda record: self._make_true(record, append))
        if self.state.catalogue.arrived:
            overflow.relieve(self.state, now, lambda record: self._make_true(record, append))
        if self.state.catalogue.untold:
            declaring.tell_archive(self.state, lambda record: self._make_true(record, append))
        if decision.listen:
            consuming.listen(self.state, decision.listen)
        out = self._take_effects()
        default = self.state.synced
        for effect in decision.effects:
            effect.synced = default
        out += decision.effects
        reply = decision.reply
        if reply is not None and frame is not None:
            if decision.positioned:
                assert isinstance(reply, f.Published)
                reply.first = position
            reply.correlation = frame.correlation
            synced = default if decision.synced is None else decision.synced
            out.append(Send(connection, reply, synced=synced))
        for effect in decision.afterwards:
            effect.synced = default
        return out + decision.afterwards

    def _make_true(self, record: r.Record, append: AppendRaw) -> int:
        position = append(record)
        self.state.head = position + record.slots
        APPLY[type(record)](self.state, position, record)
        return position

    def _take_effects(self) -> list[Effect]:
        effects = self.state.effects
        if effects:
            self.state.effects = []
            return effects
        return []


def apply_booted(state: BrokerState, position: int, record: r.Booted) -> None:
    """A new epoch: uploads that were under way are void, and what was in transient queues."""
    state.epoch = record.epoch
    state.boots[record.epoch] = position
    state.uploads.clear()
    purging.drop_transient(state)


# The tables of contents. A test holds them against frames.py and records.py, so that a
# new frame or record without a rule fails by name.

DECIDE: dict[type[f.Frame], Callable[[BrokerState, Now, int, Any], Decision]] = {
    f.Heartbeat: settling.decide_running,
    f.Part: publishing.decide_part,
    f.Publish: publishing.decide_publish,
    f.Consume: consuming.decide_consume,
    f.Credit: consuming.decide_credit,
    f.Unsubscribe: consuming.decide_unsubscribe,
    f.FetchInputs: giving.decide_fetch,
    f.Ack: settling.decide_ack,
    f.Settle: settling.decide_settle,
    f.Running: settling.decide_running,
    f.Declare: declaring.decide_declare,
    f.ChangeQueue: declaring.decide_change,
    f.DeleteQueue: deleting.decide_delete,
    f.SetPolicy: declaring.decide_policy,
    f.Purge: purging.decide_purge,
    f.PauseQueue: pausing.decide_pause,
    f.ResumeQueue: pausing.decide_resume,
    f.Peek: peeking.decide_peek,
    f.DeclareExchange: binding.decide_declare_exchange,
    f.DeleteExchange: binding.decide_delete_exchange,
    f.Bind: binding.decide_bind,
    f.Unbind: binding.decide_unbind,
    f.SetLimit: limiting.decide_set_limit,
    f.DropLimit: limiting.decide_drop_limit,
    f.ReplayDead: deadletters.decide_replay,
    f.DropDead: deadletters.decide_drop,
    f.ForgetKey: freeing.decide_forget_key,
    f.Bye: sessions.decide_bye,
}
ASK: dict[type[f.Frame], Callable[[BrokerState, Now, int, Any, Found | None], Decision]] = {
    f.Hello: sessions.decide_hello,
    f.Watch: asking.decide_watch,
    f.Forget: asking.decide_forget,
    f.Cancel: asking.decide_cancel,
    f.CancelMany: orders.decide_cancel_many,
    f.CancelGraph: orders.decide_cancel_graph,
    f.Move: orders.decide_move,
    f.Why: why.decide_why,
    f.DeadLetters: deadletters.decide_dead_letters,
    f.EditDead: deadletters.decide_edit,
}
"""Rules that may need to know which message an id or token means."""

APPLY: dict[type[r.Record], Callable[[BrokerState, int, Any], None]] = {
    r.Booted: apply_booted,
    r.QueueOpened: declaring.apply_queue_opened,
    r.QueueChanged: declaring.apply_queue_changed,
    r.QueueDeleted: deleting.apply_queue_deleted,
    r.Overflowed: overflow.apply_overflowed,
    r.PolicySet: declaring.apply_policy_set,
    r.PoliciesReached: declaring.apply_policies_reached,
    r.HistorySet: declaring.apply_history_set,
    r.LaneOpened: closing.apply_lane_opened,
    r.LanesClosed: closing.apply_lanes_closed,
    r.Published: publishing.apply_published,
    r.PartStored: staging.apply_part,
    r.PartsCommitted: staging.apply_commit,
    r.UploadDropped: staging.apply_dropped,
    r.Granted: consuming.apply_granted,
    r.GrantedExactly: consuming.apply_granted,
    r.HandedDown: consuming.apply_handed_down,
    r.Acked: endings.apply_acked,
    r.Settled: endings.apply_settled,
    r.Returned: endings.apply_returned,
    r.Started: endings.apply_started,
    r.Removed: endings.apply_removed,
    r.Purged: purging.apply_purged,
    r.CameDue: passing.apply_came_due,
    r.Forgotten: asking.apply_forgotten,
    r.CancelNoted: asking.apply_cancel_noted,
    r.LimitSet: limiting.apply_limit_set,
    r.LimitDropped: limiting.apply_limit_dropped,
    r.Quarantined: quarantine.apply_quarantined,
    r.Archived: asking.apply_archived,
    r.Moved: moving.apply_moved,
    r.Replayed: deadletters.apply_replayed,
    r.LetterEdited: deadletters.apply_edited,
    r.LettersDropped: deadletters.apply_dropped_letters,
    r.QueuePaused: pausing.apply_paused,
    r.QueueResumed: pausing.apply_resumed,
    r.ExchangeDeclared: binding.apply_exchange_declared,
    r.ExchangeDeleted: binding.apply_exchange_deleted,
    r.Bound: binding.apply_bound,
    r.Unbound: binding.apply_unbound,
    r.Redelayed: freeing.apply_redelayed,
    r.KeysDropped: freeing.apply_keys_dropped,
    r.Advanced: advancing.apply_advanced,
    r.NodesSwept: advancing.apply_swept,
    r.GraphsLetGo: advancing.apply_let_go,
    r.Kept: cleaning.apply_kept,
}
