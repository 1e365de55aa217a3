"""Limits of the protocol: each with its unit, its default and where the number comes from."""

FRAME_BYTES_MAX = 128 * 1024
"""A frame after its length field. RabbitMQ's frame_max; keeps heartbeats from waiting long."""
FRAME_BYTES_MAX_BEFORE_AUTH = 4 * 1024
"""The same until the client is known: a stranger may take this much memory and no more."""
HEADER_BYTES_MAX = 8 * 1024
"""A frame's msgpack header: the part that is decoded."""
HEADER_ITEMS_MAX = 64
"""Items of any array or map in a header. Larger ones let 16 KiB of input take 68 MB."""
HEADER_STRING_MAX = 4096
"""Bytes of any string in a header."""
ERROR_TEXT_MAX = 500
"""Characters of an Error's message if its header would be over HEADER_STRING_MAX."""
HEADER_DEPTH_MAX = 4
"""Lists and maps within one another in a header's field, the outermost counted."""
MESSAGES_PER_FRAME_MAX = 1_000
"""Messages of one Publish, or of which one Part of it has bytes: what a turn has time for."""
ACK_RUNS_MAX = 2_000
"""Runs of one Ack: what a turn of the broker has time for."""
OUTCOMES_MAX = 250
"""Outcomes of one Settle: each may be a dead letter with a record of its own."""
BODY_BYTES_MAX = 1024 * 1024
"""A packed message's size by default (SQS since 2025, NATS); settable up to the hard limit."""
BODY_BYTES_HARD_MAX = 64 * 1024 * 1024
"""The most that the setting may say; larger things belong beside a queue, not in it."""
NAME_BYTES_MAX = 200
"""A queue's or exchange's name: letters, digits and . _ : -"""
TOPIC_BYTES_MAX = 255
"""A routing key, a topic or a pattern of them, UTF-8. Its length is one byte."""
EVENT_BYTES_MAX = 64 * 1024
"""What one event brings along: it goes in a frame, to each listener."""
LISTENERS_MAX = 64
"""Listeners of one connection: each has patterns of its own, and a buffer."""
PATTERN_WORDS_MAX = 32
"""Words of a pattern: how many steps a match may have to try for each."""
TASK_BYTES_MAX = 255
"""A task's name, UTF-8. Its length is one byte."""
TASKS_KNOWN_MAX = 5_000
"""Names of tasks in one Consume: a few milliseconds of the broker's time."""
TASK_NAMES_BYTES_MAX = 96 * 1024
"""Bytes of these names: with them, a Consume fits a frame."""
LIMIT_NAME_BYTES_MAX = 255
"""A limit rule's name, UTF-8, printable: those declared in code bear their task's."""
ID_BYTES_MAX = 255
"""A task's id, UTF-8. Its length is one byte."""
QUEUE_WEIGHT_MAX = 1_000
"""The heaviest of a consumer's queues; the lightest weighs 1."""
PRIORITY_MIN = -100
"""The last to be handed out. 0 is the default, and fits one signed byte with room."""
PRIORITY_MAX = 100
"""The first to be handed out."""
INT_MAX = 2**64 - 1
"""Integers in headers: unsigned 64 bits, all that msgpack can say. Only a producer's number
is ever over 2**63 - 1, so that languages without unsigned integers choose 63 random bits."""
WATCH_MS_MAX = 3_600_000
"""How long one Watch may wait; a client asks again."""
LETTERS_MAX = 1_000
"""Dead letters in one ReplayDead or DropDead: one record, and a piece of a turn."""
PARTED_MAX = 64
"""Frames of one connection whose parts are on their way at once: each costs memory by itself."""
PRODUCER_WINDOW = 1024
"""Chunks per producer that may be unconfirmed, and that a resend is recognised within."""
