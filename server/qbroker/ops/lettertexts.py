"""A dead letter as text that a person may change, and back.

    {"queue": "mail", "priority": 0, "retries": 3, "args": [42], "kwargs": {"to": "ana"}}

Rule 1. What cannot be shown as JSON and come back the same is not shown: it stays as it is.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from qprotocol.message import Message, renewed
from qprotocol.options import RETRIES_FOREVER, RetryPolicy

MSGPACK, JSON = 1, 2
RETRY = "retry"


class CannotEditError(ValueError):
    """The change makes no message; the text says why."""


def shown(message: Message) -> dict[str, Any]:
    """What of the message can be changed."""
    out: dict[str, Any] = {"queue": message.queue, "priority": message.priority}
    policy = headers_of(message).get(RETRY)
    if policy:
        out["retries"] = RetryPolicy.unpack(policy).retries_max
    call = call_of(message)
    if call:
        out["args"], out["kwargs"] = call
    elif not message.task:
        try:
            out["body"] = message.body.decode()
        except UnicodeDecodeError:
            return out
    return out


def changed(message: Message, to: dict[str, Any]) -> Message:
    """The message with what ``to`` says instead. Raises CannotEditError."""
    before = shown(message)
    news = {name: value for name, value in to.items() if before.get(name) != value}
    if unknown := news.keys() - KINDS.keys():
        raise CannotEditError(f"{min(unknown)!r} cannot be set: {', '.join(KINDS)} can")
    for name, value in news.items():
        if type(value) is not KINDS[name]:
            raise CannotEditError(f"{name} is {value!r}: it takes a {KINDS[name].__name__}")
    after = renewed(
        message,
        queue=news.get("queue", message.queue),
        priority=news.get("priority", message.priority),
    )
    if "retries" in news:
        after.headers = with_retries(after, news["retries"])
    if "body" in news:
        after.body = news["body"].encode()
    if {"args", "kwargs"} & news.keys():
        after.body = with_call(after, news)
    return after


KINDS: dict[str, type] = {
    "queue": str,
    "priority": int,
    "retries": int,
    "args": list,
    "kwargs": dict,
    "body": str,
}


def headers_of(message: Message) -> dict[str, Any]:
    """The headers; empty if they are none that a client of ours wrote."""
    try:
        found = msgpack.unpackb(message.headers) if message.headers else {}
    except (ValueError, msgpack.UnpackException):
        return {}
    return found if isinstance(found, dict) else {}


def with_retries(message: Message, retries: int) -> bytes:
    """The headers with another number of retries. Raises CannotEditError."""
    found = headers_of(message)
    if message.headers and not found:
        raise CannotEditError("its headers cannot be read: the number of retries stays")
    policy = RetryPolicy.unpack(found[RETRY]) if found.get(RETRY) else RetryPolicy()
    if not 0 <= retries <= RETRIES_FOREVER:
        raise CannotEditError(f"retries is {retries}: from 0 to {RETRIES_FOREVER}")
    found[RETRY] = replace(policy, retries_max=retries).pack()
    return bytes(msgpack.packb(found))


def call_of(message: Message) -> tuple[list[Any], dict[str, Any]] | None:
    """Arguments and keyword arguments, if JSON can say them."""
    try:
        if message.content == MSGPACK:
            call = msgpack.unpackb(message.body)
        elif message.content == JSON:
            call = json.loads(message.body)
        else:
            return None
        args, kwargs = call
        if json.loads(json.dumps(call)) != call:
            return None
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return args, kwargs


def with_call(message: Message, news: dict[str, Any]) -> bytes:
    """The body with other arguments. Raises CannotEditError."""
    before = call_of(message)
    if before is None:
        raise CannotEditError(
            "its arguments are no JSON (dates, tuples, a serializer of its own): change them "
            "where the task's code is, with app.dead.edit"
        )
    call = [news.get("args", before[0]), news.get("kwargs", before[1])]
    return bytes(msgpack.packb(call)) if message.content == MSGPACK else json.dumps(call).encode()


@dataclass(frozen=True, slots=True)
class Setting:
    """``kwargs.to="ana"``: one thing to change, and to what."""

    path: list[str]
    value: Any

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """Raises CannotEditError. A value that is no JSON is text."""
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CannotEditError(f"{text!r}: write NAME=VALUE, such as queue=slow or args=[1, 2]")
        try:
            return cls(name.split("."), json.loads(value))
        except ValueError:
            return cls(name.split("."), value)

    def apply(self, to: dict[str, Any]) -> None:
        """It is set. Raises CannotEditError for a path that leads nowhere."""
        place: Any = to
        *way, last = self.path
        try:
            for step in way:
                place = place[int(step) if isinstance(place, list) else step]
            place[int(last) if isinstance(place, list) else last] = self.value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise CannotEditError(f"there is no {'.'.join(self.path)!r} to be set") from error
