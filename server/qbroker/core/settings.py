"""The settings that decide what happens to a message. Filled from the configuration."""

from dataclasses import dataclass

from qprotocol.limits import MESSAGES_PER_FRAME_MAX
from qprotocol.options import RETRIES_FOREVER, RetryPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """Each is a row of the configuration table under the same name, with the same default."""

    fsync: str = "always"
    body_bytes_max: int = 1024 * 1024
    result_bytes_max: int = 1024 * 1024
    result_ttl_ms: int = 86_400_000
    results_max: int = 1_000_000
    archive: bool = True
    named_ids_max: int = 1_000_000
    unique_keys_max: int = 1_000_000
    idempotency_keys_max: int = 1_000_000
    idempotency_window_ms: int = 86_400_000
    cancel_notices_max: int = 50_000
    cancel_notice_ttl_ms: int = 3_600_000
    graph_nodes_max: int = 1_000_000
    fan_out_max: int = 100_000
    upload_messages_max: int = 50_000
    upload_bytes_max: int = 64 * 1024 * 1024
    heartbeat_ms: int = 10_000
    session_timeout_ms: int = 30_000
    grace_ms: int = 30_000
    poison_max: int = 3
    credit_max: int = 10_000
    subscriptions_max: int = 64
    queues_max: int = 10_000
    lanes_max: int = 500_000
    exchanges_max: int = 1_000
    bindings_max: int = 100_000
    copies_max: int = 1_000
    limits_max: int = 1_000
    retry_max_ms: int = 86_400_000
    delay_max_ms: int = 365 * 86_400_000


