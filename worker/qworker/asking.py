"""Requests of a worker's parent before its first task, answered all together."""

import time
from collections.abc import Collection

from qclient.exceptions import ConnectionLost
from qclient.link import Link, left_s
from qprotocol import frames as f

ANSWER_S = 10.0


def ask(link: Link, frames: Collection[f.Frame], about: str) -> list[f.Frame]:
    """The answers to the frames, in their order. What else arrives is a push without meaning yet.

    Raises ConnectionLost, also if the broker does not answer in time: ``about`` says what it did
    not say. One round trip, none for nothing.
    """
    answers: dict[int, f.Frame] = {}
    for correlation, frame in enumerate(frames, start=1):
        frame.correlation = correlation
    deadline = time.monotonic() + ANSWER_S
    if frames:
        link.send(*frames)
    while len(answers) < len(frames):
        if time.monotonic() >= deadline:
            raise ConnectionLost(f"the broker did not say {about}")
        for frame in link.receive(left_s(deadline)):
            if frame.correlation:
                answers[frame.correlation] = frame
            elif isinstance(frame, f.Error):
                raise ConnectionLost(f"{frame.code}: {frame.message}")
    return [answers[correlation] for correlation in range(1, len(frames) + 1)]
