"""Orders about a queue from the command line, to a real daemon."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qbroker.ops.exits import Exit
from qbroker.ordercommands import Span
from qprotocol.frames import Ack, Consume, Deliver, Error, Ok, Publish, Published, Settled
from qprotocol.lanekeys import LaneKeys
from qprotocol.message import Message
from qprotocol.wire import ACK_RUN, RUN
from server.conftest import Daemon

pytestmark = pytest.mark.e2e


def publish(peer: Any, queue: str, *bodies: bytes) -> None:
    raw = b"".join(Message(queue, body).pack() for body in bodies)
    peer.say(Publish(correlation=3, producer=0, sequence=0, count=len(bodies), raw=raw))


def row_of(daemon: Daemon, queue: str) -> Any:
    rows = json.loads(daemon.ask("queues", "--json").stdout)
    return next(row for row in rows if row["name"] == queue)


def test_a_pause_is_seen_by_people_programs_and_publishers(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    publish(peer, "paused", b"a")
    peer.expect(Published)
    done = daemon.ask("queue", "pause", "paused", "--intake", "--reason", "release", "--for", "10m")
    assert done.stdout == "intake of paused paused for 10.0m\n"
    publish(peer, "paused", b"b")
    refused = peer.expect(Error)
    assert (refused.code, refused.retryable, refused.definite) == ("QUEUE_PAUSED", True, True)
    assert refused.details["reason"] == "release"
    assert refused.details["queue"] == "paused"
    assert "@" in refused.details["author"]
    assert refused.details["until_ms"] > 0
    pause = row_of(daemon, "paused")["paused"]["intake"]
    assert (pause["reason"], pause["until_ms"]) == ("release", refused.details["until_ms"])
    line = next(x for x in daemon.ask("queues").stdout.splitlines() if x.startswith("paused"))
    assert "intake: release (" in line
    assert line.endswith("m left")
    again = json.loads(daemon.ask("queue", "pause", "paused", "--json").stdout)
    assert again["newly_paused"] == 1
    assert daemon.ask("queue", "resume", "paused").stdout == "paused goes on\n"
    assert daemon.ask("queue", "resume", "paused").stdout == "paused was not paused\n"
    found = json.loads(daemon.ask("queue", "resume", "paused", "--json").stdout)
    assert found == {"queue": "paused", "resumed": 0}
    publish(peer, "paused", b"b")
    peer.expect(Published)


def test_a_drain_waits_until_the_queue_is_empty(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    publish(peer, "draining", b"a")
    peer.expect(Published)
    late = daemon.ask("queue", "drain", "draining", "--within", "1s")
    assert late.returncode == Exit.UNFINISHED
    assert "1 message of draining still waits or runs after 1.0s" in late.stderr
    daemon.ask("queue", "pause", "draining", "--dispatch")
    stuck = daemon.ask("queue", "drain", "draining")
    assert stuck.returncode == Exit.FAILED
    assert "its dispatch is paused" in stuck.stderr
    daemon.ask("queue", "resume", "draining", "--dispatch")
    peer.say(Consume(correlation=4, subscription=1, queues=["draining"], credit=1))
    peer.expect(Ok)
    deliver = peer.expect(Deliver)
    first, _ = RUN.unpack_from(deliver.raw)
    peer.say(Ack(correlation=5, raw=ACK_RUN.pack(deliver.grant, first, 1)))
    peer.expect(Settled)
    done = daemon.ask("queue", "drain", "draining")
    assert done.stdout.startswith("draining is empty; its intake is paused")


def test_a_drain_ends_when_its_queue_is_deleted(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    publish(peer, "leaving", b"a")
    peer.expect(Published)
    with ThreadPoolExecutor(1) as threads:
        drained = threads.submit(daemon.ask, "queue", "drain", "leaving", "--json")
        deadline = time.monotonic() + 20
        while "intake" not in row_of(daemon, "leaving")["paused"]:
            assert time.monotonic() < deadline
        daemon.ask("queue", "delete", "leaving", "--yes")
        done = drained.result()
    assert json.loads(done.stdout) == {"queue": "leaving", "drained": True, "left": 0}
    found = json.loads(daemon.ask("queue", "drain", "draining", "--json").stdout)
    assert found == {"queue": "draining", "drained": True, "left": 0}
    assert "NO_QUEUE" in daemon.ask("queue", "drain", "nowhere").stderr


@pytest.mark.parametrize(("text", "ms"), [("90s", 90_000), ("10m", 600_000), ("1d", 86_400_000)])
def test_a_span_of_time(text: str, ms: int) -> None:
    assert Span().convert(text, None, None) == ms


@pytest.mark.parametrize("text", ["", "0s", "10", "m", "-1m", "1.5h"])
def test_what_is_no_span_of_time(daemon: Daemon, text: str) -> None:
    done = daemon.ask("queue", "pause", "any", f"--for={text}")
    assert done.returncode == Exit.USAGE
    assert "write 90s, 10m, 2h or 1d" in done.stderr


def test_messages_are_moved_cancelled_and_purged_by_what_fits(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    keyed = LaneKeys(fair="t1").pack()
    packed = [
        Message("here", b"1", id="one", task="shop.bill"),
        Message("here", b"2", task="shop.bill", keys=keyed),
        Message("here", b"3", task="shop.mail"),
        Message("here", b"4", task="shop.mail", id="four"),
    ]
    raw = b"".join(message.pack() for message in packed)
    peer.say(Publish(correlation=3, producer=0, sequence=0, count=4, raw=raw))
    peer.expect(Published)
    publish(peer, "there", b"0")
    peer.expect(Published)
    move = ("queue", "move", "here", "there")
    assert daemon.ask(*move, "--task", "shop.bill", "--dry-run").stdout == (
        "2 messages would be moved from here to there\n"
    )
    assert daemon.ask(*move, "--id", "four").stdout == "1 message moved from here to there\n"
    found = json.loads(daemon.ask(*move, "--task", "shop.bill", "--json").stdout)
    assert found == {"from": "here", "to": "there", "moved": 2, "dry_run": False}
    assert (row_of(daemon, "here")["ready"], row_of(daemon, "there")["ready"]) == (1, 4)
    said = daemon.ask("cancel", "four", "nobody").stdout.splitlines()
    assert said[1].split() == ["four", "revoked"]
    hour = r"(1\.0h|60\.0m|59\.\dm)"
    assert re.fullmatch(rf"nobody  unknown: cancelled if it comes within {hour}", said[2])
    assert json.loads(daemon.ask("cancel", "nobody", "--json").stdout) == {"nobody": "UNKNOWN"}
    said = daemon.ask("why", "nobody").stdout.splitlines()
    assert "forgotten after its time; cancelled if it comes within" in said[1]
    late = Message("here", b"5", id="nobody").pack()
    peer.say(Publish(correlation=4, producer=0, sequence=0, count=1, raw=late))
    peer.expect(Published)
    assert json.loads(daemon.ask("cancel", "nobody", "--json").stdout) == {"nobody": "REVOKED"}
    assert json.loads(daemon.ask("cancel", "four", "--json").stdout) == {"four": "REVOKED"}
    by_key = ("cancel", "--key", "t1")
    assert daemon.ask(*by_key, "--dry-run").stdout == "1 message would be cancelled\n"
    assert json.loads(daemon.ask(*by_key, "--json").stdout)["cancelled"] == 1
    assert daemon.ask(*by_key, "--queue", "there").stdout == "0 messages cancelled\n"
    assert "name IDs, or a --graph, or else a --queue" in daemon.ask("cancel").stderr
    dry = daemon.ask("cancel", "one", "--dry-run", "--state", "ready", "--older", "1h")
    assert (dry.returncode, dry.stdout) == (Exit.USAGE, "")
    assert "--dry-run, --state, --older beside IDs" in dry.stderr
    graceful = daemon.ask("cancel", "one", "--grace", "5s")
    assert (graceful.returncode, graceful.stdout) == (Exit.USAGE, "")
    assert "--grace 5.0s without --terminate: " in graceful.stderr
    aged = daemon.ask(*move, "--id", "one", "--older", "1h")
    assert (aged.returncode, aged.stdout) == (Exit.USAGE, "")
    assert "--older beside --id" in aged.stderr
    purge = ("purge", "there", "--task", "shop.bill")
    assert daemon.ask(*purge, "--dry-run").stdout == "1 message would be dropped from there\n"
    assert "give --yes" in daemon.ask(*purge).stderr
    assert daemon.ask(*purge, "--older", "1h", "--yes").stdout == "0 messages dropped from there\n"
    found = json.loads(daemon.ask(*purge, "--yes", "--json").stdout)
    assert found == {"queue": "there", "purged": 1}
    assert row_of(daemon, "there")["ready"] == 1
    said = daemon.ask("why", "one").stdout.splitlines()
    assert said == [
        "one is unknown",
        "  nobody knows it: never published, or forgotten after its time",
    ]


def test_why_says_in_sentences_what_a_message_waits_for(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    packed = [Message("why", b"", id=f"why-{n}", priority=n).pack() for n in range(2)]
    packed.append(
        Message("why", b"", id="why-later", due_ms=time.time_ns() // 1_000_000 + 3_600_000).pack()
    )
    peer.say(Publish(correlation=3, producer=0, sequence=0, count=3, raw=b"".join(packed)))
    peer.expect(Published)
    assert daemon.ask("why", "why-0").stdout.splitlines() == [
        "why-0 is queued in why",
        "  nobody listens to its queue",
        "  1 of its task and keys goes before it",
    ]
    later = daemon.ask("why", "why-later").stdout
    assert "it waits for its time, in 1.0h" in later or "in 60.0m" in later or "in 59" in later
    daemon.ask("queue", "pause", "why", "--dispatch", "--reason", "broken", "--author", "ana")
    said = daemon.ask("why", "why-1").stdout
    assert "its queue is paused by ana: broken, until somebody resumes it" in said
    daemon.ask("queue", "pause", "why", "--dispatch", "--for", "2h", "--author", "ana")
    assert re.search(
        r"paused by ana, for (2\.0h|1\.9\d?h|119\.\dm) more", daemon.ask("why", "why-1").stdout
    )
    found = json.loads(daemon.ask("why", "why-1", "--json").stdout)
    assert [row["reason"] for row in found["reasons"]] == ["paused", "no_consumer"]
    rows = [line.split() for line in daemon.ask("queues", "--why").stdout.splitlines()]
    assert ["why", "due", "1"] in rows
    assert ["why", "paused", "2"] in rows
    assert "has ended" in daemon.ask("why", "four").stdout


def test_why_says_who_goes_first_in_a_queue_that_is_shared(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands("consumer")
    rows = (("a", "x"), ("b", "x"), ("c", "y"), ("d", ""))
    packed = [
        Message("fair", b"", id=f"fair-{name}", keys=LaneKeys(fair=key).pack()).pack()
        for name, key in rows
    ]
    peer.say(Publish(correlation=3, producer=0, sequence=0, count=4, raw=b"".join(packed)))
    peer.expect(Published)
    peer.say(Consume(correlation=4, subscription=1, queues=["fair"], credit=1))
    peer.expect(Ok)
    peer.expect(Deliver)
    assert daemon.ask("why", "fair-b").stdout.splitlines() == [
        "fair-b is queued in fair",
        "  its consumer is full: 1 message out, and room for 1 in all",
        "  2 other tenants have had less than its fair key 'x'",
    ]
    row = daemon.ask("queue", "show", "fair").stdout
    assert re.search(r"^x +1 +1 +1 +", row, re.MULTILINE), row
    assert re.search(r"^\(no key\) +1 +1 +0 +", row, re.MULTILINE), row
