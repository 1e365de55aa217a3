"""Limits of the protocol: each with its unit, its default and where the number comes from."""

FRAME_BYTES_MAX = 128 * 1024
"""A frame after its length field. RabbitMQ's frame_max; keeps heartbeats from waiting long."""
FRAME_BYTES_MAX_BEFORE_AUTH = 4 * 1024
HEADER_BYTES_MAX = 8 * 1024
"""A frame's msgpack header: the part that is decoded."""
HEADER_ITEMS_MAX = 64
"""Items of any array or map in a header. Larger ones let 16 KiB of input take 68 MB."""
HEADER_STRING_MAX = 4096
HEADER_DEPTH_MAX = 4
MESSAGES_PER_FRAME_MAX = 1_000
BODY_BYTES_MAX = 1024 * 1024
"""A packed message's size by default (SQS since 2025, NATS); settable up to the hard limit."""
BODY_BYTES_HARD_MAX = 64 * 1024 * 1024
NAME_BYTES_MAX = 200
"""A queue's or exchange's name: letters, digits and . _ : -"""
TASK_BYTES_MAX = 255
ID_BYTES_MAX = 255
PRIORITY_MIN = -100
PRIORITY_MAX = 100
INT_MAX = 2**63 - 1
"""Integers in headers: non-negative and signed 64 bits, which every language can carry."""
WATCH_MS_MAX = 3_600_000
"""How long one Watch may wait; a client asks again."""
PRODUCER_WINDOW = 1024
"""Chunks per producer that may be unconfirmed, and that a resend is recognised within."""
