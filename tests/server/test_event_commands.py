"""Events from the command line, to a real daemon."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import msgpack
import pytest

from qbroker.ops.eventtexts import line
from qbroker.ops.exits import Exit
from qprotocol.frames import Event, Notify, Ok
from server.conftest import Daemon


def heard(daemon: Daemon, *listen: str, sent: tuple[str, ...]) -> CompletedProcess[str]:
    """What `event listen` says of an event that is sent until somebody listens."""
    with ThreadPoolExecutor(1) as threads:
        listening = threads.submit(daemon.ask, "event", "listen", *listen)
        deadline = time.monotonic() + 20
        while daemon.ask("event", "send", *sent).stdout != "1 listener told\n":
            assert time.monotonic() < deadline
        return listening.result()


@pytest.mark.e2e
def test_what_is_sent_is_heard(daemon: Daemon) -> None:
    done = heard(daemon, "shop.#", "--count", "1", sent=("shop.paid", '{"id": 17}'))
    assert (done.stdout, done.returncode) == ('shop.paid  {"id": 17}\n', 0)
    done = heard(daemon, "--json", "--count", "1", sent=("news", "no JSON"))
    assert json.loads(done.stdout) == {"topic": "news", "payload": "no JSON", "missed": 0}


@pytest.mark.e2e
def test_nobody_hears_what_does_not_fit_and_time_ends_a_listener(daemon: Daemon) -> None:
    found = json.loads(daemon.ask("event", "send", "shop.paid", "1", "--json").stdout)
    assert found == {"topic": "shop.paid", "listeners": 0}
    done = daemon.ask("event", "listen", "other.*", "--for", "1s")
    assert (done.stdout, done.returncode) == ("", 0)
    wrong = daemon.ask("event", "listen", "a.b*")
    assert wrong.returncode == Exit.USAGE
    assert "stands for whole words" in wrong.stderr
    assert daemon.ask("event", "send", "x" * 300, "1").returncode == Exit.USAGE


@pytest.mark.e2e
def test_an_application_and_the_command_line_hear_one_another(daemon: Daemon) -> None:
    peer = daemon.connect().shake_hands()
    with ThreadPoolExecutor(1) as threads:
        listening = threads.submit(daemon.ask, "event", "listen", "--count", "1")
        deadline, told = time.monotonic() + 20, 0
        while not told:
            assert time.monotonic() < deadline
            peer.say(Notify(correlation=3, topic="t", raw=msgpack.packb([1, "\x1b[2J"])))
            told = peer.expect(Ok).count
        assert listening.result().stdout == 't  [1, "\\u001b[2J"]\n'


def test_what_cannot_be_read_and_what_was_missed_is_said() -> None:
    event = Event(listener=1, topic="t\x1b", dropped=2, raw=b"\xc1")
    assert line(event, as_json=False) == 't?  "1 bytes"  (2 events missed before)'
