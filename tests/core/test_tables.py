"""Tables held against each other: frames and rules, records and their bytes, error codes."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import pytest

from qbroker.core import records as r
from qbroker.core.broker import APPLY, ASK, DECIDE
from qbroker.core.endings import CHANGES
from qbroker.core.keys import pack_held
from qbroker.core.settling import OUTCOMES
from qprotocol import wire
from qprotocol.errors import ERRORS
from qprotocol.frames import BOTH, CLIENT, FRAMES, Auth, Inspect, Listen, Notify, Search
from qprotocol.message import Message

VECTORS = Path(__file__).parent / "vectors"
ELSEWHERE = {Auth, Inspect, Search, Listen, Notify}
"""Frames of clients that never reach the core: the door's, and the engine's."""


def test_every_frame_of_a_client_has_one_rule() -> None:
    mine = {frame for frame in FRAMES.values() if frame.SENDER in (CLIENT, BOTH)} - ELSEWHERE
    assert set(DECIDE) | set(ASK) == mine
    assert not set(DECIDE) & set(ASK)


def test_every_record_outcome_and_change_has_a_rule() -> None:
    assert set(APPLY) == set(r.RECORDS.values())
    assert set(OUTCOMES) == set(wire.OUTCOMES)
    named = {r.SUCCEEDED, r.RETRIED, r.FAILED, r.RELEASED, r.CRASHED, r.REJECTED, r.POISONED}
    assert set(CHANGES) == named


def test_every_error_code_is_raised_somewhere() -> None:
    """A code that nobody says is a promise that nobody keeps."""
    server = Path(__file__).parents[2] / "server" / "qbroker"
    protocol = Path(__file__).parents[2] / "protocol" / "qprotocol"
    text = "".join(
        path.read_text(encoding="utf-8")
        for room in (server, protocol)
        for path in room.rglob("*.py")
        if path.name != "errors.py"
    )
    said = set(re.findall(r'"([A-Z_]+)"', text))
    reserved = {"RESOURCE_EXHAUSTED", "BLOCKED", "LEASE_LOST", "UNKNOWN_ID", "AUTH_FAILED"}
    unsaid = set(ERRORS) - said
    assert unsaid <= reserved, unsaid


# --- The bytes of records


def batch(*bodies: str) -> r.MessageBatch:
    raw = b"".join(Message("q", body.encode()).pack() for body in bodies)
    runs = [[0, 0, len(bodies), 0]] if bodies else []
    return r.MessageBatch(runs, [], [], raw, len(bodies))


def settled() -> r.Settled:
    return r.Settled(
        change=r.RETRIED,
        position=3 << 20,
        grant=1 << 40 | 2,
        state=5,
        finished_ms=1_700_000_000_000,
        run_ms=12,
        content=1,
        keep_until_ms=0,
        due_ms=1_700_000_001_000,
        lane=0,
        reason="",
        result=b"\x93\xa1E\xa1m\xa0",
        replaced=True,
        follow_on=batch("again"),
    )


def rich_batch() -> r.MessageBatch:
    found = batch("a", "b")
    found.runs = [[0, 0, 1, 0], [1, -5, 1, 1_700_000_000_500]]
    found.expiring = [[1, 1_700_000_009_000]]
    found.named = [[0, b"invoice-1"]]
    return found


KEY = pack_held(2, "shop.mail", "user-7")


def keyed_batch() -> r.MessageBatch:
    found = batch("a")
    found.keyed = r.Keyed(
        [[0, KEY, 3, 1_700_000_060_000, b"\x00invoice-1", 0]],
        [[1, 2 << 20, b"\x01" + bytes(16)]],
        [[2 << 20, 128]],
    )
    return found


def woven_batch() -> r.MessageBatch:
    """A node, and two that run behind it, the second a minute later."""
    batch = revoked_batch()
    batch.revoked = []
    batch.woven = r.Woven(
        *(array("I", (0, 1, 1)), array("H", (1, 0, 0)), array("I", (0,))),
        *(array("H", (0, 1, 1)), array("I", (0, 0)), [[1, 0, 1, 1, 2]], [[2, 60_000, 0]]),
        [[1, bytes((90, 0, 0, 0))]],
    )
    return batch


def revoked_batch() -> r.MessageBatch:
    found = batch("a", "b")
    found.revoked = [[1, b"\x00invoice-1"]]
    return found


EXAMPLES: dict[str, r.Record] = {
    "booted": r.Booted(2, 1_700_000_000_000, "0.1.0"),
    "queue_opened": r.QueueOpened(0, "q", {"fsync": "", "retries_max": 3}),
    "lane_opened": r.LaneOpened(1, 0, "shop.mail", b"\x01"),
    "lanes_closed": r.LanesClosed([1, 7]),
    "published": r.Published(7, 1, 1_700_000_000_000, rich_batch()),
    "published_keyed": r.Published(7, 2, 1_700_000_000_000, keyed_batch()),
    "part_stored": r.PartStored(4, 9, True, 0, batch("x")),
    "parts_committed": r.PartsCommitted(4, 9, 7, 2, 1_700_000_000_000),
    "parts_committed_keyed": r.PartsCommitted(
        4, 9, 7, 2, 1_700_000_000_000, r.Keyed([], [[0, 1 << 20, b"\x00a"]], [], [0])
    ),
    "published_revoked": r.Published(7, 3, 1_700_000_000_000, revoked_batch()),
    "cancel_noted": r.CancelNoted([b"\x00invoice-1", b"\x01" + bytes(16)], 1_700_003_600_000, 2),
    "published_woven": r.Published(7, 3, 1_700_000_000_000, woven_batch()),
    "advanced": r.Advanced(
        7,
        1_700_000_000_000,
        1_700_086_400_000,
        [[2 << 20, 3, -5, 7, 1 << 20, 5 << 20]],
        [[2 << 20 | 1, 1_700_000_060_000]],
        [[2 << 20 | 2, 3]],
    ),
    "graphs_let_go": r.GraphsLetGo([2 << 20, 3 << 20]),
    "nodes_swept": r.NodesSwept(
        1_700_000_000_000, 1_700_086_400_000, [[2 << 20, 3, -5]], 1 << 20, 500
    ),
    "redelayed": r.Redelayed([[0, 0, 2 << 20, 0, 1_700_000_000_500, KEY]]),
    "keys_dropped": r.KeysDropped([KEY], lapsed=True),
    "granted": r.Granted(1 << 40 | 1, b"s" * 16, 1, [[0, 0, 2 << 20, 3]]),
    "granted_exactly": r.GrantedExactly(
        1 << 40 | 1, b"s" * 16, 1, [[0, 0, 2 << 20, 3]], 1_700_000_000_000
    ),
    "acked": r.Acked([[1 << 40 | 1, 2 << 20, 2]]),
    "settled": settled(),
    "returned": r.Returned([2 << 20, 2 << 20 | 1]),
    "started": r.Started([2 << 20], early=True),
    "removed": r.Removed([[2 << 20, 0, 0]], "expired", 1_700_000_000_000, 1_700_086_400_000),
    "purged": r.Purged(0),
    "came_due": r.CameDue(1_700_000_000_500, 2),
    "forgotten": r.Forgotten([2 << 20]),
    "archived": r.Archived(2 << 20 | 1),
    "quarantined": r.Quarantined(
        [2 << 20], "1.qlog is damaged", "1-4096.bin", 1_700_000_000_000, 1_700_086_400_000
    ),
    "upload_dropped": r.UploadDropped(4, 9),
    "handed_down": r.HandedDown(b"s" * 16, 1, [2 << 20, 2 << 20 | 1]),
    "moved": r.Moved([[0, 0, 1, 2 << 20, 3]], [[0, -5, 2, 3 << 20, 1_700_000_000_500]]),
    "moved_held": r.Moved([], [], [[0, -5, 2, 3 << 20]]),
    "queue_paused": r.QueuePaused(0, True, False, "broken", "ana", 1_700_000_000_000, 0),
    "queue_resumed": r.QueueResumed(0, False, True),
    "exchange_declared": r.ExchangeDeclared("e", "topic", {"alternate": "", "unroutable": "drop"}),
    "exchange_deleted": r.ExchangeDeleted("e"),
    "bound": r.Bound("e", False, "q", "orders.#", {}),
    "unbound": r.Unbound("e", True, "h", "", {"x-match": "any", "kind": "paid", "gift": None}),
    "queue_changed": r.QueueChanged(0, {"max_length": 5, "overflow": None}),
    "queue_deleted": r.QueueDeleted(0, "deleted by an operator"),
    "overflowed": r.Overflowed(
        [[0, 0, 2 << 20, 2, 1, 0], [0, 5, 3 << 20, 1, -1, 1_700_000_000_500]],
        "overflow: max_length is 5",
        1_700_000_000_000,
        1_700_086_400_000,
    ),
    "policy_set": r.PolicySet("short", "mail*", 5, True, {"max_length": 5}),
    "history_set": r.HistorySet(3, "failures"),
    "policies_reached": r.PoliciesReached(300),
    "limit_set": r.LimitSet(
        "shop.mail",
        "operator",
        {"queue": "", "task": "shop.mail", "rate": 10, "window_ms": 1_000},
        1_700_000_000_000,
    ),
    "limit_dropped": r.LimitDropped("shop.mail", "code", 1_700_000_000_000),
    "replayed": r.Replayed(
        [[1, 0, 0, 2 << 20, 0], [1, 5, 0, 3 << 20, 1_700_000_000_500]],
        1_700_000_009_000,
        "ana",
        1_700_000_000_000,
    ),
    "letter_edited": r.LetterEdited(2 << 20, "q", "ana", 1_700_000_000_000, batch("new")),
    "letters_dropped": r.LettersDropped([[2 << 20, 1, 0]], "ana", 1_700_000_000_000),
    "kept": r.Kept(1, 3, [[0, 1], [2, 1]], b"error", batch("a", "c").raw),
}


def test_every_record_has_an_example() -> None:
    assert {type(record) for record in EXAMPLES.values()} == set(r.RECORDS.values())


def packed(record: r.Record) -> bytes:
    return bytes([record.TYPE]) + b"".join(record.parts())


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_has_the_bytes_it_always_had(name: str, request: pytest.FixtureRequest) -> None:
    """Logs are read for years: changed bytes need a new type number, not a new vector."""
    record, path = EXAMPLES[name], VECTORS / f"{name}.hex"
    if request.config.getoption("--rewrite"):
        path.write_text(packed(record).hex() + "\n", encoding="ascii")
    assert packed(record).hex() == path.read_text(encoding="ascii").strip()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_is_read_from_its_bytes(name: str) -> None:
    data = bytes.fromhex((VECTORS / f"{name}.hex").read_text(encoding="ascii"))
    record = r.unpack(data[0], data[1:])
    assert type(record) is type(EXAMPLES[name])
    assert record.slots == EXAMPLES[name].slots
    assert packed(record) == data
    assert record.lazy == EXAMPLES[name].lazy


def test_no_vector_is_left_without_a_record() -> None:
    assert {path.stem for path in VECTORS.glob("*.hex")} == set(EXAMPLES)


def test_the_raw_bytes_of_a_record_begin_where_raw_at_says() -> None:
    record = EXAMPLES["published"]
    body = b"".join(record.parts())
    assert body[r.raw_at(body) :] == record.raw


DESCRIBED = {
    "booted": "Booted epoch=2 wall_ms=1700000000000 version=0.1.0",
    "granted": "Granted grant=1099511627777 session=73737373737373737373737373737373",
    "published": "sequence=1 wall_ms=1700000000000 batch=2 messages in 74 bytes, runs [[0, 0, 1",
    "settled": "result=6 bytes",
    "returned": "Returned positions=[2097152, 2097153]",
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_record_is_described_in_a_line(name: str) -> None:
    data = packed(EXAMPLES[name])
    line = r.describe(data[0], data[1:])
    assert "\n" not in line
    assert DESCRIBED[name] in line.replace("result=93a145a16da0", "result=6 bytes")
