"""Events for people: as they write one, and on a line."""

import json

import msgpack

from qbroker.ops.show import counted, printable
from qprotocol.frames import Event


def packed(text: str) -> bytes:
    """The payload: what reads as JSON is what it says there, else it is text."""
    try:
        payload = json.loads(text)
    except ValueError:
        payload = text
    return bytes(msgpack.packb(payload))


def line(event: Event, *, as_json: bool) -> str:
    """An event on a line. What is no JSON is shown as text."""
    try:
        payload = msgpack.unpackb(event.raw, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        payload = f"{len(event.raw)} bytes"
    if as_json:
        row = {"topic": event.topic, "payload": payload, "missed": event.dropped}
        return json.dumps(row, ensure_ascii=False, default=str)
    missed = f"  ({counted(event.dropped, 'event')} missed before)" if event.dropped else ""
    said = json.dumps(payload, ensure_ascii=False, default=str)
    return printable(f"{event.topic}  {said}{missed}")