PRODUCER_IDLE_MS = 3_600_000
"""A producer that said nothing for an hour is forgotten, and with it what it sent."""
DELIVER_MESSAGES_MAX = 500
"""Messages in one Deliver: some milliseconds of work for the engine at most."""
ACK_MESSAGES_MAX = 20_000
"""Messages one Ack frame may name."""
DISPATCH_MESSAGES_MAX = 4_000
"""Messages handed out in one turn; more wait for the next."""
PARK_LANES_MAX = 500
"""Lanes parked at gates, or taken back, in one turn; more wait for the next."""
SELECTIONS_MAX = 64
"""Different sets of tasks that the consumers of one queue know: each costs a step for each
chunk that comes in."""
DUE_MESSAGES_MAX = 1_500
"""Delayed messages made ready in one turn."""
EXPIRE_MESSAGES_MAX = 500
"""Messages taken out in one turn because they expired."""
LOST_MESSAGES_MAX = 4_000
"""Messages of those who left or were lost looked at in one turn, and given back."""
STARTED_WEIGHT = 15
"""One that had begun when its worker was lost counts for so many: it needs its own record."""
LOST_MEMBERS_MAX = 50
"""Members of lost sessions taken leave of in one turn, but never less than a whole session's."""
SWEEP_MESSAGES_MAX = 12_000
"""Purged messages looked at in one turn: what is kept of them elsewhere is dropped."""
SWEEP_FORGOTTEN_WEIGHT = 10
"""One of which something was kept counts for so many more."""
SWEEP_STEP = 500
"""Purged messages looked at in one go."""
SWEEP_LANES_MAX = 5_000
"""Lanes of a purged queue walked in one turn."""
PRUNE_MAX = 5_000
"""Results dropped in one turn because their time is over."""
ARCHIVED_MAX = 2_000
"""Results that leave memory in one turn because the archive has them."""
ROUTED_MESSAGES_MAX = 50_000
"""Messages that one frame's copies may come to: they are one record, and one turn's work."""
ROUTED_BYTES_MAX = 32 * 1024 * 1024
"""Their bytes: half of what a record may hold."""
RESOLVED_ROUTES_MAX = 10_000
"""Routes of which is remembered where they lead; one more, and all are found anew."""
BINDING_ROWS_MAX = 10_000
"""Bindings that one question is answered with."""
ORDER_WORK_MAX = 2_500
"""What a large order does in one turn: a message counts for 5, a lane that is looked at for 1."""
ORDERS_MAX = 100
"""Large orders under way at once."""
WHY_LEAVES_MAX = 1_000
"""Leaves of timers, of 512 messages at most, that one Why looks through for a due time."""
WHY_INPUTS_MAX = 10
"""Messages that Why names of those that a node of a graph waits for."""
LAPSED_NOTICES_MAX = 1_000
"""Notices of cancels dropped in one turn because their time is over."""
LAPSED_KEYS_MAX = 1_000
"""Unique and idempotency keys freed in one turn because their time is over."""
ANSWERS_MAX = 100_000
"""Messages of one producer that others stand for, which are remembered with its chunks."""
KEY_ROWS_MAX = 10_000
"""Keys that one question is answered with."""
FORGET_KEYS_MAX = 1_000
"""Keys of limits looked at in one turn because nobody uses them any more."""
PEEK_LANES_MAX = 1_500
"""Lanes that a Peek looks at in one turn."""
PEEK_NODES_MAX = 1_500
"""Nodes of graphs that it looks at in one turn."""
PEEKS_MAX = 100
"""Peeks of queues with more lanes under way at once."""
CENSUS_WORK_MAX = 1_500
"""What a look at all queues does in one turn: a task in a queue counts for 1."""
CENSUS_QUEUE_WEIGHT = 7
"""A queue counts for so many more."""
PEEK_MESSAGES_MAX = 100
"""Messages one Peek shows."""
RETRY_AFTER_MS = 1_000
"""When a publish that found no room may be tried again: as often as the disk is looked at."""
REASON_BYTES_MAX = 1_000
"""A reject's reason is cut to this."""
AUTHOR_BYTES_MAX = 255
"""Who paused a queue, as it says itself."""
PAUSES_MAX = 500
"""Pauses ended in one turn because their time is over."""
POLICIES_MAX = 100
"""Policies there may be at once: each queue looks at all of them when it is made."""
POLICY_WORK_MAX = 2_000
"""What a change of policies does in one turn: a look of a queue at a policy counts for 1."""
POLICY_QUEUE_WEIGHT = 10
"""What else is done for a queue."""
OVERFLOW_MESSAGES_MAX = MESSAGES_PER_FRAME_MAX
"""Messages taken out of a queue that is over its limits for each frame that brings some: as many
as one can bring, else the queue would grow."""
OVERFLOW_LATER_MAX = 100
"""Messages taken out in one turn because a limit was lowered, or more came than that."""
CROWDED_MAX = 1_000
"""Queues looked at in one turn because their limits are new."""
ELDERS_LANES_MAX = 1_000
"""Lanes of a queue that is to throw its oldest away listed in one turn."""
LANE_IDLE_MS = 10_000
"""How long a lane that was idle once stays open, to be looked at once more."""
LANES_LOOKED_MAX = 5_000
"""Lanes looked at in one turn: is one idle?"""
LANES_CLOSED_MAX = 500
"""Lanes closed in one turn."""
LOOK_MS = 1_000
"""How often it is looked for what is due, whatever else happens; and for queues that nobody uses,
or whose owner has gone."""
LOOK_CROWDED_MS = 50
"""How often it is looked for idle lanes while more than half of those that may be are open."""
DELETED_QUEUES_MAX = 100
"""Queues deleted in one turn because their time is over."""
ROUTES_FORGOTTEN_MAX = 1_000
"""Lanes of a deleted queue whose routes are forgotten one by one; of more, all routes are."""
LETTERS_LOOKED_MAX = 10_000
"""Dead letters that one page looks at, whatever it finds."""
LETTER_ROWS_MAX = 200
"""Dead letters shown on one page: of each its record and its error are read."""
LETTER_NUMBERS_MAX = 2_000
"""The same where only positions and numbers are asked for."""
ALARM_LETTERS_MAX = 2_000
"""Dead letters looked at in one go for the oldest of each queue."""
ALARM_QUEUES_MAX = 1_000
"""Queues of dead letters looked at in one go for alarms."""
ALARM_NEWS_MAX = 1_000
"""Alarms that began or ended and that nobody has told yet; of more, the oldest are not told."""
LETTER_BACKOFF = RetryPolicy(RETRIES_FOREVER, 1_000, 3_600_000)
"""When a dead letter that failed once more is handed out again, by its deliveries."""
LINK_EDGES_MAX = 1_000_000
"""Pairs of a source and a target that one link of a graph stands for."""
GRAPH_EDGES_MAX = 10_000_000
"""The same of all links of one graph."""
LINKS_OPEN_MAX = 1_000
"""Links that one node of a graph is a source or a target of."""
LINK_ENDS_MAX = 50_000
"""The same, summed over the nodes of one frame."""
ADVANCE_STEPS_MAX = 300
"""Edges of graphs walked for each frame that ends nodes, and in one turn of what is left."""
GRAPHS_LET_GO_MAX = 10
"""Graphs let go in one turn that were kept for their dead letters alone."""
INPUTS_MAX = 1_000
"""Inputs of a node in one page."""
INPUT_BYTES_MAX = 1024 * 1024
"""Their bytes; one may be larger by itself."""
