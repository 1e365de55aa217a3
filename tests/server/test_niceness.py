"""What works beside the broker leaves it the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import os
from pathlib import Path
from qbroker.ops import niceness
niceness.AUTOGROUP = Path(niceness.AUTOGROUP if {there} else "/proc/none")
niceness.give_way(7)
told = Path("/proc/self/autogroup")
print(os.nice(0), told.read_text().split()[-1] if told.exists() else "-")
"""


def in_a_session_of_its_own(*, there: bool) -> list[str]:
    """Niceness of a process that gave way, and of its session, which is its own."""
    return subprocess.run(
        [sys.executable, "-c", SHOW.format(there=there)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,
    ).stdout.split()


def test_a_process_in_a_session_of_its_own_makes_that_nice_too() -> None:
    nice, of_session = in_a_session_of_its_own(there=True)
    assert int(nice) == os.nice(0) + 7
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel knows no autogroups")
    assert of_session == "7"


def test_without_autogroups_its_own_niceness_is_all() -> None:
    nice, _ = in_a_session_of_its_own(there=False)
    assert int(nice) == os.nice(0) + 7
