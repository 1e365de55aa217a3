"""The real daemon: how it starts, what ends it, and with which code and sentence."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qbroker.ops.exits import Exit
from qbroker.starting import Progress
from qprotocol.frames import Goaway, Inspect, Ok, Part, Peek, Peeked, Publish, Published, Report
from qprotocol.message import Message

pytestmark = pytest.mark.e2e

Start = Callable[..., Any]
Until = Callable[[Callable[[], Any]], Any]


def publish(peer: Any, queue: str, count: int, correlation: int = 3, **fields: Any) -> Published:
    raw = b"".join(Message(queue, b"hi", **fields).pack() for _ in range(count))
    producer = secrets.randbits(62)  # a new one each time: nothing is a resend
    peer.say(Publish(correlation=correlation, producer=producer, sequence=1, count=count, raw=raw))
    return peer.expect(Published)


def publish_and_leave(daemon: Any, queue: str, count: int) -> None:
    peer = daemon.connect().shake_hands()
    publish(peer, queue, count)
    peer.close()


def test_a_broker_says_where_it_listens_and_stops_as_asked(start: Start) -> None:
    daemon = start()
    assert [line.split(" ")[0] for line in daemon.said] == ["metrics", "listening"]
    greeting = daemon.connect().hear()
    assert (greeting.product, greeting.epoch) == ("qbroker", 1)
    assert greeting.limits["body_bytes_max"] == 1 << 20
    assert daemon.stop() == (Exit.OK, "")
    assert daemon.said[-1] == "stopped\n"


def test_ctrl_c_is_as_good_as_sigterm(start: Start) -> None:
    assert start().stop(signal.SIGINT)[0] == Exit.OK


def test_every_start_is_a_new_epoch_of_the_same_cluster(start: Start) -> None:
    greetings = []
    for _ in range(3):
        daemon = start()
        peer = daemon.connect()
        greetings.append(peer.hear())
        peer.close()
        daemon.stop()
    assert [greeting.epoch for greeting in greetings] == [1, 2, 3]
    assert len({greeting.cluster for greeting in greetings}) == 1


def test_what_was_confirmed_is_there_after_a_stop_and_after_a_kill(start: Start) -> None:
    daemon = start()
    publish_and_leave(daemon, "mail", 3)
    daemon.stop()
    daemon = start()
    publish(daemon.connect().shake_hands(), "mail", 2)
    daemon.stop(signal.SIGKILL)
    admin = start().connect().shake_hands("admin")
    admin.say(Peek(correlation=3, queue="mail", count=10))
    assert admin.expect(Peeked).count == 5


def test_peers_are_told_before_it_ends_and_may_still_settle(start: Start) -> None:
    daemon = start("--shutdown-timeout-ms", "5s")
    peer = daemon.connect().shake_hands()
    daemon.process.send_signal(signal.SIGTERM)
    goaway = peer.expect(Goaway)
    assert (goaway.reason, goaway.deadline_ms) == ("the broker is stopping", 5000)
    assert daemon.health()["status"] == "stopping"
    assert daemon.get("/health")[0] == 503
    publish(peer, "late", 1)
    peer.close()
    assert daemon.stop()[0] == Exit.OK


def test_who_stays_does_not_keep_it_from_ending(start: Start) -> None:
    daemon = start("--shutdown-timeout-ms", "200ms")
    peer = daemon.connect().shake_hands()
    started = time.monotonic()
    assert daemon.stop()[0] == Exit.OK
    assert time.monotonic() - started < 5
    peer.expect(Goaway)
    assert peer.hear() is None


def test_a_second_signal_ends_the_wait(start: Start, until: Until) -> None:
    daemon = start("--shutdown-timeout-ms", "1h")
    peer = daemon.connect().shake_hands()
    daemon.process.send_signal(signal.SIGTERM)
    peer.expect(Goaway)
    assert daemon.stop()[0] == Exit.OK


def test_when_the_disk_fails_it_says_nothing_more_and_ends(start: Start, until: Until) -> None:
    """A publish that could not be written is not answered, whatever came before it was."""
    daemon = start()
    peer, watcher = daemon.connect().shake_hands(), daemon.connect().shake_hands("admin")
    until(lambda: json.loads(daemon.ask("stats", "--json").stdout)["log"]["spare_ready"])
    limit = 1 << 20
    psutil.Process(daemon.process.pid).rlimit(psutil.RLIMIT_FSIZE, (limit, limit))
    raw = Message("mail", bytes(100_000)).pack()
    confirmed = 0
    for number in range(1, 30):
        peer.say(Publish(correlation=number, producer=1, sequence=number, count=1, raw=raw))
        answer = peer.hear()
        if answer is None:
            break
        assert isinstance(answer, Published)
        confirmed += 1
    assert 0 < confirmed <= limit // 100_000
    assert watcher.hear() is None
    code, said = daemon.stop()
    assert code == Exit.DISK
    assert "writing batch" in said
    assert "only a new start can tell what the disk holds" in said
    assert "Traceback" not in said
    admin = start().connect().shake_hands("admin")
    admin.say(Peek(correlation=3, queue="mail", count=30))
    assert admin.expect(Part).of == Peeked.TYPE
    while isinstance(answer := admin.hear(), Part):
        pass
    assert answer.count in (confirmed, confirmed + 1)


# --- What keeps it from starting


def refused(start: Start, *flags: str, **options: Any) -> tuple[int, str]:
    code, said = start(*flags, **options).stop()
    assert said.count("\n") == 1, said
    return code, said


def test_two_brokers_cannot_have_one_folder(start: Start) -> None:
    first = start()
    code, said = refused(start)
    assert code == Exit.LOCKED
    assert f"is in use by another broker (pid {first.process.pid} " in said


def test_an_occupied_port_is_one_line(start: Start, tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        for flag in ("--listen", "--http"):
            code, said = refused(start, flag, f"127.0.0.1:{port}")
            assert code == Exit.FAILED
            assert said == (
                f"qbroker: cannot listen on 127.0.0.1:{port}: something listens there already; "
                f"stop it, or choose another address with {flag} (port 0 takes a free one)\n"
            )
    assert start().stop() == (Exit.OK, ""), "the folder was left in order"


def test_a_damaged_log_is_refused_and_left_as_it_is(start: Start) -> None:
    daemon = start()
    publish_and_leave(daemon, "mail", 100)
    daemon.stop()
    start().stop()
    shutil.rmtree(daemon.data / "checkpoints")  # so that the whole log is read
    (segment, *_) = sorted((daemon.data / "log").glob("*.qlog"))
    segment.chmod(0o600)
    content = bytearray(segment.read_bytes())
    at = content.index(b"mail")
    content[at] ^= 1
    segment.write_bytes(content)
    code, said = refused(start)
    assert code == Exit.CORRUPT
    assert "is damaged at byte" in said
    assert segment.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_said(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = refused(start, data=tmp_path / "file" / "data")
    assert code == Exit.LOCKED
    assert said.startswith(f"qbroker: {tmp_path}/file/data cannot be used: ")


def test_beyond_this_machine_needs_a_word(start: Start) -> None:
    code, said = refused(start, "--listen", "0.0.0.0:0")
    assert code == Exit.USAGE
    assert "set insecure_listen" in said


def test_beyond_this_machine_is_warned_about(start: Start) -> None:
    daemon = start("--listen", "0.0.0.0:0", "--insecure-listen")
    peer = daemon.connect()
    assert peer.hear().mechanisms == ["none"]
    code, said = daemon.stop()
    assert code == Exit.OK
    assert "warning listening for clients on 0.0.0.0:0 without TLS and users" in said


def test_python_without_assertions_is_refused(start: Start) -> None:
    code, said = refused(start, python=("-O", "-m", "qbroker.cli"))
    assert code == Exit.USAGE
    assert said.startswith("qbroker: python -O switches off the assertions that guard your data")


def test_no_http_if_there_is_to_be_none(start: Start) -> None:
    daemon = start("--http", "")
    assert [line.split(" ")[0] for line in daemon.said] == ["listening"]


# --- HTTP


def test_metrics_tell_what_happened(start: Start, until: Until) -> None:
    daemon = start()
    peer = daemon.connect().shake_hands()
    publish(peer, "mail", 3)
    publish(peer, "later", 2, correlation=4, due_ms=int(time.time() * 1000) + 60_000)
    status, text = daemon.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert values['qbroker_messages_total{outcome="published",queue="mail"}'] == "3.0"
    assert values['qbroker_queue_messages{queue="mail",state="ready"}'] == "3.0"
    assert values['qbroker_queue_messages{queue="later",state="scheduled"}'] == "2.0"
    assert values['qbroker_connections{role="producer"}'] == "1.0"
    assert float(values["qbroker_log_sync_seconds_count"]) >= 2
    assert float(values["qbroker_turn_seconds_sum"]) > 0
    assert float(values["qbroker_log_bytes"]) > 0
    assert 'qbroker_build_info{epoch="1",version="0.1.0"}' in values


def test_health_tells_how_the_disk_is(start: Start) -> None:
    daemon = start()
    publish(daemon.connect().shake_hands(), "mail", 1)
    status, _ = daemon.get("/health")
    health = daemon.health()
    assert (status, health["status"], health["epoch"]) == (200, "ok", 1)
    assert health["last_sync_ms"] > 0
    assert health["log_durable"] > 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7718", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("LOCALHOST.", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:7718", 403),
        ("", 403),
    ],
)
def test_a_web_page_cannot_point_its_own_name_at_us(
    http_port: http.client.HTTPConnection, host: str, status: int
) -> None:
    http_port.putrequest("GET", "/metrics", skip_host=True)
    http_port.putheader("Host", host)
    http_port.endheaders()
    with http_port.getresponse() as answer:
        assert answer.status == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("HEAD", "/health", 200), ("POST", "/", 405), ("GET", "/../etc", 404)],
)
def test_there_is_little_to_ask_and_nothing_to_change(
    http_port: http.client.HTTPConnection, method: str, path: str, status: int
) -> None:
    http_port.request(method, path)
    with http_port.getresponse() as answer:
        assert answer.status == status


@pytest.fixture
def http_port(shared_daemon: Any) -> Iterator[http.client.HTTPConnection]:
    """A connection to the HTTP port of a broker."""
    url = shared_daemon.metrics_url.split("/")[2]
    with contextlib.closing(http.client.HTTPConnection(url, timeout=10)) as connection:
        yield connection


# --- Details


def test_a_quick_replay_is_silent_and_a_long_one_says_how_far_it_is() -> None:
    said: list[str] = []
    clock = iter((0.0, 0.5, 1.0, 1.9, 2.5)).__next__
    progress = Progress(said.append, clock)
    for batch in (1000, 2000, 3000, 4000):
        progress(batch, 60_000)
    assert said == [
        "replaying the log: batch 2,000 of 60,000",
        "replaying the log: batch 4,000 of 60,000",
    ]


def test_other_connections_do_not_notice_a_violation(start: Start) -> None:
    daemon = start()
    good, bad = daemon.connect().shake_hands("admin"), daemon.connect()
    bad.socket.sendall(os.urandom(1000))
    bad.refusal()
    good.say(Inspect(correlation=3, what="queues"))
    assert good.expect(Report).raw == b"[]"
    with contextlib.suppress(OSError):
        bad.say(Ok(correlation=1))
