"""Keys freed by time and by people, and what a new holder does to the one before."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from qbroker.core import records as r
from qbroker.core.decision import Decision
from qbroker.core.keys import IDEMPOTENCY, TIME, Holder, pack_held, unpack_held
from qbroker.core.leases import UNSEEN
from qbroker.core.moment import Now
from qbroker.core.refusals import RefusedError
from qbroker.core.settings import KEY_ROWS_MAX, LAPSED_KEYS_MAX
from qbroker.core.state import BrokerState
from qprotocol.frames import ForgetKey, Ok
from qprotocol.ids import unpack_id
from qprotocol.uniquekeys import SCOPES, UNTILS

KINDS = ("unique", "idempotency")
_SCOPES = {number: word for word, number in SCOPES.items()}
_UNTILS = {number: word for word, number in UNTILS.items()}


def remove_doomed(state: BrokerState, now: Now, append: Callable[[r.Record], object]) -> None:
    """Messages whose place others have taken, or who were cancelled before they came, are over.
    Right behind the record that says so, or, if a crash came between the two, at the next start.
    """
    until = now.wall_ms + state.settings.result_ttl_ms
    rows: dict[str, list[list[int]]] = {}
    for position, (number, why) in state.keys.doomed.items():
        run = state.run_numbered(number)
        rows.setdefault(why, []).append([position, run.lane.number, run.priority])
    for why, removed in rows.items():
        append(r.Removed(removed, why, now.wall_ms, until))


def apply_redelayed(state: BrokerState, _position: int, record: r.Redelayed) -> None:
    """They wait for another time, or are ready. Their bytes say the old one for ever, so each has
    an entry of counters from now on.
    """
    for number, priority, position, before_ms, due_ms, key in record.entries:
        run = state.lanes[number].run(priority)
        queue = run.lane.queue
        if before_ms:
            state.timers.remove(queue.number, [(before_ms, position, run.number)])
            queue.scheduled -= 1
            run.lane.scheduled -= 1
        else:
            run.remove(position, 1)
            queue.less(run.lane, 1)
        known = state.attempts.get(position, UNSEEN)
        state.attempts[position] = known._replace(run=run, waits=bool(due_ms))
        if due_ms:
            state.later(run, position, due_ms)
        else:
            queue.delayed.discard(position)
            state.ready(run, (position,))
        state.keys.redelay(key, due_ms)


def lapsed(state: BrokerState, now: Now) -> list[r.Record]:
    """The record for keys whose time is over."""
    keys = state.keys.lapsed(now, LAPSED_KEYS_MAX)
    return [r.KeysDropped(keys, lapsed=True)] if keys else []


def apply_keys_dropped(state: BrokerState, _position: int, record: r.KeysDropped) -> None:
    """These keys are free."""
    for key in record.keys:
        state.keys.drop(key)


# For people.


def decide_forget_key(
    state: BrokerState, _now: Now, _connection: int, frame: ForgetKey
) -> Decision:
    """The key is free, whoever holds it; the message goes on without it."""
    if frame.kind not in KINDS or frame.scope not in SCOPES:
        raise RefusedError(
            "BAD_REQUEST",
            f"kind {frame.kind!r} and scope {frame.scope!r}: {' or '.join(KINDS)}, and "
            f"{', '.join(SCOPES)}",
        )
    kind = SCOPES[frame.scope] if frame.kind == "unique" else IDEMPOTENCY
    key = pack_held(kind, frame.name, frame.key)
    if key not in state.keys.held:
        return Decision(reply=Ok())
    return Decision([r.KeysDropped([key], lapsed=False)], Ok(count=1))


def key_rows(state: BrokerState, now: Now, wanted: str = "") -> list[dict[str, Any]]:
    """A row a key that is held, as JSON has it; KEY_ROWS_MAX at most. With ``wanted``, of keys
    that read so alone. Costs a step a key.
    """
    return list(islice(rows(state, now, wanted), KEY_ROWS_MAX))


def rows(state: BrokerState, now: Now, wanted: str) -> Iterator[dict[str, Any]]:
    for packed, holder in state.keys.held.items():
        kind, name, key = unpack_held(packed)
        if wanted in ("", key) and state.keys.get(packed, now):
            yield {
                "kind": KINDS[kind == IDEMPOTENCY],
                "scope": _SCOPES.get(kind, "task"),
                "name": name,
                **row(key, holder, now),
            }


def row(key: str, holder: Holder, now: Now) -> dict[str, Any]:
    """What there is to say of a key, but what it is a key of."""
    return {
        "key": key,
        "id": unpack_id(holder.id[1:], minted=bool(holder.id[0])),
        "position": holder.position,
        "until": _UNTILS[holder.until],
        "until_ms": holder.until_ms,
        "in_ms": max(0, holder.until_ms - now.wall_ms) if holder.until == TIME else None,
        "redelayed": holder.redelayed,
    }
