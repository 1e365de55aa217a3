"""What stands in the log, character by character."""

import json
import logging
import re

import pytest

from qworker import logs
from qworker.logs import TaskLog, note

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: "


@pytest.fixture
def written(capfd):
    """Restores the root logger afterwards; gives what was written to standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capfd.readouterr().err
    root.handlers[:], root.level = handlers, level


def test_a_task_that_succeeded_is_one_line(written):
    """Name, id, queue, time and attempt, after a beginning like Celery's."""
    logs.set_up("INFO", "text", "child-1")
    log = TaskLog("text", "child-1")
    log.succeeded("shop.add", "id-1", "mail", 1_234_567, 2)
    log.flush()
    assert re.fullmatch(
        STAMP + r"INFO/child-1\] task succeeded name=shop.add id=id-1 queue=mail "
        r"run_ms=1\.2 attempt=2\n",
        written(),
    )


def test_the_same_line_as_json(written):
    """An object a line, with the same names."""
    logs.set_up("INFO", "json", "child-1")
    log = TaskLog("json", "child-1")
    log.succeeded("shop.add", "id-1", "mail", 1_234_567, 2)
    log.flush()
    found = json.loads(written())
    assert found.pop("at")
    assert found == {
        "level": "INFO",
        "logger": "qworker",
        "process": "child-1",
        "event": "task succeeded",
        "name": "shop.add",
        "id": "id-1",
        "queue": "mail",
        "run_ms": 1.235,
        "attempt": 2,
    }


def test_a_failure_has_its_traceback_below(written):
    """Values that are not one word are quoted; the traceback follows as it is."""
    logs.set_up("INFO", "text", "child-1")
    note(logging.ERROR, "task failed", trace="Traceback\n  here\n", name="a.b", error='no "x"')
    assert re.fullmatch(
        STAMP + r'ERROR/child-1\] task failed name=a\.b error="no \\"x\\""\nTraceback\n  here\n',
        written(),
    )


def test_an_applications_own_lines_look_alike(written):
    """Whoever logs through ``logging`` gets the same form."""
    logs.set_up("INFO", "json", "child-1")
    logging.getLogger("shop").warning("sold %s", "out")
    found = json.loads(written())
    assert (found["logger"], found["level"], found["event"]) == ("shop", "WARNING", "sold out")


def test_above_info_a_success_is_not_wanted(written):
    """The runner asks before it builds a line."""
    logs.set_up("WARNING", "text", "child-1")
    assert not TaskLog("text", "child-1").wanted
    assert written() == ""


@pytest.mark.parametrize("value", ["", "two words", 'a"b', "a=b", "line\nbreak"])
def test_quoted_values_can_be_read_back(value):
    """A value that is not one plain word stands as a JSON string."""
    assert json.loads(logs.shown(value)) == value
