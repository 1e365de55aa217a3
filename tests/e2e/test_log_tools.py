"""The operator's tools on a real data folder: figures, what a repair would lose, the repair."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from e2e.daemon import PATIENCE_S, SCRIPTS, Daemon, clean_env

pytestmark = pytest.mark.e2e

SMALL = {"segment_bytes": "256KiB", "batch_bytes_max": "256KiB"}


def log(verb: str, broker: Daemon, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / "qbroker"), "log", verb, str(broker.data), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=clean_env(),
        timeout=PATIENCE_S,
    )


def filled(make_broker: Callable[..., Daemon]) -> tuple[Daemon, list[str]]:
    """A broker that was killed, with forty messages of 20 kB in four segments; their ids."""
    broker = make_broker(**SMALL).start()
    producer = broker.connect("producer")
    ids = [producer.task("emails", b"%d." % number + bytes(20_000)) for number in range(40)]
    broker.kill()
    return broker, ids


def test_figures_of_each_segment(make_broker: Callable[..., Daemon]) -> None:
    broker, _ = filled(make_broker)
    ran = log("stats", broker, "--json")
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    assert len(found) >= 4
    assert sum(row["records"].get("Published", 0) for row in found) == 40
    assert sum(row["live"] for row in found) == 40
    full = found[1]
    assert 0.9 < full["amplification"] < 1.5
    assert full["live_bytes"] > 200_000
    header, first, *_ = log("stats", broker).stdout.splitlines()
    assert header.split()[:3] == ["segment", "batches", "bytes"]
    assert first.startswith("00000000000000000001.qlog")
    broker.start()
    ran = log("stats", broker)
    assert (ran.returncode, "is in use by another broker" in ran.stderr) == (73, True)


def test_verify_and_dump_for_programs(make_broker: Callable[..., Daemon]) -> None:
    broker, _ = filled(make_broker)
    found = json.loads(log("verify", broker, "--json").stdout)
    assert (found["oldest"], found["torn_bytes"]) == (1, 0)
    assert found["records"] > 40
    lines = [json.loads(line) for line in log("dump", broker, "--json").stdout.splitlines()]
    assert len(lines) == found["records"]
    assert {"position", "wall_ms", "type", "says"} == set(lines[0])


def damage(broker: Daemon) -> tuple[str, int]:
    """A bit of the second segment is another one; the broker's sentence, and its batch."""
    path = sorted((broker.data / "log").glob("*.qlog"))[1]
    content = bytearray(path.read_bytes())
    content[100_000] ^= 4
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(0o400)
    ran = log("verify", broker)
    assert ran.returncode == 65
    return ran.stderr, int(ran.stderr.split("--truncate-at ")[1].split('"')[0]) >> 20


def test_a_damaged_log_is_cut_when_somebody_accepts_what_that_loses(
    make_broker: Callable[..., Daemon],
) -> None:
    """A start refuses and names the tool; the tool says what is lost, and keeps it."""
    broker, ids = filled(make_broker)
    sentence, batch = damage(broker)
    assert f"{sorted((broker.data / 'log').glob('*.qlog'))[1].name} is damaged at byte" in sentence
    assert "qbroker log repair" in sentence
    with pytest.raises(AssertionError, match="ended at its start"):
        broker.start()
    assert broker.wait() == 65
    before = {path.name: path.read_bytes() for path in (broker.data / "log").glob("*.qlog")}
    # First it only says what would be lost
    ran = log("repair", broker, "--truncate-at", batch << 20)
    assert (ran.returncode, ran.stderr.startswith("qbroker: nothing was changed")) == (2, True)
    assert {p.name: p.read_bytes() for p in (broker.data / "log").glob("*.qlog")} == before
    lost = json.loads(log("repair", broker, "--truncate-at", batch << 20, "--json").stdout)
    assert 10 < lost["messages"]["emails"] < 35
    assert lost["records"]["Published"] == lost["messages"]["emails"]
    kept = 40 - lost["messages"]["emails"] - 1  # the damaged one cannot be read
    assert lost["ids"][0] == ids[kept + 1]
    assert "messages published to emails" in ran.stdout
    # Then it cuts
    ran = log("repair", broker, "--truncate-at", batch << 20, "--i-accept-data-loss")
    assert ran.returncode == 0, ran.stderr
    (cut,) = broker.data.glob("cut-*")
    for path in cut.glob("*.qlog"):
        assert path.read_bytes() == before[path.name]
    assert log("verify", broker).returncode == 0
    consumer = broker.start().connect()
    assert consumer.queue("emails")["ready"] == kept
    consumer.publish("emails", b"it goes on")


def test_a_cut_where_nothing_can_be_cut_is_refused(make_broker: Callable[..., Daemon]) -> None:
    broker, _ = filled(make_broker)
    _, batch = damage(broker)
    for position, sentence in (
        (1 << 20, "nothing would be left"),
        (batch + 2 << 20, f"cut at position {batch << 20}"),
    ):
        ran = log("repair", broker, "--truncate-at", position, "--i-accept-data-loss")
        assert (ran.returncode, sentence in ran.stderr) == (1, True), ran.stderr
    broker = make_broker("runs", **SMALL).start()
    ran = log("repair", broker, "--truncate-at", 5 << 20, "--i-accept-data-loss")
    assert (ran.returncode, "is in use by another broker" in ran.stderr) == (73, True)
