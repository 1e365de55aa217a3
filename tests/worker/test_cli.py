"""The command: what it refuses, and in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qworker.options import split_weights
from worker.workshop import APPS, Workshop


def qworker(*flags: str, cwd: Path = APPS) -> subprocess.CompletedProcess[str]:
    """The command's whole life, which is short where it refuses."""
    env = {
        **os.environ,
        "SHOP_BROKER": "qbroker://127.0.0.1:1",
        "SHOP_QUEUE": "q",
        "SHOP_MARKS": os.devnull,
        "SHOP_GATES": os.devnull,
    }
    program = str(Path(sys.executable).parent / "qworker")
    return subprocess.run(
        [program, *flags], cwd=cwd, env=env, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "Missing option '-A'"),
        (["-A", "nosuch"], 1, "there is no module 'nosuch'"),
        (["-A", "shop:nosuch"], 1, "has no 'nosuch'"),
        (["-A", "shop:ap"], 1, "did you mean -A shop:app?"),
        (["-A", "shop:mark"], 1, "is a function, not an App"),
        (["-A", "json"], 1, "has no App in it"),
        (["-A", "broken"], 1, "ZeroDivisionError"),
        (["-A", "shop", "-b", "redis://here"], 2, "it is written qbroker://host[:port]"),
        (["-A", "shop", "-Q", "a b"], 2, "holds ' ' at character 2"),
        (["-A", "shop", "-Q", "a:0,b"], 2, "a weight is from 1 to 1000"),
        (["-A", "shop", "-Q", "a:2,b", "--queue-order", "strict"], 2, "leave one of them out"),
        (["-A", "shop", "--queue-order", "random"], 2, "'strict', 'weighted'"),
        (["-A", "shop", "-P", "gevnt"], 2, "prefork"),
        (["-A", "shop", "-P", "solo", "-c", "2"], 2, "one task at a time"),
        (["-A", "shop", "-c", "-1"], 2, "from 1 to"),
        (["-A", "shop", "-P", "threads", "--time-limit", "5"], 2, "a thread cannot be stopped"),
        (["-A", "shop", "-P", "threads", "--soft-time-limit", "5"], 2, "the main thread only"),
        (["-A", "shop", "-P", "solo", "--max-tasks-per-child", "5"], 2, "not recycled"),
        (["-A", "shop", "--time-limit", "5", "--soft-time-limit", "9"], 2, "never be reached"),
        (["-A", "shop", "--max-memory-per-child", "lots"], 2, "is not a size"),
        (["-A", "limits", "-P", "threads"], 1, "the task limits.soft declares soft_time_limit"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(flags, code, said):
    """One sentence says what is wrong and what to do; the exit code says which kind it was."""
    ended = qworker(*flags)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr


def test_an_error_in_the_application_is_shown_once(tmp_path):
    """Its traceback, one line about it, and no second try."""
    (tmp_path / "bad.py").write_text("import nothing_like_it\n")
    ended = qworker("-A", "bad", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("ModuleNotFoundError: No module named 'nothing_like_it'") == 2
    assert ended.stderr.count("Traceback") == 1
    assert "qworker: cannot load the application 'bad'" in ended.stderr


def test_a_module_that_ends_its_process_is_told(tmp_path):
    """Not every module raises."""
    (tmp_path / "quits.py").write_text("import os\nos._exit(5)\n")
    ended = qworker("-A", "quits", cwd=tmp_path)
    assert ended.returncode == 1
    assert "exited with code 5" in ended.stderr


def test_a_pidfile_is_there_while_the_worker_is(prefork: Workshop, tmp_path):
    """It names the parent, keeps a second worker out, and goes with the first."""
    pidfile = tmp_path / "worker.pid"
    worker = prefork.worker("-c", "1", "--pidfile", str(pidfile))
    assert int(pidfile.read_text()) == worker.pid
    second = prefork.worker("--pidfile", str(pidfile), ready=False)
    assert second.exit_code() == 1
    assert f"as process {worker.pid}" in second.log
    assert worker.stop() == 0
    assert not pidfile.exists()


def test_weights_stand_behind_the_names_of_queues():
    queues, weights = split_weights(["a:5", "b", "c:d", "e:f:2"])
    assert queues == ["a", "b", "c:d", "e:f"]
    assert weights == {"a": 5, "e:f": 2}
