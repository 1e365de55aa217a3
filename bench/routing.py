"""What does an exchange cost? `python bench/routing.py [MESSAGES]`

The core alone, in this process, as in turns.py: frames of 500 plain messages of 100 bytes are
published, once straight to queues and then by exchanges with BINDINGS bindings. Printed are
messages a second of CPU time, and what part of the direct rate that is: the best of three rounds,
which take turns. `one key` is a publisher that stays with one topic; `many keys` has as many
topics as there are bindings, so that what was found of routes does not fit where it is kept.
The goal of a topic exchange is half the direct rate.
"""

from __future__ import annotations

import gc
import sys
from itertools import cycle, islice
from time import process_time

from qprotocol import frames as f
from qprotocol.message import Message
from turns import Stage

BINDINGS = 10_000
QUEUES = 100
CHUNK = 100
BODY = bytes(100)
ROUNDS = 3


def topics(count: int) -> list[str]:
    return [f"shop.{n % 97}.order.{n}.paid" for n in range(count)]


def pattern(topic: str) -> str:
    """Some are the topic itself, some have a sign for the words that differ."""
    words = topic.split(".")
    if int(words[3]) % 3 == 1:
        words[1] = "*"
    if int(words[3]) % 3 == 2:
        words[4] = "#"
    return ".".join(words)


def chunks(exchange: str, keys: list[str], count: int) -> list[bytes]:
    """Packed frames' worth of messages, with the keys by turns."""
    packed = {key: Message(key, BODY, exchange=exchange).pack() for key in keys}
    taken = islice(cycle(keys), count)
    pieces = [packed[key] for key in taken]
    return [b"".join(pieces[at : at + CHUNK]) for at in range(0, count, CHUNK)]


def stage(kind: str, count: int) -> Stage:
    """A broker whose exchange "e" has bindings for all topics."""
    made = Stage()
    hello = f.Hello(correlation=1, protocol=1, role="producer", client_id="bench")
    made.turn((1, hello))
    if kind:
        made.turn((1, f.DeclareExchange(correlation=1, exchange="e", kind=kind)))
    for number, topic in enumerate(topics(count) if kind else ()):
        key = pattern(topic) if kind == "topic" else topic
        queue = f"q{number % QUEUES}"
        made.turn((1, f.Bind(correlation=1, exchange="e", key=key, destination=queue)))
    return made


def took(made: Stage, raws: list[bytes]) -> float:
    """CPU seconds for all frames."""
    frames = [
        f.Publish(correlation=1, producer=0, sequence=0, count=CHUNK, raw=raw) for raw in raws
    ]
    gc.collect()
    gc.freeze()
    began = process_time()
    for frame in frames:
        made.turn((1, frame))
    return process_time() - began


QUEUE_NAMES = [f"q{number}" for number in range(QUEUES)]
CASES = {
    "direct, one queue": ("", 0, "", ["q1"]),
    "topic, one key": ("topic", BINDINGS, "e", topics(2)[1:]),
    "direct, many queues": ("", 0, "", QUEUE_NAMES),
    "direct exchange, 100 keys": ("direct", BINDINGS, "e", topics(QUEUES)),
    "topic, 100 keys": ("topic", BINDINGS, "e", topics(QUEUES)),
    "topic, many keys": ("topic", BINDINGS, "e", topics(BINDINGS)),
    "fanout, ten queues, copies": ("fanout", 10, "e", ["k"]),
}
AGAINST = {"topic, one key": "direct, one queue"}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, (kind, bindings, exchange, keys) in CASES.items():
            copies = 10 if kind == "fanout" else 1
            raws = chunks(exchange, keys, count // copies)
            rate = count / took(stage(kind, bindings), raws)
            best[name] = max(rate, best.get(name, 0.0))
    for name, rate in best.items():
        against = best[AGAINST.get(name, "direct, many queues")]
        print(f"{name:<28} {rate:>10,.0f} messages/s {rate / against:>6.0%}")


if __name__ == "__main__":
    main()
