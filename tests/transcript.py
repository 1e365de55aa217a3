"""How positions, grants, records and frames look in a transcript, and how some are read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from machine import START_MS
from qbroker.core import records as r
from qbroker.core.keys import unpack_held
from qprotocol import frames as f
from qprotocol import wire
from qprotocol.failure import Failure
from qprotocol.graphs import KINDS
from qprotocol.ids import unpack_id
from qprotocol.lanekeys import KEY_OPTIONS, NO_KEYS, LaneKeys
from qprotocol.limitrules import LimitRule
from qprotocol.message import unpack_message
from qprotocol.states import State


def shown_position(position: int) -> str:
    """batch:slot"""
    return f"{wire.batch_of(position)}:{position & ((1 << wire.SLOT_BITS) - 1)}"


def read_position(text: str) -> int:
    batch, slot = text.split(":")
    return int(batch) << wire.SLOT_BITS | int(slot)


def shown_grant(grant: int) -> str:
    """epoch.counter"""
    return f"{wire.grant_epoch(grant)}.{grant & ((1 << wire.EPOCH_SHIFT) - 1)}"


def read_grant(text: str) -> int:
    epoch, counter = text.split(".")
    return int(epoch) << wire.EPOCH_SHIFT | int(counter)


def shown_token(position: int, grant: int) -> str:
    return f"{shown_position(position)}#{shown_grant(grant)}"


def shown_value(name: str, value: Any) -> str:
    if name.endswith("_ms") and isinstance(value, int) and value > START_MS // 2:
        return f"+{value - START_MS}"
    if name in ("position", "first"):
        return shown_position(value)
    if name == "positions":
        rows = [v if isinstance(v, list) else [v] for v in value]
        return ",".join(":".join([shown_position(row[0]), *map(str, row[1:])]) for row in rows)
    if name == "grant":
        return shown_grant(value)
    if name in ("result", "raw"):
        return shown_bytes(value)
    if isinstance(value, r.MessageBatch):
        return shown_batch(value)
    if isinstance(value, bytes):
        return value.rstrip(b"-").decode(errors="backslashreplace")
    return str(value)


def shown_batch(batch: r.MessageBatch) -> str:
    """lane/priority×count+due of each run, then what expires and what is named."""
    runs = [
        f"lane{lane}"
        + (f"/{priority}" if priority else "")
        + f"×{count}"
        + (" held" if due == r.HELD else f"@{shown_value('due_ms', due)}" if due else "")
        for lane, priority, count, due in batch.runs
    ]
    expiring = [f"expires[{i}]={shown_value('expires_ms', ms)}" for i, ms in batch.expiring]
    named = [f"id[{i}]={name.decode()}" for i, name in batch.named]
    revoked = [
        f"revoked[{i}]={unpack_id(name[1:], minted=bool(name[0]))}" for i, name in batch.revoked
    ]
    rest = [*shown_keyed(batch.keyed), *revoked, *shown_woven(batch.woven)]
    return " ".join([*runs, *expiring, *named, *rest])


def shown_woven(woven: r.Woven | None) -> Iterator[str]:
    """The links of a graph, and who waits once it is let go."""
    if woven is None:
        return
    names = {number: name for name, number in KINDS.items()}
    for kind, source, sources, target, targets in woven.links:
        yield f"{names[kind]}[{source}+{sources}>{target}+{targets}]"
    for index, delay_ms, due_ms in woven.delays:
        due = f" due_ms={shown_value('due_ms', due_ms)}" if due_ms else ""
        yield f"later[{index}]={delay_ms}{due}"


def inputs(frame: f.Inputs) -> Iterator[str]:
    """What a node is given, each."""
    at = 0
    for _ in range(frame.count):
        state, _, size = wire.INPUT.unpack_from(frame.raw, at)
        at += wire.INPUT.size + size
        yield f"{State(state).name} {shown_bytes(frame.raw[at - size : at])}".rstrip()


def shown_keyed(keyed: r.Keyed | None) -> Iterator[str]:
    """Keys that are taken, what others stand for, what goes."""
    if keyed is None:
        return
    for index, key, _, until_ms, _, position in keyed.taken:
        kind, name, text = unpack_held(key)
        where = str(index) if index >= 0 else shown_position(position)
        ends = f" until {shown_value('until_ms', until_ms)}" if until_ms else ""
        yield f"key[{where}]={kind}:{name}:{text}{ends}"
    for number, _, name in keyed.existing:
        yield f"existing[{number}]={name[1:].decode(errors='backslashreplace')}"
    yield from (f"replaces={shown_position(position)}" for position, _ in keyed.replaced)
    if keyed.dropped:
        yield f"dropped={keyed.dropped}"


def shown_bytes(raw: bytes) -> str:
    if len(raw) > 60:
        return f"{len(raw)} bytes"
    try:
        failure = Failure.unpack(raw)
    except ValueError:
        return raw.decode(errors="backslashreplace")
    return f"{failure.kind}({failure.message})"


def shown_fields(value: Any, left_out: tuple[str, ...]) -> str:
    """The fields that are not empty."""
    items = []
    for each in fields(value):
        found = getattr(value, each.name)
        if each.name not in left_out and found not in (0, "", b"", [], None, False):
            items.append(f"{each.name}={shown_value(each.name, found)}")
    return " ".join(items)


CHANGE_NAMES = {
    value: name.lower()
    for name, value in vars(r).items()
    if name.isupper() and isinstance(value, int)
}


def shown_keys(keys: bytes) -> list[tuple[str, object]]:
    """The lane keys that are there, by the names of their options."""
    known = zip(KEY_OPTIONS.values(), LaneKeys.unpack(keys), NO_KEYS, strict=True)
    return [(name, value) for name, value, absent in known if value != absent]


def shown_record(record: r.Record) -> str:
    kind = type(record).__name__
    if isinstance(record, r.Published | r.PartStored):
        return f"{kind} {shown_batch(record.batch)} {shown_fields(record, ('batch', 'wall_ms'))}"
    if isinstance(record, r.Replayed):
        moves = [f"{shown_position(row[3])}:lane{row[0]}>lane{row[2]}" for row in record.entries]
        due = [f"due_ms={shown_value('due_ms', record.due_ms)}"] if record.due_ms else []
        return " ".join([kind, *moves, *due, *([f"by={record.author}"] if record.author else [])])
    if isinstance(record, r.LetterEdited):
        said = f"{kind} letter={shown_position(record.letter)} home={record.home}"
        return f"{said} {shown_batch(record.batch)}"
    if isinstance(record, r.PartsCommitted):
        told = shown_fields(record, ("keyed", "wall_ms"))
        return " ".join([kind, told, *shown_keyed(record.keyed)])
    if isinstance(record, r.Redelayed):
        rows = [
            f"lane{lane}:{shown_position(at)}@{shown_value('due_ms', due)}"
            for lane, _, at, _, due, _ in record.entries
        ]
        return " ".join([kind, *rows])
    if isinstance(record, r.CancelNoted):
        names = [unpack_id(name[1:], minted=bool(name[0])) for name in record.ids]
        return " ".join([kind, *names, shown_fields(record, ("ids",))])
    if isinstance(record, r.Advanced | r.NodesSwept):
        rows = [f"{shown_position(row[0])}={State(row[3]).name}" for row in record.ends if row[3:]]
        rows += [shown_position(row[0]) for row in record.ends if not row[3:]]
        more = shown_fields(record, ("wall_ms", "keep_until_ms", "ends"))
        return " ".join([kind, *rows, more]).rstrip()
    if isinstance(record, r.KeysDropped):
        keys = [":".join(map(str, unpack_held(key))) for key in record.keys]
        return " ".join([kind, *keys, *(["lapsed"] if record.lapsed else [])])
    if isinstance(record, r.LaneOpened):
        rest = shown_fields(record, ("number", "queue", "keys"))
        rest += "".join(f" {name}={value}" for name, value in shown_keys(record.keys))
        return f"{kind} number={record.number} queue={record.queue} {rest}".rstrip()
    if isinstance(record, r.Granted | r.GrantedExactly):
        runs = [
            f"lane{lane}"
            + (f"/{priority}" if priority else "")
            + f":{shown_position(first)}×{count}"
            for lane, priority, first, count in record.entries
        ]
        return f"{kind} {shown_fields(record, ('entries', 'wall_ms'))} {' '.join(runs)}"
    if isinstance(record, r.LimitSet):
        plain = LimitRule(concurrency=1).as_dict() | {"concurrency": 0}
        said = [f"{k}={v}" for k, v in record.rule.items() if v != plain[k]]
        return f"{kind} {record.name} {record.origin} {' '.join(said)}"
    if isinstance(record, r.Acked):
        runs = [f"{shown_token(first, grant)}×{count}" for grant, first, count in record.runs]
        return f"{kind} {' '.join(runs)}"
    if isinstance(record, r.Settled):
        left_out = ("change", "state", "finished_ms", "follow_on", "keep_until_ms")
        then = f" then {shown_batch(record.follow_on)}" if record.follow_on.count else ""
        name = CHANGE_NAMES[record.change]
        return f"{kind} {name} {shown_fields(record, left_out)}{then}"
    if isinstance(record, r.QueueOpened):
        given = {k: v for k, v in record.options.items() if v and v not in (1_000, 600_000)}
        extra = " ".join(f"{k}={v}" for k, v in given.items())
        return f"{kind} number={record.number} name={record.name} {extra}".rstrip()
    return f"{kind} {shown_fields(record, ('finished_ms', 'keep_until_ms', 'wall_ms'))}"


def shown_archived(row: dict[str, Any]) -> str:
    """Position, state and names; then what else there is, less what a test cannot foresee."""
    left_out = ("position", "state", "published_ms", "started_ms", "finished_ms")
    rest = [f"{name}={row[name]}" for name in row if name not in left_out and row[name]]
    return " ".join([shown_position(row["position"]), row["state"], *rest])


def shown_report(raw: bytes) -> str:
    """The state and each reason with what is said of it; or a page of dead letters."""
    found = json.loads(raw)
    if "letters" in found:
        return shown_letters(found)
    reasons = [
        " ".join([each.pop("reason"), *(f"{k}={shown_value(k, v)}" for k, v in each.items() if v)])
        for each in found["reasons"]
    ]
    where = "".join(f" {name}={found[name]}" for name in ("queue", "task") if found.get(name))
    return f"{found['state']}{where}: {'; '.join(reasons) or '(nothing)'}"


def shown_letters(found: dict[str, Any]) -> str:
    """Position and number of each, and what else is there; then the page's end."""
    left_out = ("position", "number", "raw", "dead_queue", "message")
    rows = []
    for row in found["letters"]:
        row["error"] = f"{row['error']}({row['message']})" if row.get("error") else ""
        said = [f"{k}={shown_value(k, v)}" for k, v in row.items() if v and k not in left_out]
        rows.append(" ".join([f"{shown_position(row['position'])}#{row['number']}", *said]))
    more = f" next={found['next']}" if found["next"] else ""
    return f"{'; '.join(rows) or '(nothing)'}{more}"


def shown_result(frame: f.Result) -> str:
    about = shown_fields(frame, ("correlation", "raw", "state", "finished_ms"))
    raw = f" raw={shown_bytes(frame.raw)}" if frame.raw else ""
    return f"{State(frame.state).name} {about}{raw}"


def peeked(raw: bytes) -> Iterator[str]:
    at, size = 0, wire.PEEKED.size
    while at < len(raw):
        position, _, *counters, state, n_reason, n_error = wire.PEEKED.unpack_from(raw, at)
        at += size
        reason, error = raw[at : at + n_reason], raw[at + n_reason : at + n_reason + n_error]
        at += n_reason + n_error
        message = unpack_message(raw[at:])
        at += 4 + int.from_bytes(raw[at : at + 4], "little")
        note = " ".join(str(count) for count in counters) if any(counters) else ""
        words = [f"{message.body.decode()}@{shown_position(position)}", State(state).name, note]
        words += [reason.decode(), shown_bytes(error) if error else ""]
        yield " ".join(word for word in words if word)
